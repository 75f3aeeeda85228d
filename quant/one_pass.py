"""Dequantization in one pass on a GPU: the plain equation, compiled by torch.compile.

    W_hat = scale * levels[codes] + offset          block by block            (Shen et al., Eq. 1)

Operation by operation, a GPU writes the levels as float32, then the weights as float32, then the weights as bfloat16,
and reads them in between. Compiled, it reads the codes and writes the weights.

One compilation serves all layers of a model that have the same kind of block, because the number of blocks is a
variable. Blocks of several outputs need the number of inputs as a constant: one compilation for each D_in.
"""
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import FunctionType

import torch
import torch.nn.functional as F
from torch import Tensor

from quant.packing import unpack_plainly, word_shape

COMPILED_FROM = 1 << 18  # weights: smaller layers are dequantized before a compiler has started
TYPES = (torch.float32, torch.bfloat16, torch.float16)
OPTIONS: dict[str, str | int | bool | Callable] = {"assert_indirect_indexing": False}  # codes stay inside the table

_failed: list[str] = []  # why nothing is compiled in this process


def blockwise(values: Tensor, scale: Tensor, offset: Tensor, zero: Tensor | None) -> Tensor:
    """scale * values + offset with one rounding, and 0 where a value is its zero point. Factors broadcast."""
    weight = torch.addcmul(offset, scale, values)
    return weight if zero is None else weight.masked_fill(values == zero, 0)


@dataclass(frozen=True)
class Units:
    """The smallest equal parts of a layer that are whole blocks and whole words: n_out rows of `columns` blocks, or one
    block."""
    bits: int
    n_out: int
    columns: int
    n_in: int

    @classmethod
    def of(cls, bits: int, shape: tuple[int, ...], n_in: int, n_out: int) -> "Units | None":
        """None if no such parts exist: a row ends within a word."""
        _, n_codes = word_shape(bits)
        if n_out == 1 and n_in % n_codes == 0:
            return cls(bits, 1, 1, n_in)
        return cls(bits, n_out, shape[1] // n_in, n_in) if n_out * shape[1] % n_codes == 0 else None

    def __str__(self) -> str:
        return f"{self.bits}_{self.n_out}_{self.columns}_{self.n_in}"


def plain_pass(units: Units, dtype: torch.dtype) -> Callable[..., Tensor]:
    """The function that is compiled: (packed, levels, scale, offset, zero) -> W_hat, (units, n_out, columns, n_in).

    scale, offset and zero have one value for each block, row by row; offset may have one for all."""
    wide, constants = torch.promote_types(dtype, torch.float32), str(units)  # numbers would be taken for variables

    def dequantized(packed: Tensor, levels: Tensor, scale: Tensor, offset: Tensor, zero: Tensor | None) -> Tensor:
        bits, n_out, columns, n_in = (int(number) for number in constants.split("_"))
        n_levels = 2 ** bits
        table = levels if len(levels) == n_levels else F.pad(levels, (0, n_levels - len(levels)), value=torch.nan)
        codes = unpack_plainly(packed.view(-1, n_out * columns * n_in * bits // 8), bits)
        values = table[codes].to(wide).view(-1, n_out, columns, n_in)

        def spread(factor: Tensor) -> Tensor:
            return factor.to(wide).view((1, 1, 1, 1) if factor.numel() == 1 else (-1, 1, columns, 1))
        return blockwise(values, spread(scale), spread(offset), None if zero is None else spread(zero)).to(dtype)
    return dequantized


@cache
def compiled_pass(units: Units, dtype: torch.dtype) -> Callable[..., Tensor]:
    """As `plain_pass`. Each has a code object of its own: torch.compile allows so many compilations for each.

    The compiler works in this process: for a few small kernels, starting others takes longer."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    plain = plain_pass(units, dtype)
    assert isinstance(plain, FunctionType)
    name = f"dequantize_{units}_{dtype}".replace("torch.", "")
    own = FunctionType(plain.__code__.replace(co_name=name), plain.__globals__, name, None, plain.__closure__)
    return torch.compile(own, dynamic=True, fullgraph=True, options=OPTIONS)


def dequantize_in_one_pass(packed: Tensor, bits: int, shape: tuple[int, ...], n_out: int, levels: Tensor, scale: Tensor,
                           offset: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """W_hat of `shape`; None where the compiled pass does not apply, or where nothing can be compiled. A line on stderr
    says the latter, once."""
    units = Units.of(bits, shape, shape[1] // scale.shape[1], n_out)
    if _failed or units is None or shape[0] * shape[1] < COMPILED_FROM or dtype not in TYPES:
        return None
    try:
        return compiled_pass(units, dtype)(packed, levels, scale, offset, zero).view(shape)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # without a C compiler, say: several passes give the same bits
        _failed.append(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")
        print(f"dequantization is not compiled into one pass and takes several: {_failed[0]}", file=sys.stderr)
        return None
