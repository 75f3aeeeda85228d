"""Folding an adapter into its base layer. Each function returns a new layer and leaves the adapted one as it was.

When does delta_W merge into k bits? It is constant on tiles of lam_in x lam_out. It goes into `offset` exactly, codes
and scale untouched, if and only if each quantization block lies inside one tile (blora.txt Sec. 3.3 aligns the two;
DESIGN.md Section 2 states the rule):

    lam_in % n_in == 0  and  lam_out % n_out == 0
"""
from dataclasses import replace

import torch
from torch import nn

from adapters.adapted import AdaptedLinear
from adapters.kronecker import Lam
from model.llama import Linear
from quant.grid import Block, QuantizedWeight
from quant.linear import QuantLinear


class MergeRefused(ValueError):
    """The adapter is not constant on the base's blocks."""


def check_merges_into_offset(lam: Lam, block: Block, layer: str) -> None:
    """Raises MergeRefused, with the rule and the sizes, where the rule does not hold."""
    if lam.lam_in % block.n_in or lam.lam_out % block.n_out:
        raise MergeRefused(
            f"layer {layer}: an adapter merges into k bits only if each quantization block lies inside one of its tiles, "
            f"lam_in % n_in == 0 and lam_out % n_out == 0; here lam_in={lam.lam_in}, n_in={block.n_in}, "
            f"lam_out={lam.lam_out}, n_out={block.n_out}. Merge to 16 bits instead, or train with --lam a multiple of --block")


def merge_into_offset(weight: QuantizedWeight, adapter: nn.Module, layer: str = "weight") -> QuantizedWeight:
    """offset_merged = offset + delta_W on that block; codes, levels and scale are the base's own.

    Differs from `get_new_beta` of Algorithm 2, which expands beta to the full matrix: it stays one a block (erratum 5).
    The new offsets have the wider of the two types, float32 as a rule: rounding the sum back to float16 would be a second
    quantization. Raises MergeRefused."""
    block = weight.grid.block
    check_merges_into_offset(adapter.lam, block, layer)
    delta_of_block = adapter.delta_weight().detach()[::block.n_out, ::block.n_in]
    wide = torch.promote_types(weight.grid.offset.dtype, delta_of_block.dtype)
    offset = weight.grid.offset.to(wide) + delta_of_block
    return QuantizedWeight(weight.codes, replace(weight.grid, offset=offset))


def merge_to_dense(adapted: AdaptedLinear, dtype: torch.dtype) -> Linear:
    """W = W_hat + delta_W (or W + delta_W), in float32 or wider, then in `dtype`."""
    base = adapted.base
    delta = adapted.adapter.delta_weight().detach()
    weight = base.dequantize(delta.dtype) if isinstance(base, QuantLinear) else base.weight.detach().to(delta.dtype)
    merged = Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
    merged.weight = nn.Parameter((weight + delta).to(dtype), requires_grad=False)
    if base.bias is not None:
        merged.bias = nn.Parameter(base.bias.detach().clone(), requires_grad=False)
    return merged


def check_merges_to_k_bits(adapted: AdaptedLinear, layer: str) -> None:
    """Raises MergeRefused where the base has no codes, or the rule does not hold."""
    if not isinstance(adapted.base, QuantLinear):
        raise MergeRefused(f"layer {layer}: its base is not quantized, so there are no offsets to merge into")
    check_merges_into_offset(adapted.adapter.lam, adapted.base.block, layer)


def merge_to_k_bits(adapted: AdaptedLinear, layer: str) -> QuantLinear:
    """The k-bit layer that is the base with the adapter in its offsets. Raises MergeRefused."""
    check_merges_to_k_bits(adapted, layer)
    merged = merge_into_offset(adapted.base.quantized_weight(), adapted.adapter, layer)
    return QuantLinear.from_weight(merged, adapted.base.bias)
