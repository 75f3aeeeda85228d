"""AutoAWQ's GEMM format: a scale and an integer zero point for each group of inputs.

    W_hat = scales * (codes - zeros),   codes 0 .. 15,   groups of group_size inputs x 1 output

| tensor | type | shape |
|---|---|---|
| `NAME.qweight` | int32 | (D_in, D_out / 8): of each input, the codes of all outputs |
| `NAME.qzeros` | int32 | (D_in / group_size, D_out / 8) |
| `NAME.scales` | float16, bfloat16 or float32 | (D_in / group_size, D_out) |

A word holds eight outputs in the order 0 2 4 6 1 3 5 7, the first in the lowest bits. Rows are inputs here and outputs
in `quant.packing`, so the codes are packed again.
"""
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from quant.factors import ZeroPoints
from quant.formats.stored import (
    FLOATS,
    INTEGER,
    Stated,
    StoredFormat,
    check_shapes,
    group_size,
    levels_of,
    one_of,
    settings_by,
    unpack_rows,
)
from quant.grid import Block, Grid
from quant.linear import QuantLinear
from quant.packing import pack

PLACES = [0, 4, 1, 5, 2, 6, 3, 7]  # of outputs 0 .. 7 in a word


@dataclass(frozen=True)
class AWQ(StoredFormat):
    group_size: int | None  # None: all inputs
    name = "awq"
    parts = {"qweight": ("I32",), "qzeros": ("I32",), "scales": FLOATS}

    @classmethod
    def of(cls, config: dict) -> "AWQ | None":
        """Raises ValueError, naming the key, for settings that are not read."""
        stated = settings_by("awq", config)
        if stated is None:
            return None
        key = "version" if "version" in stated else "format"
        layout = stated.get(key, "gemm")
        one_of({key: layout.lower() if isinstance(layout, str) else layout}, key, ("gemm",))
        one_of(stated, "bits", (4,))
        one_of(stated, "zero_point", (True,), usual=True)
        return cls(group_size(stated))

    def stated(self, layer: str, shapes: dict[str, tuple[int, ...]], small: Mapping[str, Tensor]) -> Stated:
        words = shapes["qweight"]
        if len(words) != 2:
            raise ValueError(f"{layer}: qweight has the shape {list(words)}, but must be (D_in, D_out / 8)")
        D_in, D_out = words[0], 8 * words[1]
        n_in = self.group_size or D_in
        check_shapes(layer, shapes, {"scales": (D_in // n_in, D_out), "qzeros": (D_in // n_in, words[1])},
                     f"{D_in} inputs and {D_out} outputs in groups of {n_in}")
        return Stated(D_out, D_in, 4, Block(n_in, 1), INTEGER)

    def read(self, stated: Stated, parts: dict[str, Tensor]) -> QuantLinear:
        codes, zeros = (unpack_rows(parts[part], 4, stated.D_out).unflatten(1, (-1, 8))[..., PLACES].flatten(1)
                        for part in ("qweight", "qzeros"))
        grid = Grid(levels_of(4), parts["scales"].T.contiguous(), ZeroPoints.of(zeros.T, 4), stated.block, 4)
        return QuantLinear(stated.D_out, stated.D_in, pack(codes.T, 4), grid)
