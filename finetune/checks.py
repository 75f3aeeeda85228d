"""What can be wrong with a model directory and the flags together, found from headers alone, before a weight is read."""
import argparse

import torch

from adapters import ADAPTERS
from adapters.merge import merges_into_blocks
from adapters.lam import Lam
from finetune.methods import METHODS
from finetune.models import Source, linear_names, new_adapter
from model.checkpoint import empty_model, open_weights, weight_files
from model.llama import Llama
from quant.grid import Block


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
    """The empty model, after checking that the checkpoint's tensors fit the config and that the block divides every layer that
    will be quantized. Raises ValueError, also for quantization asked of a base that is codes already. Reads headers only."""
    quantized = source.quantized()
    if quantized and args.quantizer != "none":
        name, stated = next(iter(quantized.items()))
        raise ValueError(f"{source.path} is quantized already ({name}: {stated['bits']} bits, block {stated['block']}): "
                         f"give --quantizer none to train on it as it is")
    if not source.is_adapter_run:
        open_weights(weight_files(source.path), source.config, torch.float32)
    model = empty_model(source.config, torch.float32)
    for name in linear_names(model, args.quantized_layers) if args.quantizer != "none" else []:
        layer = model.get_submodule(name)
        args.block.check_divides(layer.out_features, layer.in_features, name)
    return model


def check_layers(source: Source, args: argparse.Namespace) -> None:
    """Raises ValueError, naming the layer and the sizes, for a block, lam or rank that does not suit every target layer, and for
    codes that the method cannot train on."""
    if args.from_scratch:
        return
    model, kind = check_quantization(source, args), METHODS[args.method].adapter
    quantized = source.quantized()
    if kind is None:
        if quantized:
            raise ValueError(f"{source.path} is quantized: codes do not train, so --method {args.method} needs a dense base")
        return
    for name in linear_names(model, args.targets):
        layer = model.get_submodule(name)
        if args.lam:
            args.lam.check_divides(layer.out_features, layer.in_features, name)
        if "block" in ADAPTERS[kind].options and args.quantizer == "none" and not quantized.get(name, {}).get("zero_points"):
            raise ValueError(f"layer {name} of {source.path} has no integer zero points, whose scale --method {args.method} trains: "
                             f"use --quantizer intminmax on a dense base")
    check_adapters(model, args)


def check_adapters(model: Llama, args: argparse.Namespace) -> None:
    """Raises ValueError, naming the layer, for adapters that cannot be; and, where --requantize is asked for, for a block that does
    not divide a target layer, or where every layer merges into k bits without loss. `model` has no memory for its weights."""
    lossless = []
    for name in linear_names(model, args.targets):
        layer = model.get_submodule(name)
        D_out, D_in = layer.out_features, layer.in_features
        try:
            with torch.device("meta"):
                adapter = new_adapter(args, D_out, D_in, args.block)
        except ValueError as error:
            raise ValueError(f"layer {name}: {error}") from None
        lossless.append(bool(args.block) and merges_into_blocks(adapter, args.block.in_layer(D_in)))
        if args.requantize:
            args.requantize_block.check_divides(D_out, D_in, name)
    if args.requantize and all(lossless):
        raise ValueError("--requantize is lossy, and this run merges into k bits exactly: leave it out")
