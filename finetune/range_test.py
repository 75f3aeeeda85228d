"""A learning-rate range test: `python train.py ... --find-lr`.

From one start, the model trains a few steps at each of some constant rates, on the same rows in the same order. Rates
grow by sqrt(10), from a hundredth of --lr, until two in a row end above the lowest loss. With x = ln(rate), the test
recommends the vertex of the parabola through the lowest loss y0 and its two neighbours y- and y+:

    x = x0 + h * (y- - y+) / (2 * (y- - 2 y0 + y+)),   h = ln(sqrt(10))

A loss that is not finite, or above that of the start, counts as that of the start: how far a model goes astray says
nothing about the best rate.
"""
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import count, islice

import torch

from adapters.adapted import adapter_parameters
from finetune.adapted_model import residuals_to_keep
from finetune.config import RunConfig
from finetune.config_json import config_json
from finetune.data import PreparedData
from finetune.distillation import objective_of
from finetune.loop import Trainer, TrainingDiverged, mean_loss
from finetune.memory import prepared
from finetune.pictures import plot_rates
from finetune.quantize import load_base
from finetune.residual import Residuals
from finetune.run import Run
from finetune.source import Source
from model import processes
from model.checkpoint import empty_model, random_model
from model.files import write_record
from model.finite import NotFinite, check_weights
from model.llama import Llama
from tasks.batching import epoch_batches
from tasks.task import Encoded

FACTOR, BELOW, MOST = 10 ** 0.5, 100, 13  # MOST rates: up to 10,000 times the first, 100 times --lr
ROWS = 256  # of the validation set


@dataclass(frozen=True)
class Trial:
    """The loss after training at one rate; None: it is not finite."""
    rate: float
    loss: float | None

    def fell_to(self, start: float) -> float:
        return start if self.loss is None else min(self.loss, start)


def growing(lr: float) -> list[float]:
    return [lr / BELOW * FACTOR ** i for i in range(MOST)]


def try_rates(rates: Iterable[float], start: float, loss_at: Callable[[float], float]) -> Iterator[Trial]:
    """Trials until two in a row end above the lowest loss. `loss_at` trains from the start, whose loss is `start`."""
    lowest, above = start, 0
    for rate in rates:
        loss = loss_at(rate)
        trial = Trial(rate, loss if math.isfinite(loss) else None)
        yield trial
        above = above + 1 if trial.fell_to(start) >= lowest < start else 0
        lowest = min(lowest, trial.fell_to(start))
        if above == 2:
            return


def recommended(trials: list[Trial], start: float) -> float | None:
    """The rate, to two digits; None if no rate lowers the loss."""
    fell = [trial.fell_to(start) for trial in trials]
    i = fell.index(min(fell))
    if fell[i] >= start:
        return None
    if not 0 < i < len(fell) - 1:
        return float(f"{trials[i].rate:.1e}")
    (left, lowest, right), h = fell[i - 1:i + 2], math.log(trials[i].rate / trials[i - 1].rate)
    return float(f"{trials[i].rate * math.exp(h * (left - right) / (2 * (left - 2 * lowest + right))):.1e}")


class FromOneStart:
    """Trains `trainer` for some steps at a constant rate, always from the state that it is given in. Memory holds what
    trains twice."""

    def __init__(self, trainer: Trainer, steps: int):
        self.trainer, self.random = trainer, torch.get_rng_state()
        self.start = {name: p.detach().clone() for name, p in trainer.parameters.items()}
        self.batches = list(islice(batches(trainer), steps))

    def loss(self) -> float:
        model = self.trainer.model.eval()
        return mean_loss(model, self.trainer.validation_set[:ROWS], self.trainer.settings.micro_batch,
                         self.trainer.objective)

    def loss_at(self, rate: float) -> float:
        """NaN if training diverges."""
        trainer = self.trainer
        self.go_back()
        trainer.model.train()
        try:
            for rows in self.batches:
                trainer.take_step(rows, rate)
            return self.loss()
        except (TrainingDiverged, NotFinite):
            return math.nan

    @torch.no_grad()
    def go_back(self) -> None:
        torch.set_rng_state(self.random)
        self.trainer.optimizer.state.clear()
        self.trainer.forget_gradients()
        for name, p in self.trainer.parameters.items():
            p.copy_(self.start[name])


def batches(trainer: Trainer) -> Iterator[list[Encoded]]:
    """In the order of training, epoch after epoch."""
    lengths = [len(e.tokens) for e in trainer.train_set]
    for epoch in count():
        for indices in epoch_batches(lengths, trainer.settings.batch_size, trainer.seed, epoch):
            yield [trainer.train_set[i] for i in indices]


def find_rate(place: Run, source: Source, config: RunConfig, data: PreparedData, steps: int) -> None:
    """Prints the table and the recommendation. Writes rates.json and rates.png into `place`, and nothing else."""
    trials_from = FromOneStart(trainer_of(place, source, config, data), steps)
    start, trials = trials_from.loss(), []
    print(f"{config.of_method.title} on {config.base.model}, {steps} steps of {config.training.batch_size} rows\n"
          f"    rate  loss (at the start {start:.4f})")
    for trial in try_rates(growing(config.training.lr), start, trials_from.loss_at):
        trials.append(trial)
        print(f"{trial.rate:8.1e}  {'not finite' if trial.loss is None else f'{trial.loss:.4f}'}", flush=True)
    best = recommended(trials, start)
    if processes.is_first():
        write_record(place.path / "rates.json", {
            "config": config_json(config), "steps": steps, "loss_at_the_start": start,
            "trials": [asdict(trial) for trial in trials], "recommended": best})
        plot_rates(place.path / "rates.png", [(t.rate, t.loss) for t in trials if t.loss is not None], start, best)
    said = f"--lr {best:g}" if best else f"none: no rate lowers the loss in {steps} steps"
    print(f"recommended: {said} (the table is in {place.path})")


def trainer_of(place: Run, source: Source, config: RunConfig, data: PreparedData) -> Trainer:
    """As train.py trains, but for files: nothing is kept."""
    torch.manual_seed(config.data.seed)
    residuals = residuals_to_keep(config, empty_model(source.config, torch.float32))
    model = prepared(base_model(source, config, data, residuals), config, residuals)
    check_weights(model, data.used_ids, str(config.base.model))
    parameters = dict(model.named_parameters()) if config.adapter_kind is None else adapter_parameters(model)
    return Trainer(model, parameters, config.training, config.data.seed, data.train, data.validation,
                   place.states.newest, lambda: None, lambda record: None, objective=objective_of(config))


def base_model(source: Source, config: RunConfig, data: PreparedData, residuals: Residuals | None = None) -> Llama:
    if config.base.from_scratch:
        return random_model(source.config, config.compute.torch_dtype, config.data.seed).to(config.compute.device)
    return load_base(source, config.base, config.compute, data.calibration, residuals)[0]
