"""Every method at 4, 3 and 2 bits, each with its own tuned learning rate (Shen et al.; LR-QAT; LoTA-QAF)."""
import math
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.cells.plan import BEST_OF, Cell, Plan, Settings
from experiments.plans.method_rows import BORROWED, Row, every_row, real_rows

SEEDS = (0, 1, 2)
REAL_SEEDS = (0,)  # of the plan methods_real
STEPS = 282              # of the embedded base: two epochs of 9,003 rows in batches of 64
SLOWER = (1.1, 1.4)      # times QLoRA's step: Q-BLoRA's on a GPU, and on a CPU. It gets so many times fewer steps
TIMED, TIMED_WIDTHS = "qblora-2", (4, 2)
ANSWERED = ("qlora", "qblora-2", "qblora-4", "qblora-8")  # their test rows are scored at each rate
ORDER = {16: 0, 4: 0, 2: 1, 3: 2}  # widths; rates and seed 0 go before other seeds, and those before further parts
LATER, FURTHER = 3, 6

ABOUT = """\
Question: which way to a fine-tuned k-bit model is best when each has a learning rate of its own?
Rates: a third, once and three times the row's usual rate, at seed 0. The one with the lowest validation loss is used
with all seeds. (LoTA-QAF has no rate: its threshold is tuned, 3, 6 and 12.) Test rows play no part in the choice.
Changed after the first 240 cells of all plans: where the best of the three was at an end at 4 or 16 bits, a fourth was
added beyond it (a ninth or nine times the usual rate; a threshold of 1). At other widths, and in the further parts, the
three nearest that end are tried. (93 of the 240 cells were of the embedded base, and 54 of the real model.)
Changed again after 469 and 754 cells: where the best was at an end still, one more is tried beyond it. (LoTA-QAF's
threshold must be below the rank, 16. So its last one is 15; 24 was planned, and refused.)
Tests: scores of the same test rows, averaged over the seeds, row by row; paired, two-sided, against QA-BLoRA 4x8 of the
same width; Holm's correction over the rows of a width, for each of two states: as trained, and at k bits (merged into
k bits, or merged into 16 bits and rounded afterwards by GPTQ). Level 0.05. Q-BLoRA against QLoRA, rank 16, as trained:
a family of its own (lam 2, 4, 8 at 4, 3, 2 bits).
Gradients: the norm over all adapters before clipping, at each step; compared at the same rate, the usual one.
Every cell is reported, those that diverged too."""

EMBEDDED = """
Base: the embedded base, 5.8 M parameters. Task: banking77, 282 steps of 64 rows, cosine schedule, 1,000 validation
rows, all 3,080 test rows.
Further parts: other operators and other blocks at 4 bits; equal wall-clock: Q-BLoRA lam 2 with 1.1 and 1.4 times fewer
steps; equal parameters: rank 5 and 9; three targets of the merge on one base; LoRA on 16 bits, rounded afterwards by
GPTQ, at LoRA's best rate (planned after 754 cells)."""


def plan(settings: Settings) -> Plan:
    settings = replace(settings, model=None)
    flags = ["--limit", str(settings.rows(10003, 80)), "--test-limit", str(settings.rows(3080, 8)), "--batch-size",
             str(settings.rows(64, 8)), "--eval-batch-size", "1540" if settings.graphs else "128"]
    rows = every_row()
    asked = Asked("methods", settings, flags, ["--calibration-rows", str(settings.rows(500, 8))], 1.0,
                  rounded=tuple(row.name for row in rows if row.afterwards))
    timed = next(row for row in rows if row.name == TIMED)
    return Plan("methods", ABOUT + EMBEDDED, asked.cells(rows) + asked.in_equal_time(timed))


def planned(name: str) -> list[Cell]:
    """All cells of the plan `methods` or `methods_real`, to count: their arguments are not those of a run."""
    nowhere = Settings(None, Path("nowhere"))
    if name == "methods":
        return plan(nowhere).cells
    return Asked(name, nowhere, [], [], 1.0, (), REAL_SEEDS).cells(real_rows())


