"""From what a command line says to a configuration: every default that depends on another flag, and every check that
needs no file. Each function returns a new object and raises ValueError for values that do not go together."""
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from adapters import ADAPTERS
from adapters.lam import Lam
from adapters.rounded import SPREAD
from finetune.config import (
    AdapterConfig,
    BaseConfig,
    ComputeConfig,
    DataConfig,
    EvaluationConfig,
    RunConfig,
    ScoringConfig,
    TrainingConfig,
    flag,
    flat,
)
from finetune.methods import METHODS, TARGETS, Method
from finetune.optimizer import ADAMW
from model.files import say_once
from quant.grid import Block
from quant.spec import DEFAULT_BITS, GPTQ, QuantSpec
from tasks.own_rows import AUTO

Given = Mapping[str, Any]  # field -> value, as the command line says it
Config = TypeVar("Config", bound=ScoringConfig)
EVEN = ("minmax", "intminmax", "absmax")  # grids whose levels are consecutive whole numbers
NO_RATE = "steps ternary numbers by t-SignSGD, which is not AdamW and has no learning rate: leave it out"
GPTQ_FIELDS = tuple(f.name for f in fields(BaseConfig) if f.metadata.get("only") == GPTQ)


def part(kind: type, given: Given, **more) -> Any:
    """One part of the configuration: its fields out of `given`, and defaults."""
    return kind(**{f.name: given[f.name] for f in fields(kind) if f.name in given and f.name not in more}, **more)


def absolute(given: Given) -> dict[str, Any]:
    """Paths become absolute, so that a run can be scored from any directory."""
    return {name: value.resolve() if isinstance(value, Path) else value for name, value in given.items()}


def data_of(given: Given) -> DataConfig:
    """Rows without a task are a user's own."""
    own = "task" not in given and given.get("data") is not None
    return part(DataConfig, given, **({"task": AUTO} if own else {}))


# ---- a run ----------------------------------------------------------------------------------------------------------

def resolve_run(given: Given) -> RunConfig:
    """The configuration of train.py's flags. `lam` is None if it follows the block of a model that holds codes already:
    `checks.with_codes_of_base` knows that block."""
    given = absolute(given)
    name = given.get("method", "qablora")
    method = METHODS[name]
    refuse_useless(given, name)
    refuse_quantization_of_16_bits(given, name)
    quantization = quantization_of(given, method.quantizer, name)
    base = part(BaseConfig, given, quantization=quantization)
    spreads = given.get("merge_into") and not given.get("keep_residual")
    adapter = part(AdapterConfig, given, lam=lam_of(given, method, base.block), begins=SPREAD if spreads else None)
    if quantization and method.adapter and not set(TARGETS[adapter.targets]) <= set(TARGETS[base.quantized_layers]):
        raise ValueError(f"--targets {adapter.targets} adapts layers that --quantized-layers {base.quantized_layers} "
                         f"leaves in 16 bits: quantize them too, or adapt fewer")
    requantize = requantization_of(given, base.bits)
    check_gptq_fields(given, base.by_gptq or bool(requantize and requantize.by_gptq))
    data = data_of(given)
    if "steps" in given and "epochs" in given:
        say_once(f"--epochs {given['epochs']} has no effect: --steps {given['steps']} goes before it")
    rows = given.get("batch_size", TrainingConfig.batch_size)
    training = part(TrainingConfig, given, lr=given.get("lr", method.lr), optimizer=method.optimizer,
                    micro_batch=min(given.get("micro_batch", rows), rows))
    compute = part(ComputeConfig, given)
    check_graphs(training, compute)
    check_rounding(adapter)
    check_residual(adapter, quantization)
    check_distillation(base, training)
    check_goes_with_sharing(training, adapter, name)
    return RunConfig(base, data, part(EvaluationConfig, given, requantize=requantize), compute, name, adapter, training)


def check_graphs(training: TrainingConfig, compute: ComputeConfig) -> None:
    if training.cuda_graphs and not compute.device.startswith("cuda"):
        raise ValueError(f"--cuda-graphs goes with --device cuda only, and the device is {compute.device}: leave it "
                         f"out")
    if training.cuda_graphs and training.gradient_checkpointing:
        raise ValueError("--cuda-graphs does not go with --gradient-checkpointing, whose second forward pass cannot be "
                         "recorded: give one of the two")


