"""From a place on disk to a model: the base, the quantized base, the model with adapters; and back to disk."""
import argparse
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from adapters import ADAPTERS
from adapters.adapted import AdaptedLinear, adapted_layers, adapter_parameters, replace_layers
from adapters.kronecker import Lam
from adapters.merge import MergeRefused, check_merges_to_k_bits, merge_to_dense, merge_to_k_bits
from finetune import arguments
from finetune.arguments import DTYPES
from finetune.methods import METHODS, TARGETS
from finetune.run import Run
from model.checkpoint import (empty_model, load_config, load_model, open_safetensors, open_weights, quantized_layers, save_model,
                              weight_files)
from model.config import LlamaConfig, read_json
from model.files import sha256_of, write_json, write_safetensors
from model.llama import Llama
from model.tokenizer import Tokenizer, load_tokenizer, tokenizer_file
from quant import QUANTIZERS
from quant.grid import Block
from quant.linear import QuantLinear


@dataclass(frozen=True)
class Source:
    """A model directory, or a run. A run with an adapter stands for the model merged to 16 bits."""
    path: Path

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
        """sha256 of the weights; for a run with an adapter, of its adapter and its base's own fingerprint."""
        if self.is_adapter_run:
            base = read_json(Run(self.path).config_file)["fingerprints"]["base"]
            return f"{base}+{sha256_of(Run(self.path).adapter_file)}"
        return sha256_of(*weight_files(self.path))

    def quantized(self) -> dict[str, dict]:
        """The layers that are codes already, with bits and block: {NAME: {bits, block}}. Reads headers only."""
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


def take_block_of_base(source: Source, args: argparse.Namespace) -> None:
    """Where the base is codes already and stays as it is, bits and block are the base's own, and a lam that follows the
    block follows that. ValueError where the target layers differ in block and lam is not given."""
    if args.from_scratch or args.quantizer != "none":
        return
    quantized = source.quantized()
    stated = [quantized[n] for n in linear_names(empty_model(source.config, torch.float32), args.targets) if n in quantized]
    if stated:
        args.bits, args.block = stated[0]["bits"], Block.parse(stated[0]["block"])
    if METHODS[args.method].lam == "block" and args.lam is None:
        if not stated or any(s["block"] != stated[0]["block"] for s in stated):
            raise ValueError(f"{source.path}: the target layers are not quantized in blocks of one size, so lam has no block "
                             f"to follow: give --lam, or a --quantizer")
        args.lam = Lam(args.block.n_in, args.block.n_out)


def check_quantization(source: Source, args: argparse.Namespace) -> Llama:
    """The empty model, after checking that the checkpoint's tensors fit the config and that the block divides every target
    layer. Raises ValueError, also for quantization asked of a base that is codes already. Reads headers only."""
    quantized = source.quantized()
    if quantized and args.quantizer != "none":
        name, stated = next(iter(quantized.items()))
        raise ValueError(f"{source.path} is quantized already ({name}: {stated['bits']} bits, block {stated['block']}): "
                         f"give --quantizer none to train on it as it is")
    if not source.is_adapter_run:
        open_weights(weight_files(source.path), source.config, torch.float32)
    model = empty_model(source.config, torch.float32)
    for name in linear_names(model, args.targets) if args.quantizer != "none" else []:
        layer = model.get_submodule(name)
        args.block.check_divides(layer.out_features, layer.in_features, name)
    return model


def check_layers(source: Source, args: argparse.Namespace) -> None:
    """Raises ValueError, naming the layer and the sizes, for a block, lam or rank that does not suit every target layer."""
    if args.from_scratch:
        return
    model, kind = check_quantization(source, args), METHODS[args.method].adapter
    if kind is None:
        if source.quantized():
            raise ValueError(f"{source.path} is quantized: codes do not train, so --method {args.method} needs a dense base")
        return
    for name in linear_names(model, args.targets):
        layer = model.get_submodule(name)
        args.lam.check_divides(layer.out_features, layer.in_features, name)
        with torch.device("meta"):
            ADAPTERS[kind](layer.out_features, layer.in_features, args.lam, args.rank, args.lora_alpha)


def quantizing(args: argparse.Namespace, names: list[str], errors: dict[str, float]):
    """The `change` of `load_model` that quantizes the named layers, or None where the base stays as it is. Puts each layer's
    ||W - W_hat|| / ||W|| into `errors`."""
    if args.quantizer == "none":
        return None
    quantizer = QUANTIZERS[args.quantizer](args.bits, args.block)

    def change(name: str, layer: nn.Module) -> nn.Module:
        if name not in names:
            return layer
        weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
        quantized = quantizer.quantize(weight, name)
        errors[name] = ((weight.float() - quantized.dequantize()).norm() / weight.float().norm()).item()
        return QuantLinear.from_weight(quantized, bias)
    return change


def load_base(source: Source, args: argparse.Namespace) -> Llama:
    """The base of a method: quantized while it loads where `args` says so; then the worst layers are printed."""
    names, errors = linear_names(empty_model(source.config, torch.float32), args.targets), {}
    model = source.load(DTYPES[args.dtype], args.device, quantizing(args, names, errors))
    worst = sorted(errors, key=errors.get, reverse=True)[:3]
    if worst:
        print("quantized; largest ||W - W_hat|| / ||W||: " + ", ".join(f"{name} {errors[name]:.3f}" for name in worst))
    return model


def attach_adapters(model: Llama, args: argparse.Namespace) -> None:
    """An adapter beside every target layer, its numbers drawn by the global seed. The model came frozen."""
    kind = ADAPTERS[METHODS[args.method].adapter]

    def adapt(name: str, base: nn.Module) -> AdaptedLinear:
        adapter = kind(base.out_features, base.in_features, args.lam, args.rank, args.lora_alpha).to(model.device)
        return AdaptedLinear(base, adapter, args.dropout)
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
    source = Source(args.model)
    check_fingerprint(source, saved)
    return source.load(DTYPES[args.dtype], args.device)


def check_fingerprint(source: Source, saved: dict) -> None:
    expected = saved["fingerprints"]["base"]
    if source.fingerprint != expected:
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


def save_merged(model: Llama, run: Run) -> None:
    """The merged k-bit model as a model directory of its own."""
    write_json(run.merged / "config.json", model.config.to_json())
    copy_tokenizer(run.path, run.merged)
    save_model(model, run.merged / "model.safetensors")


def copy_tokenizer(source: Path, target: Path) -> None:
    file = tokenizer_file(source)
    target.mkdir(parents=True, exist_ok=True)
    for path in (file, source / "tokenizer_config.json"):
        if path.is_file():
            shutil.copy(path, target / path.name)
