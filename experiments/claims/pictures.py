"""The look of all pictures: colours that colour-blind readers tell apart (Okabe & Ito 2008), 95 % intervals, and a
title that says the finding."""
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from experiments.claims.evidence import Group, Score, score_of
from finetune.pictures import pyplot
from model.durable import replace_file

BLUE, ORANGE, GREEN, PINK, SKY, RED, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
MARKS = {BLUE: "o", ORANGE: "s", GREEN: "^", PINK: "D", SKY: "v", RED: "P", BLACK: "X"}  # told apart in grey, too


def balanced(text: str, width: int) -> str:
    """Lines of about the same length, of `width` letters at most."""
    lines = -(-len(text) // width)
    return min((fill(text, w) for w in range(len(text) // lines, width + 1)),
               key=lambda filled: (filled.count("\n"), max(map(len, filled.split("\n")))))


def panels(titles: Sequence[str], title: str, ylabel: str, width: float = 4.2, height: float = 3.6) -> tuple[Any, list]:
    """A figure with one panel for each title, side by side, under one line that says the finding."""
    whole = max(6.0, width * len(titles))
    figure, axes = pyplot().subplots(1, len(titles), figsize=(whole, height), squeeze=False, layout="constrained")
    figure.suptitle(balanced(title, int(11 * whole)), fontsize=11, fontweight="bold")
    for panel, name in zip(axes[0], titles, strict=True):
        panel.set_title(name, fontsize=10)
        panel.grid(axis="y", color="0.9")
        panel.set_axisbelow(True)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    axes[0][0].set_ylabel(ylabel, fontsize=9)
    return figure, list(axes[0])


def points(axes: Any, xs: Sequence[float], scores: Sequence[Score | None], color: str, label: str,
           line: str = "-") -> None:
    """Scores in percent, with their 95 % intervals over test rows. None is left out."""
    found = [(x, 100 * s.mean, 100 * s.half) for x, s in zip(xs, scores, strict=True) if s]
    if found:
        x, y, half = zip(*found, strict=True)
        axes.errorbar(x, y, yerr=half, color=color, marker=MARKS[color], linestyle=line, capsize=3, markersize=6,
                      linewidth=1.5, label=label)


def level(axes: Any, score: Score | None, color: str, label: str, line: str = "--") -> None:
    """A horizontal line for a score that all others are read against."""
    if score:
        axes.axhline(100 * score.mean, color=color, linestyle=line, linewidth=1.2, label=label)


def level_beside(axes: Any, group: Group, state: str, drawn: Sequence[Group], color: str, label: str) -> None:
    """A level that points are read against: the mean over the seeds that all groups of points have. If these are not
    all of its own, the label says which they are."""
    others = [other.keys() for other in drawn if other]
    seeds = sorted(set(group).intersection(*others))
    if others and seeds and len(seeds) < len(group):
        label += f", seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    level(axes, score_of({seed: group[seed] for seed in seeds}, state), color, label)


def interval_of(groups: Sequence[Group]) -> str:
    """`95 % interval, 1 to 2 seeds`: of groups that have cells."""
    numbers = sorted({len(group) for group in groups if group}) or [0]
    seeds = "1 seed" if numbers == [1] else f"{numbers[-1]} seeds"
    return f"95 % interval, {f'{numbers[0]} to ' if len(numbers) > 1 else ''}{seeds}"


def legend(figure: Any, axes: Sequence[Any], columns: int = 4) -> None:
    """One for all panels, below them: nothing can lie under it."""
    found: dict[str, Any] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=min(columns, len(found)),
                      fontsize=9, frameon=False)


def save(figure: Any, path: Path) -> None:
    """Written beside, then renamed: the picture is whole or absent."""
    replace_file(path, lambda file: figure.savefig(file, dpi=120, format=path.suffix.removeprefix(".")))
    pyplot().close(figure)
