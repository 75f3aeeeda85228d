"""Where numbers stop being numbers: which weight of a model, or which layer's output, holds NaN or infinity."""
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from model.llama import Llama
from model.tensor_files import name_of

EMBEDDINGS = "model.embed_tokens.weight"


class NotFinite(ValueError):
    """A loss, a log-likelihood or a logit is NaN or infinite. `row`: the index of the row that has it, if known."""

    def __init__(self, message: str, row: int | None = None):
        super().__init__(message)
        self.row = row


def damaged_weights(model: Llama, used_ids: Collection[int]) -> Iterator[str]:
    """Every stored tensor that holds NaN or infinity, in words.

    The embedding of a token that no row holds is never read, so it may hold anything: tokens that were added and never
    trained do. Where the embeddings are also the head, every logit row reads all of them."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta or not tensor.is_floating_point() or tensor.isfinite().all():
            continue
        bad = ~tensor.isfinite()
        if name == EMBEDDINGS:
            rows = bad.any(-1).nonzero().flatten().tolist()
            if not model.config.tie_word_embeddings:
                rows = sorted(set(rows).intersection(used_ids))
            if rows:
                more = f" and {len(rows) - 1} others" if len(rows) > 1 else ""
                yield f"{name} is not finite in the row of token {rows[0]}{more}"
        else:
            name = name.replace(".base", "")  # as the checkpoint has it: an adapter, or a held weight, has a base
            yield f"{name} holds {int(bad.sum())} values of {tensor.numel()} that are not finite"


def check_weights(model: Llama, used_ids: Collection[int], where: str) -> None:
    """Raises NotFinite, naming the tensor, for a model that can only compute NaN."""
    if found := next(damaged_weights(model, used_ids), None):
        raise NotFinite(f"{where}: {found}: the model is damaged, and whatever reads these values is not a number; get "
                        "its files anew")


@torch.no_grad()
def why_not_finite(model: Llama, tokens: list[int]) -> str:
    """The tensor or the layer because of which these tokens give no finite logits, in words, with the remedy."""
    if found := next(damaged_weights(model, tokens), None):
        return f"{found}: these weights are damaged"
    first: list[str] = []

    def look(name: str):
        def hook(module: nn.Module, given: tuple, output: object) -> None:
            for what, values in (("what goes into", given[0] if given else None), ("the output of", output)):
                if not first and isinstance(values, Tensor) and not values.isfinite().all():
                    first.append(f"{what} {name}")
        return hook
    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules()
               if name]
    try:
        logits = model(torch.tensor([tokens], device=model.device))
    finally:
        for handle in handles:
            handle.remove()
    named = name_of(model.dtype)
    if not first and logits.isfinite().all():
        return f"alone, in {named}, this row is finite; in its batch it is not"
    wider = "" if model.dtype in (torch.float32, torch.float64) else f": it overflows {named}; try --dtype float32"
    return f"{first[0] if first else 'the logits'} is not finite{wider}"
