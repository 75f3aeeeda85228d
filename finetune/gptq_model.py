"""GPTQ over a model: every layer calibrated on what the quantized layers before it put out."""
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn
from tqdm import tqdm

from adapters.adapted import replace_layers
from model import processes
from model.llama import DecoderLayer, Llama
from model.padding import pad_right
from quant.gptq import Hessian, LayerReport, quantize_by_gptq
from quant.grid import QuantizedWeight
from quant.quantizer import Quantizer
from tasks.batching import split_list

AT_A_TIME = 16  # calibration rows
SHOWN = 8       # worst layers printed
# (name, dense layer, its codes) -> the layer that takes its place
Made = Callable[[str, nn.Module, QuantizedWeight], nn.Module]


@torch.no_grad()
def gptq_model(model: Llama, bring: Callable[[str], None], names: list[str], quantizer: Quantizer, act_order: bool,
               rows: Sequence[list[int]], made: Made,
               done: Callable[[str], None] = lambda prefix: None) -> list[LayerReport]:
    """Quantizes every named layer, in the order in which the model uses them, on calibration rows of token ids.
    `bring(prefix)` loads the tensors whose names begin so: memory holds one dense decoder layer, and the rows'
    activations between two layers. `done(prefix)` is called when a decoder layer is not needed any more.

    Activations are float32, whatever the model otherwise computes in. Raises CalibrationError and ValueError, naming
    the layer."""
    bring("model.embed_tokens.")
    kept, model.dtype = model.dtype, torch.float32
    parts = split_list(sorted(rows, key=len), AT_A_TIME)
    batches = [CalibrationBatch(model, part) for part in processes.stretch(parts, [len(part[-1]) for part in parts])]
    model.dtype = kept
    reports: list[LayerReport] = []
    bar = tqdm(model.model.layers, desc="gptq", unit="layer", disable=None)
    for i, layer in enumerate(bar):
        prefix = f"model.layers.{i}."
        bring(prefix)
        for half, stages in enumerate(layer.halves):
            for stage in stages:
                targets = [name for name in stage if prefix + name in names]
                if targets:
                    hessian = collect(layer, half, targets[0], batches)
                    reports += quantize_stage(layer, targets, prefix, hessian, quantizer, act_order, made)
            for batch in batches:
                batch.x = batch.through(layer, half)
        done(prefix)
        bar.set_postfix(worst=f"{max(r.gptq_error for r in reports):.1e}" if reports else "-")
    bring("model.norm.")
    bring("lm_head.")
    model.tie_weights()
    return reports


class CalibrationBatch:
    """Calibration rows, padded on the right, on their way through the decoder layers."""

    def __init__(self, model: Llama, rows: list[list[int]]):
        tokens, self.real = pad_right(rows)
        self.x, self.angles, self.allowed = model.embed(tokens.to(model.device))

    def through(self, layer: DecoderLayer, half: int) -> Tensor:
        """Through attention (half 0) or the MLP (half 1). Where a stage begins, a whole layer need not be computed
        again."""
        return layer.with_mlp(self.x) if half else layer.with_attention(self.x, self.angles, self.allowed, None)


class Reached(Exception):
    """The wanted inputs are there; what the decoder layer computes from them is not needed."""


def collect(decoder_layer: DecoderLayer, half: int, name: str, batches: list[CalibrationBatch]) -> Hessian:
    """H of the inputs that the named linear layer, in this half, gets from the rows' real tokens; of several
    processes, from the rows of all."""
    layer = decoder_layer.get_submodule(name)
    hessian, held = Hessian(layer.in_features, device=layer.weight.device), list[Tensor]()
    use = held.append if processes.size() > 1 else hessian.add
    for batch in batches:
        def add(module, inputs, real=batch.real):
            use(inputs[0][real.to(inputs[0].device)])
            raise Reached
        hook = layer.register_forward_pre_hook(add)
        try:
            batch.through(decoder_layer, half)
        except Reached:
            pass
        finally:
            hook.remove()
    if processes.size() > 1:
        add_in_turn(hessian, held)
    return hessian


def add_in_turn(hessian: Hessian, held: Sequence[Tensor]) -> None:
    """The sum of one process, to the last bit: each process adds its inputs to the sum of the one before it, and the
    last one's sum is that of all. GPTQ would make other codes of a sum in another order. Processes work at the same
    time on blocks that follow each other."""
    sent = []
    for start, block in hessian.blocks():
        processes.from_previous(block)
        for x in held:
            hessian.add_to(block, x, start)
        sent.append(processes.to_next(block))
    processes.settle(sent)
    processes.spread(hessian.sum, processes.size() - 1)
    hessian.tokens = sum(processes.gather(sum(map(len, held))))


def quantize_stage(decoder_layer: DecoderLayer, names: list[str], prefix: str, hessian: Hessian, quantizer: Quantizer,
                   act_order: bool, made: Made) -> list[LayerReport]:
    """Layers that read the same input, by one H."""
    reports = []

    def change(name: str, layer: nn.Module) -> nn.Module:
        quantized, report = quantize_by_gptq(layer.weight.detach(), hessian, quantizer, act_order, prefix + name)
        reports.append(report)
        return made(prefix + name, layer, quantized)
    replace_layers(decoder_layer, names, change)
    return reports


def show_report(reports: list[LayerReport], source: str, rows: int) -> dict:
    """Prints the layers with the largest output error, and each one that ended above plain rounding. Returns all, worst
    first."""
    reports = sorted(reports, key=lambda r: r.gptq_error, reverse=True)
    print(f"gptq, calibrated on {source}: {rows} rows; worst layers by relative output error tr((W - W_hat) H (W - "
          "W_hat)^T) / tr(W H W^T)")
    print(f"  {'layer':<36} {'tokens':>8} {'damping':>8} {'dead':>5} {'gptq':>10} {'rounding':>10}")
    for r in reports[:SHOWN]:
        print(f"  {r.layer:<36} {r.tokens:>8} {r.damping:>8g} {r.dead_columns:>5} {r.gptq_error:>10.2e} "
              f"{r.rounding_error:>10.2e}")
    for r in (r for r in reports if r.above_rounding):
        print(f"  ABOVE ROUNDING: {r.layer}: {r.gptq_error:.2e} by gptq, {r.rounding_error:.2e} by rounding")
    return {"layers": [{**asdict(r), "above_rounding": r.above_rounding} for r in reports]}