def check_goes_with_sharing(training: TrainingConfig, adapter: AdapterConfig, name: str) -> None:
    """Flags alone; `sharded.check_sharing` looks at processes and base."""
    if not training.shard_base:
        return
    if adapter.keep_residual:
        raise ValueError("--shard-base does not go with --keep-residual yet, which every process would hold whole: "
                         "give one of the two")
    if training.distill is not None:
        raise ValueError("--shard-base does not go with --distill yet, whose teacher every process would hold whole: "
                         "give one of the two")
    if METHODS[name].adapter is None:
        raise ValueError(f"--shard-base shares a frozen base, and --method {name} trains all of it: leave it out")
    if training.cuda_graphs:
        raise ValueError("--shard-base does not go with --cuda-graphs, which cannot record what processes tell each "
                         "other: give one of the two")


def check_rounding(adapter: AdapterConfig) -> None:
    if adapter.merge_into and adapter.dropout:
        raise ValueError(f"--dropout {adapter.dropout} does not go with --merge-into {adapter.merge_into}, where the "
                         f"adapter has no input of its own: leave one of them out")


def check_residual(adapter: AdapterConfig, quantization: QuantSpec | None) -> None:
    if adapter.keep_residual and not adapter.merge_into:
        raise ValueError("--keep-residual goes with --merge-into codes only: give both, or leave it out")
    if adapter.keep_residual and quantization is None:
        raise ValueError("--keep-residual keeps what quantizing takes from the original weights, and this base is not "
                         "quantized here: give --quantizer and a dense model, or leave it out")


def check_distillation(base: BaseConfig, training: TrainingConfig) -> None:
    if training.distill_from and not training.distill:
        raise ValueError(f"--distill-from {training.distill_from} goes with --distill only: give both")
    if training.distill and not (base.quantization or training.distill_from):
        raise ValueError("--distill learns from the model before it was quantized, and this run quantizes nothing: its "
                         "base would be its own teacher, or holds codes whose original is not there. Name a teacher "
                         "with --distill-from, or leave --distill out")
    if training.distill and training.cuda_graphs:
        raise ValueError("--cuda-graphs does not go with --distill yet: leave it out")


def refuse_useless(given: Given, name: str) -> None:
    """Raises ValueError for a flag that the method has no use for."""
    adapter = METHODS[name].adapter
    if "find_lr" in given and METHODS[name].lr is None:
        raise ValueError(f"--find-lr does not go with --method {name}, which {NO_RATE}")
    kind = ADAPTERS[adapter] if adapter else None
    taken = (*kind.options, *(["dropout", "merge_into", "keep_residual"] if kind.additive else [])) if kind else ()
    for f, _ in flat(RunConfig()):
        only, reason = f.metadata.get("only"), None
        if only == "full" and adapter:
            reason = "trains an adapter on the weights of a checkpoint: leave it out, or use --method full"
        elif only == "adapter" and not adapter:
            reason = "has no adapter"
        elif only == "adapter" and f.name not in taken:
            reason = "has no use for it"
        elif f.name == "requantize" and not adapter:
            reason = "has nothing to merge"
        elif only == ADAMW and METHODS[name].optimizer != ADAMW:
            reason = NO_RATE
        if reason and f.name in given:
            raise ValueError(f"{flag(f.name)} does not go with --method {name}, which {reason}")


def refuse_quantization_of_16_bits(given: Given, name: str) -> None:
    if METHODS[name].quantizer != "none":
        return
    asked = given.get("quantizer", "none") != "none" or given.get("bits", 16) != 16 or any(
        given.get(f) for f in ("block", "double_quant", "grid", "act_order", "quantized_layers"))
    if asked:
        hint = f"; use --method q{name}" if f"q{name}" in METHODS else ""
        raise ValueError(f"--method {name} trains on the base as it is, so --quantizer, --bits, --block, --grid, "
                         f"--double-quant, --act-order and --quantized-layers do not go with it{hint}")


def lam_of(given: Given, method: Method, block: Block | None) -> Lam | None:
    if "lam" in given or method.lam is None:
        return given.get("lam")
    if method.lam != "block":
        return Lam.parse(method.lam)
    if block and block.n_in is None:
        raise ValueError(f"--block {block} has no number of inputs that lam could follow: give --lam")
    return Lam(block.n_in, block.n_out) if block else None


