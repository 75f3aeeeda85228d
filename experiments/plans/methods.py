"""Every method at 4, 3 and 2 bits, each with its own tuned learning rate (Shen et al.; LR-QAT; LoTA-QAF)."""
import math

from experiments.cells.plan import BEST_OF, Cell, Plan, Settings
from experiments.plans.method_rows import FACTORS, SMALL, Row, every_row, methods
from model.checkpoint import load_config

SEEDS = (1, 2)           # beside seed 0, at which rates are tuned
STEPS = 282              # of the embedded base: two epochs of 9,003 rows in batches of 64
SLOWER = (1.1, 1.4)      # times QLoRA's step: Q-BLoRA's on a GPU, and on a CPU. It gets so many times fewer steps
TIMED, TIMED_WIDTHS = "qblora-2", (4, 2)
WIDTH = 256              # hidden_size of the embedded base: usual rates fall with the width above it
ORDER = {4: 0, 16: 0, 2: 1, 3: 2}  # widths, the first to be done first

ABOUT = """
Question: which way to a fine-tuned k-bit model is best when each has a learning rate of its own?
Rates: a third, once and three times the row's usual rate, at seed 0; the one with the lowest validation loss counts,
and seeds 1 and 2 use it. (LoTA-QAF has no rate: its threshold is tuned instead.) The rule is the same for all rows and
widths. Test rows are not looked at in tuning; seed 0 of the chosen rate counts as one of the three seeds.
Embedded base: banking77, 282 steps of 64 rows, cosine schedule, 1,000 validation rows, all 3,080 test rows.
With --model: sql-create-context, 2,000 rows (a tenth for validation), two epochs in batches of 32, 200 test rows.
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
        return Plan("methods", ABOUT, of_rows(rows, settings, real_model(settings),
                                              min(1.0, WIDTH / load_config(settings.model).hidden_size)))
    shared = embedded_base(settings)
    return Plan("methods", ABOUT, of_rows(every_row(), settings, shared, 1.0) + equal_time(settings, shared))


def embedded_base(settings: Settings) -> list[str]:
    return [*settings.flags, "--limit", str(settings.rows(10003, 80)), "--test-limit", str(settings.rows(3080, 8)),
            "--batch-size", str(settings.rows(64, 8)), *large_batches(settings, 1540)]


def real_model(settings: Settings) -> list[str]:
    data = settings.data / "sql_create_context"
    return [*settings.flags, "--task", "sql-create-context", "--data", str(data / "train.jsonl"),
            "--test-data", str(data / "test.jsonl"), "--limit", str(settings.rows(2000, 40)),
            "--test-limit", str(settings.rows(200, 4)), "--batch-size", str(settings.rows(32, 4)),
            *large_batches(settings, 200)]


def large_batches(settings: Settings, rows: int) -> list[str]:
    return ["--eval-batch-size", str(rows)] if settings.device.startswith("cuda") else []


def of_rows(rows: list[Row], settings: Settings, shared: list[str], slower: float) -> list[Cell]:
    """Of each row and width: its base, its rates, and further seeds at the best rate. `slower` multiplies the rates."""
    cells: dict[str, Cell] = {}
    for row in rows:
        for bits in row.widths:
            argv = [*row.flags, *(["--bits", str(bits)] if bits < 16 else []), *of_gptq(row, settings), *shared,
                    *(settings.graphs if row.recorded else [])]
            tags = {"row": row.name, "title": row.title, "part": row.part, "bits": bits}
            for cell in [*base_of(row, bits, argv, tags), *of_width(row, bits, argv, tags, slower)]:
                cells.setdefault(cell.name, cell)
    return list(cells.values())


def of_gptq(row: Row, settings: Settings) -> list[str]:
    return ["--calibration-rows", str(settings.rows(500, 8))] if row.by_gptq else []


def base_of(row: Row, bits: int, argv: list[str], tags: dict) -> list[Cell]:
    """The untrained base, rounded as the row rounds it. Those that several rows share occur once."""
    states = ("base",) if bits == 16 else ("quantized",)
    return [Cell(f"base-{row.base}-{bits}bit", argv, states, ORDER[bits], "base",
                 tags={**tags, "role": "base", "seed": 0})] if row.base else []


def of_width(row: Row, bits: int, argv: list[str], tags: dict, slower: float) -> list[Cell]:
    values = row.values(slower)
    first, later = (0, 3) if row.part == "methods" else (10, 20)
    names = [f"{row.name}-{bits}bit-{value}" for value in values]
    states = ("trained",) if bits == 16 and row.method == "full" else ("merged",)
    cells = [Cell(name, [*argv, row.tuned, value], states, first + ORDER[bits], row.name,
                  tags={**tags, "role": "rate", "value": float(value), "factor": factor, "seed": 0})
             for name, value, factor in zip(names, values, FACTORS, strict=True)]
    return cells + [Cell(f"{row.name}-{bits}bit-seed{seed}",
                         [*argv, "--seed", str(seed), row.tuned, f"{BEST_OF}{','.join(names)}"], states,
                         later + ORDER[bits], row.name, tags={**tags, "role": "seed", "seed": seed}) for seed in SEEDS]


def equal_time(settings: Settings, shared: list[str]) -> list[Cell]:
    """Q-BLoRA within QLoRA's seconds, at its own best rate."""
    row = next(row for row in methods() if row.name == TIMED)
    cells = []
    for bits in TIMED_WIDTHS:
        rates = ",".join(f"{row.name}-{bits}bit-{value}" for value in row.values(1.0))
        for ratio in SLOWER:
            steps = math.ceil(settings.scale * STEPS / ratio)
            for seed in (0, *SEEDS):
                argv = [*row.flags, "--bits", str(bits), *of_gptq(row, settings), *shared, *settings.graphs, "--seed",
                        str(seed), "--steps", str(steps), row.tuned, f"{BEST_OF}{rates}"]
                cells.append(Cell(f"{row.name}-{bits}bit-{ratio}-seed{seed}", argv, ("merged",), 8, row.name,
                                  tags={"row": row.name, "title": row.title, "part": "time", "bits": bits,
                                        "role": "time", "seed": seed, "slower": ratio}))
    return cells
