"""Post-LoRA Restoration, PLR (Kanda & Hatano, Sec. 2): an adapter trained on a k-bit base is used on an l-bit base.

    W = W_k + delta_W     becomes     W = W_l + delta_W          l = 16: the original weights

The base is opaque to an additive adapter, so restoring a layer is one assignment, `adapted.base = base_l`. Every
additive adapter can be restored. (Kanda & Hatano, Sec. 3.2 leave QA-LoRA and similar methods to future work.) If the
l-bit blocks lie inside the adapter's tiles, the restored layer merges into the l-bit offsets by the rule of `merge.py`.

||W_l - W_k|| / ||delta_W|| predicts whether restoring helps: it compares how far the base moves with how far
training moved it.
"""
from dataclasses import dataclass

from torch import Tensor

from adapters.adapter import Adapter, AdditiveAdapter
from adapters.rounded import CODES


class RestorationRefused(ValueError):
    """The adapter has no meaning on another base."""


def check_restores(kind: type[Adapter], merge_into: str | None = None) -> None:
    """Raises RestorationRefused for an adapter that is not additive, and for one that was trained with --merge-into."""
    if not kind.additive:
        why = kind.only_here or f"it trained the {kind.merges_into} of the k-bit codes, and an l-bit base has others"
        raise RestorationRefused(f"{kind.name} does not transfer to another base: {why}. Merge at the width "
                                 f"that was trained, or train an additive method, such as qalora or qablora")
    if merge_into == CODES:
        raise RestorationRefused("--merge-into codes trained delta_W through the rounding to the k-bit grid: only the "
                                 "codes that it moved were ever seen, and delta_W beside another base is another "
                                 "model. Merge at the width that was trained, or train without --merge-into")


@dataclass(frozen=True)
class LayerChange:
    """Frobenius norms of one layer. `adapter` is 0 if the layer is quantized but has no adapter."""
    layer: str
    base: float      # ||W_l - W_k||
    adapter: float   # ||delta_W||
    weights: int     # number of elements of W
    bytes: int       # stored size of the restored layer, adapter included

    @property
    def ratio(self) -> float | None:
        return self.base / self.adapter if self.adapter else None

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / self.weights


def layer_change(layer: str, W_l: Tensor, W_k: Tensor, adapter: AdditiveAdapter | None, stored: int) -> LayerChange:
    """The norms of one layer. `stored`: bytes of the restored layer."""
    delta = adapter.delta_weight().detach().norm().item() if adapter else 0.0
    return LayerChange(layer, (W_l - W_k).norm().item(), delta, W_l.numel(), stored)


def overall_ratio(changes: list[LayerChange]) -> float | None:
    """||W_l - W_k|| over all layers whose base changed, divided by ||delta_W|| over all layers with an adapter."""
    base, adapter = (sum(getattr(c, name) ** 2 for c in changes) ** 0.5 for name in ("base", "adapter"))
    return base / adapter if adapter else None
