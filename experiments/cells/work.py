"""One cell, done in this process by the functions of train.py and eval.py. Only the states that are asked for are
scored, quantized bases are shared, and no state to resume from is saved: a cell that is cut off starts anew."""
import gc
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

import train as train_script
from adapters.adapted import adapted_layers
from adapters.restoration import overall_ratio
from experiments.cells.bases import Bases, gptq_report
from experiments.cells.plan import Cell, run_folder
from finetune.adapted_model import attach_adapters, load_adapter
from finetune.command_line import train_parser
from finetune.config import RunConfig
from finetune.data import PreparedData
from finetune.kept import keep_anew
from finetune.loop import Trainer, TrainingDiverged
from finetune.run import Run
from finetune.size import peak_memory
from finetune.source import Source, load_run_base, load_trained
from model.files import read_json, write_record
from model.llama import Llama
from scoring.restore import Restoration, base_changes, restored_state
from scoring.score_run import adapted_states
from scoring.scores import Row, Scoring, score_state
from scoring.state import BASE, QUANTIZED, TRAINED


class CellTrainer(Trainer):
    """Adds ||delta_W||, over all adapted layers, to each validation. That is what the restoration ratio is divided by,
    so the ratio is known before training ends."""

    def save_state(self) -> None:
        self.flush_log()

    def _validate(self) -> None:
        super()._validate()
        if norm := delta_norm(self.model):
            self.log({"step": self.step, "delta_norm": norm})


@torch.no_grad()
def delta_norm(model: Llama) -> float:
    """sqrt(sum over the adapted layers of ||delta_W||^2); 0 without additive adapters."""
    adapters = [layer.adapter for layer in adapted_layers(model).values() if layer.adapter.additive]
    return sum((adapter.delta_weight().norm() ** 2 for adapter in adapters), start=torch.zeros(())).sqrt().item()


PREPARED: dict[tuple, PreparedData] = {}  # of this process, the newest last
REMEMBERED = 4


def prepared_rows(source: Source, config: RunConfig) -> PreparedData:
    """The rows, as train.py prepares them. Cells of one process that ask for the same rows share them."""
    calibrate = train_script.calibrates(config)
    key = source.path, config.data, calibrate, config.base.calibration, config.base.calibration_rows
    if key not in PREPARED:
        while len(PREPARED) >= REMEMBERED:
            PREPARED.pop(next(iter(PREPARED)))
        PREPARED[key] = train_script.prepare_data(source, config, calibrate)
    return PREPARED[key]


class Done:
    """A cell as it is done: its run, and the seconds of each part."""

    def __init__(self, cell: Cell, folder: Path, bases: Bases):
        self.cell, self.bases = cell, bases
        self.out = run_folder(folder, cell.name)
        shutil.rmtree(self.out, ignore_errors=True)
        self.seconds: dict[str, float] = {}
        self.base_changes: dict[str, float] = {}  # of restored states: ||W_l - W_k|| over all layers
        given = train_parser().given(cell.command(folder))
        with self.timed("preparing"):
            source, self.config = train_script.checked(given)
            self.data = prepared_rows(source, self.config)
            self.run = Run(self.out)
            train_script.describe(self.run, source, self.config, self.data)
        self.scoring = Scoring(self.data, self.config.evaluation.eval_batch_size)

    def timed(self, part: str) -> "Timed":
        return Timed(self.seconds, part)

    def facts(self) -> dict:
        if self.config.base.quantization and not getattr(self.config.adapter, "keep_residual", False):
            with self.timed("base"):  # a run that keeps the residual makes both itself
                link_base(self.run, self.bases.file(self.config.base, self.config.compute, self.data.calibration))
        training = self.train() if self.cell.trains else {}
        states = [] if "diverged" in training else self.cell.states
        with self.timed("scoring"):
            rows = [row for state in states for row in self.rows_of(state)]
        return {"tags": dict(self.cell.tags), "kind": self.cell.kind, "argv": list(self.cell.argv),
                "lr": self.config.training.lr, "training": training,
                "rows": {"train": len(self.data.train), "validation": len(self.data.validation),
                         "test": len(self.data.test)},
                "states": {row.state.key: state_facts(row, self.data) for row in rows},
                "base_changes": self.base_changes, "gptq": gptq_errors(self.run),
                "seconds": {part: round(s, 3) for part, s in self.seconds.items()}, "bases_made": self.bases.made}

    def train(self) -> dict:
        """A training that diverges is a result, not an error: the rate is too high."""
        try:
            with self.timed("training"):
                log, trainer = trained(self.run, self.config, self.data)
        except TrainingDiverged as error:
            return {"diverged": str(error), "best_validation_loss": None}
        steps = [line for line in log if "gradient_norm" in line]
        return {"trainable_parameters": sum(p.numel() for p in trainer.parameters.values()), "tokens": trainer.tokens,
                "step_seconds": round(trainer.seconds, 3), "best_validation_loss": trainer.best,
                "losses": [round(line["loss"], 5) for line in steps],
                "gradient_norms": [float(f"{line['gradient_norm']:.4g}") for line in steps],
                "validations": [{k: v for k, v in line.items() if k in ("step", "epoch", "validation_loss",
                                                                        "delta_norm")}
                                for line in log if "gradient_norm" not in line]}

    def rows_of(self, state: str) -> list[Row]:
        """The rows of the table that a state of the cell names."""
        kind, _, bits = state.partition("-")
        if kind == "restored":
            return [self.restored(int(bits.removesuffix("bit")))]
        return STATES[kind](self)

    def base(self) -> list[Row]:
        compute = self.config.compute
        return [score_state(BASE, Source(self.config.base.model).load(compute.torch_dtype, compute.device),
                            self.scoring)]

    def quantized(self) -> list[Row]:
        return [score_state(QUANTIZED, self.run_base(), self.scoring)]

    def trained(self) -> list[Row]:
        if "merged" in self.cell.states:  # which scores this state, too
            return []
        compute = self.config.compute
        return [score_state(TRAINED, load_trained(self.run, self.config, compute.torch_dtype, compute.device),
                            self.scoring)]

    def merged(self) -> list[Row]:
        """As trained and merged, and requantized if --requantize is given: eval.py's own rows."""
        kept_in = self.run if self.config.evaluation.requantize else None
        scoring = Scoring(self.data, self.scoring.batch_size, models=kept_in)
        return adapted_states(self.run_base(), self.run, self.config, scoring)

    def restored(self, bits: int) -> Row:
        """Post-LoRA Restoration, as `scoring/restore.py`, on a shared base."""
        base = Restoration((bits,)).base(self.config.base, bits)
        model = self.bases.load(base, self.config.compute, self.data.calibration)
        attach_adapters(model, self.config)
        load_adapter(model, self.run)
        changes = base_changes(model, self.run, self.config)
        row = score_state(restored_state(self.config.base, base), model, self.scoring)
        row.restoration_ratio = overall_ratio(changes)
        self.base_changes[row.state.key] = sum(c.base ** 2 for c in changes) ** 0.5
        return row

    def run_base(self) -> Llama:
        compute = self.config.compute
        return load_run_base(self.run, self.config, compute.torch_dtype, compute.device)


