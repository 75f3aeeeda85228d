"""Post-LoRA Restoration, PLR (plr.txt Sec. 2): an adapter trained beside a k-bit base serves beside an l-bit one.

    W = W_k + delta_W     becomes     W = W_l + delta_W          l = 16: the original weights

The base is opaque to an additive adapter, so restoring a layer is one assignment, `adapted.base = base_l`, and every additive
adapter may be restored (plr.txt Sec. 3.2 leaves those of QA-LoRA and its like as future work). Where the l-bit blocks lie inside the
adapter's tiles, what comes out merges into the l-bit offsets by the rule of `merge.py`, as it would have at k bits.

What decides whether this helps is how far the base moves beside how far training moved it: ||W_l - W_k|| / ||delta_W||.
"""
from dataclasses import dataclass

from torch import Tensor, nn

from adapters.peqa import PEQA


class RestorationRefused(ValueError):
    """This adapter means nothing beside another base."""


def check_restores(kind: type[nn.Module]) -> None:
    """Raises RestorationRefused for PEQA, the one adapter that is not additive."""
    if issubclass(kind, PEQA):
        raise RestorationRefused("PEQA does not transfer to another base: what it trained is a factor on each scale of the k-bit codes, "
                                 "and an l-bit base has other codes and other scales, to which these factors do not belong. Merge it "
                                 "at the width it was trained on instead, or train an additive method, as qalora or qablora")


@dataclass(frozen=True)
class LayerChange:
    """Frobenius norms of one layer. `adapter` is 0 where the layer is quantized but has none."""
    layer: str
    base: float      # ||W_l - W_k||
    adapter: float   # ||delta_W||
    weights: int     # how many numbers W has
    bytes: int       # what is stored of the restored layer, adapter included

    @property
    def ratio(self) -> float | None:
        return self.base / self.adapter if self.adapter else None

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / self.weights


def layer_change(layer: str, W_l: Tensor, W_k: Tensor, adapter: nn.Module | None, stored: int) -> LayerChange:
    """stored: bytes of the restored layer."""
    delta = adapter.delta_weight().detach().norm().item() if adapter else 0.0
    return LayerChange(layer, (W_l - W_k).norm().item(), delta, W_l.numel(), stored)


def overall_ratio(changes: list[LayerChange]) -> float | None:
    """||W_l - W_k|| over all layers that changed their base, over ||delta_W|| over all that have an adapter."""
    base, adapter = (sum(getattr(c, name) ** 2 for c in changes) ** 0.5 for name in ("base", "adapter"))
    return base / adapter if adapter else None
