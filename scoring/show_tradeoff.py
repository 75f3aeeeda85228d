"""Table 1 and Figure 2 of Kanda & Hatano, printed and drawn."""
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from finetune.pictures import pyplot, save_figure
from model.files import write_json
from scoring.table import print_columns
from scoring.tradeoff import Average, Point, averages, metric_of


def show_tradeoff(points: Sequence[Point], picture: Path | None, json_file: Path | None) -> None:
    """Prints Table 1, and writes the picture and the JSON if they are asked for. The JSON goes beside the picture
    unless it has a place of its own."""
    means, metric = averages(points), metric_of(points)
    for adapter in dict.fromkeys(mean.adapter for mean in means):
        print_table_1([mean for mean in means if mean.adapter == adapter and mean.in_table_1], metric)
    if picture:
        plot_tradeoff(means, picture, metric)
    if json_file or picture:
        write_json(json_file or picture.with_suffix(".json"),
                   {"metric": metric, "averages": list(map(asdict, means)), "runs": list(map(asdict, points))})


def print_table_1(means: Sequence[Average], metric: str) -> None:
    """Rows: data set and model. Columns: for each training width, as trained and then PLR_l for each l above it; in
    percent, with the standard deviation over the seeds. Other widths stand in the runs' own tables."""
    columns = list(dict.fromkeys((mean.trained_bits, mean.label) for mean in means))
    cell = {(mean.task, mean.model, mean.trained_bits, mean.label): mean.percent for mean in means}
    rows = [[f"{task} {model}", *(cell.get((task, model, *column), "-") for column in columns)]
            for task, model in dict.fromkeys((mean.task, mean.model) for mean in means)]
    print_columns(f"{metric}, %, of an adapter trained at k bits, as trained and restored to l > k bits "
                  f"(Kanda & Hatano, Table 1)",
                  [["", *(f"{bits}-bit {label}" for bits, label in columns)], *rows])


def plot_tradeoff(means: Sequence[Average], path: Path, metric: str) -> None:
    """Score against the memory of the weights (Kanda & Hatano, Figure 2). One line a training width, from as trained (a
    large marker) through the widths above it. Hollow markers: restored to a width that is not above. Bars: standard
    deviation over the seeds."""
    figure, axes = pyplot().subplots(figsize=(8, 5))
    labels = []

    def line_of(mean: Average) -> tuple:
        return mean.task, mean.model, mean.adapter, mean.trained_bits
    for i, (_, group) in enumerate(groupby(sorted(means, key=line_of), key=line_of)):
        group, color = sorted(group, key=lambda mean: mean.megabytes), f"C{i}"
        above = [mean for mean in group if mean.in_table_1]
        trained = next(mean for mean in group if not mean.restored)
        axes.plot([m.megabytes for m in above], [100 * m.score for m in above], color=color,
                  label=f"{trained.trained_bits}-bit {trained.label}, {trained.task} {trained.model}")
        for mean in group:
            axes.errorbar(mean.megabytes, 100 * mean.score, yerr=100 * (mean.deviation or 0) or None, color=color,
                          capsize=3, marker="o", markersize=6 if mean.restored else 10,
                          fillstyle="full" if mean.in_table_1 else "none")
        labels += [(mean.label, (mean.megabytes, 100 * mean.score), color) for mean in above if mean.restored]
    axes.set(xlabel="memory of the weights, adapter included (MB)", ylabel=f"{metric} (%)",
             title="Post-LoRA Restoration (Kanda & Hatano, Figure 2)\nPLR16: restored to 16 bits")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)  # below: the lines may be anywhere inside
    name_points(axes, labels)
    save_figure(figure, path)


OFFSETS = [(x, y) for y in (5, -5) for x in (5, -5)]  # points, from a label's corner to what it names


def name_points(axes: Any, labels: Sequence[tuple[str, tuple[float, float], str]]) -> None:
    """Each label at a corner of its point, inside the frame and on no other label; the highest point first. A label
    that finds no such place is left out: the memory tells the width, too."""
    axes.figure.tight_layout()  # as it is saved: places in pixels follow from it
    axes.figure.draw_without_rendering()
    frame, taken = axes.get_window_extent(), []
    for text, point, color in sorted(labels, key=lambda label: -label[1][1]):
        for x, y in OFFSETS:
            said = axes.annotate(text, point, xytext=(x, y), textcoords="offset points", fontsize=8, color=color,
                                 ha="left" if x > 0 else "right", va="bottom" if y > 0 else "top")
            box = said.get_window_extent()
            if frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 and not any(
                    box.overlaps(other) for other in taken):
                taken.append(box)
                break
            said.remove()
