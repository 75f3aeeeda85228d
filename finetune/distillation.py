"""Distillation: learning the next-token probabilities of a teacher (Hinton et al. 2015, at temperature 1).

    loss = sum over target tokens of (1 - share) * -ln q(target) + share * KL(p || q)
    KL(p || q) = sum over the vocabulary of p * (ln p - ln q)           p of the teacher, q of the model
    d(loss)/d(logits) = q - (1 - share) * onehot(target) - share * p

The teacher is the model before it was quantized, so KL is what quantization and training changed. It computes in each
step; nothing of it is stored. Logits of both exist for a few tokens at a time (`token_loss.py`).
"""
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.config import RunConfig
from finetune.source import Source
from model.llama import Llama
from model.token_loss import loss_in_parts
from tasks.batching import collate
from tasks.task import Encoded


@dataclass(frozen=True)
class Distillation:
    """The loss of rows in the place of `loop.summed_loss`. `teacher` is frozen, and answers as it does when scored."""
    teacher: Llama
    share: float

    def __call__(self, model: nn.Module, examples: Sequence[Encoded]) -> tuple[Tensor, int]:
        batch = collate(examples, model.device)
        with torch.no_grad():
            known = self.teacher.hidden(batch.tokens, places=batch.places)

        def of_part(logits: Tensor, rows: slice, learns: bool) -> tuple[Tensor, Tensor | None]:
            with torch.no_grad():
                taught = self.teacher.logits(known[rows])
            return distilled_loss(logits, taught, batch.targets[rows], self.share, learns)
        x = model.hidden(batch.tokens, places=batch.places)
        return loss_in_parts(model, x, of_part), len(batch.targets)


def distilled_loss(logits: Tensor, taught: Tensor, targets: Tensor, share: float,
                   with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """The summed loss, and its gradient in the type of the logits. Computed in at least float32."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_q, log_p = (t.log_softmax(-1, dtype=wide) for t in (logits, taught))
    p = log_p.exp()
    loss = share * (p * (log_p - log_q)).sum() + (1 - share) * F.nll_loss(log_q, targets, reduction="sum")
    if not with_gradient:
        return loss, None
    gradient = log_q.exp_().sub_(p, alpha=share)
    gradient[torch.arange(len(p), device=p.device), targets] -= 1 - share
    return loss, gradient.to(logits.dtype)


# ---- the teacher ----------------------------------------------------------------------------------------------------

def teacher_source(config: RunConfig) -> Source | None:
    """None without --distill."""
    return Source(config.training.distill_from or config.base.model) if config.training.distill else None


def objective_of(config: RunConfig) -> Distillation | None:
    """What the run minimises, with its teacher in memory. None: the loss of the rows."""
    source = teacher_source(config)
    if source is None:
        return None
    teacher = source.load(config.compute.torch_dtype, config.compute.device).eval().requires_grad_(False)
    return Distillation(teacher, config.training.distill)


def check_teacher(source: Source, config: RunConfig) -> None:
    """Raises ValueError unless the teacher of --distill-from has the tokens of the model that trains."""
    if not config.training.distill_from:
        return
    teacher = type(source)(config.training.distill_from)
    theirs, ours = teacher.config.vocab_size, source.config.vocab_size
    if theirs != ours:
        raise ValueError(f"--distill-from {teacher.path} has a vocabulary of {theirs} tokens, and {source.path} one of "
                         f"{ours}: a teacher has the same tokens as the model that trains")
    for token in range(ours) if source.has_tokenizer and teacher.has_tokenizer else ():
        if teacher.tokenizer.token(token) != source.tokenizer.token(token):
            raise ValueError(f"--distill-from {teacher.path}: token {token} is {teacher.tokenizer.token(token)!r}, and "
                             f"in {source.path} {source.tokenizer.token(token)!r}: a teacher has the same tokens as "
                             f"the model that trains")


def check_same_teacher(config: RunConfig, fingerprint: str | None) -> None:
    """Raises ValueError if the teacher of --distill-from is not what it was when the run began, and OSError if it is
    not there."""
    if not config.training.distill_from:
        return
    teacher = teacher_source(config)
    try:
        found = teacher.fingerprint
    except OSError as error:
        raise type(error)(f"{error}; the run learns from it (--distill-from), so it must be there again") from None
    if found != fingerprint:
        raise ValueError(f"{teacher.path} is not what the run learns from: its sha256 is {found}, the "
                         f"run's teacher had {fingerprint}")