# ---- quantization ---------------------------------------------------------------------------------------------------

def quantization_of(given: Given, usual: str, method: str | None = None) -> QuantSpec | None:
    """What --quantizer, --bits, --block, --grid, --double-quant and --act-order come to. 16 bits and no quantizer mean
    the same."""
    quantizer = given.get("quantizer", usual)
    if quantizer == "none":
        names = [f.name for f in fields(QuantSpec) if f.name in given and given[f.name] not in ("none", 16)]
        if names or "quantized_layers" in given:
            names += ["quantized_layers"] * ("quantized_layers" in given)
            raise ValueError(f"--quantizer none keeps the base as it is: {', '.join(map(flag, names))} does not go "
                             "with it")
        return None
    row = METHODS[method] if method else None
    needed = row and row.grid
    block = given.get("block") or (Block.parse(row.block) if row and row.block else None)
    grid = given.get("grid", needed if quantizer == GPTQ else None)
    if needed and quantizer != needed and not (quantizer == GPTQ and grid == needed):
        raise ValueError(f"--method {method} trains the scales of a grid with integer zero points, which "
                         f"{grid or quantizer} is not: use --quantizer {needed}, or --quantizer {GPTQ} --grid {needed}")
    spec = QuantSpec.of(quantizer, given.get("bits", DEFAULT_BITS), block, grid,
                        given.get("double_quant", False), given.get("act_order", False))
    if row and row.even and spec.grid_name not in EVEN:
        raise ValueError(f"--method {method} moves codes by steps of an even grid, which {spec.grid_name} is not: use "
                         f"--quantizer {', '.join(EVEN)}, or --quantizer {GPTQ} with one of them as --grid")
    return spec


def requantization_of(given: Given, bits: int) -> QuantSpec | None:
    """--requantize, with the run's own bits unless it names others."""
    text = given.get("requantize")
    return QuantSpec.parse(text, bits if bits < 16 else DEFAULT_BITS) if text else None


def check_gptq_fields(given: Given, by_gptq: bool) -> None:
    if unused := [name for name in GPTQ_FIELDS if name in given and not by_gptq]:
        raise ValueError(f"{', '.join(map(flag, unused))} goes with {GPTQ} only, which is not asked for here")


# ---- scoring --------------------------------------------------------------------------------------------------------

def resolve_scoring(given: Given) -> ScoringConfig:
    """Of a model without a run: as it is, or min-max if --bits or --block ask for codes."""
    asks_for_codes = given.get("block") or given.get("bits", 16) != 16
    quantization = quantization_of(given, "minmax" if asks_for_codes else "none")
    base = part(BaseConfig, given, quantization=quantization)
    check_gptq_fields(given, base.by_gptq)
    return ScoringConfig(base, data_of(given), part(EvaluationConfig, given), part(ComputeConfig, given))


def rescored(config: RunConfig, given: Given) -> RunConfig:
    """A run's configuration with the flags of a scoring. On another task than its own, what the run says of its rows
    does not hold."""
    other_task = given.get("task", config.data.task) != config.data.task
    facts = {f.name: f for f, _ in flat(config)}
    may_change = [name for name, f in facts.items()
                  if f.metadata.get("rescore") or other_task and f.metadata.get("of_task")]
    for name in given:
        if name not in may_change:
            raise ValueError(f"{flag(name)} comes from the run and cannot be changed; a run takes "
                             + ", ".join(map(flag, may_change)))
    refuse_useless(given, config.method)
    if other_task:
        config = replace(config, data=DataConfig(seed=config.data.seed))
    requantize = requantization_of(given, config.base.bits) if "requantize" in given else config.evaluation.requantize
    return with_values(config, {**given, "requantize": requantize})


def with_values(config: Config, values: Given) -> Config:
    """A new configuration with these fields, wherever among the parts they are."""
    parts = {}
    for f in fields(config):
        part_of = getattr(config, f.name)
        if not f.metadata:
            changed = {g.name: values[g.name] for g in fields(part_of) if g.name in values}
            parts[f.name] = replace(part_of, **changed) if changed else part_of
    return replace(config, **parts)
