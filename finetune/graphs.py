"""Training with the decoder recorded: one launch for all of its forward pass, one for all of its backward pass.

    dL/dp for every parameter p, added to p.grad          the same operations as without

A step of a 1B model launches about 4,000 kernels. What remains to launch one by one is the vocabulary's loss, which has
as many rows as a batch has targets, clipping, and the optimizer.

A recording has one shape. Rows are padded on the right to a multiple of `WIDTH` tokens, which no real token sees, so
that a few recordings serve a whole run. Each is made when its shape comes first, which takes about as long as four
steps.
"""
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.llama import Llama
from model.recorded import Recorded, new_pool, warm_up
from model.token_loss import summed_loss_of
from tasks.batching import collate
from tasks.task import Encoded

WIDTH = 64


class RecordedDecoder:
    """tokens (B, T) -> outputs of the last decoder layer, and back: one recording each way."""

    def __init__(self, model: Llama, totals: dict[nn.Parameter, Tensor], shape: tuple[int, ...], pool: Any):
        self.model, self.totals, device = model, totals, model.device
        self.tokens = torch.zeros(shape, dtype=torch.long, device=device)
        self.grad = torch.zeros(*shape, model.config.hidden_size, dtype=model.dtype, device=device)
        self.x = self.grad
        warm_up(lambda: (self._forward(), self._gradients()), device)
        self.forward, self.backward = Recorded(self._forward, device, pool), Recorded(self._add_gradients, device, pool)

    def _forward(self) -> Tensor:
        self.x = self.model.hidden(self.tokens)
        return self.x

    def _gradients(self) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(self.x, list(self.totals), self.grad, allow_unused=True)

    def _add_gradients(self) -> None:
        found = [(total, g) for total, g in zip(self.totals.values(), self._gradients(), strict=True) if g is not None]
        torch._foreach_add_([total for total, _ in found], [g for _, g in found])


class RecordedSteps:
    """Adds the gradients of micro-batches to those of the parameters, which stay in place from now on: a step sets them
    to zero, and not to None."""

    def __init__(self, model: Llama, parameters: Sequence[nn.Parameter]):
        self.model, self.pool = model, new_pool(model.device)
        self.totals = {p: torch.zeros_like(p) if p.grad is None else p.grad for p in parameters}
        for p, total in self.totals.items():
            p.grad = total
        self.decoders: dict[tuple[int, ...], RecordedDecoder] = {}

    def __call__(self, examples: Sequence[Encoded], n_targets: int) -> Tensor:
        """The summed loss. The gradients are those of the loss divided by `n_targets`."""
        batch = collate(examples, self.model.device, WIDTH)
        decoder = self._decoder(tuple(batch.tokens.shape))
        decoder.tokens.copy_(batch.tokens)
        rows = decoder.forward().detach().flatten(0, 1)[batch.places].requires_grad_()
        loss = summed_loss_of(self.model, rows, batch.targets)
        (loss / n_targets).backward()
        assert rows.grad is not None
        decoder.grad.zero_().flatten(0, 1).index_copy_(0, batch.places, rows.grad)
        decoder.backward()
        return loss.detach()

    def _decoder(self, shape: tuple[int, ...]) -> RecordedDecoder:
        if shape not in self.decoders:
            self.decoders[shape] = RecordedDecoder(self.model, self.totals, shape, self.pool)
        return self.decoders[shape]
