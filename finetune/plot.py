"""The loss curve of a run, where matplotlib is installed."""
import json

from finetune.run import Run


def plot_losses(run: Run) -> None:
    """loss.png in the run: training loss a step and its running mean, validation loss an epoch."""
    try:
        import matplotlib
    except ImportError:
        print("no loss curve: pip install matplotlib")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    training = [(r["step"], r["loss"]) for r in records if "loss" in r]
    validation = [(r["step"], r["validation_loss"]) for r in records if "validation_loss" in r]
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot(*zip(*training), color="tab:blue", alpha=0.3, linewidth=0.8, label="training, each step")
    axes.plot(*zip(*running_mean(training)), color="tab:blue", label="training, running mean")
    axes.plot(*zip(*validation), "o-", color="tab:orange", label="validation")
    axes.set(xlabel="step", ylabel="loss (nats a target token)", title=run.path.name, yscale="log")
    axes.legend()
    figure.tight_layout()
    figure.savefig(run.path / "loss.png", dpi=120)
    pyplot.close(figure)


def running_mean(points: list[tuple[int, float]], keep: float = 0.8) -> list[tuple[int, float]]:
    """Exponentially weighted mean of the values so far, started at the first."""
    out, mean = [], points[0][1]
    for step, value in points:
        mean = keep * mean + (1 - keep) * value
        out.append((step, mean))
    return out
