"""Pictures, where matplotlib is installed: the loss of a run, and what restoring costs and brings."""
import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.run import Run
from model.files import replace_file

if TYPE_CHECKING:
    from scoring.tradeoff import Average

PICTURES = (".png", ".svg", ".pdf")


def pyplot():
    """matplotlib.pyplot, for files rather than a screen. Raises ValueError, with what to install, where it is not there."""
    try:
        import matplotlib
    except ImportError:
        raise ValueError("a picture needs matplotlib: pip install -r requirements-extra.txt") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot
    return pyplot


def check_picture(path: Path) -> None:
    """Raises ValueError for a file that no picture will come to."""
    pyplot()
    if path.suffix not in PICTURES or path.is_dir():
        raise ValueError(f"--plot {path}: a picture is a file whose name ends in {', '.join(PICTURES)}")


def save_figure(figure, path: Path) -> None:
    """Beside, then renamed: the picture is whole or not there."""
    figure.tight_layout()
    replace_file(path, lambda beside: figure.savefig(beside, dpi=120, format=path.suffix.removeprefix(".")))
    pyplot().close(figure)


def plot_losses(run: Run) -> None:
    """loss.png in the run: training loss a step and its running mean, validation loss an epoch."""
    try:
        figure, axes = pyplot().subplots(figsize=(7, 4))
    except ValueError as error:
        print(f"no loss curve: {error}")
        return
    records = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    training = [(r["step"], r["loss"]) for r in records if "loss" in r]
    validation = [(r["step"], r["validation_loss"]) for r in records if "validation_loss" in r]
    axes.plot(*zip(*training), color="tab:blue", alpha=0.3, linewidth=0.8, label="training, each step")
    axes.plot(*zip(*running_mean(training)), color="tab:blue", label="training, running mean")
    axes.plot(*zip(*validation), "o-", color="tab:orange", label="validation")
    axes.set(xlabel="step", ylabel="loss (nats a target token)", title=run.path.name, yscale="log")
    axes.legend()
    save_figure(figure, run.path / "loss.png")


def plot_tradeoff(means: Iterable["Average"], path: Path, metric: str) -> None:
    """plr.txt Figure 2: score against the memory of the weights, one line a training width, from as trained (a large marker) through
    the widths above it. Hollow: restored to a width that is not above. Bars: standard deviation over the seeds."""
    figure, axes = pyplot().subplots(figsize=(8, 5))
    line_of = lambda mean: (mean.task, mean.model, mean.adapter, mean.trained_bits)
    for i, (_, group) in enumerate(groupby(sorted(means, key=line_of), key=line_of)):
        group, color = sorted(group, key=lambda mean: mean.megabytes), f"C{i}"
        above = [mean for mean in group if mean.in_table_1]
        trained = next(mean for mean in group if not mean.restored)
        axes.plot([m.megabytes for m in above], [100 * m.score for m in above], color=color,
                  label=f"{trained.trained_bits}-bit {trained.label}, {trained.task} {trained.model}")
        for mean in group:
            axes.errorbar(mean.megabytes, 100 * mean.score, yerr=100 * (mean.deviation or 0) or None, color=color, capsize=3, marker="o",
                          markersize=6 if mean.restored else 10, fillstyle="full" if mean.in_table_1 else "none")
            if mean.restored and mean.in_table_1:
                axes.annotate(mean.label, (mean.megabytes, 100 * mean.score), xytext=(5, 5), textcoords="offset points", fontsize=8, color=color)
    axes.set(xlabel="memory of the weights, adapter included (MB)", ylabel=f"{metric} (%)", title="Post-LoRA Restoration (plr.txt Figure 2)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)  # below: the lines may be anywhere inside
    save_figure(figure, path)


def running_mean(points: list[tuple[int, float]], keep: float = 0.8) -> list[tuple[int, float]]:
    """Exponentially weighted mean of the values so far, started at the first."""
    out, mean = [], points[0][1]
    for step, value in points:
        mean = keep * mean + (1 - keep) * value
        out.append((step, mean))
    return out
