"""Folding an adapter into its base layer. Each function returns a new layer and leaves the adapted one as it was.

When does delta_W merge into k bits? It is constant on tiles of lam_in x lam_out. It goes into `offset` exactly, codes
and scale untouched, if and only if each quantization block lies inside one tile (blora.txt Sec. 3.3 aligns the two;
DESIGN.md Section 2 states the rule):

    lam_in % n_in == 0  and  lam_out % n_out == 0

Which tile an adapter has follows from its lam and its operators (`adapter.tile`); that of LoRA, of IR-QLoRA and of the operators
that leave inputs out is a single weight. PEQA goes into `scale` instead, always.
"""
from dataclasses import replace

import torch
from torch import nn

from adapters.adapted import AdaptedLinear
from adapters.peqa import PEQA
from adapters.lam import Lam
from model.llama import Linear
from quant.grid import Block, QuantizedWeight
from quant.linear import QuantLinear


class MergeRefused(ValueError):
    """The adapter is not constant on the base's blocks."""


def check_merges_into_offset(tile: Lam, block: Block, layer: str) -> None:
    """Raises MergeRefused, with the rule and the sizes, where the rule does not hold."""
    if tile.lam_in % block.n_in or tile.lam_out % block.n_out:
        raise MergeRefused(
            f"layer {layer}: an adapter merges into k bits only if each quantization block lies inside one of its tiles, "
            f"lam_in % n_in == 0 and lam_out % n_out == 0; here the tile is lam_in={tile.lam_in} x lam_out={tile.lam_out}, the block "
            f"n_in={block.n_in} x n_out={block.n_out}. Merge to 16 bits instead, or train with averaged tiles that are multiples of "
            f"the block")


def merge_into_offset(weight: QuantizedWeight, adapter: nn.Module, layer: str = "weight") -> QuantizedWeight:
    """offset_merged = offset + delta_W on that block; codes, levels and scale are the base's own.

    Differs from `get_new_beta` of Algorithm 2, which expands beta to the full matrix: it stays one a block (erratum 5).
    The new offsets have the wider of the two types, float32 as a rule: rounding the sum back to float16 would be a second
    quantization. Raises MergeRefused."""
    block = weight.grid.block
    check_merges_into_offset(adapter.tile, block, layer)
    delta_of_block = adapter.delta_weight().detach()[::block.n_out, ::block.n_in]
    _, offset = weight.grid.factors()
    wide = torch.promote_types(offset.dtype, delta_of_block.dtype)
    return QuantizedWeight(weight.codes, replace(weight.grid, offset=offset.to(wide) + delta_of_block))


def merge_into_scale(weight: QuantizedWeight, adapter: PEQA) -> QuantizedWeight:
    """scale_merged = scale + d_scale; codes, levels and integer zero points are the base's own."""
    return QuantizedWeight(weight.codes, replace(weight.grid, scale=adapter.scale(weight.grid.factors()[0]).detach()))


def merge_to_dense(adapted: AdaptedLinear, dtype: torch.dtype) -> Linear:
    """W = W_hat + delta_W (or W + delta_W), in float32 or wider, then in `dtype`."""
    base = adapted.base
    merged = Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
    merged.weight = nn.Parameter(adapted.weight().detach().to(dtype), requires_grad=False)
    if base.bias is not None:
        merged.bias = nn.Parameter(base.bias.detach().clone(), requires_grad=False)
    return merged


def merges_into_blocks(adapter: nn.Module, block: Block) -> bool:
    """Whether this adapter on blocks of this size merges into k bits: what `check_merges_to_k_bits` says of a layer, without one."""
    try:
        check_adapter_merges(adapter, block, "weight")
    except MergeRefused:
        return False
    return True


def check_adapter_merges(adapter: nn.Module, block: Block, layer: str) -> None:
    """PEQA always does; an additive adapter by the rule. Raises MergeRefused."""
    if not isinstance(adapter, PEQA):
        check_merges_into_offset(adapter.tile, block, layer)


def check_merges_to_k_bits(adapted: AdaptedLinear, layer: str) -> None:
    """Raises MergeRefused where the base has no codes, or the rule does not hold."""
    if not isinstance(adapted.base, QuantLinear):
        raise MergeRefused(f"layer {layer}: its base is not quantized, so there are no offsets to merge into")
    check_adapter_merges(adapted.adapter, adapted.base.block, layer)


def merge_to_k_bits(adapted: AdaptedLinear, layer: str) -> QuantLinear:
    """The k-bit layer that is the base with the adapter in its offsets, or in its scales for PEQA. Raises MergeRefused."""
    check_merges_to_k_bits(adapted, layer)
    weight, adapter = adapted.base.quantized_weight(), adapted.adapter
    merged = merge_into_scale(weight, adapter) if isinstance(adapter, PEQA) else merge_into_offset(weight, adapter, layer)
    return QuantLinear.from_weight(merged, adapted.base.bias)
