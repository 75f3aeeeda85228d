"""What a model takes in storage."""
from collections.abc import Sequence

from torch import nn

from adapters.adapted import AdaptedLinear
from finetune.adapted_model import linear_names
from model.llama import Llama


def stored_bytes(modules: Sequence[nn.Module]) -> int:
    """Parameters and buffers, each counted once."""
    tensors = {id(t): t for m in modules for t in (*m.parameters(), *m.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def bits_per_weight(model: Llama) -> float:
    """Stored bits of the decoder's linear layers, adapters included, over the number of their weights."""
    modules = [model.get_submodule(name) for name in linear_names(model, "all")]
    bases = [m.base if isinstance(m, AdaptedLinear) else m for m in modules]
    return 8 * stored_bytes(modules) / sum(m.in_features * m.out_features for m in bases)
