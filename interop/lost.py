"""What an export loses of what was trained, because its type rounds the weights.

    share = ||rounding|| / ||delta_W||     over all tensors that were trained (adapters/rounding.py)

An error that is small beside a weight, or beside the step between two codes, may be all of delta_W. What it costs is
said in logits and in validation loss: before training, as trained, exported.
"""
import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from adapters.rounding import MOST, MUCH, NOTICED, TrainingLost, said
from finetune.data import check_data, prepare_data
from finetune.loop import mean_loss
from finetune.saving import saved_with
from finetune.source import Source
from interop.before import NotMeasured, Training, training_of, was_trained
from interop.comparison import logits_of
from interop.trained import Trained, dense_tensor, tensor_names
from model.llama import Llama
from tasks.hub_data import HubData
from tasks.task import Encoded

ROWS, BATCH = 64, 8  # validation rows on which losses are compared, and how many at a time


@dataclass(frozen=True)
class Lost:
    training_lost: float | None = None   # ||rounding|| / ||delta_W||; None: nothing was trained, or it is not known
    most_lost_in: str = "none"           # the layer with the largest such share
    logits_lost: float | None = None     # ||change of the logits by rounding|| / ||change by training||, fixed rows
    result_lost: float | None = None     # of a lossy result: ||its weights - the run's|| / ||delta_W||
    loss_rows: int = 0                   # validation rows of the losses, which are nats a target token, in float32
    loss_before: float | None = None     # before training
    loss_trained: float | None = None
    loss_exported: float | None = None
    not_measured: str = ""               # why the model before training is not known
    losses_not_measured: str = ""
    saved: str = ""                      # what the run's own file lost when it was saved

    @property
    def loss_lost(self) -> float | None:
        """The share of the gain in validation loss that is lost; None if it is not known, or if there was no gain."""
        if self.loss_before is None or self.loss_trained is None or self.loss_exported is None:
            return None
        gained = self.loss_before - self.loss_trained
        return (self.loss_exported - self.loss_trained) / gained if gained > 0 else None

    def to_json(self) -> dict:
        return {**asdict(self), "loss_lost": self.loss_lost}

    def lines(self) -> list[str]:
        found = [f"  {self.saved}"] if self.saved else []
        if self.not_measured:
            return [*found, f"  what rounding takes of what was trained: not measured, {self.not_measured}"]
        if self.result_lost is not None:
            found.append(f"  the directory is lossy: its weights differ from the run's by {self.result_lost:.0%} of "
                         f"what was trained, before the export rounds anything")
        if (self.training_lost or 0.0) < NOTICED and self.result_lost is None:
            return found
        found.append(f"  rounding beside what was trained, ||rounding|| / ||delta_W||: {self.training_lost:.1%} "
                     f"(worst layer: {self.most_lost_in})")
        if self.logits_lost is not None:
            found.append(f"  rounding moves the logits by {self.logits_lost:.1%} of what training moved them")
        return [*found, f"  {self.losses}"]

    @property
    def losses(self) -> str:
        if self.losses_not_measured:
            return f"validation loss: not measured, {self.losses_not_measured}"
        share = ("training gained nothing there" if self.loss_lost is None else f"{self.loss_lost:.0%} of the gain is "
                 "lost" if self.loss_lost > 0 else "no gain is lost")
        return (f"validation loss on {self.loss_rows} rows: {self.loss_before:.4f} before training, "
                f"{self.loss_trained:.4f} as trained, {self.loss_exported:.4f} exported: {share}")

    def check(self, allowed: bool) -> str | None:
        """What the export loses, in words, if that is much. Raises ValueError if rounding takes most of what was
        trained, unless that is allowed."""
        share = self.training_lost or 0.0
        if share < MUCH and (self.loss_lost or 0.0) < MUCH:
            return None
        of_logits = "" if self.logits_lost is None else (f"; it moves the logits by {self.logits_lost:.0%} of what "
                                                         f"training moved them")
        of_loss = "" if self.loss_exported is None else f"; {self.losses}"
        words = f"{said('the exported weights', share, self.most_lost_in)}{of_logits}{of_loss}"
        if share >= MOST and not allowed:
            raise ValueError(f"{words}. Give --dtype float32, which makes a gguf file dense, or --allow-loss to export "
                             f"it all the same")
        return words


def what_is_lost(trained: Trained, model: Llama, again: Llama, rows: list[list[int]], differs: bool) -> Lost:
    """`again` is the export of `model`, read again; `differs`: whether any tensor differs. Other models are loaded only
    then."""
    saved = saved_with(trained.run)[1] if trained.run else ""
    if not was_trained(trained):
        return Lost(saved=saved)
    if not differs and not trained.is_requantized:
        return Lost(0.0, logits_lost=0.0, saved=saved)
    try:
        training = training_of(trained, model)
    except NotMeasured as error:
        return Lost(not_measured=str(error), saved=saved)
    lost, result = TrainingLost(), TrainingLost()
    for name in tensor_names(model.config):
        if (delta := training.delta(name)) is None:
            continue
        layer, exact = name.removesuffix(".weight"), dense_tensor(training.rounded, name).float()
        lost.add(layer, dense_tensor(again, name).float() - exact, delta)
        if trained.is_requantized:
            result.add(layer, exact - dense_tensor(training.trained, name), delta)
    if lost.share is None:
        return Lost(saved=saved)
    return Lost(lost.share, lost.worst, result_lost=result.share, saved=saved,
                **cost(training, again, rows, *validation_rows(trained, lost.share >= NOTICED or bool(result.share))))


def cost(training: Training, again: Llama, rows: list[list[int]], examples: list[Encoded], why_not: str) -> dict:
    """Logits and losses: before training, as trained, exported."""
    with training.before() as before:
        first, loss_before = all_logits(before, rows), loss_of(before, examples)
    trained, exported = all_logits(training.trained, rows), all_logits(again, rows)
    rounded = trained if training.rounded is training.trained else all_logits(training.rounded, rows)
    gained = (trained - first).norm().item()
    return {"logits_lost": (exported - rounded).norm().item() / gained if gained else None,
            "loss_rows": len(examples), "loss_before": loss_before,
            "loss_trained": loss_of(training.trained, examples), "loss_exported": loss_of(again, examples),
            "losses_not_measured": why_not}


def all_logits(model: Llama, rows: list[list[int]]) -> Tensor:
    return torch.cat(logits_of(model, rows))


def loss_of(model: Llama, examples: Sequence[Encoded]) -> float | None:
    """The mean loss in float32, nats a target token."""
    model.dtype = torch.float32
    return mean_loss(model, examples, BATCH) if examples else None


def validation_rows(trained: Trained, wanted: bool) -> tuple[list[Encoded], str]:
    """The run's first validation rows, or why there are none. Fetches nothing."""
    run = trained.run or (trained.run_of_result.run if trained.run_of_result else None)
    if not wanted:
        return [], "rounding takes too little to cost anything"
    if run is None:
        return [], "a model without a run has no validation rows"
    if any(isinstance(place, HubData) for place in (run.config.data.data, run.config.data.test_data)):
        return [], "the rows are on the hub, and an export fetches nothing"
    try:
        with redirect_stdout(io.StringIO()):  # what it says of the rows was said when they were trained on
            data = prepare_data(Source(run.path), run.config, calibrate=False)
        check_data(data, run)
        return data.validation[:ROWS], ""
    except (ValueError, OSError) as error:
        return [], str(error)
