"""What a reader must know of the base, the quantizers, the controls and the tests of the plan `ptq_qlora`, and what is
left of a verdict without the comparisons that say little. Nothing of this was in the plan."""
import statistics
from collections.abc import Sequence

from experiments.claims.evidence import (
    CONFIRMED,
    NOT_CONFIRMED,
    OF_SEVERAL,
    OPPOSITE,
    Cells,
    Group,
    Judged,
    compared,
    family,
    figure_of,
    marks_of,
    p_cell,
    score_of,
    seed_scores,
    spread_not_in_tests,
    with_state,
)
from experiments.claims.ptq_rows import OTHERS, PIPELINE, PLAN, TASKS, every_row, group_of, pair, settings

GPTQ_4, NF_2 = ("gptq", 4), ("nf", 2)  # why they say little is in `of_base`, `of_nothing` and `failed_seeds`
SAY_LITTLE = {GPTQ_4: "GPTQ at 4 bits", NF_2: "NF at 2 bits"}


def name_of(one: Judged) -> str:
    return f"{one.what['task']} by {one.what['quantizer'].upper()} at {one.what['bits']} bits"


def by_seed(group: Group, state: str) -> str:
    """`0.0 and 7.9 %`"""
    return " and ".join(f"{score:.1f}" for score in seed_scores(group, state)) + " %"


# ---- verdicts ------------------------------------------------------------------------------------------------------

def rests_on(cells: Cells, judged: Sequence[Judged], other: str) -> list[str]:
    """The significant comparisons of the pipeline with one of OTHERS, with the scores of each seed."""
    decided = [one for one in judged if one.verdict != NOT_CONFIRMED]
    said = []
    for one in decided:
        ours, theirs, state = pair(cells, PLAN, *one.what.values(), other)
        said.append(f"{name_of(one)} ({one.points}; {by_seed(ours, 'trained')} by seed, beside "
                    f"{by_seed(theirs, state)})")
    little = sum(setting(one) in SAY_LITTLE for one in decided)
    return [f"That verdict rests on: {'; '.join(said)}. Of these {len(said)}, {little} are "
            f"{' or '.join(SAY_LITTLE.values())}, which say little on this base, see below."] * bool(said)


def setting(one: Judged) -> tuple[str, int]:
    return one.what["quantizer"], one.what["bits"]


def without_them(judged: Sequence[Judged], these: Sequence[tuple[str, int]] = (GPTQ_4,)) -> list[str]:
    """What remains of a claim's comparisons without those settings. No sentence if it has none of these. Beside 16-bit
    SFT, what NF at 2 bits loses counts in full."""
    gone = [SAY_LITTLE[which] for which in these if which in map(setting, judged)]
    rest = [one for one in judged if setting(one) not in these]
    if not gone or not rest:
        return []
    without = f"Without {' and '.join(gone)} (not in the plan), "
    if len(rest) == 1:
        return [f"{without}one comparison is left: {name_of(rest[0])}, {rest[0].points} points, corrected p "
                f"{p_cell(rest[0])}."]
    mean = 100 * statistics.mean(one.comparison.difference for one in rest)
    above = sum(one.comparison.difference > 0 for one in rest)
    (ups, downs), (ups_alone, downs_alone) = (
        [sum(one.verdict == verdict for one in some) for verdict in (CONFIRMED, OPPOSITE)]
        for some in (rest, family(rest)))
    return [f"{without}{above} of {len(rest)} differences are above zero. Their mean is {mean:+.1f} points. "
            f"Significant by the family's correction: {ups} above, {downs} below. Corrected over these {len(rest)} "
            f"alone: {ups_alone} above, {downs_alone} below."]


def failed_seeds(cells: Cells, families: dict[str, Sequence[Judged]]) -> list[str]:
    """Trained groups of which one seed scores zero and another does not, and the significant comparisons of these.

    families: by key of OTHERS."""
    said = []
    for task, how, bits in settings(TASKS):
        ours = group_of(cells, PLAN, task, "sft-qlora", how, bits)
        scores = [any(marks_of(facts, "trained")) for facts in with_state(ours, "trained").values()]
        if all(scores) or not any(scores):
            continue
        touched = [f"{one.points} beside {OTHERS[other]}{' (counted in open question 2)' * counted}"
                   for other, judged in families.items() for counted in [bits < 4 and other != "qlora"]
                   for one in judged if one.verdict != NOT_CONFIRMED and tuple(one.what.values()) == (task, how, bits)]
        more = f" Significant all the same: {'; '.join(touched)}." if touched else ""
        said.append(f"A seed failed: {PIPELINE} on {task} by {how.upper()} at {bits} bits scores "
                    f"{by_seed(ours, 'trained')} by seed.{more}")
    return said


