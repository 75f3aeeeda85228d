"""Kanda & Hatano, Table 1 and Figure 2, and what they leave open: restoring QLoRA, QA-LoRA and QA-BLoRA.

ABOUT says what is run and tested. It was written before the runs, and is stored with the results.
"""
from collections.abc import Sequence

from experiments.cells.plan import Cell, Plan, Settings
from experiments.plans.rows import BANKING77, SCC, TaskRows, gptq

ABOUT = """\
Base: SmolLM2-135M-Instruct. Tasks: sql-create-context and banking77; 2,000 training rows, a tenth of them for
validation; 256 and 512 test rows.
Training: adapters on the attention layers, rank and alpha 16, batches of 32 rows, 2 epochs of sql-create-context and 3
of banking77, the method's usual learning rate (docs/learning-rate.md) at every width; the validation loss is computed
four times, and what has the lowest is kept.
Bases: GPTQ, min-max 32x1, act-order, all linear layers, calibrated on 500 training rows of the two tasks, once for all
seeds.
Cells: LoRA at 16 bits; QLoRA at 8, 4, 3 and 2 bits, each restored to every wider width; seeds 0, 1, 2. At 2 bits also
QA-LoRA (on the same base) and QA-BLoRA (min-max 4x8), restored to 3, 4, 8 and 16 bits; seeds 0, 1.
Not run: adapters trained by --merge-into codes. Restoring them is refused, since delta_W beside another base is
another model.
Tests: unit = test row; its mark is averaged over the seeds. Paired test as eval.py --compare (McNemar's exact test for
one seed, else the paired bootstrap or flipped signs). Family 1: each restored state against as trained, of QLoRA, per
task. Family 2: QLoRA at 8, 4, 3 and 2 bits, restored to 16, against LoRA. Family 3: QA-LoRA and QA-BLoRA restored
against as trained. Holm's correction within each family, level 0.05.
Rule: restoring lowers the validation loss if ||W_l - W_k|| / ||delta_W||, with delta_W of the first of the four
validations, is below a threshold. The threshold is fitted on sql-create-context and tested on banking77: share of right
signs against the better constant answer, exact binomial test; and Spearman's rank correlation with the gain."""

WIDTHS = (16, 8, 4, 3, 2)
SEEDS = (0, 1, 2)
LAYERS = ["--targets", "attention", "--rank", "16", "--lora-alpha", "16"]
EPOCHS = {SCC: 2, BANKING77: 3}


def plan(settings: Settings) -> Plan:
    cells = bases("plr", settings, SCC) + [cell for task in (SCC, BANKING77) for cell in of_task("plr", settings, task)]
    return Plan("plr", ABOUT, cells)


def bases(plan: str, settings: Settings, task: TaskRows) -> list[Cell]:
    """The bases by GPTQ, before anything waits for them. Their scores say what rounding alone costs."""
    flags = [*settings.flags, *LAYERS, *task.flags(settings, EPOCHS[task])]
    return [Cell(f"{plan}-base-{bits}", ["--method", "qlora", *flags, *gptq(settings, bits)], ("quantized",),
                 priority=-1, kind="gptq", seconds=40, tags={"task": task.task, "bits": bits})
            for bits in reversed(WIDTHS) if bits < 16]


def of_task(plan: str, settings: Settings, task: TaskRows, seeds: Sequence[int] = SEEDS) -> list[Cell]:
    flags = task.flags(settings, EPOCHS[task])
    found = [of_width(plan, settings, task, flags, bits, seed) for seed in seeds for bits in WIDTHS]
    for seed in seeds[:2]:
        found += [restored(plan, settings, task, flags, method, 2, seed, argv)
                  for method, argv in (("qalora", gptq(settings, 2)), ("qablora", ["--bits", "2"]))]
    return found


def of_width(plan: str, settings: Settings, task: TaskRows, flags: list[str], bits: int, seed: int) -> Cell:
    """LoRA at 16 bits, else QLoRA."""
    method, argv = ("lora", []) if bits == 16 else ("qlora", gptq(settings, bits))
    return restored(plan, settings, task, flags, method, bits, seed, argv)


def restored(plan: str, settings: Settings, task: TaskRows, flags: list[str], method: str, bits: int, seed: int,
             argv: list[str]) -> Cell:
    """Trained at `bits` and restored to every wider width. `flags`: of the task."""
    wider = [width for width in reversed(WIDTHS) if width > bits]
    untrained = ("base" if bits == 16 else "quantized",) if seed == 0 else ()
    return Cell(f"{plan}-{task.task}-{method}-{bits}-seed{seed}",
                ["--method", method, *argv, *settings.flags, *LAYERS, *flags, *settings.graphs, "--seed", str(seed)],
                (*untrained, "trained", *(f"restored-{width}bit" for width in wider)), priority=seed,
                kind=f"{method}-{len(wider)}-{task.task}", seconds=20 + 6 * len(wider),
                tags={"task": task.task, "method": method, "bits": bits, "seed": seed},
                after=[f"{plan}-base-{width}" for width in (bits, *wider) if width < 16] if "gptq" in argv else [])
