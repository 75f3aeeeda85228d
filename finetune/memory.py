"""What training takes in memory, part by part: predicted from sizes, before any weight is read, and measured.

| part | predicted from |
|---|---|
| weights | dense weights: 2 bytes each, or 4 if they train |
| residuals | 2 bytes for each weight of an adapted layer, with --keep-residual |
| codes, factors | the packed codes; scales and offsets as a small layer of the same block holds them |
| adapters | their float32 numbers |
| gradients, optimizer | 4 and 8 bytes for each number that trains; t-SignSGD keeps none |
| activations | what a forward pass of the longest micro-batch keeps for backward, on a model without memory. The |
|  | last MLP counts with all tokens; training keeps what it computes for learned tokens only |
| teacher | with --distill: 2 bytes for each weight of the teacher |
| logits | those of one part of the vocabulary's loss, and its gradients of x (`token_loss.py`) |
| working | the largest layer's weights as it computes, and the gradients of its inputs and outputs; with |
|  | --gradient-checkpointing also what a decoder layer keeps while it is computed again |

The process takes some hundred MB besides, most of them for torch itself. With --merge-into codes, the layer at work
also has delta_W, its gradient, and the positions among the levels: 12 bytes a weight.
Those of lota are B A, its gradient and the codes' moves.

--nproc N: what one of N processes takes that train together (`by_process.py`).
"""
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from adapters.adapted import adapter_parameters
from adapters.held import free_memory
from adapters.rounded import RoundedLinear
from finetune.adapted_model import attach_adapters, residuals_to_keep
from finetune.by_process import ALONE, Parts, Processes, moved_in_a_step, of_layers, of_process
from finetune.checks import planned_model
from finetune.config import RunConfig
from finetune.data import PreparedData
from finetune.distillation import objective_of, teacher_source
from finetune.optimizer import MOMENTS
from finetune.quantize import load_base
from finetune.residual import Residuals
from finetune.source import Source
from model.checkpoint import empty_model
from model.llama import SHORT, Llama
from model.token_loss import tokens_at_once
from quant.linear import QuantLinear, stored_bytes
from quant.spec import QuantSpec
from tasks.batching import collate
from tasks.task import Encoded


def report_memory(source: Source, config: RunConfig, data: PreparedData, processes: Processes = ALONE) -> None:
    """Prints the table. A model that does not fit, that GPTQ would quantize first, or that several processes train, is
    predicted only."""
    rows = sorted(data.train, key=lambda e: len(e.tokens))[-processes.rows_at_a_time(config):]
    planned = planned_model(source, config)
    expected, found = predicted(planned, config, rows, processes), None
    fits = sum(expected.values()) < 0.7 * free_memory(torch.device(config.compute.device))
    if fits and not config.base.by_gptq and processes == ALONE:
        residuals = residuals_to_keep(config, empty_model(source.config, torch.float32))
        model, _ = load_base(source, config.base, config.compute, None, residuals)
        found = {**measured(prepared(model, config, residuals), config, rows), "working": expected["working"]}
    print(f"{'MB':12} {'predicted':>10} {'measured':>10}")
    for part, size in {**expected, "all": sum(expected.values())}.items():
        of_part = sum(found.values()) if found and part == "all" else (found or {}).get(part)
        print(f"{part:12} {size / 1e6:10.1f} {'-' if of_part is None else f'{of_part / 1e6:.1f}':>10}")
    if processes != ALONE:
        print(f"each of {processes}: {len(rows)} rows at a time; "
              + ", ".join(f"{size / 1e6:.1f} MB" + f" for {what}" for what, size in moved(planned, config, processes)
                          .items()) + " sent and received in a step")


def prepared(model: Llama, config: RunConfig, residuals: Residuals | None = None) -> Llama:
    """The model as it trains."""
    if config.adapter_kind is None:
        model.float().requires_grad_(True)
    else:
        attach_adapters(model, config, residuals and residuals.__getitem__)
    model.checkpointing = config.training.gradient_checkpointing
    return model.train()


def measured(model: Llama, config: RunConfig, rows: Sequence[Encoded]) -> Parts:
    codes = [m for m in model.modules() if isinstance(m, QuantLinear)]
    packed = float(sum(m.codes.numel() for m in codes))
    adapters = 4.0 * sum(p.numel() for p in adapter_parameters(model).values())
    factors = stored_bytes(list(codes)) - packed
    kept = kept_for_backward(model, collate(rows, model.device).tokens)
    residuals, objective = of_residuals(model), objective_of(config)
    return {"weights": stored_bytes([model]) - packed - factors - adapters - residuals, "codes": packed,
            "factors": factors, **({"residuals": residuals} if residuals else {}), "adapters": adapters,
            **of_training(model, config), **({"teacher": stored_bytes([objective.teacher])} if objective else {}),
            "activations": kept, "logits": of_logits(model, rows, model.device.type, bool(objective))}


def predicted(planned: Llama, config: RunConfig, rows: Sequence[Encoded], processes: Processes = ALONE) -> Parts:
    """From a model on the meta device; `rows`: those that a process holds at a time."""
    planned.dtype = config.compute.torch_dtype
    planned.train().checkpointing = config.training.gradient_checkpointing
    freeze(planned, config)
    teacher = teacher_source(config)
    return {**of_process(of_base(planned, config), planned, processes),
            "adapters": 4.0 * sum(p.numel() for p in adapter_parameters(planned).values()),
            **of_training(planned, config),
            **({"teacher": 2.0 * numbers_of(empty_model(teacher.config, torch.float32))} if teacher else {}),
            "activations": planned_activations(planned, rows),
            "logits": of_logits(planned, rows, config.compute.device, bool(teacher)), "working": of_work(planned, rows)}


