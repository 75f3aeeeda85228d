"""What a model takes in storage."""
from adapters.adapted import AdaptedLinear
from finetune.adapted_model import linear_names
from model.llama import Llama
from quant.linear import stored_bytes


def bits_per_weight(model: Llama) -> float:
    """Stored bits of the decoder's linear layers, adapters included, over the number of their weights."""
    modules = [model.get_submodule(name) for name in linear_names(model, "all")]
    bases = [m.base if isinstance(m, AdaptedLinear) else m for m in modules]
    return 8 * stored_bytes(modules) / sum(m.in_features * m.out_features for m in bases)
