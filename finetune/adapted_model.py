"""A model with an adapter beside every target layer: put there, kept on disk, and merged."""
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from adapters import ADAPTERS, adapted_layer
from adapters.adapted import AdaptedLinear, adapted_layers, adapter_parameters, dense_weight, replace_layers
from adapters.adapter import Adapter
from adapters.merge import codes_moved as moved_in
from adapters.merge import merge_into_codes, merge_target, merge_to_dense
from adapters.rounded import SPREAD, into_codes
from adapters.rounding import TrainingLost
from finetune.config import RunConfig
from finetune.methods import TARGETS
from finetune.run import Run
from model.checkpoint import save_model
from model.checksums import write_sums
from model.config_json import config_to_json
from model.directory import load_config
from model.files import write_json
from model.llama import Llama
from model.published import publish, scratch_directory
from model.tensor_files import open_safetensors, write_safetensors
from model.tokenizer_files import copy_tokenizer
from quant.grid import Block


def residuals_to_keep(config: RunConfig, model: Llama) -> dict[str, Tensor | None] | None:
    """The layers whose residuals are kept, each with None; None without --keep-residual."""
    return dict.fromkeys(linear_names(model, config.adapter.targets)) if config.adapter.keep_residual else None


def linear_names(model: Llama, targets: str) -> list[str]:
    """The decoder's linear layers that `--targets` names."""
    return [name for name, _ in model.named_modules()
            if name.startswith("model.layers.") and name.endswith(TARGETS[targets])]


def new_adapter(config: RunConfig, D_out: int, D_in: int, block: Block | None) -> Adapter:
    """The method's adapter for one layer, its numbers drawn by the global seed. `block` is the block of the layer's own
    codes; the adapter's other options come from the configuration. Raises ValueError for options that it cannot
    have."""
    kind = ADAPTERS[config.adapter_kind]
    options = {option: block if option == "block" else getattr(config.adapter, option) for option in kind.options}
    adapter = kind(D_out, D_in, **options)
    return into_codes(adapter) if config.adapter.merge_into else adapter


def attach_adapters(model: Llama, config: RunConfig, residuals: Callable[[str], Tensor] | None = None) -> None:
    """An adapter beside every target layer of a frozen model. `residuals` gives those of --keep-residual by layer.
    Raises ValueError, naming the layer, for an adapter that does not go with it."""
    def residual(name: str, base: nn.Module) -> Tensor:
        if base.codes.is_meta:
            return torch.empty(base.out_features, base.in_features, dtype=torch.float16, device="meta")
        if residuals is None:
            raise ValueError("--keep-residual without the residuals")
        return residuals(name).to(model.device)

    def adapt(name: str, base: nn.Module) -> AdaptedLinear:
        try:
            adapter = new_adapter(config, base.out_features, base.in_features, getattr(base, "block", None))
            layer = adapted_layer(base, adapter.to(model.device), config.adapter.dropout)
            if config.adapter.keep_residual:
                layer.residual = residual(name, base)
            elif config.adapter.merge_into and config.adapter.begins != SPREAD:
                layer.residual = layer.base.levels.new_zeros(1, 1)  # earlier versions began in the middle of the cells
            return layer
        except ValueError as error:
            raise ValueError(f"layer {name}: {error}") from None
    replace_layers(model, linear_names(model, config.adapter.targets), adapt)


# ---- merging --------------------------------------------------------------------------------------------------------

def merge_all(model: Llama, merge: Callable[[str, AdaptedLinear], nn.Module]) -> None:
    """`merge(name, adapted)` in the place of every adapted layer, one at a time."""
    replace_layers(model, list(adapted_layers(model)), merge)


def why_not_k_bits(model: Llama) -> str | None:
    """The reason, with its layer, of the first adapted layer that merges to 16 bits only; None if all merge into their
    codes' factors."""
    for name, layer in adapted_layers(model).items():
        target = merge_target(layer.base, layer.adapter)
        if not target.keeps_codes:
            return f"layer {name}: {target.reason}"
    return None


def codes_moved(model: Llama) -> dict[str, float]:
    """The share of each layer's codes that its adapter moves; empty if no adapter moves codes."""
    shares = {name: moved_in(layer) for name, layer in adapted_layers(model).items()}
    return {name: share for name, share in shares.items() if share is not None}


def merge_best(model: Llama, storage: torch.dtype, lost: TrainingLost | None = None) -> list[int]:
    """Into the factors of the k-bit codes if every layer allows it, else to 16 bits of type `storage`, in place.
    Returns the widths of the codes; none for 16 bits. `lost` collects what the rounding to 16 bits takes."""
    if why_not_k_bits(model) is None:
        bits = sorted({layer.base.bits for layer in adapted_layers(model).values()})
        merge_all(model, lambda name, layer: merge_into_codes(layer, name))
        return bits
    merge_to_sixteen_bits(model, storage, lost)
    return []


def merge_to_sixteen_bits(model: Llama, storage: torch.dtype, lost: TrainingLost | None = None) -> None:
    """Every adapted layer becomes W + delta_W, rounded to `storage`, in place. `lost` as in `merge_best`."""
    def merge(name: str, layer: AdaptedLinear) -> nn.Module:
        merged = merge_to_dense(layer, storage)
        if lost is not None:
            exact = layer.weight().detach()
            lost.add(name, merged.weight.to(exact.dtype) - exact, exact - dense_weight(layer.base, exact.dtype))
        return merged
    merge_all(model, merge)


def sixteen_bit_type(model: Llama) -> torch.dtype:
    """The type of the embeddings if it is float16 or bfloat16; bfloat16 for a float32 checkpoint."""
    kept = model.model.embed_tokens.weight.dtype
    return kept if kept in (torch.float16, torch.bfloat16) else torch.bfloat16


# ---- on disk --------------------------------------------------------------------------------------------------------

def save_adapter(model: Llama, run: Run) -> None:
    write_safetensors(run.adapter_file, adapter_parameters(model))


@torch.no_grad()
def load_adapter(model: Llama, run: Run) -> None:
    """Raises ValueError if the file's tensors are not those of the attached adapters."""
    parameters = adapter_parameters(model)
    file = run.kept.tensors if run.kept else open_safetensors(run.adapter_file)
    if set(file.keys()) != set(parameters):
        raise ValueError(f"{run.adapter_file}: its tensors are not those of the run's adapters")
    for name, p in parameters.items():
        tensor = file.get_tensor(name)
        if tensor.shape != p.shape:
            raise ValueError(f"{run.adapter_file}: {name} has shape {list(tensor.shape)} instead of {list(p.shape)}")
        p.copy_(tensor)


def save_beside(model: Llama, run: Run, directory: Path) -> None:
    """A merged model as a model directory of its own, in the place of an earlier one."""
    with scratch_directory(directory) as scratch:
        made = scratch / directory.name
        ends = load_config(run.path).eos_token_ids  # of a chat template, too, which the base may not know
        write_json(made / "config.json", config_to_json(replace(model.config, eos_token_ids=ends)))
        copy_tokenizer(run.path, made)
        save_model(model, made / "model.safetensors")
        write_sums(made)
        publish(made, directory)
