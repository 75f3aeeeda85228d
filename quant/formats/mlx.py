"""MLX's affine format: a scale and a real offset for each group of inputs.

    W_hat = scales * codes + biases,   codes 0 .. 2^bits - 1,   groups of 32, 64 or 128 inputs x 1 output

| tensor | type | shape |
|---|---|---|
| `NAME.weight` | uint32 | (D_out, D_in * bits / 32): the codes of a row, the first in the lowest bits |
| `NAME.scales`, `NAME.biases` | float32, float16 or bfloat16 | (D_out, D_in / group_size); a scale may be negative |

Read as bytes, `weight` is what `quant.packing` packs. config.json states `quantization: {group_size, bits}`, and other
sizes for single layers by their name. A layer that stays dense has no `scales`.
"""
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quant.formats.stored import (
    FLOATS,
    GROUPS,
    Stated,
    StoredFormat,
    affine_factors,
    affine_low,
    group_of,
    in_type,
    levels_of,
    smallest_type,
)
from quant.grid import Block, Grid
from quant.linear import QuantLinear

KEYS = ("quantization", "quantization_config")  # mlx-lm writes the same object under both
BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class Setting:
    """bits and group_size, of all layers or of one."""
    bits: int
    group_size: int

    @classmethod
    def of(cls, stated: dict, where: str) -> "Setting":
        """Raises ValueError, naming the key, for values that are not read."""
        mode = stated.get("mode", "affine")
        if mode != "affine":
            raise ValueError(f"{where}: mode is {str(mode)[:40]!r}, and only affine is read")
        for name, allowed in (("bits", BITS), ("group_size", GROUPS)):
            if type(stated.get(name)) is not int or stated[name] not in allowed:
                raise ValueError(f"{where}: {name} is {str(stated.get(name))[:40]}, but must be one of "
                                 f"{', '.join(map(str, sorted(allowed)))}")
        return cls(stated["bits"], stated["group_size"])

    def to_json(self) -> dict:
        return {"group_size": self.group_size, "bits": self.bits, "mode": "affine"}


@dataclass(frozen=True)
class MLX(StoredFormat):
    usual: Setting
    layers: dict[str, Setting] = field(default_factory=dict)  # those of other sizes
    name = "mlx"
    parts = {"weight": ("U32",), "scales": FLOATS, "biases": FLOATS}

    @classmethod
    def of(cls, config: dict) -> "MLX | None":
        """Raises ValueError, naming the key, for a mode or sizes that are not read, and for two keys that differ."""
        stated = config.get(KEYS[0])
        if not isinstance(stated, dict) or "group_size" not in stated or "quant_method" in stated:
            return None
        if config.get(KEYS[1], stated) != stated:
            raise ValueError(f"{' and '.join(KEYS)} differ, but mlx-lm writes one object under both: delete one")
        layers = {name: Setting.of({**stated, **value}, f"{KEYS[0]}, {name[:80]}") for name, value in stated.items()
                  if isinstance(value, dict)}
        return cls(Setting.of(stated, KEYS[0]), layers)

    def stated(self, layer: str, shapes: dict[str, tuple[int, ...]], small: Mapping[str, Tensor]) -> Stated:
        setting = self.layers.get(layer, self.usual)
        scales, words = shapes["scales"], shapes["weight"]
        if len(scales) != 2 or scales != shapes["biases"]:
            raise ValueError(f"{layer}: scales have the shape {list(scales)}, biases {list(shapes['biases'])}; both "
                             f"must be (D_out, D_in / group_size)")
        D_out, D_in = scales[0], scales[1] * setting.group_size
        if words != (D_out, D_in * setting.bits // 32):
            raise ValueError(f"{layer}: weight has the shape {list(words)}, but {setting.bits} bits in groups of "
                             f"{setting.group_size} with scales of {list(scales)} take "
                             f"{[D_out, D_in * setting.bits // 32]}")
        return Stated(D_out, D_in, setting.bits, Block(setting.group_size, 1))

    def read(self, stated: Stated, parts: dict[str, Tensor]) -> QuantLinear:
        codes = parts["weight"].contiguous().view(torch.uint8).flatten()
        grid = Grid(levels_of(stated.bits), parts["scales"], parts["biases"], stated.block, stated.bits)
        return QuantLinear(stated.D_out, stated.D_in, codes, grid)

    # ---- writing

    @classmethod
    def setting_for(cls, stated: Stated) -> Setting:
        """A block of several outputs, or of more inputs than a group, becomes several groups."""
        affine_low(stated.values())
        if stated.bits not in BITS:
            raise ValueError(f"{stated.bits} bits have no place in MLX, which has {', '.join(map(str, BITS))}")
        group = group_of(stated.block)
        if group is None:
            raise ValueError(f"blocks of {stated.block} (n_in x n_out) do not fall into MLX's groups of "
                             f"{', '.join(map(str, sorted(GROUPS)))} inputs x 1 output")
        return Setting(stated.bits, group)

    @classmethod
    def config_of(cls, settings: dict[str, Setting], dense: Sequence[str] = ()) -> dict:
        usual, _ = Counter(settings.values()).most_common(1)[0]
        others = {layer: setting.to_json() for layer, setting in settings.items() if setting != usual}
        return dict.fromkeys(KEYS, {**usual.to_json(), **others})

    def write(self, name: str, layer: QuantLinear, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """Levels from `low` on become codes from 0 on: biases = offset + scale * low. The usual type of factors is one
        that holds them exactly."""
        group_size = self.layers.get(name, self.usual).group_size
        n_in, n_out = layer.block_size
        scale, offset = affine_factors(layer)
        factors = {"scales": scale, "biases": offset.expand_as(scale)}
        parts = {part: factor.repeat_interleave(n_out, 0).repeat_interleave(n_in // group_size, 1)
                 for part, factor in in_type(factors, dtype or smallest_type(factors, layer)).items()}
        return {"weight": layer.codes.view(layer.out_features, -1).view(torch.uint32), **parts}
