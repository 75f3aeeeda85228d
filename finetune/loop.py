"""One training loop for every method: it sees a model, the parameters that train, and encoded examples."""
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm

from finetune.allocator import kept_blocks
from finetune.config import TrainingConfig
from finetune.graphs import RecordedSteps
from finetune.optimizer import RATES, new_optimizer, rate_of_step, set_rate
from finetune.progress import figures, seconds_left, training_bar
from finetune.schedule import evaluations_left, is_evaluated
from finetune.state_files import StateFiles
from finetune.stop import STOP, Stopped
from finetune.together import SharedGradients, beside, gathering, seed_dropout
from finetune.training_state import restore, state_of
from model import processes
from model.finite import NotFinite, why_not_finite
from model.token_loss import summed_loss_of
from tasks.batching import collate, epoch_batches, split_list
from tasks.task import Encoded

Loss = Callable[[nn.Module, Sequence[Encoded]], tuple[Tensor, int]]  # summed over the target tokens, and how many


class TrainingDiverged(RuntimeError):
    """A gradient or the validation loss is not finite."""


def summed_loss(model: nn.Module, examples: Sequence[Encoded]) -> tuple[Tensor, int]:
    """Sum over the target tokens of -ln p(token), in float32, and how many they are."""
    batch = collate(examples, model.device)
    x = model.hidden(batch.tokens, places=batch.places)
    return summed_loss_of(model, x, batch.targets), len(batch.targets)


@torch.no_grad()
def mean_loss(model: nn.Module, examples: Sequence[Encoded], micro_batch: int, objective: Loss | None = None) -> float:
    """Mean over all target tokens of `examples`: the same whatever the batch size. Of `summed_loss` unless `objective`
    is given. Several processes take one part each at a time, and add up the parts in the order of one process.

    Raises NotFinite, with the tensor or the layer that is to blame: NaN is below no other loss, and above none; and
    Stopped if another process was asked to stop."""
    parts = split_list(sorted(examples, key=lambda e: len(e.tokens)), micro_batch)
    total = tokens = 0
    for at_once in tqdm(split_list(parts, processes.size()), desc="validation loss", disable=None, leave=False):
        with gathering(model.shared):
            found = [(*(objective or summed_loss)(model, part), counts)
                     for part, counts in beside(processes.share(at_once), 1, at_once[0], model.shared)]
        mine = [(loss.item(), n) for loss, n, counts in found if counts]
        found, asked = zip(*processes.gather((mine, STOP.asked)), strict=True)
        if processes.several() and any(asked) and STOP.holding:
            raise Stopped(max(filter(None, asked)))
        for part, (loss, n) in zip(at_once, chain.from_iterable(found), strict=True):
            total, tokens = total + loss, tokens + n
            if not math.isfinite(total):
                raise NotFinite(f"the validation loss is not a number ({total}): {to_blame(model, part)}")
    return total / tokens


@torch.no_grad()
def to_blame(model: nn.Module, examples: Sequence[Encoded]) -> str:
    """Why the loss of these rows is not finite: the tensor or the layer, for the first row whose own loss is not."""
    found = next((e for e in examples if not math.isfinite(summed_loss(model, [e])[0].item())), examples[0])
    return why_not_finite(model, found.tokens[:-1])


