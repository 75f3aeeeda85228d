"""Zhu et al., SFT -> PTQ -> QLoRA beside its controls, and the questions that they leave open.

ABOUT says what is run and tested. It was written before the runs, and is stored with the results.
"""
from collections.abc import Sequence

from experiments.cells.plan import Cell, Plan, Settings
from experiments.plans.rows import BANKING77, BITEXT, BITEXT_RESPONSE, TaskRows, gptq

ABOUT = """\
Base: SmolLM2-135M-Instruct. Tasks: banking77 (2,000 training rows, 512 test rows, accuracy), bitext (1,000 and 400,
accuracy), bitext-response (1,000 and 128, ROUGE-L of the first 96 tokens).
SFT: all weights, 2 epochs, 16 bits. PTQ: NF 64x1, and GPTQ min-max 32x1 with act-order, of all linear layers, at 4, 3
and 2 bits. QLoRA: adapters on all linear layers, rank and alpha 16, 1 epoch on the same rows. The usual learning rate
of each method. Batches of 32 rows (16 for bitext-response). The validation loss is computed four times in each
training, and what has the lowest is kept. Seeds 0 and 1.
Controls: SFT for 1 more epoch (as many steps as the pipeline has); PTQ of the base, then QLoRA for 3 epochs (as many
steps in all, without SFT: open question 1). 3 and 2 bits are open question 2. Open question 3, scale: plan `scale`.
Tests: unit = test row; its mark is averaged over the seeds. Paired test as eval.py --compare. For each task, quantizer
and width: A, the pipeline against SFT -> PTQ; B, against SFT for as many steps; C, against PTQ -> QLoRA. Each of A, B
and C is one family over tasks, quantizers and widths; Holm's correction within a family, level 0.05."""

SEEDS = (0, 1)
PTQ = {"gptq": (4, 3, 2), "nf": (4, 3, 2)}
SFT_EPOCHS, MORE_EPOCHS = 2, 1
LAYERS = ["--targets", "all", "--rank", "16", "--lora-alpha", "16"]


def plan(settings: Settings) -> Plan:
    cells = [cell for task in (BANKING77, BITEXT, BITEXT_RESPONSE) for cell in of_task("ptq", settings, task)]
    return Plan("ptq_qlora", ABOUT, cells)


def of_task(plan: str, settings: Settings, task: TaskRows, seeds: Sequence[int] = SEEDS,
            ptq: dict[str, tuple[int, ...]] = PTQ) -> list[Cell]:
    return [cell for seed in seeds for cell in of_seed(plan, settings, task, seed, ptq)]


def of_seed(plan: str, settings: Settings, task: TaskRows, seed: int, ptq: dict[str, tuple[int, ...]]) -> list[Cell]:
    """SFT comes first, and then what is made of it. 3 and 2 bits by NF can wait for the next seed."""
    def cell(name: str, argv: list[str], epochs: int, states: Sequence[str], wait: int = 0, **tags: object) -> Cell:
        argv = [*argv, "--device", settings.device, *task.flags(settings, epochs), *settings.graphs,
                "--seed", str(seed)]
        return Cell(f"{plan}-{task.task}-{name}-seed{seed}", argv, tuple(states), priority=seed + wait,
                    kind=f"{name.rstrip('432')}-{task.task}", seconds=20 + 10 * epochs,
                    tags={"task": task.task, "seed": seed, "pipeline": name.split("-gptq")[0].split("-nf")[0], **tags})
    sft = f"{plan}-{task.task}-sft-seed{seed}"
    base = ["--model", str(settings.model)] if settings.model else []
    cells = [cell("sft", ["--method", "full", *base], SFT_EPOCHS, ("base", "trained") if seed == 0 else ("trained",),
                  wait=-1),
             cell("sft-more", ["--method", "full", "--model", f"cell:{sft}"], MORE_EPOCHS, ("trained",))]
    for how, bits in ((how, bits) for how, widths in ptq.items() for bits in widths):
        quantizer = gptq(settings, bits) if how == "gptq" else ["--quantizer", how, "--bits", str(bits)]
        tags, wait = {"how": how, "bits": bits}, int(how == "nf" and bits < 4)
        cells.append(cell(f"sft-qlora-{how}{bits}", ["--method", "qlora", *LAYERS, "--model", f"cell:{sft}",
                                                     *quantizer], MORE_EPOCHS, ("quantized", "trained"), wait, **tags))
        cells.append(cell(f"qlora-{how}{bits}", ["--method", "qlora", *LAYERS, *base, *quantizer],
                          SFT_EPOCHS + MORE_EPOCHS, ("quantized", "trained") if seed == 0 else ("trained",), wait,
                          **tags))
    return cells
