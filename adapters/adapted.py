"""An adapter beside a base layer, and the adapted layers of a model."""
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from adapters.merged_form import has_merged_form, merged_product
from quant.linear import QuantLinear


class AdaptedLinear(nn.Module):
    """y = base(x) + adapter.delta(dropout(x)), as one product where the two merge exactly (`merged_form.py`).

    Dropout comes before an adapter's pooling; `QALoRA` says how far dropout after it would differ.

    The base is opaque: any module that maps (..., D_in) to (..., D_out) will do. Any module with `delta` and
    `delta_weight` will do as the adapter."""
    base: Any
    adapter: Any

    def __init__(self, base: nn.Module, adapter: nn.Module, dropout: float = 0.0):
        super().__init__()
        self.base, self.adapter = base, adapter
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        drops = self.training and isinstance(self.dropout, nn.Dropout)
        if not drops and has_merged_form(self.base, self.adapter):
            return merged_product(x, self.base, self.adapter)
        return self.base(x) + self.adapter.delta(self.dropout(x))

    def weight(self) -> Tensor:
        """W + delta_W, (D_out, D_in), in the wider of float32 and the adapter's type."""
        delta = self.adapter.delta_weight()
        return dense_weight(self.base, delta.dtype) + delta


def dense_weight(base: nn.Module, dtype: torch.dtype) -> Tensor:
    """The matrix that a base layer multiplies by, (D_out, D_in). Codes are dequantized."""
    return base.dequantize(dtype) if isinstance(base, QuantLinear) else base.get_parameter("weight").to(dtype)


def replace_layers(model: nn.Module, names: list[str], change: Callable[[str, nn.Module], nn.Module]) -> None:
    """Replace each named layer by `change(name, layer)`, one at a time."""
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, change(name, model.get_submodule(name)))


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLinear]:
    """The adapted layers of a model by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, AdaptedLinear)}


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of every adapter, named after its layer: `model.layers.0.self_attn.q_proj.A`."""
    return {f"{layer}.{name}": p for layer, adapted in adapted_layers(model).items()
            for name, p in adapted.adapter.named_parameters()}
