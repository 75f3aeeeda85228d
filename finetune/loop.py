"""One training loop for every method: it sees a model, the parameters that train, and encoded examples."""
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm

from finetune.allocator import kept_blocks
from finetune.config import TrainingConfig
from finetune.graphs import RecordedSteps
from finetune.state_files import StateFiles, place_of
from finetune.stop import STOP, Stopped
from model.finite import NotFinite, why_not_finite
from model.tensor_files import TensorFile
from model.token_loss import summed_loss_of
from tasks.batching import collate, epoch_batches, split_list
from tasks.task import Encoded


class TrainingDiverged(RuntimeError):
    """A gradient or the validation loss is not finite."""


def learning_rate(step: int, total: int, settings: TrainingConfig) -> float:
    """Linear rise over `warmup`, then half a cosine down to 0. `step` counts from 0."""
    rising = max(1, round(settings.warmup * total))
    if step < rising:
        return settings.lr * (step + 1) / rising
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def summed_loss(model: nn.Module, examples: Sequence[Encoded]) -> tuple[Tensor, int]:
    """Sum over the target tokens of -ln p(token), in float32, and how many they are."""
    batch = collate(examples, model.device)
    x = model.hidden(batch.tokens).flatten(0, 1)[batch.places]
    return summed_loss_of(model, x, batch.targets), len(batch.targets)


@torch.no_grad()
def mean_loss(model: nn.Module, examples: Sequence[Encoded], micro_batch: int) -> float:
    """Mean over all target tokens of `examples`: the same whatever the batch size.

    Raises NotFinite, with the tensor or the layer that is to blame: NaN is below no other loss, and above none."""
    ordered = sorted(examples, key=lambda e: len(e.tokens))
    total = tokens = 0
    for part in tqdm(split_list(ordered, micro_batch), desc="validation loss", disable=None, leave=False):
        loss, n = summed_loss(model, part)
        total, tokens = total + loss.item(), tokens + n
        if not math.isfinite(total):
            raise NotFinite(f"the validation loss is not a number ({total}): {to_blame(model, part)}")
    return total / tokens


@torch.no_grad()
def to_blame(model: nn.Module, examples: Sequence[Encoded]) -> str:
    """Why the loss of these rows is not finite: the tensor or the layer, for the first row whose own loss is not."""
    found = next((e for e in examples if not math.isfinite(summed_loss(model, [e])[0].item())), examples[0])
    return why_not_finite(model, found.tokens[:-1])


