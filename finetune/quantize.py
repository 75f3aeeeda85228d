"""A base quantized while it loads: by rounding each layer as it comes, or by GPTQ, one decoder layer at a time."""
import argparse
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor, nn
from tqdm import tqdm

from adapters.adapted import replace_layers
from finetune.arguments import DTYPES, make_quantizer, make_requantizer
from finetune.data import Calibration, Job
from finetune.methods import GPTQ
from finetune.models import Source, linear_names
from model.checkpoint import empty_model
from model.llama import DecoderLayer, Llama
from model.padding import pad_right
from quant.gptq import Hessian, LayerReport, quantize_by_gptq
from quant.grid import QuantizedWeight
from quant.linear import QuantLinear
from quant.quantizer import Quantizer
from tasks.batching import split_list

AT_A_TIME = 16  # calibration rows
SHOWN = 8       # worst layers printed


class WeightErrors:
    """||W - W_hat|| / ||W||, layer by layer and over all."""

    def __init__(self):
        self.squares: dict[str, tuple[float, float]] = {}

    def add(self, name: str, weight: Tensor, quantized: QuantizedWeight) -> None:
        error = weight.float() - quantized.dequantize()
        self.squares[name] = error.square().sum().item(), weight.float().square().sum().item()

    def overall(self) -> float:
        errors, sizes = zip(*self.squares.values())
        return (sum(errors) / sum(sizes)) ** 0.5

    def print_worst(self) -> None:
        relative = {name: (error / (size or 1.0)) ** 0.5 for name, (error, size) in self.squares.items()}
        worst = sorted(relative, key=relative.get, reverse=True)[:3]
        print("quantized; largest ||W - W_hat|| / ||W||: " + ", ".join(f"{name} {relative[name]:.3f}" for name in worst))


def quantized_layer(layer: nn.Module, weight: QuantizedWeight) -> QuantLinear:
    return QuantLinear.from_weight(weight, None if layer.bias is None else layer.bias.detach())


def how_quantized(args: argparse.Namespace) -> str:
    """`gptq on minmax 32x1, 4 bits`, and what is not as usual: two ways of quantizing have two names."""
    unusual = [", double-quantized"] * args.double_quant + [", act-order"] * args.act_order
    unusual += [f", {args.quantized_layers} only"] * (args.quantized_layers != "all")
    grid = f" on {args.grid}" if args.grid else ""
    return f"{args.quantizer}{grid} {args.block}, {args.bits} bits{''.join(unusual)}"


def load_base(source: Source, args: argparse.Namespace, job: Job | None) -> tuple[Llama, dict | None]:
    """The base of a method, quantized where `args` says so, and GPTQ's report for `quantization.json`; the job is for
    GPTQ alone. The worst layers are printed. Raises ValueError, naming the layer, for one that cannot be quantized."""
    if args.quantizer == "none":
        return source.load(DTYPES[args.dtype], args.device), None
    names, errors = linear_names(empty_model(source.config, torch.float32), args.quantized_layers), WeightErrors()
    if args.quantizer == GPTQ:
        model, bring = source.open(DTYPES[args.dtype], args.device)
        reports = gptq_model(model, bring, names, make_quantizer(args), args.act_order, job.calibration, errors)
        report = show_report(reports, job.calibration)
    else:
        model, report = source.load(DTYPES[args.dtype], args.device, rounding(names, make_quantizer(args), errors)), None
    errors.print_worst()
    return model, report


def requantize(model: Llama, args: argparse.Namespace, job: Job) -> tuple[float, dict | None]:
    """The dense target layers of a merged model as k bits again, in place: LOSSY. The relative error of the weights over all
    layers, and GPTQ's report."""
    names, errors, quantizer = linear_names(model, args.targets), WeightErrors(), make_requantizer(args)
    if args.requantize != GPTQ:
        replace_layers(model, names, rounding(names, quantizer, errors))
        return errors.overall(), None
    reports = gptq_model(model, lambda prefix: None, names, quantizer, args.act_order, job.calibration, errors)
    return errors.overall(), show_report(reports, job.calibration)


def rounding(names: list[str], quantizer: Quantizer, errors: WeightErrors) -> Callable[[str, nn.Module], nn.Module]:
    """The `change` of `load_model` that rounds the named layers to their grid."""
    def change(name: str, layer: nn.Module) -> nn.Module:
        if name not in names:
            return layer
        quantized = quantizer.quantize(layer.weight.detach(), name)
        errors.add(name, layer.weight, quantized)
        return quantized_layer(layer, quantized)
    return change


