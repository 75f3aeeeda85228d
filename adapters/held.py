"""Dense weights, held for as long as a model only answers, in the order in which products read them.

Codes are dequantized for every product, which costs little beside a training batch and much beside the one token that
generation reads. In bfloat16 on a CPU, oneDNN puts a weight into its own order for every product, too: a second copy in
that order halves the time of one token. Whoever scores a model may hold such weights, if memory allows.
"""
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.adapted import AdaptedLinear, dense_weight, replace_layers
from adapters.lota import TernaryLinear
from adapters.merge import merge_into_codes
from adapters.merged_form import has_merged_form
from adapters.peqa import RescaledLinear
from adapters.rounded import RoundedLinear
from adapters.scaleoffset import RefittedLinear
from model.llama import Linear, Llama
from quant.linear import QuantLinear

SHARE = 0.5  # of the free memory that held weights may take


class HeldLinear(nn.Module):
    """y = x @ weight.T + bias, the same bits as `base`, whose dense weight it holds."""
    bias: Tensor | None

    def __init__(self, base: QuantLinear | Linear, dtype: torch.dtype):
        super().__init__()
        self.base = base  # whoever looks for damaged weights finds them there
        self.weight = self.ordered(dense_weight(base, dtype).detach())
        self.bias = None if base.bias is None else base.bias.detach().to(dtype)

    def ordered(self, weight: Tensor) -> Tensor:
        return weight

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None or isinstance(self.base, Linear):
            return self.product(x, self.bias)
        return self.product(x, None) + self.bias  # a layer of codes rounds the product first


class PackedLinear(HeldLinear):
    """The same from a weight in oneDNN's order."""

    def ordered(self, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight, None)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, bias, "none", [], "")


def packs(model: Llama) -> bool:
    """Whether this processor multiplies packed weights. Only in bfloat16: in float32, bits would differ."""
    return (model.device.type == "cpu" and model.dtype == torch.bfloat16 and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextmanager
def dense_weights(model: Llama) -> Iterator[bool]:
    """Inside, each layer of codes is a layer of its dequantized weights in the model's type: the same bits. Where
    weights are packed (`packs`), so is every other linear layer.

    An adapter that merges exactly is part of them. A line on stderr says what that takes, or that there is no room and
    the layers stay. Nothing may be trained inside. Yields whether weights are held."""
    packed = packs(model)
    layers = {name: layer for name, layer in held_layers(model) if packed or isinstance(layer, QuantLinear)}
    wanted = sum(layer.in_features * layer.out_features for layer in layers.values()) * model.dtype.itemsize
    room = free_memory(model.device)
    if not layers or wanted > SHARE * room:
        if layers:
            print(f"no weights are held while the model answers, which is slower: they would take {wanted / 1e6:.0f} "
                  f"MB of {room / 1e6:.0f} that are free", file=sys.stderr)
        yield False
        return
    print(f"weights are held while the model answers, as products read them: {wanted / 1e6:.0f} MB", file=sys.stderr)
    kept, kind = {name: model.get_submodule(name) for name in layers}, PackedLinear if packed else HeldLinear
    try:
        replace_layers(model, list(layers), lambda name, _: kind(layers[name], model.dtype))
        yield True
    finally:
        replace_layers(model, list(kept), lambda name, _: kept[name])


def held_layers(model: nn.Module) -> Iterator[tuple[str, QuantLinear | Linear]]:
    """The linear layers by name: an adapted layer as a whole where it merges exactly, else its base."""
    inside: tuple[str, ...] = ()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, HeldLinear):
            inside += (f"{name}.",)
        elif isinstance(layer, RescaledLinear | RefittedLinear | RoundedLinear | TernaryLinear) or (
                isinstance(layer, AdaptedLinear) and has_merged_form(layer.base, layer.adapter)):
            inside += (f"{name}.",)
            yield name, merge_into_codes(layer, name)
        elif isinstance(layer, QuantLinear | Linear) and not name.startswith(inside):
            yield name, layer


def free_memory(device: torch.device) -> float:
    """Bytes; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    table = Path("/proc/meminfo")
    lines = table.read_text().splitlines() if device.type == "cpu" and table.is_file() else []
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), 0.0)
