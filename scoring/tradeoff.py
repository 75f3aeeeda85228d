"""plr.txt's Table 1 and Figure 2 from several scored runs: what an adapter scores on the base it was trained on and on every other
width, against the memory that the weights take.

    python eval.py runs/q2 runs/q3 runs/q4 runs/q8 --restore 3 4 8 16 --plot plr.png
"""
import argparse
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from finetune.arguments import flag
from finetune.data import Job
from finetune.methods import METHODS
from finetune.pictures import plot_tradeoff
from scoring.table import Row, print_columns
from model.files import write_json
from tasks import TASKS


NOT_A_SETTING = ("seed", "out", "device", "save_every", "micro_batch", "eval_batch_size", "resume")  # of what a run's adapter has learned


@dataclass(frozen=True)
class Point:
    """One run in one state."""
    run: str
    task: str
    model: str             # the base's directory
    adapter: str           # a key of ADAPTERS: LoRA and QLoRA are one row of the table
    trained_bits: int      # k
    bits: int              # l; k as trained
    restored: bool
    state: str
    score: float           # the task's main one, 0 to 1
    validation_loss: float
    bits_per_weight: float
    megabytes: float       # of all weights
    restoration_ratio: float | None


def check_scores(jobs: list[tuple[Path, argparse.Namespace, Job]]) -> None:
    """Raises ValueError for a run whose task has nothing to draw: no score, or no test rows; and for runs that would stand in one cell
    of the table though they differ in more than their seed, or in nothing."""
    first: dict[tuple, tuple[Path, argparse.Namespace]] = {}
    seeds: dict[tuple, Path] = {}
    for run, args, job in jobs:
        if job.task.metric is None or not job.test:
            raise ValueError(f"{run}: --task {job.task.name} has no score here ({len(job.test)} test rows), so there is nothing to compare")
        cell = (args.task, args.model.name, METHODS[args.method].adapter, args.bits)
        other, other_args = first.setdefault(cell, (run, args))
        if differ := [name for name, value in vars(args).items() if name not in NOT_A_SETTING and getattr(other_args, name) != value]:
            raise ValueError(f"{run} and {other} would be averaged as seeds of one another, but differ in {', '.join(map(flag, differ))}: "
                             f"score them by commands of their own")
        twin = seeds.setdefault((*cell, args.seed), run)
        if twin != run or sum(path == run for path, _, _ in jobs) > 1:
            raise ValueError(f"{run} and {twin} are the same run, seed {args.seed} included: name it once")


def points_of(run: Path, args: argparse.Namespace, rows: list[Row], widths: list[int]) -> list[Point]:
    """rows: as trained, then one a width (see `restore_run`), merged models left out."""
    rows = [row for row in rows if row.logit_difference is None]
    metric = TASKS[args.task].metric
    return [Point(str(run), args.task, args.model.name, METHODS[args.method].adapter, args.bits, bits, i > 0, row.state, row.scores[metric],
                  row.validation_loss, row.bits_per_weight, row.megabytes, row.restoration_ratio)
            for i, (row, bits) in enumerate(zip(rows, [args.bits, *widths], strict=True))]


@dataclass(frozen=True)
class Average:
    """Runs that differ in their seed alone."""
    task: str
    model: str
    adapter: str
    trained_bits: int
    restored: bool
    bits: int
    runs: int
    score: float
    deviation: float | None   # sample standard deviation over the runs; None of one
    megabytes: float

    @property
    def label(self) -> str:
        """`QLoRA`, or `PLR8` where it is restored to 8 bits."""
        return f"PLR{self.bits}" if self.restored else trained_title(self.adapter, self.trained_bits)

    @property
    def in_table_1(self) -> bool:
        """plr.txt restores to l > k only."""
        return not self.restored or self.bits > self.trained_bits

    @property
    def percent(self) -> str:
        return f"{100 * self.score:.2f}" + ("" if self.deviation is None else f" ± {100 * self.deviation:.1f}")


KEY = ("task", "model", "adapter", "trained_bits", "restored", "bits")


def averages(points: list[Point]) -> list[Average]:
    """Over the seeds, by falling training width, then as trained, then by rising width."""
    found: dict[tuple, list[Point]] = {}
    for p in sorted(points, key=lambda p: (-p.trained_bits, p.restored, p.bits)):
        found.setdefault(tuple(getattr(p, name) for name in KEY), []).append(p)
    return [Average(*key, len(group), statistics.mean(p.score for p in group),
                    statistics.stdev(p.score for p in group) if len(group) > 1 else None,
                    statistics.mean(p.megabytes for p in group)) for key, group in found.items()]


def trained_title(adapter: str, bits: int) -> str:
    """The method that trains this adapter on a base of so many bits: `trained_title("lora", 4) == "QLoRA"`."""
    titles = {m.quantizer == "none": m.title for m in METHODS.values() if m.adapter == adapter}
    return titles.get(bits == 16) or titles[False]


def metric_of(points: list[Point]) -> str:
    return " / ".join(dict.fromkeys(TASKS[p.task].metric.replace("_", " ") for p in points))


def show_tradeoff(points: list[Point], picture: Path | None, json_file: Path | None) -> None:
    """Prints Table 1, and writes the picture and the JSON where they are asked for; without another place, the JSON goes beside the picture."""
    means, metric = averages(points), metric_of(points)
    for adapter in dict.fromkeys(mean.adapter for mean in means):
        print_table_1([mean for mean in means if mean.adapter == adapter and mean.in_table_1], metric)
    if picture:
        plot_tradeoff(means, picture, metric)
    if json_file or picture:
        write_json(json_file or picture.with_suffix(".json"),
                   {"metric": metric, "averages": [asdict(mean) for mean in means], "runs": [asdict(p) for p in points]})


def print_table_1(means: list[Average], metric: str) -> None:
    """Rows: data set and model. Columns: of each training width, as trained and then PLR_l for each l above it; in percent, with the
    standard deviation over the seeds. Widths that are not above are in the runs' own tables."""
    columns = list(dict.fromkeys((mean.trained_bits, mean.label) for mean in means))
    cell = {(mean.task, mean.model, mean.trained_bits, mean.label): mean.percent for mean in means}
    rows = [[f"{task} {model}", *(cell.get((task, model, *column), "-") for column in columns)]
            for task, model in dict.fromkeys((mean.task, mean.model) for mean in means)]
    print_columns(f"{metric}, %, of an adapter trained at k bits, as trained and restored to l > k bits (plr.txt Table 1)",
                  [["", *(f"{bits}-bit {label}" for bits, label in columns)], *rows])
