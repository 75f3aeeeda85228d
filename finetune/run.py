"""A run is a directory. Every file is whole or absent (model/durable.py), and carries its checksum.

    config.json           format number, resolved configuration, the model's configuration, versions, sha256
    metrics.jsonl         a line a step, a line a validation
    model.safetensors     what was trained (method full), or
    saving.json           what the type of model.safetensors took of what was trained (method full)
    adapter.safetensors   what was trained (all other methods)
    base_sums.json        checksums of the base's weight files, tensor by tensor (model/weight_sums.py)
    base.safetensors      the quantized base: codes, scale, offset, levels, and all that was not quantized
    residual.safetensors  with --keep-residual: what quantizing took from the weights, in 16 bits (residual.py)
    quantization.json     how GPTQ made the base: calibration rows, damping and errors of each layer
    training.json         trainable parameters, tokens, seconds, peak memory
    merged/               the merged k-bit model, a model directory of its own
    requantized/          the model of --requantize: lossy
    restored-8bit/        the model of --restore 8 --merge: the adapter merged into the base at another width
    restoration.json      how far each restored base is from the one trained on, layer by layer
    predictions.jsonl     what each state of the model answered to each test row, with its score
    benchmarks/TASK/      predictions.jsonl and results.json of another task than the run's own
    results.json          the table that train.py ended with
    eval.json             the table that eval.py made last
    state/                what --resume needs: the newest state, and the one before it
    error.log             tracebacks of commands that failed
    kept.json             of which step what was trained is, and its sha256 (kept.py)
    sessions.jsonl        a line for the start and for each --resume: on what it was trained (sessions.py)
    .lock                 who writes here (lock.py)
"""
import shutil
from functools import cached_property
from itertools import takewhile
from pathlib import Path

from finetune.config import RunConfig
from finetune.config_json import run_config
from finetune.kept import Kept
from finetune.lock import LOCK, hold, release
from finetune.state_files import StateFiles
from model import processes
from model.files import read_json, say_once
from model.journal import Journal
from model.tokenizer_files import FILES, TRAVELLING

BASE_SUMS = "base_sums.json"


class Run:
    def __init__(self, path: Path):
        self.path = path
        self.config_file = path / "config.json"
        self.metrics_file = path / "metrics.jsonl"
        self.metrics = Journal(self.metrics_file)
        self.results_file = path / "results.json"
        self.eval_file = path / "eval.json"
        self.states = StateFiles(path / "state" / "state.safetensors")
        self.model_file = path / "model.safetensors"
        self.adapter_file = path / "adapter.safetensors"
        self.base_file = path / "base.safetensors"
        self.base_sums_file = path / BASE_SUMS
        self.residual_file = path / "residual.safetensors"
        self.quantization_file = path / "quantization.json"
        self.saving_file = path / "saving.json"
        self.training_file = path / "training.json"
        self.merged = path / "merged"
        self.requantized = path / "requantized"
        self.restoration_file = path / "restoration.json"
        self.predictions_file = path / "predictions.jsonl"
        self.kept_file = path / "kept.json"
        self.sessions = Journal(path / "sessions.jsonl")
        self.kept: Kept | None = None

    @cached_property
    def saved(self) -> dict:
        """config.json as it stands."""
        return read_json(self.config_file)

    @cached_property
    def config(self) -> RunConfig:
        return run_config(self.saved, str(self.path))

    @property
    def fingerprints(self) -> dict:
        """sha256 of what the run was made of: `base`, `data` (train, validation, test), `calibration`."""
        return self.saved["fingerprints"]

    @property
    def trained_file(self) -> Path:
        return self.adapter_file if self.config.adapter_kind else self.model_file

    @property
    def has_ended(self) -> bool:
        """Whether training has. Runs of earlier versions may have no training.json."""
        return self.training_file.is_file() or self.results_file.is_file()

    def keep_still(self) -> Kept:
        """What was trained, as it is now. From now on this object reads this version, though training may put another
        one in its place. Raises FileNotFoundError, and ValueError for a damaged file."""
        if self.kept is None:
            self.kept = Kept(self.trained_file, self.kept_file, self.has_ended)
        return self.kept

    def benchmark(self, task: str) -> "Run":
        """Where the scores of another task go."""
        return Run(self.path / "benchmarks" / task)

    def has_progress(self) -> bool:
        """GPTQ's base counts: it may have taken hours."""
        by_gptq = self.base_file.is_file() and self.quantization_file.is_file()
        return self.has_state() or self.metrics_file.is_file() or by_gptq

    def has_state(self) -> bool:
        return self.states.exist()

    def discard(self) -> None:
        """Remove a run that failed before it made anything worth keeping, so that its name is free again."""
        shutil.rmtree(self.path)
        release(self.path)

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps that a resumed run will take again. Those lines may be damaged: a power loss can leave
        them in any state. Says when the log ends before `step`."""
        kept = list(takewhile(lambda record: record["step"] <= step, self.metrics))
        self.metrics.keep(kept)
        if (last := kept[-1]["step"] if kept else 0) < step:
            say_once(f"{self.metrics_file}: the log ends at step {last}, but the state is of step {step}. The steps "
                     "between are missing from the log; no other number depends on them")


def is_run(path: Path) -> bool:
    """Whether a directory's config.json is that of a run, not of a model."""
    config = path / "config.json"
    return config.is_file() and not {"format", "arguments"}.isdisjoint(read_json(config))


def open_run(path: Path) -> Run:
    """Raises FileNotFoundError if there is no run, ValueError for a model directory."""
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path}: no run there (no config.json): name a run of train.py, or a model by --model")
    if not is_run(path):
        raise ValueError(f"{path}: config.json is a model's, not a run's; give it by --model")
    return Run(path)


def check_out(out: Path | None) -> None:
    """Raises FileExistsError if `out` holds something already, other than what a start leaves that was cut off before
    its config.json was written."""
    if out is not None and out.exists() and not (out.is_dir() and is_left_over(out)):
        raise FileExistsError(f"--out {out} already holds something; give another place, or --resume {out}")


def is_left_over(directory: Path) -> bool:
    """Whether nothing is there, or the lock of a start with no more than its tokenizer, its base's checksums
    and temporary files."""
    names = {path.name for path in directory.iterdir()}
    usual = {LOCK, BASE_SUMS, *FILES, *TRAVELLING}
    return not names or LOCK in names and all(name in usual or name.startswith(".") and name.endswith(".part")
                                              for name in names)


def new_run(out: Path | None, name: str) -> Run:
    """A directory that holds nothing yet, locked: `out`, or the next free runs/NAME-1, -2, ... The first of several
    processes makes it, once all of them have come here.

    Raises FileExistsError when `out` already holds something, and Held while another process starts a run there."""
    processes.wait()
    return Run(Path(processes.by_first(lambda: str(new_directory(out, name)))))


def new_directory(out: Path | None, name: str) -> Path:
    if out is not None:
        check_out(out)
        hold(out)
        check_out(out)  # another process may have been there meanwhile
        return out
    number = 1
    while True:
        path = Path("runs") / f"{name}-{number}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
            continue
        hold(path)
        return path
