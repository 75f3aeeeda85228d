"""Dequantizing packed codes gives the bits of Eq. 1 computed plainly, and holds little besides its result."""
import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import quant.grid
from quant import QUANTIZERS
from quant.grid import Block, Grid, QuantizedWeight, dequantize
from quant.linear import QuantLinear
from quant.packing import codes_of_indices, pack, packed_bytes, unpack, word_shape
from tests.strategies import bits, random, seeds, weights

EVERY = [(kind, bits) for kind in QUANTIZERS.values() for bits in kind.allowed_bits]
blocks = st.builds(Block, st.sampled_from([1, 3, 4, 16, 32, None]), st.sampled_from([1, 2, 3, 8]))
dtypes = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
portions = st.sampled_from([1, 100, 1 << 18])  # weights at a time


def plain_unpack(packed, bits, shape):
    """Shifts and masks: the oracle of `unpack`."""
    n_bytes, n_codes = word_shape(bits)
    shifts = 8 * torch.arange(n_bytes)
    words = (packed.unflatten(0, (-1, n_bytes)).long() << shifts).sum(1)[:, None]
    codes = (words >> bits * torch.arange(n_codes)) & (2 ** bits - 1)
    return codes.to(torch.uint8).flatten()[:shape[0] * shape[1]].view(shape)


def same_bits(a, b):
    """Equal, and zeros of the same sign."""
    return torch.equal(a, b) and torch.equal(a.signbit(), b.signbit())


def assert_as_plain(weight, dtype):
    layer, expected = QuantLinear.from_weight(weight), dequantize(weight.codes, weight.grid, dtype)
    for found in (layer.dequantize(dtype), weight.dequantize(dtype)):
        assert found.dtype == dtype and found.is_contiguous() and same_bits(found, expected)


@given(bits, st.integers(1, 9), st.integers(1, 50), seeds)
def test_unpacking_gives_what_shifts_and_masks_give(bits, D_out, D_in, seed):
    generator = torch.Generator().manual_seed(seed)
    packed = torch.randint(0, 256, (packed_bytes(D_out * D_in, bits),), generator=generator).to(torch.uint8)
    assert torch.equal(unpack(packed, bits, (D_out, D_in)), plain_unpack(packed, bits, (D_out, D_in)))


@given(st.data(), st.sampled_from(EVERY), blocks, st.booleans(), dtypes, portions)
def test_every_grid_dequantizes_to_the_bits_of_the_plain_equation(data, kind_and_bits, block, double, dtype, portion):
    kind, bits = kind_and_bits
    weight = data.draw(weights(Block(block.n_in or 24, block.n_out), torch.float32))
    quantizer = kind(bits, block, double_quant=double and kind.usual_storage == torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quant.grid, "AT_A_TIME", portion)
        assert_as_plain(quantizer.quantize(weight), dtype)


@given(bits, blocks, st.sampled_from([torch.float16, torch.float32, torch.float64]), dtypes, seeds, portions)
def test_so_do_factors_of_any_sign_and_size(bits, block, storage, dtype, seed, portion):
    """Negative and zero scales, products that underflow, and a few offsets for all rows: where a multiplication and an
    addition would differ from the fused operation, or zeros have a sign."""
    def draw(*shape):
        size = torch.randint(-40, 3, shape, generator=generator).double().exp2()
        return (torch.randn(shape, generator=generator).double() * size * 10.0 ** float(edge)).to(storage)
    generator = torch.Generator().manual_seed(seed)
    edge = torch.randint(-30, 2, (), generator=generator) if storage != torch.float16 else 0
    D_out, D_in, n_in = 3 * block.n_out, 2 * (block.n_in or 9), block.n_in or 18
    scale = draw(3, D_in // n_in)
    scale[0, 0] = 0
    levels = torch.linspace(-1, 1, 2 ** bits) if seed % 2 else torch.arange(2 ** bits).float() - 2
    for offset in (draw(3, D_in // n_in), draw(1, 1), torch.zeros(1, 1)):
        grid = Grid(levels, scale, offset, Block(n_in, block.n_out), bits)
        codes = torch.randint(0, 2 ** bits, (D_out, D_in), generator=generator).to(torch.uint8)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(quant.grid, "AT_A_TIME", portion)
            assert_as_plain(QuantizedWeight(codes, grid), dtype)
            assert_as_plain(QuantizedWeight(codes, replace(grid, scale=scale.abs() + 1)), dtype)


@given(bits, blocks, dtypes, seeds, portions)
def test_so_do_zero_points_with_scales_that_are_not_float16(bits, block, dtype, seed, portion):
    """As PEQA trains them."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3 * block.n_out, 2 * (block.n_in or 9), generator=generator)
    quantized = QUANTIZERS["intminmax"](bits, block).quantize(weight)
    scale = quantized.grid.scale.float() * torch.rand(quantized.grid.scale.shape, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quant.grid, "AT_A_TIME", portion)
        assert_as_plain(QuantizedWeight(quantized.codes, replace(quantized.grid, scale=scale)), dtype)


def test_a_multiplication_and_an_addition_would_not_do_for_all_grids():
    """The control: the fused operation rounds once, and the difference is seen."""
    values, scale, offset = (random(64, 1, seed=seed, dtype=torch.float32) for seed in range(3))
    assert (torch.addcmul(offset, scale, values) != values * scale + offset).any()


def test_another_scale_is_used_instead_of_the_layers():
    layer = QuantLinear.from_weight(QUANTIZERS["minmax"](4, Block(8, 4)).quantize(random(8, 16, dtype=torch.float32)))
    other = layer.scale.float() * 1.5
    assert torch.equal(layer.dequantize(scale=other), layer.with_scale(other).dequantize())
    assert not torch.equal(layer.dequantize(scale=other), layer.dequantize())


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_a_code_without_a_level_is_not_a_number(bits):
    codes = torch.full((1, 8), 2 ** bits - 1, dtype=torch.uint8)
    grid = Grid(torch.arange(2 ** bits - 1.0), torch.ones(1, 1), torch.zeros(1, 1), Block(8, 1), bits)
    assert QuantLinear(1, 8, pack(codes, bits), grid).dequantize().isnan().all()


def test_entries_made_in_inference_mode_serve_training():
    codes_of_indices.cache_clear()
    layer = QuantLinear.from_weight(QUANTIZERS["nf"](4, Block(8, 1)).quantize(random(8, 16, dtype=torch.float32)))
    with torch.inference_mode():
        expected = layer.dequantize()
    x = random(3, 16, dtype=torch.float32).requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, expected.sum(0).expand(3, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name,bits,block", [("nf", 4, "64x1"), ("minmax", 3, "4x8"), ("minmax", 8, "32x1")])
def test_dequantizing_holds_little_besides_its_result(name, bits, block, dtype, monkeypatch):
    monkeypatch.setattr(quant.grid, "AT_A_TIME", 1 << 16)
    portion, weight = (1 << 16) * torch.get_num_threads(), random(1024, 1024, dtype=torch.float32)
    layer = QuantLinear.from_weight(QUANTIZERS[name](bits, Block.parse(block)).quantize(weight))
    result, factors = dtype.itemsize * weight.numel(), 2 * 4 * layer.scale.numel()
    assert result <= most_bytes(lambda: layer.dequantize(dtype)) <= result + factors + 24 * portion + (1 << 17)
    assert most_bytes(lambda: dequantize(layer.quantized_weight().codes, layer.grid, dtype)) > 2 * result  # control


def most_bytes(call):
    """Most bytes of tensors at a time, without those from before."""
    call()
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    changes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(changes))
