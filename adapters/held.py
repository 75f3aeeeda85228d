"""Dequantized weights, held for as long as a model only answers.

Codes are dequantized for every product, which costs little beside a training batch and much beside the one token that
generation reads. Whoever scores a model may hold its weights instead, if memory allows.
"""
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from adapters.adapted import AdaptedLinear, replace_layers
from adapters.lota import TernaryLinear
from adapters.merge import merge_into_codes
from adapters.merged_form import has_merged_form
from adapters.peqa import RescaledLinear
from adapters.rounded import RoundedLinear
from adapters.scaleoffset import RefittedLinear
from model.llama import Llama
from quant.linear import QuantLinear

SHARE = 0.5  # of the free memory that held weights may take


class HeldLinear(nn.Module):
    """y = x @ W_hat.T + bias, the same bits as the layer whose weight it holds."""
    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: QuantLinear, dtype: torch.dtype):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("weight", layer.dequantize(dtype))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias


@contextmanager
def dense_weights(model: Llama) -> Iterator[bool]:
    """Inside, each layer of codes is a layer of its dequantized weights in the model's type: the same bits.

    An adapter that merges exactly is part of them. A line on stderr says what that takes, or that there is no room and
    the codes stay. Nothing may be trained inside. Yields whether weights are held."""
    layers = {name: layer for name, layer in held_layers(model)}
    wanted = sum(layer.in_features * layer.out_features for layer in layers.values()) * model.dtype.itemsize
    room = free_memory(model.device)
    if not layers or wanted > SHARE * room:
        if layers:
            print(f"weights are dequantized for every product: held, they would take {wanted / 1e6:.0f} MB of "
                  f"{room / 1e6:.0f} that are free", file=sys.stderr)
        yield False
        return
    print(f"dequantized weights are held while the model answers: {wanted / 1e6:.0f} MB", file=sys.stderr)
    kept = {name: model.get_submodule(name) for name in layers}
    try:
        replace_layers(model, list(layers), lambda name, _: HeldLinear(layers[name], model.dtype))
        yield True
    finally:
        replace_layers(model, list(kept), lambda name, _: kept[name])


def held_layers(model: nn.Module) -> Iterator[tuple[str, QuantLinear]]:
    """The layers of codes by name: an adapted layer as a whole where it merges exactly, else its base."""
    inside: tuple[str, ...] = ()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, RescaledLinear | RefittedLinear | RoundedLinear | TernaryLinear) or (
                isinstance(layer, AdaptedLinear) and has_merged_form(layer.base, layer.adapter)):
            inside += (f"{name}.",)
            yield name, merge_into_codes(layer, name)
        elif isinstance(layer, QuantLinear) and not name.startswith(inside):
            yield name, layer


def free_memory(device: torch.device) -> float:
    """Bytes; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    table = Path("/proc/meminfo")
    lines = table.read_text().splitlines() if device.type == "cpu" and table.is_file() else []
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), 0.0)
