"""IR-QLoRA's search: the tau whose codes carry the most information, against a search that rounds for every
candidate."""
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import quant.icq
from quant.grid import Block, Grid, round_to_grid, split_blocks
from quant.icq import ICQ, SIGMA
from quant.normal_float import NormalFloat, normal_float_levels
from tests.strategies import blocks, random, seeds, weights

dtypes = st.sampled_from([torch.float32, torch.float64])
nf_bits = st.sampled_from(ICQ.allowed_bits)


def histogram_entropy(codes):
    """-sum p log2 p over the codes of one block."""
    p = torch.bincount(codes.flatten().int()).double() / codes.numel()
    return -(p[p > 0] * p[p > 0].log2()).sum().item()


def entropies(codes, block):
    """One a block, (rows, columns)."""
    return torch.tensor([[histogram_entropy(split[:, j]) for j in range(split.shape[1])]
                         for split in split_blocks(codes, block)])


def grid_of_tau(w, tau, bits):
    """NormalFloat of w - tau, where w is one block."""
    scale = (w - tau).abs().max()
    return Grid(normal_float_levels(bits), scale.view(1, 1), tau.view(1, 1), Block(w.shape[1], w.shape[0]), bits)


def slow_search(w, bits):
    """tau of the block w, by trying one candidate after the other. Each one is really rounded to."""
    tau0 = w.median()
    a = (w - tau0).abs().max()
    f = torch.arange(-100, 101, dtype=w.dtype) * (0.1 * SIGMA / 100)
    candidates = [f_i * a + tau0 for f_i in sorted(f, key=abs)] + [torch.zeros_like(tau0)]
    best, best_entropy = None, -1.0
    for tau in candidates:
        entropy = histogram_entropy(round_to_grid(w, grid_of_tau(w, tau, bits)))
        if entropy > best_entropy + 1e-9:  # a tie, up to the rounding of the sum, stays with the smaller |f|
            best, best_entropy = tau, entropy
    return best


def test_sigma_is_that_of_the_normal_distribution_whose_levels_end_at_one():
    assert SIGMA == pytest.approx(0.541087, abs=5e-7)


@given(st.data(), nf_bits, blocks)
def test_entropy_is_never_below_that_of_plain_normal_float(data, bits, block):
    weight = data.draw(weights(block))
    icq, nf = (kind(bits, block, storage=torch.float64).quantize(weight) for kind in (ICQ, NormalFloat))
    assert (entropies(icq.codes, block) >= entropies(nf.codes, block) - 1e-9).all()


@given(st.data(), nf_bits, blocks)
def test_entropy_is_never_below_that_of_the_median_as_offset(data, bits, block):
    weight = data.draw(weights(block))
    icq = ICQ(bits, block, storage=torch.float64).quantize(weight)
    values = split_blocks(weight, block).transpose(1, 2).flatten(2)
    tau0 = values.median(2).values
    at_median = replace(icq.grid, offset=tau0, scale=(values - tau0[..., None]).abs().amax(2))
    assert (entropies(icq.codes, block) >= entropies(round_to_grid(weight, at_median), block) - 1e-9).all()


@pytest.mark.parametrize("bits", ICQ.allowed_bits)
def test_weights_away_from_zero_carry_more_information_than_with_plain_normal_float(bits):
    """So that the two inequalities above are not equalities throughout."""
    weight, block = random(16, 64) + 1.5, Block(64, 1)
    icq, nf = (kind(bits, block).quantize(weight) for kind in (ICQ, NormalFloat))
    assert (entropies(icq.codes, block) > entropies(nf.codes, block)).double().mean() > 0.9


@pytest.mark.parametrize("bits", ICQ.allowed_bits)
def test_with_double_quantization_the_mean_entropy_stays_above_that_of_normal_float(bits):
    """Block by block it does not: tau and scale are rounded once more after the search (3 to 12 % of the blocks fall
    below)."""
    weight, block = random(64, 256, dtype=torch.float32), Block(64, 1)
    icq, nf = (entropies(kind(bits, block, double_quant=True).quantize(weight).codes, block)
               for kind in (ICQ, NormalFloat))
    assert icq.mean() > nf.mean() and 0 < (icq < nf).double().mean() < 0.2


@settings(max_examples=12)
@given(st.sampled_from([Block(8, 3), Block(64, 1), Block(16, 2)]), nf_bits, seeds, dtypes)
def test_the_search_finds_what_a_slow_search_that_rounds_every_candidate_finds(block, bits, seed, dtype):
    w = random(block.n_out, block.n_in, seed=seed, dtype=dtype)
    grid = ICQ(bits, block, storage=dtype).fit(w)
    expected = slow_search(w, bits)
    assert grid.offset.item() == expected.item()
    assert grid.scale.item() == (w - expected).abs().max().item()


def test_of_equal_entropies_the_smallest_shift_wins():
    """Four weights far from every midpoint keep four different codes over all of the candidates: the median stays."""
    w = torch.tensor([[-1.0, 0.0, 0.35, 1.0]])
    grid = ICQ(3, Block(4, 1)).fit(w)
    assert grid.offset.item() == w.median()
    shifted = w.median() + 0.1 * SIGMA
    for each in (grid, grid_of_tau(w, shifted, 3)):
        assert histogram_entropy(round_to_grid(w, each)) == 2.0


def test_zero_offset_wins_where_no_shift_of_the_median_does_as_well():
    """Without tau = 0 among the candidates, this block's codes would carry less information than NF's."""
    w = torch.tensor([[0.0, 0.3, 0.5, 0.7, 1.0, -0.9, 0.8, 0.9]])
    grid = ICQ(2, Block(8, 1)).fit(w)
    f = torch.linspace(-0.1 * SIGMA, 0.1 * SIGMA, 201)
    tau0, a = w.median(), (w - w.median()).abs().max()
    published = max(histogram_entropy(round_to_grid(w, grid_of_tau(w, f_i * a + tau0, 2))) for f_i in f)
    assert grid.offset.item() == 0
    assert histogram_entropy(round_to_grid(w, grid)) > published


@given(st.floats(-2.0 ** 99, 2.0 ** 99, width=32), nf_bits)
def test_a_constant_block_comes_back_exactly(value, bits):
    weight = torch.full((4, 8), value)
    assert torch.equal(ICQ(bits, Block(8, 2)).quantize(weight).dequantize(), weight)


@given(nf_bits, seeds)
def test_the_weight_furthest_from_tau_is_kept(bits, seed):
    w = random(1, 64, seed=seed)
    quantized = ICQ(bits, Block(64, 1), storage=torch.float64).quantize(w)
    furthest = (w - quantized.grid.offset).abs().argmax()
    assert quantized.dequantize(torch.float64)[0, furthest].item() == pytest.approx(w[0, furthest].item(), abs=1e-12)


@pytest.mark.parametrize("bits", ICQ.allowed_bits)
def test_fitting_twice_and_in_other_portions_gives_the_same_bits(bits, monkeypatch):
    weight, quantizer = random(32, 128, dtype=torch.float32), ICQ(bits, Block(32, 2))
    first = quantizer.fit(weight)
    monkeypatch.setattr(quant.icq, "AT_A_TIME", 1)  # one block at a time
    for again in (quantizer.fit(weight), ICQ(bits, Block(32, 2)).fit(weight.clone())):
        assert torch.equal(first.scale, again.scale) and torch.equal(first.offset, again.offset)
    assert len(first.offset.unique()) > first.offset.numel() / 2
