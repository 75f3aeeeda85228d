"""What training takes in memory, part by part: predicted from sizes, before any weight is read, and measured.

| part | predicted from |
|---|---|
| weights | dense weights: 2 bytes each, or 4 if they train |
| residuals | 2 bytes for each weight of an adapted layer, with --keep-residual |
| codes, factors | the packed codes; scales and offsets as a small layer of the same block holds them |
| adapters | their float32 numbers |
| gradients, optimizer | 4 and 8 bytes for each number that trains; t-SignSGD keeps none |
| activations | what a forward pass of the longest micro-batch keeps for backward, on a model without memory |
| teacher | with --distill: 2 bytes for each weight of the teacher |
| logits | those of one part of the vocabulary's loss, and its gradients of x (`token_loss.py`) |

The process takes some hundred MB besides, most of them for torch itself, and dequantizes one layer at a time. With
--merge-into codes, one layer also has delta_W, its gradient, and the positions among the levels: 12 bytes a weight.
Those of lota are B A, its gradient and the codes' moves.
"""
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adapters.adapted import adapter_parameters
from adapters.held import free_memory
from adapters.rounded import RoundedLinear
from finetune.adapted_model import attach_adapters, residuals_to_keep
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
from model.token_loss import LOGITS_AT_ONCE
from quant.linear import QuantLinear, stored_bytes
from quant.spec import QuantSpec
from tasks.batching import collate
from tasks.task import Encoded

Parts = dict[str, float]  # bytes


def report_memory(source: Source, config: RunConfig, data: PreparedData) -> None:
    """Prints the table. A model that does not fit, or that GPTQ would quantize first, is predicted only."""
    rows = sorted(data.train, key=lambda e: len(e.tokens))[-config.training.micro_batch:]
    expected, found = predicted(planned_model(source, config), config, rows), None
    if sum(expected.values()) < 0.7 * free_memory(torch.device(config.compute.device)) and not config.base.by_gptq:
        residuals = residuals_to_keep(config, empty_model(source.config, torch.float32))
        model, _ = load_base(source, config.base, config.compute, None, residuals)
        found = measured(prepared(model, config, residuals), config, rows)
    print(f"{'MB':12} {'predicted':>10} {'measured':>10}")
    for part, size in {**expected, "all": sum(expected.values())}.items():
        of_part = sum(found.values()) if found and part == "all" else (found or {}).get(part)
        print(f"{part:12} {size / 1e6:10.1f} {'-' if of_part is None else f'{of_part / 1e6:.1f}':>10}")


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
            "activations": kept, "logits": of_logits(model, rows, bool(objective))}


def predicted(planned: Llama, config: RunConfig, rows: Sequence[Encoded]) -> Parts:
    """From a model on the meta device. Attention over more than `SHORT` tokens keeps no scores, so that activations
    grow with the tokens: those of shorter rows are scaled up."""
    planned.dtype = config.compute.torch_dtype
    planned.requires_grad_(config.adapter_kind is None)
    for p in adapter_parameters(planned).values():
        p.requires_grad_(True)
    planned.checkpointing = config.training.gradient_checkpointing
    codes = [m for m in planned.modules() if isinstance(m, QuantLinear)]
    coded = sum(m.in_features * m.out_features for m in codes)
    dense = numbers_of(planned) - sum(p.numel() for p in adapter_parameters(planned).values())
    teacher = teacher_source(config)
    T = max(len(e.tokens) for e in rows) - 1
    kept = kept_for_backward(planned.train(), torch.zeros(len(rows), min(T, SHORT), dtype=torch.long, device="meta"))
    return {"weights": dense * (4.0 if config.adapter_kind is None else 2.0),
            "codes": float(sum(m.codes.numel() for m in codes)),
            "factors": coded * factor_bytes(config.base.quantization),
            **({"residuals": of_residuals(planned)} if config.adapter.keep_residual else {}),
            "adapters": 4.0 * sum(p.numel() for p in adapter_parameters(planned).values()),
            **of_training(planned, config),
            **({"teacher": 2.0 * numbers_of(empty_model(teacher.config, torch.float32))} if teacher else {}),
            "activations": kept * max(1.0, T / SHORT), "logits": of_logits(planned, rows, bool(teacher))}


def of_residuals(model: Llama) -> float:
    kept = (m.residual for m in model.modules() if isinstance(m, RoundedLinear))
    return float(sum(2 * residual.numel() for residual in kept if residual is not None))


def factor_bytes(spec: QuantSpec | None) -> float:
    """Of scales and offsets, for each weight: those of a layer of 16 x 16 blocks. 0 for codes that the model brings."""
    if spec is None:
        return 0.0
    n_in = spec.block.n_in or 1024
    layer = QuantLinear.from_weight(spec.new_quantizer().quantize(torch.randn(16 * spec.block.n_out, 16 * n_in)))
    return (stored_bytes([layer]) - layer.codes.numel() - 4 * layer.levels.numel()) / (256 * n_in * spec.block.n_out)


def of_training(model: nn.Module, config: RunConfig) -> Parts:
    """AdamW has two moments of each number."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"gradients": 4.0 * trained, "optimizer": 4.0 * len(MOMENTS[config.training.optimizer]) * trained}


def numbers_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def of_logits(model: Llama, rows: Sequence[Encoded], taught: bool) -> float:
    """One part's logits and their gradient in the model's type, log-probabilities in float32; x and its gradient. With
    a teacher: its logits, log-probabilities, probabilities and x too."""
    targets, width = sum(len(e.learned) for e in rows), model.dtype.itemsize
    at_once = min(targets * model.config.vocab_size, LOGITS_AT_ONCE)
    of_model = at_once * (2.0 * width + 4) + 2.0 * targets * model.config.hidden_size * width
    return of_model + (at_once * (width + 8.0) + targets * model.config.hidden_size * width if taught else 0.0)


def kept_for_backward(model: Llama, tokens: Tensor) -> float:
    """Bytes of the tensors that a forward pass keeps. Parameters and buffers are not counted, and what
    several steps keep counts once."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # also keeps the storages alive, so that no number comes twice

    def keep(t: Tensor) -> Tensor:
        if t.untyped_storage()._cdata not in own:
            kept.setdefault(t.untyped_storage()._cdata, t)
        return t
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model.hidden(tokens)
    return float(sum(t.untyped_storage().nbytes() for t in kept.values()))
