"""The rows of the comparison of methods: what train.py is given for each, and the learning rates that are tried."""
from collections.abc import Iterator
from dataclasses import dataclass

WIDTHS = (4, 3, 2)
FACTORS = (1 / 3, 1.0, 3.0)  # times the row's usual rate
UP, DOWN = 9.0, 1 / 9        # one more, beyond the end of FACTORS that was best at 4 (or 16) bits
AT_AN_END = {"methods": {"blora-": UP, "qblora-": UP, "qalora": UP, "peqa": UP, "lota": DOWN},
             "methods_real": {"qlora": UP, "irqlora": UP, "qblora-": UP, "qalora": UP, "qablora-": DOWN, "peqa": DOWN,
                              "scaleoffset": DOWN}}  # by plan and beginning of the row's name
BORROWED: dict[str, dict[int, int]] = {"methods": {}, "methods_real": {3: 4}}  # the width whose rates are used
# One more each, where an end of those tried was the best once more: by plan, row and width
LAST: dict[tuple[str, str], dict[int, float]] = {
    ("methods", "lota"): {4: 1 / 27, 3: 1 / 27},
    ("methods", "qblora-2"): {3: 1 / 3, 2: 1 / 3},
    ("methods", "qblora-2-truncation"): {4: 1 / 3},
    ("methods", "qblora-4-truncation"): {4: 1 / 3},
    ("methods", "qlora-r5"): {4: UP, 2: UP},
    ("methods_real", "qblora-8"): {2: 27.0},
    ("methods_real", "qalora"): {2: 27.0},
    ("methods_real", "qablora-4x8"): {2: 3.0},
    ("methods_real", "peqa"): {2: 3.0},
    ("methods_real", "codes"): {2: UP},
    ("methods_real", "lota"): {2: UP},
    ("methods_real", "scaleoffset"): {2: 3.0}}
# LoTA-QAF has no rate: its threshold, in the place of each factor. At the rank, 16, or above it no code moves
OMEGAS = {1 / 27: "0.5", DOWN: "1", 1 / 3: "3", 1.0: "6", 3.0: "12", UP: "15"}
REFERENCE = "qablora-4x8"    # each row is tested against this one
DOUBLE = ("--double-quant",)
GPTQ_METHODS = ("qalora", "lota")  # their base is made by GPTQ
SMALL = ("lora", "qlora", "qblora-2", "qblora-8", "irqlora", "qalora", "qablora-4x8", "peqa", "codes", "codes-residual",
         "lota", "scaleoffset")     # on a real model
STRAIGHT = ("--merge-into", "codes")
ON_16_BITS = ("full", "lora", "blora")


@dataclass(frozen=True)
class Row:
    """One line of a table. `part` is the table; `usual` the rate that FACTORS multiply, at a width of 256.

    afterwards: whether the merged model is rounded, or rounded again.
    rates_of: the row on 16 bits whose rates are used; empty: its own."""
    name: str
    title: str
    flags: tuple[str, ...]
    usual: float
    part: str = "methods"
    widths: tuple[int, ...] = WIDTHS
    tuned: str = "--lr"
    afterwards: bool = False
    rates_of: str = ""

    @property
    def method(self) -> str:
        return self.flags[1]

    def base_flags(self, bits: int) -> list[str]:
        return [] if self.method in ON_16_BITS else ["--bits", str(bits)]

    def rounding_flags(self, bits: int) -> list[str]:
        """Merged to 16 bits, then rounded."""
        width = f"-{bits}bit" if self.method in ON_16_BITS else ""  # else that of --bits
        return ["--requantize", f"gptq:minmax@32x1{width}+act-order"]

    @property
    def base(self) -> str:
        """The name of the untrained base, which rows share; empty if the row says nothing new about it."""
        return {"lora": "16", "qlora": "nf", "irqlora": "icq", "qalora": "gptq", "peqa": "intminmax",
                "qablora-4x8": "minmax-4x8", "qablora-8x8": "minmax-8x8"}.get(self.name, "")

    @property
    def on_gptq(self) -> bool:
        return self.method in GPTQ_METHODS or "gptq" in self.flags

    def factors(self, plan: str, bits: int) -> list[float]:
        """FACTORS and the one of AT_AN_END. In the first table at 4 and 16 bits all four, else the three nearest that
        end. And the one of LAST."""
        more = next((end for name, end in AT_AN_END[plan].items() if self.name.startswith(name)), None)
        tried = sorted((*FACTORS, more)) if more else list(FACTORS)
        if more and (self.part != "methods" or bits not in (16, 4)):
            tried = tried[1:] if more == UP else tried[:-1]
        last = LAST.get((plan, self.name), {}).get(bits)
        return sorted((*tried, last)) if last else tried

    def value(self, factor: float, slower: float = 1.0) -> str:
        """Of the flag that is tuned. A learning rate is multiplied by `slower`."""
        return f"{factor * self.usual * slower:.3g}" if self.tuned == "--lr" else OMEGAS[factor]


