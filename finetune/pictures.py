"""Pictures, if matplotlib is installed: files, not a screen. Here: the loss curves of a run and of a range test."""
from pathlib import Path

from finetune.run import Run
from model.durable import replace_file

PICTURES = (".png", ".svg", ".pdf")


def pyplot():
    """matplotlib.pyplot. Raises ValueError, with what to install, if it is missing."""
    try:
        import matplotlib
    except ImportError:
        raise ValueError("a picture needs matplotlib: pip install matplotlib (or pip install -r "
                         "requirements-extra.txt)") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot
    return pyplot


def check_picture(path: Path) -> None:
    """Raises ValueError for a file that no picture can be written to."""
    pyplot()
    if path.suffix not in PICTURES or path.is_dir():
        raise ValueError(f"--plot {path}: the name of a picture ends in {', '.join(PICTURES)}")


def save_figure(figure, path: Path) -> None:
    """Written beside, then renamed: the picture is whole or absent."""
    figure.tight_layout()
    replace_file(path, lambda file: figure.savefig(file, dpi=120, format=path.suffix.removeprefix(".")))
    pyplot().close(figure)


def plot_losses(run: Run) -> None:
    """loss.png in the run: training loss by step and its running mean, each validation loss, and the kept one."""
    records = list(run.metrics)
    training = [(r["step"], r["loss"]) for r in records if "loss" in r]
    validation = [(r["step"], r["validation_loss"]) for r in records if "validation_loss" in r]
    if not training:
        return print(f"no loss curve: {run.metrics_file} holds no step")
    try:
        figure, axes = pyplot().subplots(figsize=(7, 4))
    except ValueError as error:
        return print(f"no loss curve: {error}")
    axes.plot(*zip(*training, strict=True), color="tab:blue", alpha=0.3, linewidth=0.8, label="training, each step")
    axes.plot(*zip(*running_mean(training), strict=True), color="tab:blue", label="training, running mean")
    if validation:
        axes.plot(*zip(*validation, strict=True), "o-", color="tab:orange", label="validation")
        axes.plot(*min(validation, key=lambda point: point[1]), "o", color="tab:red", label="kept")
    axes.set(xlabel="step", ylabel="loss (nats a target token)", title=run.path.name, yscale="log")
    axes.legend()
    save_figure(figure, run.path / "loss.png")


def plot_rates(path: Path, points: list[tuple[float, float]], start: float, best: float | None) -> None:
    """The loss after a few steps, by learning rate."""
    try:
        figure, axes = pyplot().subplots(figsize=(7, 4))
    except ValueError as error:
        return print(f"no picture of the rates: {error}")
    axes.plot(*zip(*points, strict=True), "o-", color="tab:blue", label="after the steps of a trial")
    axes.axhline(start, color="tab:gray", linestyle=":", label="at the start")
    if best:
        axes.axvline(best, color="tab:red", label=f"recommended: {best:g}")
    axes.set(xlabel="learning rate", ylabel="validation loss (nats a target token)", xscale="log", yscale="log")
    axes.legend()
    save_figure(figure, path)


def running_mean(points: list[tuple[int, float]], keep: float = 0.8) -> list[tuple[int, float]]:
    """Exponentially weighted mean of the values so far, started at the first."""
    out, mean = [], points[0][1]
    for step, value in points:
        mean = keep * mean + (1 - keep) * value
        out.append((step, mean))
    return out
