"""One picture of what was found about each of the three papers on a real model. Every title is made from the cells."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.claims import pictures, plr, ptq_qlora
from experiments.claims.evidence import CONFIRMED, OPPOSITE, Cells, Group, Judged, Score, score_of
from experiments.claims.method_findings import compared_with_itself
from experiments.claims.method_rows import Found, Which, as_trained, at_k_bits, first_table, gather, tested
from experiments.claims.pictures import BLACK, BLUE, GREEN, ORANGE, PINK, RED
from finetune.pictures import pyplot

PLANS = ("methods_real", "plr", "ptq_qlora")
EXACT = (("qalora", BLUE, "QA-LoRA merged"), ("qablora-4x8", GREEN, "QA-BLoRA merged"),
         ("scaleoffset", PINK, "scale, offset merged"))
WIDTHS, TRAINED_AT = (4, 3, 2), (8, 4, 3, 2)
LINES = ("-", "--", ":")  # of tasks
METRICS = {"bitext-response": ", ROUGE-L"}  # the others: share of right answers
NAME = "overview.png"


def can_be_drawn(cells: Cells) -> bool:
    """Whether each of the three plans has cells."""
    return set(PLANS) <= {facts["plan"] for facts in cells.facts.values()}


def draw(cells: Cells, path: Path) -> None:
    """Three panels, one a paper."""
    figure, axes = pyplot().subplots(1, 3, figsize=(11.2, 4.1), layout="constrained")
    figure.get_layout_engine().set(wspace=0.03)
    figure.suptitle("Three papers tried on SmolLM2-135M. Bars: 95 % interval over test rows. Gains and losses are "
                    "counted where p < 0.05.", fontsize=9, color="0.3")
    for panel, drawn in zip(axes, (merging, restoring, recovering), strict=True):
        title, note = drawn(panel, cells)
        panel.set_title(f"{title}\n", fontsize=11, fontweight="bold")
        panel.text(0.5, 1.03, note, transform=panel.transAxes, ha="center", fontsize=9, color="0.3")
        top = panel.get_ylim()[1]
        panel.set_ylim(-0.03 * top, 1.06 * top)
        panel.grid(axis="y", color="0.9")
        panel.set_axisbelow(True)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, fontsize=9, frameon=False,
                     columnspacing=1, handlelength=1.6)
    pictures.save(figure, path)


def frame(panel: Any, widths: Sequence[int], xlabel: str, groups: Sequence[Group]) -> None:
    seeds = pictures.interval_of(groups).removeprefix("95 % interval, ")
    panel.set_xticks(range(len(widths)), [str(bits) for bits in widths])
    panel.set_xlim(-0.45, len(widths) - 0.55)
    panel.set_xlabel(f"{xlabel} ({seeds})", fontsize=9)
    panel.set_ylabel("test score, %", fontsize=9, labelpad=1)
    panel.tick_params(labelsize=9)


def side_by_side(n: int, step: float) -> list[float]:
    """`side_by_side(3, 0.1) == [-0.1, 0.0, 0.1]`: no bar lies on another."""
    return [step * (i - (n - 1) / 2) for i in range(n)]


# ---- Shen et al. ---------------------------------------------------------------------------------------------------

def merging(panel: Any, cells: Cells) -> tuple[str, str]:
    rows = {(one.row, one.bits): one for one in first_table(gather(cells, "methods_real")) if one.finals}
    series = [("qlora", as_trained, ORANGE, "QLoRA as trained"),
              ("qlora", at_k_bits, RED, "QLoRA rounded"),
              *((row, at_k_bits, color, label) for row, color, label in EXACT)]
    for (row, which, color, label), shift in zip(series, side_by_side(len(series), 0.1), strict=True):
        scores = [score_in(rows.get((row, bits)), which) for bits in WIDTHS]
        pictures.points(panel, [i + shift for i in range(len(WIDTHS))], scores, color, label,
                        "" if which is as_trained else "-")
    for bits in (bits for bits in WIDTHS[-1:] if nothing_learned(rows.get(("qlora", bits)))):
        panel.text(0.02, 0.04, f"{bits}-bit QLoRA: 0 % as trained, too", transform=panel.transAxes, fontsize=8.5,
                   color="0.2")
    pictures.level(panel, score_in(rows.get(("lora", 16)), as_trained), BLACK, "LoRA on 16 bits", ":")
    frame(panel, WIDTHS, "bits of the model; sql-create-context", [one.finals for one in rows.values()])
    return merging_title(rows), balance_note(rows)


def score_in(one: Found | None, which: Which) -> Score | None:
    """Of the state that the row ends in. None: it was not run."""
    keys = {key for facts in one.finals.values() if (key := which(facts))} if one else set()
    return score_of(one.finals, keys.pop()) if one and len(keys) == 1 else None


def nothing_learned(one: Found | None) -> bool:
    """Whether the trained model gets no row right: rounding had nothing to spoil."""
    score = score_in(one, as_trained)
    return score is not None and score.mean == 0


def merging_title(rows: dict[tuple[str, int], Found]) -> str:
    """What rounding afterwards costs QLoRA where that is most, and what an exact merge costs at most."""
    judged = {bits: test for (row, bits), one in rows.items() if row == "qlora" and (test := compared_with_itself(one))}
    changes = [abs(one.scores(at_k_bits)[i] - before) for (row, _), one in rows.items()
               if row in [name for name, *_ in EXACT] and one.states(at_k_bits).keys() == one.states(as_trained).keys()
               for i, before in enumerate(one.scores(as_trained))]
    worst = min((bits for bits, test in judged.items() if test.verdict == OPPOSITE),
                key=lambda bits: judged[bits].comparison.difference, default=0)
    rounded = (f"Rounding QLoRA to {worst} bits costs {points(judged[worst])} points" if worst
               else f"Rounding QLoRA {'brings no significant loss' if judged else 'was not run'}")
    most = max(changes, default=0.0)
    cost = f"{most:.1f} at most" if most >= 0.05 else "none"
    return f"{rounded},\n{f'an exact merge costs {cost}' if changes else 'no exact merge was run'}"


def balance_note(rows: dict[tuple[str, int], Found]) -> str:
    """Shen et al.'s claim that QA-BLoRA is above QA-LoRA, corrected for the widths. A width is left out where the best
    rate of either is the lowest or the highest that was tried: a better one may lie beyond."""
    ours, theirs = "qablora-4x8", "qalora"
    pairs = [(rows[ours, bits], rows[theirs, bits]) for bits in WIDTHS
             if (ours, bits) in rows and (theirs, bits) in rows]
    tests = tested([pair for pair in pairs if not any(one.at_edge for one in pair)], at_k_bits)
    above, below = ([test for test in tests.values() if test.verdict == verdict] for verdict in (CONFIRMED, OPPOSITE))
    lost = f", below at {len(below)}" if below else ""
    said = f"{len(above)} of {len(tests)} width{'s' * (len(tests) != 1)}{lost}"
    return f"Shen et al.: QA-BLoRA above QA-LoRA at {said}" if tests else "Shen et al.: not tested, no cells"


def points(judged: Judged) -> str:
    size = abs(100 * judged.comparison.difference)
    return f"{size:.0f}" if size >= 10 else f"{size:.1f}"


# ---- Kanda & Hatano ------------------------------------------------------------------------------------------------

def restoring(panel: Any, cells: Cells) -> tuple[str, str]:
    tasks = list(reversed(plr.TASKS))
    groups = {task: [plr.group_of(cells, plr.PLAN, task, "qlora", bits) for bits in TRAINED_AT] for task in tasks}
    before_and_after(panel, groups, ("trained", "QLoRA as trained"), (plr.key(16), "restored to 16 bits"))
    frame(panel, TRAINED_AT, "bits of the base in training", sum(groups.values(), []))
    family = plr.restored(cells, plr.PLAN, plr.TASKS, ["qlora"])
    gains, losses = ([one for one in family if one.verdict == verdict] for verdict in (CONFIRMED, OPPOSITE))
    return restoring_title([one for one in family if one.what["restored to"] == 16]), (
        f"Kanda & Hatano: {len(gains)} of {len(family)} comparisons gain, {len(losses)} lose")


def restoring_title(judged: Sequence[Judged]) -> str:
    gains, losses = ([one for one in judged if one.verdict == verdict] for verdict in (CONFIRMED, OPPOSITE))
    lost = max(losses, key=lambda one: abs(one.comparison.difference), default=None)
    won = max(gains, key=lambda one: abs(one.comparison.difference), default=None)
    said = [f"up to {points(won)} points gained" if won else "no significant gain",
            *([f"up to {points(lost)} points lost"] if lost else [])] if judged else ["not run"]
    return f"Restoring QLoRA to 16 bits:\n{', '.join(said)}"


def before_and_after(panel: Any, groups: dict[str, list[Group]], before: tuple[str, str],
                     after: tuple[str, str]) -> None:
    """Two states of each task, a kind of line a task."""
    drawn = [(task, line, state, color, label) for (task, _), line in zip(groups.items(), LINES, strict=False)
             for (state, label), color in ((before, ORANGE), (after, BLUE))]
    firsts: dict[str, list[Score]] = {}
    for (task, line, state, color, label), shift in zip(drawn, side_by_side(len(drawn), 0.06), strict=True):
        scores = [score_of(group, state) for group in groups[task]]
        named = label in panel.get_legend_handles_labels()[1]
        pictures.points(panel, [i + shift for i in range(len(scores))], scores, color, "_" if named else label, line)
        firsts.setdefault(task, []).extend(score for score in scores[:1] if score)
    name_tasks(panel, {task: scores for task, scores in firsts.items() if scores})


def name_tasks(panel: Any, firsts: dict[str, list[Score]]) -> None:
    """Over the first points of the task with the highest score; under those of the others."""
    highest = max(firsts, key=lambda task: max(score.mean for score in firsts[task]), default=None)
    others = {task: 100 * min(s.mean - s.half for s in scores) for task, scores in firsts.items() if task != highest}
    places = dict(zip(others, apart(list(others.values()), 0.07 * panel.get_ylim()[1]), strict=True))
    for task, scores in firsts.items():
        y = places.get(task, 100 * max(s.mean + s.half for s in scores))
        above = task == highest
        panel.annotate(f"{task}{METRICS.get(task, '')}", (-0.3, y), (0, 5 if above else -5), fontsize=8.5,
                       textcoords="offset points", va="bottom" if above else "top", color="0.2")


def apart(places: Sequence[float], least: float) -> list[float]:
    """Raised where needed: from the lowest up, each by `least` at least above the one below and above the axis.

    `apart([50, 21, 20], 10) == [50, 30, 20]`"""
    moved, below = list(places), least / 2
    for i in sorted(range(len(places)), key=places.__getitem__):
        moved[i] = below = max(places[i], below + least)
    return moved


# ---- Zhu et al. ----------------------------------------------------------------------------------------------------

def recovering(panel: Any, cells: Cells) -> tuple[str, str]:
    groups = {task: [ptq_qlora.group_of(cells, ptq_qlora.PLAN, task, "sft-qlora", "gptq", bits) for bits in WIDTHS]
              for task in ptq_qlora.TASKS}
    before_and_after(panel, groups, ("quantized", "SFT → PTQ"), ("trained", "SFT → PTQ → QLoRA"))
    frame(panel, WIDTHS, "bits, by GPTQ", sum(groups.values(), []))
    family = ptq_qlora.beside(cells, ptq_qlora.PLAN, ptq_qlora.TASKS, "quantized")
    nf4 = ptq_qlora.some(family, (4,), how="nf")
    return recovering_title(ptq_qlora.some(family, WIDTHS, how="gptq")), (
        f"Zhu et al.: after NF4, {sum(one.verdict == CONFIRMED for one in nf4)} of {len(nf4)} tasks gain")


def recovering_title(judged: Sequence[Judged]) -> str:
    """Of the width with the highest gain: its significant gains, over the tasks."""
    gains = [one for one in judged if one.verdict == CONFIRMED]
    if not gains:
        return f"QLoRA after PTQ\n{'brings no significant gain' if judged else 'was not run'}"
    bits = max(gains, key=lambda one: one.comparison.difference).what["bits"]
    of_width = sorted(100 * one.comparison.difference for one in gains if one.what["bits"] == bits)
    least, most = f"{of_width[0]:.0f}", f"{of_width[-1]:.0f}"
    return f"QLoRA after PTQ wins back\n{most if least == most else f'{least} to {most}'} points at {bits} bits"
