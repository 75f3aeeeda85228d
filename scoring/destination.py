"""Where the scores of a run go, and who may write there."""
from dataclasses import dataclass
from pathlib import Path

from finetune.config import RunConfig
from finetune.data import task_of
from finetune.lock import Held, ReadOnly, hold
from finetune.run import Run, is_run
from model.files import read_json


@dataclass(frozen=True)
class Destination:
    place: Run          # its results, predictions and kept answers
    results: Path       # the table
    models: Run | None  # merged models, and how far restored bases are from the run's; None: they are not kept

    @classmethod
    def of_own_task(cls, run: Run, results: Path) -> "Destination":
        return cls(run, results, run)

    @classmethod
    def of(cls, run: Run, config: RunConfig, out: Path | None, restores: bool) -> "Destination":
        """The run itself, or its benchmarks/TASK, or `out`. A benchmark alone writes nothing else into the run, so that
        several can be scored at once. Raises ValueError if `out` holds the scores of something else."""
        task = task_of(config.data).name
        if out:
            check_scores_of(Run(out), run, task)
            return cls(Run(out), Run(out).results_file, Run(out))
        if config.data.task == run.config.data.task:
            return cls.of_own_task(run, run.eval_file)
        place = run.benchmark(task)
        return cls(place, place.results_file, run if restores or config.evaluation.requantize else None)

    def lock(self, run: Run) -> None:
        """Raises ValueError, with the remedy, while another process writes where these scores would go."""
        try:
            if run in (self.place, self.models):
                hold(run.path)
            elif self.models is None:
                hold(run.path, shared=True)
            hold(self.place.path)
        except (Held, ReadOnly) as error:
            kept = ", of what training has kept so far" if isinstance(error, Held) else ""
            raise ValueError(f"{error}. To keep the scores elsewhere{kept}: python eval.py {run.path} --out "
                             "DIR") from None


def check_scores_of(place: Run, run: Run, task: str) -> None:
    """Raises ValueError for a directory that holds another run, or the scores of another one."""
    if is_run(place.path):
        raise ValueError(f"--out {place.path} is a run itself: give another directory")
    kept = read_json(place.results_file) if place.results_file.is_file() else {}
    if kept and (kept.get("run"), kept.get("task")) != (str(run.path.resolve()), task):
        raise ValueError(f"--out {place.path} holds the scores of {kept.get('run', 'a model')} on --task "
                         f"{kept.get('task')}: give another directory")