# ---- GPTQ ---------------------------------------------------------------------------------------------------------

@torch.no_grad()
def gptq_model(model: Llama, bring: Callable[[str], None], names: list[str], quantizer: Quantizer, act_order: bool,
               calibration: Calibration, errors: WeightErrors) -> list[LayerReport]:
    """Every named layer by GPTQ, in the order in which the model uses them. `bring(prefix)` loads the tensors whose names begin
    so: the memory holds one dense decoder layer, and the calibration rows' activations between two layers.

    Each layer is calibrated on what the quantized layers before it put out, those of its own decoder layer included; in float32,
    whatever the model otherwise computes in. Raises CalibrationError and ValueError with the layer's name."""
    bring("model.embed_tokens.")
    kept, model.dtype = model.dtype, torch.float32
    batches = [Batch(model, rows) for rows in split_list(sorted(calibration.rows, key=len), AT_A_TIME)]
    model.dtype, reports = kept, []
    bar = tqdm(model.model.layers, desc=GPTQ, unit="layer", disable=None)
    for i, block in enumerate(bar):
        bring(f"model.layers.{i}.")
        for stage in block.stages:
            targets = [name for name in stage if f"model.layers.{i}.{name}" in names]
            if targets:
                hessian = collect(block, targets[0], batches)
                quantize_stage(block, targets, f"model.layers.{i}", hessian, quantizer, act_order, errors, reports)
        for batch in batches:
            batch.x = batch.through(block)
        bar.set_postfix(worst=f"{max(r.gptq_error for r in reports):.1e}" if reports else "-")
    bring("model.norm.")
    bring("lm_head.")
    model.tie_weights()
    return reports


class Batch:
    """Calibration rows, padded on the right, on their way through the decoder layers."""

    def __init__(self, model: Llama, rows: list[list[int]]):
        tokens, self.real = pad_right(rows)
        self.x, self.cos, self.sin, self.allowed = model.embed(tokens.to(model.device))

    def through(self, block: DecoderLayer) -> Tensor:
        return block(self.x, self.cos, self.sin, self.allowed, None)


def collect(block: DecoderLayer, name: str, batches: list[Batch]) -> Hessian:
    """H of the inputs that the named layer of `block` gets from the rows' real tokens."""
    layer = block.get_submodule(name)
    hessian = Hessian(layer.in_features, device=layer.weight.device)
    for batch in batches:
        hook = layer.register_forward_pre_hook(lambda module, inputs: hessian.add(inputs[0][batch.real.to(inputs[0].device)]))
        try:
            batch.through(block)
        finally:
            hook.remove()
    return hessian


def quantize_stage(block: DecoderLayer, names: list[str], prefix: str, hessian: Hessian, quantizer: Quantizer, act_order: bool,
                   errors: WeightErrors, reports: list[LayerReport]) -> None:
    """Layers that read the same input, by one H."""
    def change(name: str, layer: nn.Module) -> QuantLinear:
        weight, whole_name = layer.weight.detach(), f"{prefix}.{name}"
        quantized, report = quantize_by_gptq(weight, hessian, quantizer, act_order, whole_name)
        errors.add(whole_name, weight, quantized)
        reports.append(report)
        return quantized_layer(layer, quantized)
    replace_layers(block, names, change)


def show_report(reports: list[LayerReport], calibration: Calibration) -> dict:
    """Prints the layers with the largest output error, and every one that ended above plain rounding; all of them go into
    the returned dict, worst first."""
    reports = sorted(reports, key=lambda r: r.gptq_error, reverse=True)
    print(f"gptq, calibrated on {calibration.source}: {len(calibration.rows)} rows; worst layers by relative output error "
          f"tr((W - W_hat) H (W - W_hat)^T) / tr(W H W^T)")
    print(f"  {'layer':<36} {'tokens':>8} {'damping':>8} {'dead':>5} {'gptq':>10} {'rounding':>10}")
    for r in reports[:SHOWN]:
        print(f"  {r.layer:<36} {r.tokens:>8} {r.damping:>8g} {r.dead_columns:>5} {r.gptq_error:>10.2e} {r.rounding_error:>10.2e}")
    for r in (r for r in reports if r.above_rounding):
        print(f"  ABOVE ROUNDING: {r.layer}: {r.gptq_error:.2e} by gptq, {r.rounding_error:.2e} by rounding")
    return {"calibration": calibration.to_json(), "layers": [{**asdict(r), "above_rounding": r.above_rounding} for r in reports]}
