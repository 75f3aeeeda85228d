"""Merging an adapter into its base layer. Each merge returns a new layer and leaves the adapted layer as it was.

`merge_target` answers the one question: where does this adapter go in this base?

| into | layer after the merge | when |
|---|---|---|
| `offset` | offset + delta_W on each block; codes, levels and scale unchanged | each block lies inside one tile |
| `scale` | scale + d_scale; codes, levels and zero points unchanged | always, for PEQA |
| `scale and offset` | both replaced; codes and levels unchanged | always, for `scaleoffset.py` |
| `codes` | codes moved by delta_W; levels, scale and offset unchanged | always, if it trained so (`rounded.py`) |
| `codes and offset` | codes + t, offset + scale * mu; levels and scale unchanged | always, for LoTA (`lota.py`) |
| `16 bits` | a dense layer, W_hat + delta_W | all other cases |

A tile is a rectangle of lam_in inputs x lam_out outputs on which delta_W is constant (`adapter.tile`). Each block of
n_in inputs x n_out outputs lies inside one tile if and only if

    lam_in % n_in == 0  and  lam_out % n_out == 0

Shen et al., Sec. 3.3 choose equal blocks and tiles, but do not state the rule. The tile is a single weight for LoRA,
for IR-QLoRA, and for the operators that skip inputs (truncation, interval sampling).
"""
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapters.adapted import AdaptedLinear
from adapters.adapter import Adapter, AdditiveAdapter
from adapters.lota import TernaryLinear
from adapters.merged_form import has_merged_form, inside_tiles, offset_with
from adapters.peqa import PEQA
from adapters.rounded import CODES, RoundedLinear
from adapters.scaleoffset import RefittedLinear
from model.llama import Linear
from quant.linear import QuantLinear

SIXTEEN_BITS = "16 bits"


class MergeRefused(ValueError):
    """The adapter does not merge into the base's codes."""


@dataclass(frozen=True)
class MergeTarget:
    """What `into` names is replaced in the base, or "16 bits" for the whole layer."""
    into: str
    reason: str = ""  # of "16 bits": why not into k bits, with the rule and the sizes

    @property
    def keeps_codes(self) -> bool:
        """Whether the merged layer holds codes of the base's k bits."""
        return self.into != SIXTEEN_BITS


def merge_target(base: nn.Module, adapter: Adapter) -> MergeTarget:
    """Where the adapter goes in this base. Reads sizes only, so that layers and adapters on the meta device will do."""
    if not isinstance(base, QuantLinear):
        return MergeTarget(SIXTEEN_BITS, "its base is not quantized, so it has no codes to keep")
    if not adapter.additive or adapter.tile is None or adapter.merges_into == CODES:
        return MergeTarget(adapter.merges_into)
    n_in, n_out = base.block_size
    lam_in, lam_out = adapter.tile.lam_in, adapter.tile.lam_out
    if inside_tiles(base, adapter.tile):
        return MergeTarget(adapter.merges_into)
    return MergeTarget(SIXTEEN_BITS,
                       f"an adapter merges into k bits only if each quantization block lies inside one of its tiles, "
                       f"lam_in % n_in == 0 and lam_out % n_out == 0; here the tile is lam_in={lam_in} x "
                       f"lam_out={lam_out}, the block n_in={n_in} x n_out={n_out}. Merge to 16 bits instead, or train "
                       f"with averaged tiles that are multiples of the block, or with --merge-into codes")


def merge_into_codes(adapted: AdaptedLinear, layer: str = "weight") -> QuantLinear:
    """The k-bit layer with the adapter in what `merge_target` names. It shares all other buffers of the base.

    Raises MergeRefused, with the layer and the reason, unless `merge_target` keeps the k bits."""
    base, adapter = adapted.base, adapted.adapter
    target = merge_target(base, adapter)
    if target.into == "offset":
        return base.with_offset(merged_offset(base, adapter))
    if target.into == "scale":
        return base.with_scale(merged_scale(base, adapter))
    if isinstance(adapted, RefittedLinear | RoundedLinear | TernaryLinear):
        return adapted.merged()
    raise MergeRefused(f"layer {layer}: {target.reason}")


def codes_moved(adapted: AdaptedLinear) -> float | None:
    """The share of a layer's codes that its merge changes; None for a merge that leaves all codes."""
    if CODES not in merge_target(adapted.base, adapted.adapter).into:
        return None
    before, after = (layer.quantized_weight().codes for layer in (adapted.base, merge_into_codes(adapted)))
    return (before != after).double().mean().item()


def merged_offset(base: QuantLinear, adapter: AdditiveAdapter) -> Tensor:
    """offset + delta_W on that block, (D_out/n_out, D_in/n_in), in the wider of the two types (`offset_with`)."""
    if has_merged_form(base, adapter):
        return offset_with(base, adapter, adapter.core_weight().detach())
    n_in, n_out = base.block_size
    delta_of_block = adapter.delta_weight().detach()[::n_out, ::n_in]
    _, offset = base.grid.factors()
    return offset.to(torch.promote_types(offset.dtype, delta_of_block.dtype)) + delta_of_block


def merged_scale(base: QuantLinear, adapter: PEQA) -> Tensor:
    """scale + d_scale, (D_out/n_out, D_in/n_in)."""
    scale, _ = base.grid.factors()
    return adapter.scale(scale).detach()


def merge_to_dense(adapted: AdaptedLinear, dtype: torch.dtype) -> Linear:
    """W = W_hat + delta_W (or W + delta_W), summed in float32 or wider, then rounded to `dtype`."""
    base = adapted.base
    merged = Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
    merged.weight = nn.Parameter(adapted.weight().detach().to(dtype), requires_grad=False)
    if base.bias is not None:
        merged.bias = nn.Parameter(base.bias.detach().clone(), requires_grad=False)
    return merged
