"""A run is a directory.

    config.json           resolved arguments, the model's configuration, versions, fingerprints (sha256) of base and data
    metrics.jsonl         a line a step, a line an epoch
    model.safetensors     what was trained (full), or
    adapter.safetensors   what was trained (all others)
    base.safetensors      the quantized base: codes, scale, offset, levels, and all that was not quantized
    quantization.json     how GPTQ made the base: calibration set, and damping and errors of each layer
    training.json         trainable parameters, tokens, seconds, peak memory
    merged/               the merged k-bit model, a model directory of its own
    requantized/          the same, where --requantize asked for it: lossy
    restored-8bit/        the adapter merged into the base at another width, where --restore 8 --merge asked for it
    restoration.json      how far each restored base is from the one trained on, layer by layer
    predictions.jsonl     what each state of the model answered to each test row, with its score
    benchmarks/TASK/      predictions.jsonl and results.json of a task that is not the run's own
    results.json          the table that train.py ended with
    eval.json             the table that eval.py made last
    state/                what --resume needs
"""
import json
import shutil
from pathlib import Path


class Run:
    def __init__(self, path: Path):
        self.path = path
        self.config_file = path / "config.json"
        self.metrics_file = path / "metrics.jsonl"
        self.results_file = path / "results.json"
        self.eval_file = path / "eval.json"
        self.state_file = path / "state" / "state.safetensors"
        self.model_file = path / "model.safetensors"
        self.adapter_file = path / "adapter.safetensors"
        self.base_file = path / "base.safetensors"
        self.quantization_file = path / "quantization.json"
        self.training_file = path / "training.json"
        self.merged = path / "merged"
        self.requantized = path / "requantized"
        self.restoration_file = path / "restoration.json"
        self.predictions_file = path / "predictions.jsonl"

    def restored(self, bits: int, how: str = "") -> Path:
        return self.path / f"restored-{bits}bit{how}"

    def benchmark(self, task: str) -> "Run":
        """Where the scores of another task go."""
        return Run(self.path / "benchmarks" / task)

    def has_progress(self) -> bool:
        return self.state_file.is_file() or self.metrics_file.is_file()

    def discard(self) -> None:
        """Remove a run that failed before it had made anything worth keeping, so that its name is free again."""
        shutil.rmtree(self.path)

    def log(self, record: dict) -> None:
        with open(self.metrics_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps that a resumed run will take again."""
        if self.metrics_file.exists():
            kept = [line for line in self.metrics_file.read_text().splitlines() if json.loads(line)["step"] <= step]
            self.metrics_file.write_text("".join(line + "\n" for line in kept))


def new_run(out: Path | None, name: str) -> Run:
    """A directory that holds nothing yet: `out`, or the next free runs/NAME-1, -2, ...

    Raises FileExistsError when `out` already holds something."""
    if out is not None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise FileExistsError(f"--out {out} already holds something; give another place, or --resume {out}")
        out.mkdir(parents=True, exist_ok=True)
        return Run(out)
    number = 1
    while True:
        path = Path("runs") / f"{name}-{number}"
        try:
            path.mkdir(parents=True)
            return Run(path)
        except FileExistsError:
            number += 1