# ---- the control ---------------------------------------------------------------------------------------------------

def of_control(cells: Cells) -> list[str]:
    """SFT for as many steps beside the SFT that it goes on from, and the pipeline beside that SFT."""
    pairs, moved = [], []
    for task in TASKS:
        sft, more = (group_of(cells, PLAN, task, name) for name in ("sft", "sft-more"))
        seeds = sft.keys() & more.keys()
        sft, more = ({seed: group[seed] for seed in sorted(seeds)} for group in (sft, more))
        pairs += zip(*(figure_of(group, "trained", "validation_loss") for group in (sft, more)), strict=True)
        before, after = score_of(sft, "trained"), score_of(more, "trained")
        if before and after:
            moved.append(f"from {100 * before.mean:.1f} to {100 * after.mean:.1f} % on {task}")
    if not pairs:
        return []
    higher = sum(after > before for before, after in pairs)
    return [f"The control, SFT for as many steps, goes on from SFT, and its state before the first step is no "
            f"candidate for what is kept. Its kept validation loss is above SFT's in {higher} of {len(pairs)} pairs of "
            f"task and seed. Its score goes {', '.join(moved)}.", *beside_sft(cells)]


def beside_sft(cells: Cells) -> list[str]:
    """The pipeline by NF at 4 bits."""
    said = []
    for task in TASKS:
        one = compared({}, group_of(cells, PLAN, task, "sft-qlora", "nf", 4), "trained",
                       group_of(cells, PLAN, task, "sft"), "trained")
        if one and one.comparison.p_value is not None:
            said.append(f"{one.points} points on {task}, p {one.comparison.p_value:.2g}")
    return [f"Beside SFT itself, {PIPELINE} by NF at 4 bits differs by (not in the plan, p not corrected): "
            f"{'; '.join(said)}."] * bool(said)


# ---- the base, the quantizers, the tests ---------------------------------------------------------------------------

def notes(cells: Cells) -> list[str]:
    return [OF_SEVERAL, *of_base(cells), *of_nothing(cells), *spread_not_in_tests(every_row(cells)),
            "Holm's correction is over the comparisons of a family that could be made. The findings were split by "
            "width and quantizer after the results were seen. No learning rate was tuned."]


def pointer(cells: Cells) -> str:
    overstated = "GPTQ at 4 bits overstates what PTQ costs on this base, see below. Judge 4 bits by NF."
    return overstated if of_base(cells) else ""


def of_base(cells: Cells) -> list[str]:
    """Nothing unless 4 bits score below 3."""
    at_4, at_3 = (score_of(group_of(cells, PLAN, TASKS[0], "sft-qlora", "gptq", bits), "quantized") for bits in (4, 3))
    if not (at_4 and at_3 and at_4.mean < at_3.mean):
        return []
    return ["The 16-bit weights of this base are dequantized 4-bit min-max codes in blocks of 32x1, the grid of GPTQ "
            f"here. SFT -> PTQ by GPTQ scores {at_4} % at 4 bits and {at_3} % at 3 bits on banking77. The likely "
            "reason, not tested on its own: rounding to the old grid undoes part of SFT. So 4 bits by GPTQ overstate "
            "what PTQ costs, and PTQ -> QLoRA on that grid starts without loss. Judge 4 bits by NF."]


def of_nothing(cells: Cells) -> list[str]:
    """The quantizers and widths at which no state has a right answer, and another base where one has."""
    none: dict[tuple[str, int], list[str]] = {}
    for task, how, bits in settings(TASKS):
        ours, control = (group_of(cells, PLAN, task, name, how, bits) for name in ("sft-qlora", "qlora"))
        scores = [score_of(ours, "quantized"), score_of(ours, "trained"), score_of(control, "trained")]
        if all(scores) and not any(score.mean for score in scores if score):
            none.setdefault((how, bits), []).append(task)
    said = []
    for (how, bits), tasks in none.items():
        other = score_of(group_of(cells.of_prefix("scale-ptq-"), "scale", TASKS[0], "sft-qlora", how, bits), "trained")
        elsewhere = (f" It is not so on the embedded base: {PIPELINE} scores {other} % there on {TASKS[0]}, see the "
                     "scale of the effects.") if other and other.mean else ""
        said.append(f"{how.upper()} at {bits} bits leaves nothing to train on, on this base: every state scores 0 % on "
                    f"{' and '.join(tasks)}. Comparisons of zero with zero say nothing.{elsewhere}")
    return said
