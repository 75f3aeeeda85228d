"""A base that several processes share (--shard-base).

| step | what one process holds |
|---|---|
| rounding | the first process alone: one decoder layer. Each layer goes to disk as soon as it is quantized |
| GPTQ | one decoder layer, and its own share of the calibration rows' activations |
| loading | one whole decoder layer at a time, and 1/N of those before it |
| training | 1/N of every decoder layer, and the layer that is computed (torch's `fully_shard`); all of the rest |

The rest: embeddings, head, last norm, adapters with their gradients and moments, and the levels of the grids.

`fully_shard` shards parameters, so packed codes, scales and offsets become parameters that do not train. It gathers
bytes as they are: every number is that of one process. Processes must compute each layer at the same time, which
`together.py` sees to.
"""
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapters.adapted import replace_layers
from finetune.adapted_model import linear_names
from finetune.allocator import give_blocks_back
from finetune.config import RunConfig
from finetune.data import Calibration
from finetune.quantize import WeightErrors, quantize_model_by_gptq, rounding
from finetune.run import Run
from finetune.source import Source, open_run_base
from model import processes
from model.checkpoint import stored_facts, stored_tensors
from model.files import write_record
from model.llama import Llama
from model.published import scratch_directory
from model.tensor_files import open_safetensors, write_in_turn, write_safetensors
from quant.linear import QuantLinear

OUTSIDE = ("model.embed_tokens.", "model.norm.", "lm_head.")  # prefixes of what is in no decoder layer


def layer_prefixes(model: Llama) -> list[str]:
    return [f"model.layers.{i}." for i in range(len(model.model.layers))]


def check_sharing(given: Mapping[str, Any], source: Source) -> None:
    """Raises ValueError for --shard-base where nothing is shared, and for a base that cannot be read part by part."""
    predicts = bool({"mem_report", "dry_run"} & given.keys())
    if "find_lr" in given:
        raise ValueError("--find-lr does not go with --shard-base: try rates on a smaller model, or without it")
    if not processes.several() and "show_example" not in given and not (predicts and given.get("nproc", 1) > 1):
        remedy = "give their number by --nproc N" if predicts else "start them by torchrun --nproc-per-node N train.py"
        raise ValueError(f"--shard-base shares the base among several processes, and there is one: {remedy}, or leave "
                         f"it out")
    if source.is_adapter_run:
        raise ValueError(f"{source.path} is a run with an adapter, which is merged as a whole, and --shard-base reads "
                         f"a model part by part: export it first (python export.py {source.path} --format safetensors "
                         f"--to DIR), and give --model DIR")


# ---- quantizing -----------------------------------------------------------------------------------------------------

class Parts:
    """The tensors of a model on their way to one file, each in a file of its own meanwhile."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.described: dict[str, Tensor] = {}
        self.place_of: dict[str, Path] = {}

    def take(self, model: Llama, prefix: str) -> None:
        """Writes the tensors whose names begin so, and forgets their values."""
        found = {name: t for name, t in stored_tensors(model).items() if name.startswith(prefix)}
        if found and processes.is_first():
            place = self.directory / f"{prefix}safetensors"
            write_safetensors(place, found)
            self.described |= {name: torch.empty_like(t, device="meta") for name, t in found.items()}
            self.place_of |= dict.fromkeys(found, place)
        model.get_submodule(prefix.removesuffix(".")).to("meta")

    def content(self, name: str) -> Tensor:
        with open_safetensors(self.place_of[name]) as file:
            return file.get_tensor(name)


def quantize_part_by_part(run: Run, config: RunConfig, calibration: Calibration | None) -> None:
    """Makes the run's base.safetensors, with the bytes that one process writes, and no process ever holds more of the
    model than a decoder layer. It takes twice the file's size on the disk until it is done."""
    if config.base.by_gptq:
        with scratch_directory(run.base_file) if processes.is_first() else nullcontext(run.path) as scratch:
            parts = Parts(scratch)
            model, report = by_gptq(config, calibration, parts)
            processes.by_first(keep_parts, run, model, parts, report)
    else:
        processes.by_first(round_and_keep, run, config)


def round_and_keep(run: Run, config: RunConfig) -> None:
    base, errors = config.base, WeightErrors()
    model, bring = Source(base.model).open(config.compute.torch_dtype, config.compute.device)
    names = linear_names(model, base.quantized_layers)
    change = rounding(names, base.quantization.new_quantizer(), errors)
    with scratch_directory(run.base_file) as scratch:
        parts = Parts(scratch)
        for prefix in (*layer_prefixes(model), *OUTSIDE):
            bring(prefix)
            replace_layers(model, [name for name in names if name.startswith(prefix)], change)
            parts.take(model, prefix)
        errors.print_worst()
        keep_parts(run, model, parts, None)


def by_gptq(config: RunConfig, calibration: Calibration, parts: Parts) -> tuple[Llama, dict]:
    base, errors = config.base, WeightErrors()
    model, bring = Source(base.model).open(config.compute.torch_dtype, config.compute.device)
    names = linear_names(model, base.quantized_layers)
    report = quantize_model_by_gptq(model, bring, names, base.quantization, calibration, errors,
                                    lambda prefix: parts.take(model, prefix))
    for prefix in OUTSIDE:
        parts.take(model, prefix)
    errors.print_worst()
    return model, report


def keep_parts(run: Run, model: Llama, parts: Parts, report: dict | None) -> None:
    if report:
        write_record(run.quantization_file, report)
    in_order = {name: parts.described[name] for name in stored_tensors(model)}
    write_in_turn(run.base_file, in_order, parts.content, stored_facts(model))


# ---- loading --------------------------------------------------------------------------------------------------------

def load_shared_base(run: Run, config: RunConfig) -> Llama:
    """The base that the run trains on, of which this process holds its part."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    give_blocks_back()
    model, bring = open_run_base(run, config, config.compute.torch_dtype, config.compute.device)
    mesh = init_device_mesh(torch.device(config.compute.device).type, (processes.size(),))
    for prefix, layer in zip(layer_prefixes(model), model.model.layers, strict=True):
        bring(prefix)
        codes_as_parameters(layer)
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    for prefix in OUTSIDE:
        bring(prefix)
    model.tie_weights()
    model.shared = True
    return model.eval()


def codes_as_parameters(layer: nn.Module) -> None:
    """`fully_shard` shards parameters of any type. The levels of a grid stay: they are few, and all are needed."""
    for module in [m for m in layer.modules() if isinstance(m, QuantLinear)]:
        for holder in module.modules():
            for name, buffer in list(holder.named_buffers(recurse=False)):
                if name != "levels":
                    delattr(holder, name)
                    holder.register_parameter(name, nn.Parameter(buffer, requires_grad=False))