def moved(planned: Llama, config: RunConfig, processes: Processes) -> Parts:
    """Bytes that a process sends and receives in a step."""
    freeze(planned, config)
    layers = of_layers(of_base(planned, config), planned)
    return moved_in_a_step(sum(layers.values()), trained_numbers(planned), config, processes)


def freeze(planned: Llama, config: RunConfig) -> None:
    """All but what trains."""
    planned.requires_grad_(config.adapter_kind is None)
    for p in adapter_parameters(planned).values():
        p.requires_grad_(True)


def of_base(planned: Llama, config: RunConfig) -> Parts:
    codes = [m for m in planned.modules() if isinstance(m, QuantLinear)]
    coded = sum(m.in_features * m.out_features for m in codes)
    dense = numbers_of(planned) - sum(p.numel() for p in adapter_parameters(planned).values())
    return {"weights": dense * (4.0 if config.adapter_kind is None else 2.0),
            "codes": float(sum(m.codes.numel() for m in codes)),
            "factors": coded * factor_bytes(config.base.quantization),
            **({"residuals": of_residuals(planned)} if config.adapter.keep_residual else {})}


def of_residuals(model: Llama) -> float:
    kept = (m.residual for m in model.modules() if isinstance(m, RoundedLinear))
    return float(sum(2 * residual.numel() for residual in kept if residual is not None))


def planned_activations(planned: Llama, rows: Sequence[Encoded]) -> float:
    """What a forward pass keeps. Attention over more than `SHORT` tokens keeps no scores, so that activations grow with
    the tokens: those of shorter rows are scaled up."""
    T = max(len(e.tokens) for e in rows) - 1
    tokens = torch.zeros(len(rows), min(T, SHORT), dtype=torch.long, device="meta")
    return kept_by_layers(planned, tokens) * max(1.0, T / SHORT)


def kept_by_layers(planned: Llama, tokens: Tensor) -> float:
    """As `kept_for_backward`. Of layers that are alike, the second keeps what all further ones keep."""
    layers, config = planned.model.layers, planned.config
    kinds = {(config.window(i), config.rotary(i), *map(type, layer.modules())) for i, layer in enumerate(layers)}
    if len(kinds) > 1 or len(layers) < 3:
        return kept_for_backward(planned, tokens)
    so_far: list[float] = []
    hook = layers[0].register_forward_hook(lambda *_: so_far.append(bytes_of(kept)))
    kept: dict[int, Tensor] = {}
    try:
        planned.model.layers = layers[:2]
        both = kept_for_backward(planned, tokens, kept)
    finally:
        planned.model.layers = layers
        hook.remove()
    return both + (len(layers) - 2) * (both - so_far[0])


@cache
def factor_bytes(spec: QuantSpec | None) -> float:
    """Of scales and offsets, for each weight: those of a layer of 16 x 16 blocks. 0 for codes that the model brings."""
    if spec is None:
        return 0.0
    n_in = spec.block.n_in or 1024
    layer = QuantLinear.from_weight(spec.new_quantizer().quantize(torch.randn(16 * spec.block.n_out, 16 * n_in)))
    return (stored_bytes([layer]) - layer.codes.numel() - 4 * layer.levels.numel()) / (256 * n_in * spec.block.n_out)


def of_training(model: nn.Module, config: RunConfig) -> Parts:
    """AdamW has two moments of each number."""
    trained = trained_numbers(model)
    return {"gradients": 4.0 * trained, "optimizer": 4.0 * len(MOMENTS[config.training.optimizer]) * trained}


def trained_numbers(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def numbers_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def of_logits(model: Llama, rows: Sequence[Encoded], device: str, taught: bool) -> float:
    """One part's logits and their gradient in the model's type, log-probabilities in float32; x and its gradient. With
    a teacher: its logits, log-probabilities, probabilities and x too."""
    targets, width, vocab = sum(len(e.learned) for e in rows), model.dtype.itemsize, model.config.vocab_size
    at_once = vocab * min(targets, tokens_at_once(vocab, model.lm_head.weight.requires_grad, device.partition(":")[0]))
    of_model = at_once * (2.0 * width + 4) + 2.0 * targets * model.config.hidden_size * width
    return of_model + (at_once * (width + 8.0) + targets * model.config.hidden_size * width if taught else 0.0)


def of_work(planned: Llama, rows: Sequence[Encoded]) -> float:
    """The largest of the decoder's linear layers, dequantized or cast, the gradients of its input and output, and a
    decoder layer's activations if they are computed again."""
    width, config = planned.dtype.itemsize, planned.config
    tokens, again = len(rows) * (max(len(e.tokens) for e in rows) - 1), 0.0
    if planned.checkpointing:
        planned.checkpointing = False
        again = planned_activations(planned, rows) / config.num_hidden_layers
        planned.checkpointing = True
    return width * config.intermediate_size * (config.hidden_size + 2.0 * tokens) + again


def kept_for_backward(model: Llama, tokens: Tensor, kept: dict[int, Tensor] | None = None) -> float:
    """Bytes of the tensors that a forward pass keeps. Parameters and buffers are not counted, and what
    several steps keep counts once. `kept`: is filled with them meanwhile."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept = {} if kept is None else kept  # also keeps the storages alive, so that no number comes twice

    def keep(t: Tensor) -> Tensor:
        if t.untyped_storage()._cdata not in own:
            kept.setdefault(t.untyped_storage()._cdata, t)
        return t
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model.hidden(tokens)
    return bytes_of(kept)


def bytes_of(kept: dict[int, Tensor]) -> float:
    return float(sum(t.untyped_storage().nbytes() for t in kept.values()))
