"""What a reader must know of how cells were made: validations, GPTQ's calibration text, the base's weights, seeds."""
from collections.abc import Mapping, Sequence

from experiments.cells.plan import value_after
from experiments.claims.evidence import Cells, Group, score_of

BASE_OF_CODES = (
    "The 16-bit weights of this base are dequantized 4-bit min-max codes in blocks of 32x1, so GPTQ at 8 and 4 bits "
    "gives nearly the same weights back. Restoring from 8 or 4 bits has nothing to restore here, and equality to LoRA "
    "at 4 bits is no evidence for the claim. 3 and 2 bits are its test.")
# The calibration text of experiments/plans/rows.py at full scale, by the base's own tokenizer. For each base: its
# tokens, and how many rows of each task lie wholly in the first 96 windows of 256 tokens. Counted on 2026-11-27.
WINDOWS, WINDOW = 96, 256
TEXTS = {"SmolLM2": (25_712, {"sql-create-context": 250, "banking77": 203}),
         "the embedded base": (28_504, {"sql-create-context": 250, "banking77": 112})}
ROWS_OF_TASK = 250
LITTLE = 0.05  # a score below it cannot fall by much


def validations(cells: Cells, plan: str, planned: int) -> list[str]:
    """How often the validation loss was computed in each training, where that is not what the plan says."""
    counts: dict[str, set[int]] = {}
    for facts in (facts for facts in cells.facts.values() if facts["plan"] == plan):
        lines = facts.get("training", {}).get("validations", [])
        if lines:
            counts.setdefault(facts["tags"]["task"], set()).add(sum("validation_loss" in line for line in lines))
    if not set().union(*counts.values()) - {planned}:
        return []
    said = "; ".join(f"{task}: {' to '.join(map(str, sorted({min(some), max(some)})))}"
                     for task, some in counts.items())
    return [f"The plan says that the validation loss is computed {planned} times in a training. How often it was "
            f"computed: {said}. The end of each epoch counts, too."]


def calibration(cells: Cells, plan: str, bases: Sequence[str] = ("SmolLM2",)) -> list[str]:
    """How much of its text GPTQ saw, by the flags of the cells. The rows are told where the windows are those that
    they were counted in."""
    argvs = [facts["argv"] for facts in cells.facts.values() if facts["plan"] == plan and
             "--calibration-rows" in facts.get("argv", []) and "--calibration" in facts["argv"]]
    flags = {tuple(int(value_after(argv, flag)) for flag in ("--calibration-rows", "--max-length")) for argv in argvs}
    return [text for windows, tokens in sorted(flags) for text in (
        f"GPTQ is calibrated on {windows} windows of {tokens} tokens at most, the first ones of one text. The text "
        f"joins {ROWS_OF_TASK} training rows of each of two tasks.",
        *(map(rows_seen, bases) if (windows, tokens) == (WINDOWS, WINDOW) else []))]


def rows_seen(base: str) -> str:
    tokens, rows = TEXTS[base]
    parts = " and ".join(f"{n} of {ROWS_OF_TASK} rows of {task}" for task, n in rows.items())
    return (f"Calibration by the tokenizer of {base}: the text has {tokens:,} tokens, the windows hold "
            f"{WINDOWS * WINDOW:,}. Whole in them are {sum(rows.values())} rows: {parts}.")


def uneven_seeds(groups: Mapping[str, Group]) -> list[str]:
    """How many seeds each row has, where not all have as many. groups: by what a reader calls them."""
    counts = {name: len(group) for name, group in groups.items() if group}
    if len(set(counts.values())) < 2:
        return []
    return [f"Seeds of the rows: {', '.join(f'{n} of {name}' for name, n in counts.items())}. A comparison is over the "
            f"seeds that both sides have, and pictures draw levels over the seeds of the points."]


def learned_little(cells: Cells, plan: str, tasks: Sequence[str]) -> list[str]:
    """Of QA-LoRA and QA-BLoRA at 2 bits: which rows of family 3 say nothing of restoring, and which do."""
    found = {(name, task): score for task in tasks for name, method in (("QA-LoRA", "qalora"), ("QA-BLoRA", "qablora"))
             if (score := score_of(cells.group(plan, task=task, method=method, bits=2), "trained"))}
    little, more = ([f"{name} {100 * score.mean:.1f} % on {task}" for (name, task), score in found.items()
                     if (score.mean < LITTLE) == low] for low in (True, False))
    if not little:
        return []
    others = f" The others count: {', '.join(more)}." if more else ""
    return [f"Trained at 2 bits, below {100 * LITTLE:.0f} % as trained: {', '.join(little)}. There, the rows of "
            f"family 3 say nothing of restoring.{others}"]
