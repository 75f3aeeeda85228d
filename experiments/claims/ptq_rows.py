"""The groups of cells of the plan `ptq_qlora`, and its three families of comparisons."""
from collections.abc import Sequence

from experiments.claims.evidence import Cells, Group, Judged, compared, family, seed_scores

PLAN = "ptq_qlora"
TASKS = ("banking77", "bitext", "bitext-response")
QUANTIZERS = ("gptq", "nf")
WIDTHS = (4, 3, 2)
PIPELINE = "SFT -> PTQ -> QLoRA"
OTHERS = {"quantized": "SFT -> PTQ", "sft-more": "SFT for as many steps", "qlora": "PTQ -> QLoRA"}


def group_of(cells: Cells, plan: str, task: str, pipeline: str, how: str = "", bits: int = 0) -> Group:
    """pipeline: sft, sft-more, sft-qlora or qlora, the last two with a quantizer and a width."""
    more = {"how": how, "bits": bits} if how else {}
    return cells.group(plan, task=task, pipeline=pipeline, **more)


def settings(tasks: Sequence[str]) -> list[tuple[str, str, int]]:
    return [(task, how, bits) for task in tasks for how in QUANTIZERS for bits in WIDTHS]


def pair(cells: Cells, plan: str, task: str, how: str, bits: int, other: str) -> tuple[Group, Group, str]:
    """The pipeline, and one of OTHERS with its state."""
    ours = group_of(cells, plan, task, "sft-qlora", how, bits)
    if other == "quantized":
        return ours, ours, "quantized"
    theirs = (plan, task, other) if other == "sft-more" else (plan, task, other, how, bits)
    return ours, group_of(cells, *theirs), "trained"


def beside(cells: Cells, plan: str, tasks: Sequence[str], other: str) -> list[Judged]:
    """The pipeline against one of OTHERS."""
    found = []
    for task, how, bits in settings(tasks):
        ours, theirs, state = pair(cells, plan, task, how, bits, other)
        found.append(compared({"task": task, "quantizer": how, "bits": bits}, ours, "trained", theirs, state))
    return family(found)


def some(judged: Sequence[Judged], widths: Sequence[int], tasks: Sequence[str] = TASKS, how: str = "") -> list[Judged]:
    return [one for one in judged if one.what["bits"] in widths and one.what["task"] in tasks
            and how in ("", one.what["quantizer"])]


def every_row(cells: Cells) -> list[tuple[str, list[float]]]:
    """(how a reader finds the row, its scores by seed) of the table of scores."""
    rows = []
    for task in TASKS:
        sft, more = (group_of(cells, PLAN, task, name) for name in ("sft", "sft-more"))
        rows += [(f"{task}, SFT", sft, "trained"), (f"{task}, SFT, as many steps", more, "trained")]
    for task, how, bits in settings(TASKS):
        ours, control = (group_of(cells, PLAN, task, name, how, bits) for name in ("sft-qlora", "qlora"))
        rows += [(f"{task}, {name} by {how.upper()} at {bits} bits", group, state) for name, group, state in (
            ("SFT -> PTQ", ours, "quantized"), (PIPELINE, ours, "trained"), ("PTQ -> QLoRA", control, "trained"))]
    return [(name, seed_scores(group, state)) for name, group, state in rows]
