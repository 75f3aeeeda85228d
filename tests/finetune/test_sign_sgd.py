"""t-SignSGD: which ternary numbers step, and how few."""
import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.sign_sgd import LEAST, SignSGD, sigma, threshold
from tests.strategies import random


def stepped(p, grad, sigma):
    parameter = torch.nn.Parameter(p.clone())
    optimizer = SignSGD([parameter])
    optimizer.param_groups[0]["sigma"] = sigma
    parameter.grad = grad
    optimizer.step()
    return parameter.detach()


@given(st.integers(0, 99), st.sampled_from([0.5, 0.95, 0.99, 0.999, 0.9999]), st.integers(1, 700))
def test_entries_above_the_quantile_step_against_their_sign(seed, sigma, n):
    """numpy's quantile, which interpolates, cuts off the same entries."""
    grad = random(n, seed=seed)
    p = random(n, seed=seed + 1).sign() * (random(n, seed=seed + 2) > 0)
    above = grad.abs().numpy() > numpy.quantile(grad.abs().numpy(), sigma)
    expected = numpy.clip(p.numpy() - numpy.sign(grad.numpy()) * above, -1, 1)
    assert (stepped(p, grad, sigma).numpy() == expected).all()


def test_a_number_stays_ternary_and_without_a_gradient_nothing_steps():
    p, grad = torch.tensor([-1.0, 0.0, 1.0, 0.0]), torch.tensor([3.0, -3.0, -3.0, 1.0])
    assert stepped(p, grad, 0.5).tolist() == [-1, 0, 1, 0]  # 3 is no more than the quantile, 3
    assert stepped(p, grad, 0.0).tolist() == [-1, 1, 1, 0]
    assert torch.equal(stepped(p, torch.zeros(4), 0.0), p)
    assert torch.equal(stepped(p, grad * 1e-10, 0.0), p) and threshold(grad * 1e-10, 0.0) == torch.tensor(LEAST)


def test_sigma_rises_to_the_end_as_the_paper_has_it():
    values = [sigma(step, 101) for step in range(101)]
    assert values[0] == pytest.approx(0.95) and values[80] == pytest.approx(0.999) and values[-1] == pytest.approx(
        0.9999)
    assert values[40] == pytest.approx((0.95 + 0.999) / 2) and values == sorted(values) and sigma(0, 1) == 0.95
