"""Table 1 and Figure 2 of Kanda & Hatano from several scored runs: what an adapter scores on the base it was trained on
and on every other width, against the memory that the weights take.

    python eval.py runs/q2 runs/q3 runs/q4 runs/q8 --restore 3 4 8 16 --plot plr.png
"""
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from finetune.config import RunConfig, flag, flat
from finetune.data import PreparedData
from finetune.methods import METHODS
from scoring.scores import Row
from tasks import TASKS


@dataclass(frozen=True)
class Point:
    """One run in one state."""
    run: str
    task: str
    model: str             # the name of the base
    adapter: str           # a key of ADAPTERS: LoRA and QLoRA share a row of the table
    trained_bits: int      # k
    bits: int              # l; k as trained
    restored: bool
    state: str             # its key
    score: float           # the task's main one, 0 to 1
    validation_loss: float
    bits_per_weight: float
    megabytes: float       # of all weights
    restoration_ratio: float | None


def check_scores(scored: Sequence[tuple[Path, RunConfig, PreparedData]]) -> None:
    """Raises ValueError for a run whose task has nothing to draw: no score, or no test rows; and for runs that would
    stand in one cell of the table though they differ in more than their seed, or in nothing."""
    first: dict[tuple, tuple[Path, RunConfig]] = {}
    seeds: dict[tuple, Path] = {}
    for run, config, data in scored:
        if data.task.metric is None or not data.test:
            raise ValueError(f"{run}: --task {data.task.name} has no score here ({len(data.test)} test rows), "
                             f"so there is nothing to compare")
        cell = (config.data.task, config.base.model.name, config.adapter_kind, config.base.bits)
        other, other_config = first.setdefault(cell, (run, config))
        if differ := different_settings(config, other_config):
            raise ValueError(f"{run} and {other} would be averaged as seeds of one another, but differ in "
                             f"{', '.join(differ)}: score them by commands of their own")
        twin = seeds.setdefault((*cell, config.data.seed), run)
        if twin != run or sum(path == run for path, _, _ in scored) > 1:
            raise ValueError(f"{run} and {twin} are the same run, seed {config.data.seed} included: name it once")


def different_settings(a: RunConfig, b: RunConfig) -> list[str]:
    """The flags of all fields that belong to the experiment and differ."""
    pairs = zip(flat(a), flat(b), strict=True)
    names = [f.name for (f, x), (_, y) in pairs if x != y and f.metadata.get("setting", True)]
    typed = {"quantization": different_parts(a, b), "codes": ["model"]}  # what no flag of the same name sets
    return [flag(name) for field in names for name in typed.get(field, [field])]


def different_parts(a: RunConfig, b: RunConfig) -> list[str]:
    """The fields of the two quantizations that differ; `quantizer` alone if one base is not quantized."""
    own, other = a.base.quantization, b.base.quantization
    if not own or not other:
        return ["quantizer"]
    return [f.name for f in fields(own) if getattr(own, f.name) != getattr(other, f.name)]


def points_of(run: Path, config: RunConfig, rows: Sequence[Row]) -> list[Point]:
    """rows: as trained and restored; models that were merged are left out."""
    metric, k = TASKS[config.data.task].metric, config.base.bits
    return [Point(str(run), config.data.task, config.base.model.name, config.adapter_kind, k,
                  row.state.bits or k, row.state.kind == "restored", row.state.key, row.scores[metric],
                  row.validation_loss, row.bits_per_weight, row.megabytes, row.restoration_ratio)
            for row in rows if not row.state.merged]


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
    deviation: float | None   # sample standard deviation over the runs; None for one run
    megabytes: float

    @property
    def label(self) -> str:
        """`QLoRA`, or `PLR8` where it is restored to 8 bits."""
        return f"PLR{self.bits}" if self.restored else trained_title(self.adapter, self.trained_bits)

    @property
    def in_table_1(self) -> bool:
        """Kanda & Hatano restore to l > k only."""
        return not self.restored or self.bits > self.trained_bits

    @property
    def percent(self) -> str:
        return f"{100 * self.score:.2f}" + ("" if self.deviation is None else f" ± {100 * self.deviation:.1f}")


KEY = ("task", "model", "adapter", "trained_bits", "restored", "bits")


def averages(points: Sequence[Point]) -> list[Average]:
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


def metric_of(points: Sequence[Point]) -> str:
    return " / ".join(dict.fromkeys(TASKS[p.task].metric.replace("_", " ") for p in points))