@dataclass(frozen=True)
class Asked:
    """What all cells are asked: `flags` of the task, `calibrated` of GPTQ, `rate` times the usual rates, and the rows
    that are rounded after training. Names of cells begin with `plan`."""
    plan: str
    settings: Settings
    flags: list[str]
    calibrated: list[str]
    rate: float
    rounded: tuple[str, ...]
    seeds: tuple[int, ...] = SEEDS

    def cells(self, rows: list[Row]) -> list[Cell]:
        """Of each row and width: its base, its rates, and its seeds at the best rate."""
        of_widths = [self.of_width(row, bits) for row in rows for bits in row.widths]
        return [cell for cells in of_widths for cell in cells]

    def of_width(self, row: Row, bits: int) -> list[Cell]:
        argv, tags = self.argv(row, bits), self.tags(row, bits)
        first = ORDER[bits] if row.part == "methods" else FURTHER
        few = [] if row.name in ANSWERED else ["--test-limit", "8"]
        untrained = ("base",) if bits == 16 else ("quantized",)
        bases = [Cell(f"{self.plan}-base-{row.base}-{bits}", argv, untrained, first, f"{self.plan}-base",
                      tags={**tags, "role": "base", "seed": 0})] if row.base else []
        rates = [Cell(name, [*argv, *few, row.tuned, value], ("trained",), first, f"{self.plan}-rate-{row.name}",
                      tags={**tags, "role": "rate", "value": float(value), "factor": factor, "seed": 0})
                 for name, value, factor in self.tried(row, bits)] if self.lender(row, bits) == (row, bits) else []
        return [*bases, *rates, *(self.final(row, bits, seed) for seed in self.seeds)]

    def final(self, row: Row, bits: int, seed: int) -> Cell:
        states = ("trained",) if row.method == "full" else ("merged",)
        first = ORDER[bits] if row.part == "methods" else FURTHER
        return Cell(f"{self.plan}-{row.name}-{bits}-seed{seed}",
                    [*self.argv(row, bits, rounded=True), "--seed", str(seed), *self.best(row, bits)], states,
                    first + LATER * (seed > 0), f"{self.plan}-{row.name}",
                    tags={**self.tags(row, bits), "role": "final", "seed": seed})

    def in_equal_time(self, row: Row) -> list[Cell]:
        """The row within QLoRA's seconds, at its own best rate."""
        return [self.slower(row, bits, ratio, seed) for bits in TIMED_WIDTHS for ratio in SLOWER for seed in SEEDS]

    def slower(self, row: Row, bits: int, ratio: float, seed: int) -> Cell:
        cell, steps = self.final(row, bits, seed), math.ceil(self.settings.scale * STEPS / ratio)
        return replace(cell, name=f"{self.plan}-{row.name}-{bits}-slower{ratio}-seed{seed}", priority=FURTHER,
                       argv=[*cell.argv, "--steps", str(steps)],
                       tags={**cell.tags, "part": "time", "role": "time", "slower": ratio})

    def argv(self, row: Row, bits: int, rounded: bool = False) -> list[str]:
        afterwards = row.rounding_flags(bits) if rounded and row.name in self.rounded else []
        return [*row.flags, *row.base_flags(bits), *afterwards,
                *(self.calibrated if row.on_gptq or afterwards else []), *self.settings.flags, *self.flags,
                *self.settings.graphs]

    def tried(self, row: Row, bits: int) -> list[tuple[str, str, float]]:
        """(name of the cell, value, factor) of each rate."""
        values = [(row.value(factor, self.rate), factor) for factor in row.factors(self.plan, bits)]
        return [(f"{self.plan}-{row.name}-{bits}-rate{value}", value, factor) for value, factor in values]

    def best(self, row: Row, bits: int) -> list[str]:
        names = [name for name, _, _ in self.tried(*self.lender(row, bits))]
        return [row.tuned, f"{BEST_OF}{','.join(names)}"]

    def lender(self, row: Row, bits: int) -> tuple[Row, int]:
        """The row and the width whose rates are used."""
        if row.rates_of:
            return next(one for one in every_row() if one.name == row.rates_of), 16
        return row, BORROWED[self.plan].get(bits, bits)

    @staticmethod
    def tags(row: Row, bits: int) -> dict:
        return {"row": row.name, "title": row.title, "part": row.part, "bits": bits}
