"""What can be wrong with a model and a configuration together. All checks run on file headers, before any weights are
loaded: the planned model has the layers that training will have, and no memory for their weights."""
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from adapters.adapted import adapted_layers, replace_layers
from adapters.lam import Lam
from adapters.lota import NO_WHOLE_LEVELS
from adapters.merge import MergeRefused
from finetune.adapted_model import attach_adapters, linear_names, why_not_k_bits
from finetune.config import BaseConfig, RunConfig
from finetune.distillation import check_teacher
from finetune.methods import METHODS
from finetune.run import Run
from finetune.sharded import check_sharing
from finetune.source import Source
from finetune.usual_rate import with_usual_rate
from finetune.values import StoredCodes
from model.checkpoint import empty_model, stored_grids
from model.directory import weight_files
from model.llama import Llama
from quant.grid import Block
from quant.linear import QuantLinear
from quant.rounding import whole_ends
from quant.spec import QuantSpec


def with_codes_of_base(source: Source, config: RunConfig) -> RunConfig:
    """The configuration with the bits and block of a base that holds codes already, and with a lam that follows its
    block. Raises ValueError if lam follows the block and the target layers differ in theirs."""
    if config.base.from_scratch or config.base.quantization:
        return config
    quantized = source.quantized()
    targets = linear_names(empty_model(source.config, torch.float32), config.adapter.targets)
    stated = [quantized[name] for name in targets if name in quantized]
    if stated:
        codes = StoredCodes(stated[0]["bits"], Block.parse(stated[0]["block"]))
        config = replace(config, base=replace(config.base, codes=codes))
    if METHODS[config.method].lam == "block" and config.adapter.lam is None:
        if not stated or any(s["block"] != stated[0]["block"] for s in stated):
            raise ValueError(f"{source.path}: the target layers are not quantized in blocks of one size, so lam has no "
                             "block to follow: give --lam, or a --quantizer")
        block = config.base.block
        config = replace(config, adapter=replace(config.adapter, lam=Lam(block.n_in, block.n_out)))
    return config


def planned_base(source: Source, base: BaseConfig) -> Llama:
    """The base on the meta device, codes where the model holds them or will. Raises ValueError if the checkpoint's
    tensors do not fit its config, if codes would be quantized again, or if a block does not divide a layer."""
    quantized, spec = source.quantized(), base.quantization
    if quantized and spec:
        name, stated = next(iter(quantized.items()))
        held = f"{name}: {stated['bits']} bits, block {stated['block']}"
        raise ValueError(f"{source.path} is quantized already ({held}): "
                         "give --quantizer none to train on it as it is")
    source.check_tensors()
    model = empty_model(source.config, torch.float32)
    if spec:
        put_codes(model, linear_names(model, base.quantized_layers), spec)
    replace_layers(model, list(quantized), lambda name, layer: planned_codes(
        layer, Block.parse(quantized[name]["block"]), quantized[name]["bits"], quantized[name]["zero_points"]))
    return model


def put_codes(model: Llama, names: list[str], spec: QuantSpec) -> None:
    """Layers without memory, quantized as `spec` says, in the place of the named dense ones."""
    def change(name: str, layer: nn.Module) -> QuantLinear:
        spec.block.check_divides(layer.out_features, layer.in_features, name)
        return planned_codes(layer, spec.block, spec.bits, spec.grid_name == "intminmax")
    replace_layers(model, names, change)


def planned_codes(layer: nn.Module, block: Block, bits: int, zero_points: bool) -> QuantLinear:
    return QuantLinear.on_meta(layer.out_features, layer.in_features, block, bits, layer.bias is not None, zero_points)


def planned_model(source: Source, config: RunConfig) -> Llama:
    """As `planned_base`, with an adapter beside every target layer. Raises ValueError, naming the layer and the sizes,
    for a lam or a rank that does not suit a layer, and for codes that the method cannot train on."""
    model = planned_base(source, config.base)
    if config.adapter_kind is None:
        if source.quantized():
            raise ValueError(f"{source.path} is quantized: codes do not train, so --method {config.method} needs a "
                             "dense base")
        return model
    try:
        put_adapters(model, config)
    except ValueError as error:
        if config.base.quantization:
            raise
        raise ValueError(f"{source.path}: {error}") from None  # the model's own layers or codes are at fault
    return model


def planned_run(run: Run, config: RunConfig) -> Llama:
    """The planned model of a run whose base was quantized, or stayed as it was. The model that a quantized base was
    made from need not be there any more."""
    base = config.base
    if not base.quantization:
        return planned_model(Source(base.model), config)
    model = empty_model(Source(run.path).config, torch.float32)
    put_codes(model, linear_names(model, base.quantized_layers), base.quantization)
    put_adapters(model, config)
    return model


def put_adapters(model: Llama, config: RunConfig) -> None:
    """Adapters without memory beside the target layers."""
    lam = config.adapter.lam
    for name in linear_names(model, config.adapter.targets) if lam else []:
        layer = model.get_submodule(name)
        lam.check_divides(layer.out_features, layer.in_features, name)
    with torch.device("meta"):
        attach_adapters(model, config)


def completed(given: Mapping[str, Any], source: Source, config: RunConfig) -> tuple[RunConfig, Llama | None]:
    """What a command asks for, with all that follows from its base, and the planned model as `check_run` gives it. All
    checks of model and flags, for train.py and its --dry-run alike."""
    if config.training.shard_base:
        check_sharing(given, source)
    config = with_codes_of_base(source, config)
    if "lr" not in given:
        config = with_usual_rate(config, source.config.hidden_size)
    planned = check_run(source, config)
    check_teacher(source, config)
    return config, planned


def check_run(source: Source, config: RunConfig) -> Llama | None:
    """The planned model; None of random weights, which need no check. Raises ValueError as `planned_model`,
    `check_requantization` and `check_levels` do."""
    if config.base.from_scratch:
        return None
    planned = planned_model(source, config)
    check_requantization(planned, config)
    check_levels(source, config)
    return planned


def check_levels(source: Source, config: RunConfig) -> None:
    """Raises ValueError, naming the layer, for codes of a base whose levels are not those that the method needs."""
    targets = linear_names(empty_model(source.config, torch.float32), config.adapter.targets)
    looked_at = config.of_method.even and not source.is_adapter_run
    held = [name for name in targets if name in source.quantized()] if looked_at else []
    for name, grid in (stored_grids(weight_files(source.path), held) if held else {}).items():
        if not whole_ends(grid.levels):
            raise ValueError(f"{source.path}: layer {name}: {NO_WHOLE_LEVELS}")


def check_requantization(planned: Llama, config: RunConfig) -> None:
    """Raises ValueError for a block of --requantize that does not divide a target layer, and if every layer merges into
    k bits without loss."""
    if not (spec := config.evaluation.requantize):
        return
    for name, layer in adapted_layers(planned).items():
        spec.block.check_divides(layer.base.out_features, layer.base.in_features, name)
    if why_not_k_bits(planned) is None:
        raise ValueError("--requantize is lossy, and this run merges into k bits exactly: leave it out")


def check_merges(planned: Llama, what: str) -> None:
    """Raises MergeRefused, with the rule, the layer and the sizes, unless every adapter merges into its base's
    codes."""
    if reason := why_not_k_bits(planned):
        raise MergeRefused(f"{what}: {reason}")
