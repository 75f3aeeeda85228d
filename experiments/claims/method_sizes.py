"""The picture of the size of the effect on both bases."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.claims.method_findings import listed
from experiments.claims.method_pictures import WIDTHS, mean, row_of_panels, spread_of
from experiments.claims.method_rows import Found, as_trained, at_k_bits, first_table
from experiments.claims.pictures import BLACK, save
from finetune.pictures import pyplot

TICKS = (-0.1, -0.03, -0.01, 0, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
LINEAR = 0.01  # nats: the axis is linear below, logarithmic above


def draw_sizes(bases: dict[str, Sequence[Found]], path: Path) -> None:
    """A panel for each base: how far each row's validation loss at k bits is above LoRA's on 16 bits."""
    rows = {name: [one for one in first_table(found) if one.losses(at_k_bits)] for name, found in bases.items()}
    titles = list(dict.fromkeys(one.title for found in rows.values() for one in found))
    shown = [width for width in WIDTHS if any(one.bits == width[0] for found in rows.values() for one in found)]
    figure, panels = row_of_panels(len(bases), 5.2, 0.3 * len(titles) + 2.2, sizes_title(bases))
    for axes, (name, found) in zip(panels, bases.items(), strict=True):
        for place, (bits, color, marker) in enumerate(shown):
            for one in (one for one in rows[name] if one.bits == bits):
                y = len(titles) - titles.index(one.title) + (0.2 * (1 - place) if len(shown) > 1 else 0)
                axes.errorbar(mean(one.losses(at_k_bits)) - lora_loss(found), y, xerr=spread_of(one.losses(at_k_bits)),
                              fmt=marker, color=color, markersize=5, capsize=2, elinewidth=1)
        axes.axvline(0, color=BLACK, linestyle=":", linewidth=1)
        axes.set_xscale("symlog", linthresh=LINEAR)
        axes.set_xlabel("validation loss at k bits minus LoRA's on 16 bits, nats", fontsize=9)
        axes.set_title(f"{name}\n{bars_words(rows[name])}", fontsize=10)
        mark_missing(axes, titles, found, [bits for bits, *_ in shown])
    same_axis(panels)
    panels[0].set_yticks(range(len(titles), 0, -1), titles)
    line = pyplot().Line2D
    figure.legend(handles=[line([], [], marker=marker, linestyle="", color=color, label=f"{bits} bits")
                           for bits, color, marker in shown], loc="outside lower center", ncols=3, frameon=False,
                  fontsize=9)
    save(figure, path)


def bars_words(rows: Sequence[Found]) -> str:
    """What a panel's bars are, if it has some."""
    seeds = max((len(one.losses(at_k_bits)) for one in rows), default=0)
    return f"{seeds} seeds; bars: deviation over seeds" if seeds > 1 else "one seed, so no bars"


def mark_missing(axes: Any, titles: Sequence[str], found: Sequence[Found], widths: Sequence[int]) -> None:
    """Beside a row's name: `not run`, or the widths at which it has no point; `not rounded` if it was trained only."""
    for i, title in enumerate(titles):
        rows = [one for one in first_table(found) if one.title == title]
        ends = {one.bits for one in rows if one.losses(at_k_bits)}
        missing = [bits for bits in widths if bits not in ends]
        words = "not rounded" if {one.bits for one in rows if one.finals} >= set(missing) else "not run"
        if missing and ends:
            words = f"{listed(list(map(str, missing)))} bits: {words}"
        if missing:
            axes.text(0.01, len(titles) - i, words, transform=axes.get_yaxis_transform(), va="center", fontsize=7,
                      color="0.45")


def can_be_drawn(found: Sequence[Found]) -> bool:
    """Whether LoRA and a row that ends in k bits were run."""
    rows = first_table(found)
    return any(one.losses(at_k_bits) for one in rows) and any(one.row == "lora" and one.losses(as_trained)
                                                              for one in rows)


def same_axis(panels: Sequence[Any]) -> None:
    low = 1.2 * min(-LINEAR, *(axes.get_xlim()[0] for axes in panels))
    high = 1.2 * max(LINEAR, *(axes.get_xlim()[1] for axes in panels))
    ticks = [tick for tick in TICKS if low <= tick <= high]
    for axes in panels:
        axes.set_xlim(low, high)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
        axes.minorticks_off()
        axes.grid(axis="x", alpha=0.3)


def lora_loss(found: Sequence[Found]) -> float:
    """Validation loss on 16 bits. `can_be_drawn` says whether there is one."""
    return next(mean(losses) for one in first_table(found) if one.row == "lora" and (losses := one.losses(as_trained)))


def sizes_title(bases: dict[str, Sequence[Found]]) -> str:
    """At the narrowest width that every base has."""
    ends = {name: [one for one in first_table(found) if one.losses(at_k_bits)] for name, found in bases.items()}
    common = set.intersection(*({one.bits for one in rows} for rows in ends.values()))
    if not common:
        return "What k bits cost beside LoRA on 16 bits: no width was run on every base"
    bits, said = min(common), []
    for name, found in bases.items():
        losses = sorted((mean(one.losses(at_k_bits)) - lora_loss(found), one.title) for one in ends[name]
                        if one.bits == bits)
        (least, best), (most, worst) = losses[0], losses[-1]
        said.append(f"{least:+.3f} ({best}) to {most:+.3f} ({worst}) nats on {name}")
    return f"What {bits} bits cost beside LoRA on 16 bits: {'; '.join(said)}"
