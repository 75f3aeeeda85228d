"""What can be wrong with a model directory and the flags together, found from headers alone, before a weight is read."""
import argparse

import torch

from adapters.pooling import Lam
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


def check_requantization_block(source: Source, args: argparse.Namespace) -> None:
    """Raises ValueError unless the block of --requantize, where it is asked for, divides every target layer."""
    model = empty_model(source.config, torch.float32)
    for name in linear_names(model, args.targets) if args.requantize else []:
        layer = model.get_submodule(name)
        args.requantize_block.check_divides(layer.out_features, layer.in_features, name)


def check_layers(source: Source, args: argparse.Namespace) -> None:
    """Raises ValueError, naming the layer and the sizes, for a block, lam or rank that does not suit every target layer."""
    if args.from_scratch:
        return
    model, kind = check_quantization(source, args), METHODS[args.method].adapter
    check_requantization_block(source, args)
    if kind is None:
        if source.quantized():
            raise ValueError(f"{source.path} is quantized: codes do not train, so --method {args.method} needs a dense base")
        return
    for name in linear_names(model, args.targets):
        layer = model.get_submodule(name)
        if args.lam:
            args.lam.check_divides(layer.out_features, layer.in_features, name)
        try:
            with torch.device("meta"):
                new_adapter(args, layer.out_features, layer.in_features, args.block)
        except ValueError as error:
            raise ValueError(f"layer {name}: {error}") from None
