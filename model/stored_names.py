"""Tensors that published files store under other names than the model here has, or several in one.

A Phi-3 file holds q, k and v as the rows of one matrix, and gate and up as those of another. They are split when they
are read, and joined when a directory for transformers is written. A file with both a model for images and one for text
is read as the latter.
"""
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from model.config import LlamaConfig
from model.families import FAMILIES
from model.other_models import text_name


@dataclass(frozen=True)
class Stored:
    """Where a tensor of the model is: a tensor of the file, and its rows; None: all."""
    name: str
    rows: slice | None = None

    def of(self, tensor: Tensor) -> Tensor:
        return tensor if self.rows is None else tensor[self.rows].clone()

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        return whole if self.rows is None else (self.rows.stop - self.rows.start, *whole[1:])


def places(name: str, shape: tuple[int, ...], config: LlamaConfig, where: str) -> dict[str, Stored]:
    """The model's tensors that a tensor of a file holds, with their places; none for a part that is not read.

    Raises ValueError for a joined tensor that has not the rows of its parts. `where` is the file."""
    ours = text_name(name) if config.model_type == "gemma3_text" else name
    if ours is None:
        return {}
    layer, _, leaf = ours.rpartition(".")
    parts = layer_places(layer, config)
    ends = [place.rows.stop for place in parts.values() if place.rows]
    if ends and shape[:1] != (ends[-1],):
        raise ValueError(f"{where}: {name} has shape {list(shape)}, but must have {ends[-1]} rows, those of "
                         f"{', '.join(parts)}")
    return {f"{part}.{leaf}" if part else leaf: Stored(name, place.rows) for part, place in parts.items()}


def layer_places(layer: str, config: LlamaConfig) -> dict[str, Stored]:
    """The model's layers that a layer of the family's files is, with the rows of each."""
    fused = FAMILIES[config.model_type].fused
    kind = next((kind for kind in fused if layer.endswith(f".{kind}")), None)
    if kind is None:
        return {layer: Stored(layer)}
    parts = {f"{layer.removesuffix(kind)}{part}": rows_of(part, config) for part in fused[kind]}
    ends = list(accumulate(parts.values(), initial=0))
    return {part: Stored(layer, slice(*rows)) for part, rows in zip(parts, pairwise(ends), strict=True)}


def joined_layers(layers: Iterable[str], config: LlamaConfig) -> dict[str, tuple[str, ...]]:
    """`joined_names` of layers, not of tensors."""
    joined = joined_names((f"{layer}.weight" for layer in layers), config)
    return {name.removesuffix(".weight"): tuple(part.removesuffix(".weight") for part in parts)
            for name, parts in joined.items()}


def rows_of(layer: str, config: LlamaConfig) -> int:
    """The outputs of a linear layer that files join with others."""
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads,
             "self_attn.v_proj": config.num_key_value_heads}.get(layer)
    return config.intermediate_size if heads is None else heads * config.head_dim


def joined_names(names: Iterable[str], config: LlamaConfig) -> dict[str, tuple[str, ...]]:
    """Name in the family's files -> the tensors of the model that are its rows, in the order of `names`."""
    kinds = {part: (kind, parts) for kind, parts in FAMILIES[config.model_type].fused.items() for part in parts}
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        layer, _, leaf = name.rpartition(".")
        kind, parts = kinds.get(".".join(layer.split(".")[-2:]), (None, ()))
        prefix = ".".join(layer.split(".")[:-2])
        found |= {f"{prefix}.{kind}.{leaf}": tuple(f"{prefix}.{part}.{leaf}" for part in parts)} if kind else {
            name: (name,)}
    return found


def joined(tensors: dict[str, Tensor], config: LlamaConfig) -> dict[str, Tensor]:
    """The tensors of a model as its family's files hold them: the inverse of the split."""
    return {name: tensors[parts[0]] if len(parts) == 1 else torch.cat([tensors[part] for part in parts])
            for name, parts in joined_names(tensors, config).items()}
