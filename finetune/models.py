"""From a place on disk to a model: the base, the model with adapters, merged; and back to disk."""
import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from adapters import ADAPTERS, adapted_layer
from adapters.adapted import AdaptedLinear, adapted_layers, adapter_parameters, replace_layers
from adapters.merge import MergeRefused, check_merges_to_k_bits, merge_to_dense, merge_to_k_bits
from finetune import arguments
from finetune.arguments import DTYPES
from finetune.methods import METHODS, TARGETS
from finetune.run import Run
from model.checkpoint import (empty_model, load_config, load_model, open_safetensors, open_weights, quantized_layers,
                              read_tensors, save_model, weight_files)
from model.config import LlamaConfig
from model.config_json import config_to_json
from model.files import read_json, sha256_of, write_json, write_safetensors
from model.hub import HubModel, directory_of
from model.llama import Llama
from model.tokenizer import Tokenizer, copy_tokenizer, load_tokenizer
from quant.grid import Block


@dataclass(frozen=True)
class Source:
    """A model directory, a GGUF file, a model of the hub, or a run. A run with an adapter stands for the model merged to 16 bits."""
    place: Path | HubModel

    @cached_property
    def path(self) -> Path:
        """Where its files are on this machine. Raises NotFetched for a model of the hub that there is no getting."""
        return directory_of(self.place)

    @cached_property
    def config(self) -> LlamaConfig:
        return load_config(self.path)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.path)

    @property
    def is_adapter_run(self) -> bool:
        return Run(self.path).adapter_file.is_file()

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the weights; for a run with an adapter, of its adapter and its codes, beside its base's own fingerprint."""
        if self.is_adapter_run:
            return f"{self.fingerprint_without_codes}{f'+{sha256_of(codes)}' if (codes := Run(self.path).base_file).is_file() else ''}"
        return sha256_of(*weight_files(self.path))

    @property
    def fingerprint_without_codes(self) -> str:
        """What earlier runs recorded of a base that is a run with an adapter."""
        base = read_json(Run(self.path).config_file)["fingerprints"]["base"]
        return f"{base}+{sha256_of(Run(self.path).adapter_file)}"

    def quantized(self) -> dict[str, dict]:
        """The layers that are codes already, as `quantized_layers` has them. Reads headers only."""
        if not self.is_adapter_run:
            return quantized_layers(weight_files(self.path))
        run, args, _ = read_run(self.path)
        merged = linear_names(empty_model(self.config, torch.float32), args.targets)
        stored = quantized_layers([run.base_file]) if run.base_file.is_file() else Source(args.model).quantized()
        return {name: stated for name, stated in stored.items() if name not in merged}

    def stop_ids(self) -> tuple[int, ...]:
        """End tokens; the first is the one that training teaches. ValueError where the model names none."""
        ids = self.config.eos_token_ids or ((self.tokenizer.eos_id,) if self.tokenizer.eos_id is not None else ())
        if not ids:
            raise ValueError(f"{self.path}: neither config.json nor the tokenizer names an end-of-sequence token")
        return ids

    def open(self, dtype: torch.dtype, device: str) -> tuple[Llama, Callable[[str], None]]:
        """The model without its weights, and what brings those whose names begin with a prefix. A run with an adapter has to be
        merged first: it comes whole, and there is nothing left to bring."""
        if self.is_adapter_run:
            return self.load(dtype, device), lambda prefix: None
        model, weights, wanted = open_weights(weight_files(self.path), self.config, dtype)
        return model.eval(), lambda prefix: read_tensors(model, weights, wanted, device, prefix)

    def load(self, dtype: torch.dtype, device: str, change=None) -> Llama:
        """As `load_model`; `change` is called for each linear layer."""
        if not self.is_adapter_run:
            return load_model(weight_files(self.path), self.config, dtype, device, change)
        model = load_trained(Run(self.path), dtype, device)
        kept = sixteen_bit_type(model)
        merge_all(model, lambda name, layer: merge_to_dense(layer, kept))
        if change:
            replace_layers(model, linear_names(model, "all"), change)
        return model


def linear_names(model: Llama, targets: str) -> list[str]:
    """The decoder's linear layers that `--targets` names."""
    return [name for name, _ in model.named_modules() if name.startswith("model.layers.") and name.endswith(TARGETS[targets])]


def new_adapter(args: argparse.Namespace, D_out: int, D_in: int, block: Block | None) -> nn.Module:
    """The method's adapter for one layer, its numbers drawn by the global seed. `block` is that of the layer's own base; what
    else the adapter takes, its `options`, comes from the flags. Raises ValueError for what it cannot be."""
    kind = ADAPTERS[METHODS[args.method].adapter]
    return kind(D_out, D_in, **{option: block if option == "block" else getattr(args, option) for option in kind.options})


def attach_adapters(model: Llama, args: argparse.Namespace) -> None:
    """An adapter beside every target layer. The model came frozen."""
    def adapt(name: str, base: nn.Module) -> AdaptedLinear:
        adapter = new_adapter(args, base.out_features, base.in_features, getattr(base, "block", None)).to(model.device)
        return adapted_layer(base, adapter, args.dropout)
    replace_layers(model, linear_names(model, args.targets), adapt)


