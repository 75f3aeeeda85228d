"""What the rounding of a merged weight takes from what was trained.

    lost = ||round(W + delta_W) - (W + delta_W)|| / ||delta_W||          Frobenius norms, over all adapted layers

An adapter that moves weights by less than their type can hold is lost in the merge, although the merged model looks
whole: rounded, it is nearly the base again.
"""
from torch import Tensor

NOTICED, MUCH, MOST = 0.01, 0.1, 0.5  # shares that are shown, warned of, and refused in an export

ROWS = 4096  # of a tensor that are in float64 at a time


def squares(tensor: Tensor) -> float:
    """The sum of the squares, in float64."""
    return sum(rows.double().square().sum().item() for rows in tensor.split(ROWS))


def said(what: str, share: float, worst: str) -> str:
    return (f"the rounding of {what} is {share:.0%} of what was trained (||rounding|| / ||delta_W||; worst layer: "
            f"{worst})")


class TrainingLost:
    """`lost`, collected layer by layer."""

    def __init__(self) -> None:
        self.squares: dict[str, tuple[float, float]] = {}  # of the rounding and of delta_W

    def add(self, layer: str, rounding: Tensor, delta: Tensor) -> None:
        """rounding: round(W + delta_W) - (W + delta_W). Both tensors have the shape of the weight."""
        self.squares[layer] = squares(rounding), squares(delta)

    @property
    def share(self) -> float | None:
        """Over all layers; None if no layer was trained."""
        rounding, delta = (sum(part) for part in zip(*self.squares.values(), strict=True)) if self.squares else (0, 0)
        return (rounding / delta) ** 0.5 if delta else None

    def words(self, what: str) -> str:
        """`the rounding of WHAT is 43% of what was trained (...)`: one wording for merges, exports and bases."""
        return said(what, self.share or 0.0, self.worst)

    @property
    def worst(self) -> str:
        """`model.layers.0.self_attn.q_proj 0.93`, the layer with the largest share."""
        shares = {layer: (rounding / delta) ** 0.5 for layer, (rounding, delta) in self.squares.items() if delta}
        layer = max(shares, key=lambda name: shares[name], default=None)
        return f"{layer} {shares[layer]:.2g}" if layer else "none"