class Trainer:
    """AdamW over `parameters` only. `keep_best` is called at each new lowest validation loss. `flush_log`: makes what
    `log` got so far survive a power loss.

    `state_file` holds what resuming needs: the parameters, the optimizer's moments, the random state, and in its header
    the step and the best loss so far. The order of the data follows from (seed, epoch), so the step alone finds the
    place. """

    def __init__(self, model: nn.Module, parameters: dict[str, nn.Parameter], settings: TrainingConfig, seed: int,
                 train: list[Encoded], validation: list[Encoded], state_file: Path,
                 keep_best: Callable[[], None], log: Callable[[dict], None],
                 flush_log: Callable[[], None] = lambda: None,
                 clock: Callable[[], float] = time.monotonic):
        self.model, self.parameters, self.settings, self.seed = model, parameters, settings, seed
        self.train_set, self.validation_set = train, validation
        self.states, self.keep_best, self.log, self.flush_log = StateFiles(state_file), keep_best, log, flush_log
        matrices = [p for p in parameters.values() if p.ndim >= 2]
        others = [p for p in parameters.values() if p.ndim < 2]
        # On a GPU one kernel steps all parameters. Its count of steps is there, too.
        self.fused = model.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=settings.lr, betas=(0.9, settings.beta2), fused=self.fused)
        self.recorded = RecordedSteps(model, list(parameters.values())) if settings.cuda_graphs else None
        self.per_epoch = math.ceil(len(train) / settings.batch_size)
        self.total_steps = settings.steps or settings.epochs * self.per_epoch
        self.step, self.best, self.tokens, self.seconds = 0, math.inf, 0, 0.0
        self.to_validate = False  # an epoch has ended, and its validation loss is not known yet
        self.clock, self.saved_at = clock, clock()

    def run(self) -> None:
        """Raises Stopped, with a state saved, after the step in which a signal asked for it."""
        self.model.train()
        self.saved_at = self.clock()
        with (STOP.held(), kept_blocks(),
              tqdm(total=self.total_steps, initial=self.step, desc="training", unit="step", disable=None) as bar):
            while self.to_validate or self.step < self.total_steps:
                self._rest_of_epoch(bar)
                self._end_of_epoch(math.ceil(self.step / self.per_epoch))

    def _rest_of_epoch(self, bar: tqdm) -> None:
        if self.to_validate:
            return
        lengths, (epoch, place) = [len(e.tokens) for e in self.train_set], divmod(self.step, self.per_epoch)
        for indices in epoch_batches(lengths, self.settings.batch_size, self.seed, epoch)[place:]:
            self._one_step([self.train_set[i] for i in indices], bar)
            self.to_validate = self.step % self.per_epoch == 0 or self.step == self.total_steps
            if STOP.asked or self._save_is_due() and not self.to_validate:
                self._save()
                if STOP.asked:  # inside: a signal may come between two looks
                    self._stop()
            if self.to_validate:
                return

    def goes_on_at(self) -> str:
        """The place of `run`, in words."""
        if self.to_validate:
            return f"with the validation after step {self.step} of {self.total_steps}"
        if self.step == self.total_steps:
            return f"behind the last of {self.total_steps} steps"
        return f"at step {self.step + 1} of {self.total_steps}"

    def _save_is_due(self) -> bool:
        every = self.settings.save_every
        return bool(every.steps and self.step % every.steps == 0
                    or every.minutes and self.clock() - self.saved_at >= 60 * every.minutes)

    def _save(self) -> None:
        self.save_state()
        self.saved_at = self.clock()

    def _stop(self) -> NoReturn:
        raise Stopped(STOP.asked, f"saved at step {self.step}")

    def _one_step(self, examples: list[Encoded], bar: tqdm) -> None:
        """One optimizer step. Each micro-batch's summed loss is divided by the targets of the WHOLE batch, so that the
        gradient is that of the batch's mean loss however it is cut."""
        start = time.perf_counter()
        lr = learning_rate(self.step, self.total_steps, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        n_targets = sum(len(e.tokens) - e.prompt_length for e in examples)
        losses = []
        for part in split_list(examples, self.settings.micro_batch):
            losses.append(self._add_gradients(part, n_targets))
        gradient_norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip)
        *losses, norm = torch.stack((*losses, gradient_norm)).tolist()  # the one wait for a GPU in a step
        total = sum(losses)
        if not math.isfinite(norm):
            raise TrainingDiverged(f"step {self.step + 1}: the gradient is not finite (loss {total / n_targets}): "
                                   f"{self._to_blame(examples, total)}{self._keep_last_good()}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self.recorded)
        self.step += 1
        self.tokens += sum(len(e.tokens) - 1 for e in examples)
        self.seconds += time.perf_counter() - start
        bar.update()
        bar.set_postfix(loss=f"{total / n_targets:.3f}", lr=f"{lr:.1e}", tokens_per_s=round(self.tokens / self.seconds))
        self.log({"step": self.step, "loss": total / n_targets, "lr": lr, "gradient_norm": norm,
                  "tokens": self.tokens, "seconds": round(self.seconds, 3)})

    def _add_gradients(self, part: list[Encoded], n_targets: int) -> Tensor:
        """Of a micro-batch; returns its summed loss."""
        if self.recorded:
            return self.recorded(part, n_targets)
        loss, _ = summed_loss(self.model, part)
        (loss / n_targets).backward()
        return loss.detach()

    def _end_of_epoch(self, epoch: int) -> None:
        self.model.eval()
        try:
            with STOP.at_once():
                loss = mean_loss(self.model, self.validation_set, self.settings.micro_batch)
        except Stopped:
            self._save()
            self._stop()
        except NotFinite as error:
            raise TrainingDiverged(f"after epoch {epoch}, step {self.step}: {error}{self._keep_last_good()}") from None
        self.model.train()
        self.log({"step": self.step, "epoch": epoch, "validation_loss": loss})
        note = ""
        if loss < self.best:
            self.best, note = loss, "  (best so far, kept)"
            self.keep_best()
        tqdm.write(f"epoch {epoch}, step {self.step}/{self.total_steps}: validation loss {loss:.4f}, "
                   f"{self.tokens / self.seconds:.0f} tokens/s{note}")
        self.to_validate = False
        self._save()
        if STOP.asked:
            self._stop()

    def _to_blame(self, examples: list[Encoded], loss: float) -> str:
        """The tensor or the layer that is not finite, and the remedy if it is one of training."""
        name = next((n for n, p in self.parameters.items() if not p.isfinite().all()), None)
        if name:
            return f"{name}, which trains, holds values that are not finite; {self._remedy()}"
        if not math.isfinite(loss):
            return to_blame(self.model, examples)
        name = next(n for n, p in self.parameters.items() if p.grad is not None and not p.grad.isfinite().all())
        return f"that of {name} is the first; {self._remedy()}"

    def _remedy(self) -> str:
        wider = "" if self.model.dtype == torch.float32 else " or use --dtype float32"
        return f"lower --lr (now {self.settings.lr}){wider}"

    def _keep_last_good(self) -> str:
        """Keeps what has been trained, and says what is kept. The step that failed has changed nothing."""
        if self.best < math.inf:
            return f". Kept: what had the lowest validation loss so far, {self.best:.4f}"
        if not self.step or not all(p.isfinite().all() for p in self.parameters.values()):
            return ""
        self.keep_best()
        return f". Kept: what was trained in {self.step} steps; no validation loss of it is known"

    def save_state(self) -> None:
        """What belongs together reaches the disk in this order: the best adapter (`keep_best`), the log, the state. The
        log goes before the state, since a run that goes on from step n logs only the steps after n. A kept adapter
        that is newer than the state does no harm: the steps up to it are taken again, to the same bytes."""
        self.flush_log()
        tensors = {"random": torch.get_rng_state()}
        if self.model.device.type == "cuda":
            tensors["random_cuda"] = torch.cuda.get_rng_state(self.model.device)
        for name, p in self.parameters.items():
            tensors[f"parameter.{name}"] = p
            for moment in ("exp_avg", "exp_avg_sq"):
                tensors[f"{moment}.{name}"] = self.optimizer.state[p][moment]
        place = {"step": self.step, "best": self.best, "tokens": self.tokens, "seconds": self.seconds,
                 "to_validate": self.to_validate}
        self.states.save(tensors, {"place": json.dumps(place)})

    def load_state(self) -> None:
        """Raises Damaged, naming file and tensor, if no state is whole. A damaged newest one gives way to the one
        before it."""
        self.states.load(self._read_state)

    @torch.no_grad()
    def _read_state(self, file: TensorFile) -> None:
        place = place_of(file)
        for name, p in self.parameters.items():
            p.copy_(file.get_tensor(f"parameter.{name}"))
            self.optimizer.state[p] = {
                "step": torch.tensor(float(place["step"]), device=p.device if self.fused else "cpu"),
                **{m: file.get_tensor(f"{m}.{name}").to(p.device) for m in ("exp_avg", "exp_avg_sq")}}
        torch.set_rng_state(file.get_tensor("random"))
        if self.model.device.type == "cuda" and "random_cuda" in file.keys():
            torch.cuda.set_rng_state(file.get_tensor("random_cuda"), self.model.device)
        self.step, self.best = place["step"], place["best"]
        self.tokens, self.seconds = place["tokens"], place["seconds"]
        self.to_validate = place.get("to_validate", False)  # a state of an older version is never saved before that