def merge_all(model: Llama, merge) -> None:
    """`merge(name, adapted)` in the place of every adapted layer, one at a time."""
    replace_layers(model, list(adapted_layers(model)), merge)


def why_not_k_bits(model: Llama) -> str | None:
    """The reason of the first adapted layer in which the rule does not hold; None where it holds in all of them."""
    for name, layer in adapted_layers(model).items():
        try:
            check_merges_to_k_bits(layer, name)
        except MergeRefused as reason:
            return str(reason)
    return None


def merge_best(model: Llama, storage: torch.dtype) -> tuple[str, bool]:
    """Into the k-bit codes' offsets where the rule allows it in every layer, else to 16 bits: a name for what came out, and
    whether it is the former."""
    if why_not_k_bits(model) is None:
        bits = {layer.base.bits for layer in adapted_layers(model).values()}
        merge_all(model, lambda name, layer: merge_to_k_bits(layer, name))
        return f"merged, {'/'.join(map(str, sorted(bits)))} bits", True
    merge_all(model, lambda name, layer: merge_to_dense(layer, storage))
    return f"merged, 16 bits ({str(storage).removeprefix('torch.')})", False


def sixteen_bit_type(model: Llama) -> torch.dtype:
    """What the checkpoint keeps its embeddings in: float16 or bfloat16; bfloat16 for a float32 checkpoint."""
    kept = model.model.embed_tokens.weight.dtype
    return kept if kept in (torch.float16, torch.bfloat16) else torch.bfloat16


# ---- runs on disk -------------------------------------------------------------------------------------------------

def save_adapter(model: Llama, run: Run) -> None:
    write_safetensors(run.adapter_file, adapter_parameters(model))


@torch.no_grad()
def load_adapter(model: Llama, run: Run) -> None:
    """Raises ValueError where the file's tensors are not those of the attached adapters."""
    parameters = adapter_parameters(model)
    with open_safetensors(run.adapter_file) as file:
        if set(file.keys()) != set(parameters):
            raise ValueError(f"{run.adapter_file}: its tensors are not those of the run's adapters")
        for name, p in parameters.items():
            tensor = file.get_tensor(name)
            if tensor.shape != p.shape:
                raise ValueError(f"{run.adapter_file}: {name} has shape {list(tensor.shape)} instead of {list(p.shape)}")
            p.copy_(tensor)


def read_run(path: Path) -> tuple[Run, argparse.Namespace, dict]:
    """A run, its resolved arguments, and the rest of its config.json. FileNotFoundError where there is no run."""
    run = Run(path)
    if not run.config_file.is_file():
        raise FileNotFoundError(f"{path}: no run there (no config.json)")
    saved = read_json(run.config_file)
    if "arguments" not in saved:
        raise ValueError(f"{path}: config.json is a model's, not a run's; give it by --model")
    return run, arguments.from_json(saved["arguments"]), saved


def check_trained(run: Run, args: argparse.Namespace) -> None:
    """Raises FileNotFoundError where training has not come to its first epoch's end, ValueError where the file is damaged."""
    trained = run.model_file if args.method == "full" else run.adapter_file
    if not trained.is_file():
        raise FileNotFoundError(f"{run.path} holds no {trained.name} yet: go on with python train.py --resume {run.path}")
    open_safetensors(trained)


def load_run_base(run: Run, args: argparse.Namespace, saved: dict) -> Llama:
    """The base that the run was trained on: its own file, never quantized again; or, for a 16-bit base, the original,
    which must still be the one that the run was trained from."""
    if run.base_file.is_file():
        return load_model([run.base_file], load_config(run.path), DTYPES[args.dtype], args.device)
    if args.quantizer != "none":
        raise FileNotFoundError(f"{run.base_file}: no such file; it holds the codes that the run was trained on, which nothing else does")
    source = Source(args.model)
    check_fingerprint(source, saved)
    return source.load(DTYPES[args.dtype], args.device)


def check_fingerprint(source: Source, saved: dict) -> None:
    expected = saved["fingerprints"]["base"]
    if source.fingerprint != expected and not (source.is_adapter_run and source.fingerprint_without_codes == expected):
        raise ValueError(f"{source.path} is not what the run was trained from: its sha256 is {source.fingerprint}, "
                         f"the run's base had {expected}")


def load_trained(run: Run, dtype: torch.dtype, device: str) -> Llama:
    """The model as trained: base and adapters side by side, or all weights for method full."""
    run, args, saved = read_run(run.path)
    args.device = device
    if args.method == "full":
        model = load_model(weight_files(run.path), load_config(run.path), DTYPES[args.dtype], args.device)
    else:
        model = load_run_base(run, args, saved)
        attach_adapters(model, args)
        load_adapter(model, run)
    model.dtype = dtype
    return model.eval()


def save_beside(model: Llama, run: Run, directory: Path) -> None:
    """A merged model as a model directory of its own."""
    write_json(directory / "config.json", config_to_json(model.config))
    copy_tokenizer(run.path, directory)
    save_model(model, directory / "model.safetensors")