class Trainer:
    """The optimizer steps `parameters` only. `keep_best` is called at each new lowest validation loss. `flush_log`:
    makes what `log` got so far survive a power loss. `objective`: what is minimised, in the place of `summed_loss`.

    `state_file` holds what resuming needs (`training_state.py`)."""

    def __init__(self, model: nn.Module, parameters: dict[str, nn.Parameter], settings: TrainingConfig, seed: int,
                 train: list[Encoded], validation: list[Encoded], state_file: Path,
                 keep_best: Callable[[], None], log: Callable[[dict], None],
                 flush_log: Callable[[], None] = lambda: None,
                 clock: Callable[[], float] = time.monotonic, objective: Loss | None = None):
        self.model, self.parameters, self.settings, self.seed = model, parameters, settings, seed
        self.train_set, self.validation_set = train, validation
        self.states, self.keep_best, self.log, self.flush_log = StateFiles(state_file), keep_best, log, flush_log
        if not processes.is_first():
            self.keep_best, self.log = (lambda: None), (lambda record: None)
        self.fused = model.device.type == "cuda"
        self.optimizer = new_optimizer(parameters.values(), settings, self.fused)
        self.rate_name = RATES[settings.optimizer][0]
        self.shared = SharedGradients(list(parameters.values())) if processes.several() else None
        self.recorded = RecordedSteps(model, list(parameters.values())) if settings.cuda_graphs else None
        self.per_epoch = math.ceil(len(train) / settings.batch_size)
        self.total_steps = settings.steps or settings.epochs * self.per_epoch
        self.step, self.best, self.tokens, self.seconds = 0, math.inf, 0, 0.0
        self.since_best = 0  # validations since the best one
        self.objective = objective
        self.to_validate = False  # a validation is due after this step, and its loss is not known yet
        self.agreed: int | None = None  # the signal that asked one of several processes to stop
        self.clock, self.saved_at = clock, clock()
        self.latest, self.validated_in = deque[float](maxlen=50), 0.0  # seconds of steps, and of a validation

    def run(self) -> None:
        """Raises Stopped, with a state saved, after the step in which a signal asked for it."""
        self.model.train()
        self.saved_at = self.clock()
        blocks = nullcontext() if self.model.shared else kept_blocks()
        with STOP.held(), blocks, training_bar(self.step, self.total_steps) as bar:
            while self.to_validate or self.step < self.total_steps and not self.out_of_patience:
                self._to_next_validation(bar)
                self._validate()
        if self.stopped_early:
            print(f"no lower validation loss in {self.since_best} validations: --patience {self.settings.patience} "
                  f"ends training at step {self.step} of {self.total_steps}; the lowest, {self.best:.4f}, is kept")

    @property
    def out_of_patience(self) -> bool:
        return bool(self.settings.patience and self.since_best >= self.settings.patience)

    @property
    def stopped_early(self) -> bool:
        return self.out_of_patience and self.step < self.total_steps

    def _to_next_validation(self, bar: tqdm) -> None:
        if self.to_validate:
            return
        lengths, (epoch, place) = [len(e.tokens) for e in self.train_set], divmod(self.step, self.per_epoch)
        for indices in epoch_batches(lengths, self.settings.batch_size, self.seed, epoch)[place:]:
            self._one_step([self.train_set[i] for i in indices], bar)
            self.to_validate = is_evaluated(*self._place())
            if self._asked or self._save_is_due() and not self.to_validate:
                self._save()
                if self._asked:  # inside: a signal may come between two looks
                    self._stop()
            if self.to_validate:
                return

    def _place(self) -> tuple[int, int, int, int | None]:
        return self.step, self.total_steps, self.per_epoch, self.settings.eval_every

    def goes_on_at(self) -> str:
        """The place of `run`, in words."""
        if self.to_validate:
            return f"with the validation after step {self.step} of {self.total_steps}"
        if self.stopped_early:
            return f"behind step {self.step}, where --patience {self.settings.patience} ended its training"
        if self.step == self.total_steps:
            return f"behind the last of {self.total_steps} steps"
        return f"at step {self.step + 1} of {self.total_steps}"

    def _save_is_due(self) -> bool:
        every = self.settings.save_every
        return bool(every.steps and self.step % every.steps == 0
                    or every.minutes and self.clock() - self.saved_at >= 60 * every.minutes)

    @property
    def _asked(self) -> int | None:
        """The signal that asks to stop. Several processes agree on it in each step and validation."""
        return self.agreed if self.shared else STOP.asked

    def _save(self) -> None:
        if processes.is_first():
            self.save_state()
        self.saved_at = self.clock()

    def _stop(self) -> NoReturn:
        processes.wait()  # until the first one has saved
        raise Stopped(self._asked, f"saved at step {self.step}")

    def _one_step(self, examples: list[Encoded], bar: tqdm) -> None:
        start = time.perf_counter()
        rate = rate_of_step(self.step, self.total_steps, self.settings)
        loss, norm = self.take_step(examples, rate)
        self.step += 1
        self.tokens += sum(len(e.tokens) - 1 for e in examples)
        self.latest.append(time.perf_counter() - start)
        self.seconds += self.latest[-1]
        left = seconds_left(self.total_steps - self.step, sum(self.latest) / len(self.latest),
                            evaluations_left(*self._place()), self.validated_in)
        bar.update()
        bar.set_postfix_str(figures(left, loss, (self.rate_name, rate), self.tokens / self.seconds))
        self.log({"step": self.step, "loss": loss, self.rate_name: rate, "gradient_norm": norm,
                  "tokens": self.tokens, "seconds": round(self.seconds, 3)})

    def take_step(self, examples: list[Encoded], rate: float) -> tuple[float, float]:
        """One optimizer step. Each micro-batch's summed loss is divided by the targets of the WHOLE batch, so that the
        gradient is that of the batch's mean loss however it is cut. Returns that loss, and the gradient's norm."""
        set_rate(self.optimizer, rate, self.settings)
        if self.shared:
            seed_dropout(self.seed, self.step)
        n_targets = sum(len(e.learned) for e in examples)
        losses = []
        parts = split_list(processes.share(examples), self.settings.micro_batch)
        most = math.ceil(math.ceil(len(examples) / processes.size()) / self.settings.micro_batch)
        with gathering(self.model.shared):
            for part, counts in beside(parts, most, examples[:1], self.model.shared):
                if counts:
                    losses.append(self._add_gradients(part, n_targets))
                else:
                    self._add_gradients(part, math.inf)
        if self.shared:
            losses[:], self.agreed = self.shared.add_up(losses)
        gradient_norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip)
        *losses, norm = torch.stack((*losses, gradient_norm)).tolist()  # the one wait for a GPU in a step
        total = sum(losses)
        if not math.isfinite(norm):
            raise TrainingDiverged(f"step {self.step + 1}: the gradient is not finite (loss {total / n_targets}): "
                                   f"{self._to_blame(examples, total)}{self._keep_last_good()}")
        self.optimizer.step()
        self.forget_gradients()
        return total / n_targets, norm

    def forget_gradients(self) -> None:
        if self.shared:
            self.shared.forget()
        else:
            self.optimizer.zero_grad(set_to_none=not self.recorded)

    def _add_gradients(self, part: list[Encoded], n_targets: int) -> Tensor:
        """Of a micro-batch; returns its summed loss."""
        if self.recorded:
            return self.recorded(part, n_targets)
        loss, _ = (self.objective or summed_loss)(self.model, part)
        (loss / n_targets).backward()
        return loss.detach()

    def _validate(self) -> None:
        """The validation loss; what has the lowest so far is kept."""
        epoch = math.ceil(self.step / self.per_epoch)
        of_epoch = is_evaluated(self.step, self.total_steps, self.per_epoch, None)
        where = f"epoch {epoch}, step {self.step}" if of_epoch else f"step {self.step}"
        start = time.perf_counter()
        self.model.eval()
        try:
            with STOP.at_once():
                loss = mean_loss(self.model, self.validation_set, self.settings.micro_batch, self.objective)
        except Stopped as stopped:
            self.agreed = stopped.number
            self._save()
            self._stop()
        except NotFinite as error:
            raise TrainingDiverged(f"after {where}: {error}{self._keep_last_good()}") from None
        self.model.train()
        self.validated_in = time.perf_counter() - start
        self.log({"step": self.step, **({"epoch": epoch} if of_epoch else {"eval_every": self.settings.eval_every}),
                  "validation_loss": loss})
        note = ""
        self.since_best += 1
        if loss < self.best:
            self.best, self.since_best, note = loss, 0, "  (best so far, kept)"
            self.keep_best()
        tqdm.write(f"{where}/{self.total_steps}: validation loss {loss:.4f}, "
                   f"{self.tokens / self.seconds:.0f} tokens/s{note}")
        self.to_validate = False
        if self.stopped_early:
            self.log({"step": self.step, "stopped_by": "patience", "validations_since_best": self.since_best,
                      "best_validation_loss": self.best})
        if self._asked or of_epoch or self.stopped_early or self._save_is_due():
            self._save()
            if self._asked:
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
        return f"lower --lr (now {self.settings.lr}){wider}" if self.settings.lr else "use --dtype float32"

    def _keep_last_good(self) -> str:
        """Keeps what has been trained, and says what is kept. The step that failed has changed nothing."""
        return processes.by_first(self._kept_last_good)

    def _kept_last_good(self) -> str:
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
        self.states.save(*state_of(self))

    def load_state(self) -> None:
        """Raises Damaged, naming file and tensor, if no state is whole. A damaged newest one gives way to the one
        before it."""
        self.states.load(partial(restore, self))