STATES: dict[str, Callable[[Done], list[Row]]] = {"base": Done.base, "quantized": Done.quantized,
                                                  "trained": Done.trained, "merged": Done.merged}


class Timed:
    """Adds the seconds of a `with` block to `seconds[part]`."""

    def __init__(self, seconds: dict[str, float], part: str):
        self.seconds, self.part = seconds, part

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.part] = self.seconds.get(self.part, 0.0) + time.perf_counter() - self.start


def link_base(run: Run, file: Path) -> None:
    """The shared base as the run's own, by a second name of the file."""
    os.link(file, run.base_file)
    if report := gptq_report(file):
        write_record(run.quantization_file, report)


def gptq_errors(run: Run) -> dict | None:
    """Means over the layers of the relative output errors, and how many layers ended above plain rounding."""
    if not run.quantization_file.is_file():
        return None
    layers = read_json(run.quantization_file)["layers"]
    means = {name: sum(layer[name] for layer in layers) / len(layers) for name in ("gptq_error", "rounding_error")}
    return {**means, "above_rounding": sum(layer["above_rounding"] for layer in layers), "layers": len(layers)}


def trained(run: Run, config: RunConfig, data: PreparedData) -> tuple[list[dict], Trainer]:
    """As `train.train`, without the states to resume from. Returns the log."""
    torch.manual_seed(config.data.seed)
    full = config.adapter_kind is None
    model, parameters, save = train_script.full(run, config) if full else train_script.adapted(run, config, data)
    model.checkpointing = config.training.gradient_checkpointing
    log: list[dict] = []

    def keep() -> None:
        best = trainer.best if trainer.best < float("inf") else None
        keep_anew(run.trained_file, run.kept_file, save, trainer.step, steps=trainer.total_steps, validation_loss=best)
    trainer = CellTrainer(model, parameters, config.training, config.data.seed, data.train, data.validation,
                          run.states.newest, keep, log.append)
    trainer.run()
    write_record(run.training_file, {"tokens": trainer.tokens, "seconds": round(trainer.seconds, 3)})
    return log, trainer


def state_facts(row: Row, data: PreparedData) -> dict:
    """The row of the table, and the mark of each test row."""
    figures = {name: value for name, value in asdict(row).items() if name not in ("lines", "state", "parts")}
    marks = [data.task.marks(asked, line)[data.task.metric] for asked, line in zip(data.test, row.lines, strict=True)]
    return {**figures, "title": row.state.title, "metric": data.task.metric, "marks": packed(marks)}


def packed(marks: list[float]) -> str | list[float]:
    """`packed([1.0, 0.0]) == "10"`; marks that are not 0 or 1 stay numbers, to four digits."""
    if all(mark in (0.0, 1.0) for mark in marks):
        return "".join(str(int(mark)) for mark in marks)
    return [float(f"{mark:.4f}") for mark in marks]


def unpacked(marks: str | list[float]) -> list[float]:
    return [float(mark) for mark in marks]


def do(cell: Cell, folder: Path) -> dict:
    """The facts of a cell. Its run stays in `folder`, and shared bases in `folder`/bases."""
    start, on_gpu = time.perf_counter(), torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        facts = Done(cell, folder, Bases(folder / "bases")).facts()
        facts["peak_gpu_mb"] = peak_memory(torch.device("cuda"))["peak_gpu_memory_mb"] if on_gpu else None
        return {**facts, "wall_seconds": round(time.perf_counter() - start, 3)}
    finally:
        gc.collect()  # models and recordings, which nobody holds now
        if on_gpu:
            torch.cuda.empty_cache()
