"""The device of the tests in this folder. `TEST_DEVICE=cpu` tries them out on a machine without a GPU."""
import os

import torch

DEVICE = os.environ.get("TEST_DEVICE", "cuda")
ON = ("--device", DEVICE)


def same(ours: torch.Tensor, expected: torch.Tensor, within: float) -> None:
    """||ours - expected|| <= within * ||expected||, on the CPU, in float64. Names the error if not."""
    ours, expected = ours.detach().cpu().double(), expected.detach().cpu().double()
    assert ours.shape == expected.shape
    error = ((ours - expected).norm() / expected.norm().clamp(min=1e-30)).item()
    assert error <= within, f"relative error {error:.2e}, allowed {within:g}"
