"""The rows of the comparison of methods: what train.py is given for each, and the learning rates that are tried."""
from collections.abc import Iterator
from dataclasses import dataclass

WIDTHS = (4, 3, 2)
FACTORS = (1 / 3, 1.0, 3.0)  # times the method's usual rate
REFERENCE = "qablora-4x8"    # each row is tested against this one
DOUBLE = ("--double-quant",)
AFTERWARDS = ("--requantize", "gptq")  # the same adapter, merged to 16 bits and rounded afterwards


@dataclass(frozen=True)
class Row:
    """One line of the table, at one width or more."""
    name: str
    title: str
    flags: tuple[str, ...]
    part: str                      # the table that it belongs to
    widths: tuple[int, ...] = WIDTHS
    tried: str = "--lr"            # the flag that is tuned

    @property
    def method(self) -> str:
        return self.flags[1]


def methods() -> Iterator[Row]:
    """Every way to a fine-tuned model: Shen et al., Table 1, and the merges that came after it."""
    yield Row("full", "full fine-tuning", ("--method", "full"), "methods", (16,))
    yield Row("lora", "LoRA", ("--method", "lora"), "methods", (16,))
    for lam in (2, 4, 8):
        yield Row(f"blora-{lam}", f"BLoRA, lam {lam}", ("--method", "blora", "--lam", str(lam)), "methods", (16,))
    yield Row("qlora", "QLoRA", ("--method", "qlora", *DOUBLE, *AFTERWARDS), "methods")
    for lam in (2, 4, 8):
        yield Row(f"qblora-{lam}", f"Q-BLoRA, lam {lam}",
                  ("--method", "qblora", "--lam", str(lam), *DOUBLE, *AFTERWARDS), "methods")
    yield Row("irqlora", "IR-QLoRA", ("--method", "irqlora", *DOUBLE, *AFTERWARDS), "methods")
    yield Row("qalora", "QA-LoRA", ("--method", "qalora"), "methods")
    for block in ("4x8", "8x8"):
        yield Row(f"qablora-{block}", f"QA-BLoRA, {block}", ("--method", "qablora", "--block", block), "methods")
    yield Row("peqa", "PEQA", ("--method", "peqa"), "methods")
    yield Row("codes", "QLoRA into codes", ("--method", "qlora", *DOUBLE, "--merge-into", "codes"), "methods")
