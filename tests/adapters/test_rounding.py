"""How much of what was trained the rounding of a merged weight takes."""
import pytest
import torch

from adapters.rounding import TrainingLost
from tests.strategies import random


def lost(*layers) -> TrainingLost:
    found = TrainingLost()
    for i, (rounding, delta) in enumerate(layers):
        found.add(f"layer{i}", torch.tensor(rounding, dtype=torch.float64), torch.tensor(delta, dtype=torch.float64))
    return found


def test_the_share_is_the_norm_of_the_rounding_beside_that_of_delta():
    assert lost(([3.0, 4.0], [0.0, 10.0])).share == pytest.approx(0.5, abs=1e-15)


def test_layers_count_by_their_squares_and_the_worst_is_named():
    both = lost(([0.3], [1.0]), ([4.0], [5.0]))
    assert both.share == pytest.approx(((0.09 + 16) / 26) ** 0.5, abs=1e-15)
    assert both.worst == "layer1 0.8"


def test_an_exact_merge_loses_nothing_and_nothing_trained_has_no_share():
    assert lost(([0.0, 0.0], [1.0, 2.0])).share == 0
    assert lost().share is None and lost(([0.0], [0.0])).share is None


@pytest.mark.parametrize("size,low,high", [(1e-1, 0.0, 0.02), (3e-4, 0.1, 1.0), (1e-6, 0.99, 1.0)])
def test_bfloat16_takes_the_more_the_smaller_the_steps_are(size, low, high):
    """Weights of rms 0.1 that bfloat16 holds. It keeps 8 bits, so steps far below 1e-4 round back to the base."""
    weight, delta = 0.1 * random(64, 64, seed=1), size * random(64, 64, seed=2)
    exact = weight.bfloat16().double() + delta
    found = TrainingLost()
    found.add("layer", exact.bfloat16().double() - exact, delta)
    assert low < found.share < high
