"""How a weight is quantized, in one phrase that people type and files keep:

    [gptq:]GRID[@BLOCK][-Nbit][+double-quant][+act-order]

    minmax@4x8-4bit                    rounded to a 4-bit min-max grid in blocks of 4 inputs x 8 outputs
    nf@64x1-3bit+double-quant          NormalFloat, its scales quantized to 8 bits
    gptq:minmax@32x1-4bit+act-order    the same kind of grid, its codes chosen by GPTQ
"""
import re
from dataclasses import dataclass, field

from quant import QUANTIZERS
from quant.grid import Block
from quant.quantizer import Quantizer

GPTQ = "gptq"             # chooses the codes of another quantizer's grid
GPTQ_GRID = "minmax"      # its grid unless another is named
GPTQ_BLOCK = Block(32, 1)
DEFAULT_BITS = 4
PHRASE = re.compile(r"(?:(?P<gptq>gptq):)?(?P<name>[a-z]+)(?:@(?P<block>\w+))?(?:-(?P<bits>\d+)bit)?"
                    r"(?P<more>(?:\+double-quant|\+act-order)*)")
FORM = "[gptq:]GRID[@BLOCK][-Nbit][+double-quant][+act-order], as in gptq:minmax@32x1-4bit"


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


@dataclass(frozen=True)
class QuantSpec:
    """One way to quantize a linear layer. Raises ValueError for values that do not go together."""
    quantizer: str = field(metadata=dict(
        choices=lambda: ("none", *QUANTIZERS, GPTQ), shown="the method's",
        help="quantize the base this way; none keeps the base as it is"))
    bits: int = field(metadata=dict(
        parse=whole, metavar="N", shown=f"{DEFAULT_BITS} if the base is quantized",
        help="store a weight in this many bits: 2, 3, 4, 5, 6 or 8 (nf and icq: 2, 3, 4)"))
    block: Block = field(metadata=dict(
        parse=Block.parse, metavar="BLOCK", shown="the method's or the quantizer's",
        help="let n_in inputs x n_out outputs share a scale and an offset: 4x8, or rowx1 for whole rows. "
             "Codes of 32x1, its multiples and rowx1 reach MLX, GGUF and other engines (docs/formats.md)"))
    grid: str | None = field(default=None, metadata=dict(
        choices=lambda: QUANTIZERS, metavar="QUANTIZER", shown=f"{GPTQ_GRID}; intminmax with --method peqa",
        help="gptq only: round to the grid of this quantizer"))
    double_quant: bool = field(default=False, metadata=dict(help="nf and icq only: quantize the scales to 8 bits"))
    act_order: bool = field(default=False, metadata=dict(
        help="gptq only: quantize columns in the order of falling activations; recommended at 2 bits"))

    def __post_init__(self):
        if self.grid and not self.by_gptq:
            raise ValueError(f"--grid {self.grid} is for --quantizer {GPTQ} only; {self.quantizer} is a grid itself")
        if self.act_order and not self.by_gptq:
            raise ValueError(f"--act-order is for {GPTQ} only, and the quantizer is {self.quantizer}: leave it out, or "
                             f"use --quantizer {GPTQ} --grid {self.quantizer}")
        self.new_quantizer()

    @classmethod
    def of(cls, quantizer: str, bits: int = DEFAULT_BITS, block: Block | None = None, grid: str | None = None,
           double_quant: bool = False, act_order: bool = False) -> "QuantSpec":
        """None: the quantizer's usual block, and the usual grid of gptq."""
        by_gptq = quantizer == GPTQ
        usual = GPTQ_BLOCK if by_gptq else QUANTIZERS[quantizer].usual_block
        return cls(quantizer, bits, block or usual, grid or (GPTQ_GRID if by_gptq else None), double_quant, act_order)

    @classmethod
    def parse(cls, text: str, bits: int = DEFAULT_BITS, block: Block | None = None) -> "QuantSpec":
        """Raises ValueError for text of another form. `bits` and `block` stand for parts that are left out; a block of
        None stands for the quantizer's usual one."""
        found = PHRASE.fullmatch(text)
        if not found or found["name"] not in (QUANTIZERS if found["gptq"] else (*QUANTIZERS, GPTQ)):
            raise ValueError(f"{text!r} is not a way to quantize; the form is {FORM}; "
                             f"GRID is one of {', '.join(QUANTIZERS)}")
        name, more = found["name"], found["more"].split("+")[1:]
        return cls.of(GPTQ if found["gptq"] else name, int(found["bits"] or bits),
                      Block.parse(found["block"]) if found["block"] else block,
                      name if found["gptq"] else None, "double-quant" in more, "act-order" in more)

    def __str__(self) -> str:
        return self._phrase(f"-{self.bits}bit")

    @property
    def how(self) -> str:
        """The phrase without the bits: `gptq:minmax@32x1`."""
        return self._phrase("")

    @property
    def key(self) -> str:
        """The phrase for file names: `gptq-minmax-32x1-4bit`."""
        return re.sub(r"[:@+]", "-", str(self))

    def _phrase(self, bits: str) -> str:
        how = f"{GPTQ}:{self.grid}" if self.by_gptq else self.quantizer
        more = "+double-quant" * self.double_quant + "+act-order" * self.act_order
        return f"{how}@{self.block}{bits}{more}"

    @property
    def by_gptq(self) -> bool:
        return self.quantizer == GPTQ

    @property
    def grid_name(self) -> str:
        """A key of QUANTIZERS."""
        return self.grid or self.quantizer

    def new_quantizer(self) -> Quantizer:
        """What fits the grid. Raises ValueError for bits or double quantization that the grid does not have."""
        return QUANTIZERS[self.grid_name](self.bits, self.block, double_quant=self.double_quant)
