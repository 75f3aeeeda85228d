"""Every method at 4, 3 and 2 bits, each with its own tuned learning rate (Shen et al.; LR-QAT; LoTA-QAF)."""
import math
from dataclasses import dataclass

from experiments.cells.plan import BEST_OF, Cell, Plan, Settings
from experiments.plans.method_rows import AFTERWARDS, FACTORS, SMALL, Row, every_row, methods
from experiments.plans.rows import SCC, calibration
from model.checkpoint import load_config

SEEDS = (0, 1, 2)
STEPS = 282              # of the embedded base: two epochs of 9,003 rows in batches of 64
EPOCHS = 2
SLOWER = (1.1, 1.4)      # times QLoRA's step: Q-BLoRA's on a GPU, and on a CPU. It gets so many times fewer steps
TIMED, TIMED_WIDTHS = "qblora-2", (4, 2)
ANSWERED = ("qlora", "qblora-2", "qblora-4", "qblora-8")  # their test rows are scored at each rate
WIDTH = 256              # hidden_size of the embedded base: usual rates fall with the width above it
ORDER = {16: 0, 4: 0, 2: 1, 3: 2}  # widths; rates and seed 0 go before other seeds, and those before further parts
LATER, FURTHER = 3, 6

ABOUT = """
Question: which way to a fine-tuned k-bit model is best when each has a learning rate of its own?
Rates: a third, once and three times the row's usual rate, at seed 0. The one with the lowest validation loss is used
with seeds 0, 1 and 2. (LoTA-QAF has no rate: its threshold is tuned, 4, 8 and 12.) The rule is the same for all rows
and widths. Test rows play no part in the choice.
Embedded base: banking77, 282 steps of 64 rows, cosine schedule, 1,000 validation rows, all 3,080 test rows.
With --model: sql-create-context, 2,000 rows (a tenth for validation), two epochs in batches of 32, 256 test rows; rates
fall with 256 / hidden_size. GPTQ after training there for QLoRA only, which takes longer than training.
Tests: scores of the same test rows, averaged over the seeds, row by row; paired, two-sided, against QA-BLoRA 4x8 of the
same width; corrected after Holm over the rows of a width, for each of two states: as trained, and at k bits (merged
into k bits, or rounded afterwards by GPTQ). Significant below 0.05.
Q-BLoRA against QLoRA, rank 16: a separate family of 9 (lam 2, 4, 8 at 4, 3, 2 bits), corrected after Holm.
Equal wall-clock: Q-BLoRA lam 2 with 1.1 and 1.4 times fewer steps. Equal parameters: rank 5 and 9.
Gradients: the norm over all adapters before clipping, at each step; compared at the same rate, the usual one.
Every cell is reported, those that diverged too.
""".strip()


def plan(settings: Settings) -> Plan:
    if settings.model:
        rows = [row for row in methods() if row.name in SMALL]
        asked = Asked(settings, SCC.flags(settings, EPOCHS), calibration(settings),
                      min(1.0, WIDTH / load_config(settings.model).hidden_size), rounded=("qlora",))
        return Plan("methods", ABOUT, asked.cells(rows))
    flags = ["--limit", str(settings.rows(10003, 80)), "--test-limit", str(settings.rows(3080, 8)), "--batch-size",
             str(settings.rows(64, 8)), "--eval-batch-size", "1540" if settings.graphs else "128"]
    rows = every_row()
    asked = Asked(settings, flags, ["--calibration-rows", str(settings.rows(500, 8))], 1.0,
                  rounded=tuple(row.name for row in rows if row.afterwards))
    return Plan("methods", ABOUT, asked.cells(rows) + asked.in_equal_time(next(r for r in rows if r.name == TIMED)))


@dataclass(frozen=True)
class Asked:
    """What all cells are asked: `flags` of the task, `calibrated` of GPTQ, `rate` times the usual rates, and the rows
    that are rounded after training."""
    settings: Settings
    flags: list[str]
    calibrated: list[str]
    rate: float
    rounded: tuple[str, ...]

    def cells(self, rows: list[Row]) -> list[Cell]:
        """Of each row and width: its base, its rates, and its seeds at the best rate."""
        of_widths = [self.of_width(row, bits) for row in rows for bits in row.widths]
        return [cell for cells in of_widths for cell in cells]

    def of_width(self, row: Row, bits: int) -> list[Cell]:
        argv, tags, values = self.argv(row, bits), self.tags(row, bits), row.values(self.rate)
        first = ORDER[bits] if row.part == "methods" else FURTHER
        few = [] if row.name in ANSWERED else ["--test-limit", "8"]
        bases = [Cell(f"base-{row.base}-{bits}bit", argv, ("base",) if bits == 16 else ("quantized",), first, "base",
                      tags={**tags, "role": "base", "seed": 0})] if row.base else []
        rates = [Cell(name, [*argv, *few, row.tuned, value], ("trained",), first, f"rate-{row.name}",
                      tags={**tags, "role": "rate", "value": float(value), "factor": factor, "seed": 0})
                 for name, value, factor in zip(self.names(row, bits), values, FACTORS, strict=True)]
        return [*bases, *rates, *(self.final(row, bits, seed) for seed in SEEDS)]

    def final(self, row: Row, bits: int, seed: int) -> Cell:
        states = ("trained",) if row.method == "full" else ("merged",)
        first = ORDER[bits] if row.part == "methods" else FURTHER
        return Cell(f"{row.name}-{bits}bit-seed{seed}",
                    [*self.argv(row, bits, rounded=True), "--seed", str(seed), *self.best(row, bits)], states,
                    first + LATER * (seed > 0), row.name, tags={**self.tags(row, bits), "role": "final", "seed": seed})

    def in_equal_time(self, row: Row) -> list[Cell]:
        """The row within QLoRA's seconds, at its own best rate."""
        return [Cell(f"{row.name}-{bits}bit-{ratio}-seed{seed}",
                     [*self.argv(row, bits, rounded=True), "--seed", str(seed), "--steps",
                      str(math.ceil(self.settings.scale * STEPS / ratio)), *self.best(row, bits)], ("merged",),
                     FURTHER, row.name, tags={**self.tags(row, bits), "part": "time", "role": "time", "seed": seed,
                                              "slower": ratio})
                for bits in TIMED_WIDTHS for ratio in SLOWER for seed in SEEDS]

    def argv(self, row: Row, bits: int, rounded: bool = False) -> list[str]:
        afterwards = AFTERWARDS if rounded and row.name in self.rounded else ()
        return [*row.flags, *(["--bits", str(bits)] if bits < 16 else []), *afterwards,
                *(self.calibrated if row.on_gptq or afterwards else []), *self.settings.flags, *self.flags,
                *(self.settings.graphs if row.recorded else [])]

    def names(self, row: Row, bits: int) -> list[str]:
        return [f"{row.name}-{bits}bit-{value}" for value in row.values(self.rate)]

    def best(self, row: Row, bits: int) -> list[str]:
        return [row.tuned, f"{BEST_OF}{','.join(self.names(row, bits))}"]

    @staticmethod
    def tags(row: Row, bits: int) -> dict:
        return {"row": row.name, "title": row.title, "part": row.part, "bits": bits}