def methods() -> Iterator[Row]:
    """Every way to a fine-tuned model: Shen et al., Table 1, and merges that came after it."""
    yield Row("full", "full fine-tuning", ("--method", "full"), 1e-3, widths=(16,))
    yield Row("lora", "LoRA", ("--method", "lora"), 5e-3, widths=(16,))
    for lam in (2, 4, 8):
        yield Row(f"blora-{lam}", f"BLoRA, lam {lam}", ("--method", "blora", "--lam", f"{lam}"), 5e-3, widths=(16,))
    yield Row("qlora", "QLoRA", ("--method", "qlora", *DOUBLE), 5e-3, afterwards=True)
    for lam in (2, 4, 8):
        yield qblora(lam)
    yield Row("irqlora", "IR-QLoRA", ("--method", "irqlora", *DOUBLE), 5e-3, afterwards=True)
    yield Row("qalora", "QA-LoRA", ("--method", "qalora", "--act-order"), 2e-2)
    yield qablora("4x8")
    yield qablora("8x8")
    yield Row("peqa", "PEQA", ("--method", "peqa"), 3e-2)
    yield Row("codes", "QLoRA into codes", ("--method", "qlora", *DOUBLE, *STRAIGHT), 1e-2)
    yield Row("codes-residual", "QLoRA into codes, 16-bit weights kept",
              ("--method", "qlora", *DOUBLE, *STRAIGHT, "--keep-residual"), 1e-2)
    yield Row("lota", "LoTA-QAF", ("--method", "lota", "--act-order"), 0.0, tuned="--omega")
    yield Row("scaleoffset", "scale and offset", ("--method", "scaleoffset"), 3e-2)


def qblora(lam: int, part: str = "methods", name: str = "", title: str = "", more: tuple[str, ...] = (),
           widths: tuple[int, ...] = WIDTHS) -> Row:
    return Row(name or f"qblora-{lam}", title or f"Q-BLoRA, lam {lam}",
               ("--method", "qblora", "--lam", f"{lam}", *DOUBLE, *more), 5e-3, part, widths, afterwards=True)


def qablora(block: str, part: str = "methods", name: str = "", title: str = "", more: tuple[str, ...] = (),
            widths: tuple[int, ...] = WIDTHS) -> Row:
    """The usual rate grows with the inputs that are averaged (finetune/usual_rate.py)."""
    inputs = 4 if more else int(block.split("x")[0])
    return Row(name or f"qablora-{block}", title or f"QA-BLoRA, {block}",
               ("--method", "qablora", "--block", block, *more), 2e-2 * inputs / 4, part, widths)


def operators() -> Iterator[Row]:
    """Shen et al., Table 6, at 4 bits. Average pooling is in the first table."""
    for name in ("truncation", "interval"):
        more = ("--operators", name)
        for lam in (2, 4):
            yield qblora(lam, "operators", f"qblora-{lam}-{name}", f"Q-BLoRA, lam {lam}, {name}", more, (4,))
        for block in ("4x8", "8x8"):
            yield qablora(block, "operators", f"qablora-{block}-{name}", f"QA-BLoRA, {block}, {name}", more, (4,))


def blocks() -> Iterator[Row]:
    """Shen et al., Figure 7b, at 4 bits: blocks of 32 and of 64 weights. 4x8 and 8x8 are in the first table."""
    for block in ("32x1", "16x2", "8x4", "2x16", "1x32", "16x4", "4x16"):
        yield qablora(block, "blocks", widths=(4,))


def equal_parameters() -> Iterator[Row]:
    """As many trainable parameters as QA-BLoRA with 4x8 blocks, 147,456, or a few less."""
    alone = ("--rank", "5", "--lora-alpha", "5")
    yield Row("qlora-r5", "QLoRA, rank 5", ("--method", "qlora", *DOUBLE, *alone), 5e-3, "parameters",
              (4, 2), afterwards=True)
    yield qblora(2, "parameters", "qblora-2-r5", "Q-BLoRA, lam 2, rank 5", alone, (4, 2))
    yield Row("qalora-r9", "QA-LoRA, rank 9", ("--method", "qalora", "--act-order", "--rank", "9", "--lora-alpha", "9"),
              2e-2, "parameters", (4, 2))


def targets() -> Iterator[Row]:
    """Merges into codes, and into scale and offset, on QA-LoRA's and LoTA-QAF's base."""
    base = ("--quantizer", "gptq", "--block", "32x1", "--act-order")
    yield Row("codes-gptq", "LoRA into codes, GPTQ base", ("--method", "qlora", *base, *STRAIGHT), 1e-2, "targets",
              (4, 2))
    yield Row("scaleoffset-gptq", "scale and offset, GPTQ base", ("--method", "scaleoffset", *base), 3e-2, "targets",
              (4, 2))


def afterwards() -> Iterator[Row]:
    """What most people do: train on 16 bits, then round."""
    yield Row("lora-rounded", "LoRA on 16 bits", ("--method", "lora"), 5e-3, "afterwards", afterwards=True,
              rates_of="lora")


def real_rows() -> list[Row]:
    return [*(row for row in methods() if row.name in SMALL), *afterwards()]


def every_row() -> list[Row]:
    return [*methods(), *operators(), *blocks(), *equal_parameters(), *targets(), *afterwards()]


