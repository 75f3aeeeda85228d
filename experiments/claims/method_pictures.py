"""The picture of the scores of all methods. Its title says what was found, from the numbers."""
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.claims.method_rows import (
    Found,
    Which,
    as_trained,
    at_k_bits,
    first_table,
    half_interval,
    rounded_afterwards,
)
from experiments.claims.pictures import BLACK, BLUE, GREEN, RED, balanced, save
from finetune.pictures import pyplot

WIDTHS = ((4, BLUE, "o"), (3, GREEN, "s"), (2, RED, "D"))
FAR = 15  # points below the median: such a score is written at the panel's edge


def mean(values: Sequence[float]) -> float:
    return statistics.mean(values)


def spread_of(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def seeds_of(found: Sequence[Found]) -> int:
    """The most seeds that a row of the first table has."""
    return max((len(one.states(as_trained)) for one in first_table(found)), default=0)


def row_of_panels(n: int, width: float, height: float, title: str) -> tuple[Any, list]:
    """Panels that share their y axis, under a title that is broken where it is wider than they are."""
    figure, axes = pyplot().subplots(1, n, figsize=(width * n + 1.5, height), sharey=True, squeeze=False,
                                     layout="constrained")
    first, *more = title.split("\n")
    figure.suptitle("\n".join([balanced(first, int(11 * (width * n + 1.5))), *more]), fontsize=11)
    return figure, list(axes[0])


def draw_scores(found: Sequence[Found], path: Path, base: str) -> None:
    """A panel for each width: as trained (hollow) and at k bits (filled), beside LoRA at 16 bits. Some row of a
    quantized base must have a trained model."""
    rows = [one for one in first_table(found) if one.finals]
    titles = list(dict.fromkeys(one.title for one in rows if one.bits < 16))
    widths = [bits for bits, *_ in WIDTHS if any(one.bits == bits for one in rows)]
    width = 4 if len(widths) > 1 else 6.5
    figure, panels = row_of_panels(len(widths), width, 0.36 * len(titles) + 2.4, f"{scores_title(rows)}\n{base}")
    lora = next((one for one in rows if one.row == "lora"), None)
    for axes, bits in zip(panels, widths, strict=True):
        of_width = [one for one in rows if one.bits == bits]
        states = [(one, which, scores) for one in of_width for which in (as_trained, at_k_bits)
                  if (scores := one.scores(which))]
        low = floor([mean(scores) for _, _, scores in states])
        for one in of_width:
            dots(axes, one, len(titles) - titles.index(one.title), low)
        for title in set(titles) - {one.title for one in of_width}:
            axes.text(0.02, len(titles) - titles.index(title), "not run", transform=axes.get_yaxis_transform(),
                      va="center", fontsize=8, color="0.55")
        if lora:
            axes.axvline(mean(lora.scores(as_trained)), color=BLACK, linestyle=":", linewidth=1)
        if low is not None:
            axes.set_xlim(left=min(mean(scores) - (bar(one, which) or 0) for one, which, scores in states
                                   if mean(scores) >= low) - 2)
        axes.set_title(f"{bits} bits", fontsize=10)
        axes.set_xlabel("test score, %")
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(titles), 0, -1), titles)
    figure.legend(handles=legend(lora, seeds_of(found)), loc="outside lower center", ncols=2, fontsize=8,
                  frameon=False)
    save(figure, path)


def floor(scores: Sequence[float]) -> float | None:
    """The lowest score that is drawn in its place. None: all are."""
    edge = statistics.median(scores) - FAR
    return min(score for score in scores if score >= edge) if min(scores) < edge else None


def dots(axes: Any, one: Found, y: float, low: float | None) -> None:
    trained, last = one.scores(as_trained), one.scores(at_k_bits)
    if low is not None and any(values and mean(values) < low for values in (trained, last)):
        axes.text(0.02, y, f"\u25c4 {far_off(trained, last)}", transform=axes.get_yaxis_transform(), va="center",
                  fontsize=8, color=BLUE, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
        return
    if trained and last:
        axes.plot([mean(trained), mean(last)], [y, y], color="0.6", linewidth=1.5, zorder=1)
    for which, filled, lift in ((as_trained, False, 0.14), (at_k_bits, True, -0.14)):
        if values := one.scores(which):
            color = RED if filled and one.states(rounded_afterwards) else BLUE
            axes.errorbar(mean(values), y + lift, xerr=bar(one, which), fmt="o", color=color, markersize=5.5,
                          markerfacecolor=color if filled else "white", capsize=2, elinewidth=1, zorder=2)


def far_off(trained: Sequence[float], last: Sequence[float]) -> str:
    """`41.4 % as trained and 30.0 % at k bits`; `41.4 %` if both are the same."""
    said = {when: f"{mean(values):.1f} %" for values, when in ((trained, "as trained"), (last, "at k bits")) if values}
    if len(said) == 2 and len(set(said.values())) == 1:
        return said["as trained"]
    return " and ".join(f"{percent} {when}" for when, percent in said.items())


def bar(one: Found, which: Which) -> float | None:
    """The deviation over seeds, or of one seed, the 95 % interval over test rows."""
    deviation = spread_of(one.scores(which))
    return half_interval(one, which) if deviation is None else deviation


def legend(lora: Found | None, seeds: int) -> list:
    line = pyplot().Line2D
    shown = [("as trained", BLUE, "white"), ("merged into k bits", BLUE, BLUE), ("rounded afterwards", RED, RED)]
    bars = "bars: deviation over seeds" if seeds > 1 else "bars: 95 % interval over test rows; one seed"
    return [*(line([], [], marker="o", linestyle="", color=color, markerfacecolor=face, label=text)
              for text, color, face in shown),
            line([], [], color=BLACK, linestyle=":", label=f"LoRA on 16 bits; {bars}" if lora else bars)]


def scores_title(rows: Sequence[Found]) -> str:
    """What rounding QLoRA afterwards costs at the narrowest width where it had a score to lose, and the best that ends
    in k bits at the narrowest of all."""
    bits = min((one.bits for one in rows), default=16)
    ends = {one: mean(scores) for one in rows if one.bits == bits and (scores := one.scores(at_k_bits))}
    qlora = next((one for one in ends if one.row == "qlora"), None)
    if not ends:
        return "Methods at k bits"
    best = max(ends, key=lambda one: ends[one])
    if qlora is None:
        return f"At {bits} bits, {best.title} is best: {ends[best]:.1f} %"
    losing = [one for one in rows if one.row == "qlora" and one.scores(at_k_bits) and mean(one.scores(as_trained)) > 0]
    qlora = min(losing, key=lambda one: one.bits, default=qlora)
    cost = mean(qlora.scores(as_trained)) - mean(qlora.scores(at_k_bits))
    return (f"At {qlora.bits} bits, rounding QLoRA afterwards changes its score by {-cost:+.1f} points; "
            f"the highest score at {bits} bits is {ends[best]:.1f} %, of {best.title}")
