"""The K types of GGUF that are this project's grid, against the gguf package."""
import numpy
import pytest
import torch

from model.gguf_layout import CODE_TYPES, PACKAGE_TYPES, block_size
from quant.gguf_superblocks import SUPERBLOCK_TYPES
from quant.linear import QuantLinear
from tests.gguf_files import gguf

FLOATS = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}  # where d and dmin lie


def rows_of(kind: str, seed: int = 0, D_out: int = 24, superblocks: int = 3) -> numpy.ndarray:
    """Any bytes at all, but for d and dmin, which are finite: a float16 whose exponent is not 31."""
    n_bytes = SUPERBLOCK_TYPES[kind].bytes
    raw = numpy.random.default_rng(seed).integers(0, 256, (D_out, superblocks * n_bytes), dtype=numpy.uint8)
    for place in FLOATS[kind]:
        raw[:, place + 1::n_bytes] &= 0xBF
    return raw


def expected(raw: numpy.ndarray, kind: str) -> torch.Tensor:
    return torch.from_numpy(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind]))


@pytest.mark.parametrize("kind", SUPERBLOCK_TYPES)
@pytest.mark.parametrize("seed", range(4))
def test_any_bytes_at_all_dequantize_as_in_the_gguf_package(kind, seed):
    raw = rows_of(kind, seed)
    weight = SUPERBLOCK_TYPES[kind].quantized_weight(torch.from_numpy(raw))
    assert (weight.grid.factors()[1].abs().max() > 0) == SUPERBLOCK_TYPES[kind].has_offset
    assert torch.equal(weight.dequantize(), expected(raw, kind))
    assert torch.equal(QuantLinear.from_weight(weight).dequantize(), expected(raw, kind))


@pytest.mark.parametrize("kind", SUPERBLOCK_TYPES)
def test_every_byte_counts(kind):
    """No byte of a superblock is left unread: another value of it gives another weight."""
    raw = rows_of(kind, D_out=1, superblocks=1)
    for place in FLOATS[kind]:
        raw[:, place] |= 1  # d and dmin are not 0
    whole = SUPERBLOCK_TYPES[kind].quantized_weight(torch.from_numpy(raw)).dequantize()
    for place in range(raw.shape[1]):
        other = raw.copy()
        other[0, place] ^= 0x2D
        assert not torch.equal(SUPERBLOCK_TYPES[kind].quantized_weight(torch.from_numpy(other)).dequantize(), whole)


@pytest.mark.parametrize("kind", SUPERBLOCK_TYPES)
def test_the_products_are_exact_in_float32(kind):
    """d * s and dmin * m have 18 significant bits at most: float64 has no others."""
    raw = rows_of(kind)
    scale, offset = SUPERBLOCK_TYPES[kind].quantized_weight(torch.from_numpy(raw)).grid.factors()
    places = [raw.reshape(len(raw), 3, -1)[..., p:p + 2].copy().view(numpy.float16).astype(float) for p in FLOATS[kind]]
    for factor, d in zip((scale, -offset), places, strict=False):
        integers = factor.double().numpy().reshape(*d.shape[:2], -1) / numpy.where(d == 0, 1, d)
        assert (integers == integers.round()).all() and abs(integers).max() <= (128 if kind == "Q6_K" else 63)


@pytest.mark.parametrize("kind", SUPERBLOCK_TYPES)
def test_the_stated_shapes_are_those_of_the_layer(kind):
    layer = QuantLinear.from_weight(SUPERBLOCK_TYPES[kind].quantized_weight(torch.from_numpy(rows_of(kind))))
    assert {name: tuple(t.shape) for name, t in layer.state_dict().items()} == SUPERBLOCK_TYPES[kind].shapes(24, 768)


@pytest.mark.parametrize("kind", [*CODE_TYPES, *PACKAGE_TYPES])
def test_the_stated_sizes_are_those_of_the_gguf_package(kind):
    assert block_size(kind) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]


@pytest.mark.parametrize("kind", SUPERBLOCK_TYPES)
def test_codes_are_put_among_the_bytes_that_hold_them_and_nothing_else_changes(kind):
    of, raw, other = SUPERBLOCK_TYPES[kind], torch.from_numpy(rows_of(kind)), torch.from_numpy(rows_of(kind, seed=9))
    assert torch.equal(of.with_codes(raw, of.quantized_weight(raw).codes), raw)
    codes = of.quantized_weight(other).codes
    found = of.quantized_weight(of.with_codes(raw, codes))
    assert torch.equal(found.codes, codes) and not torch.equal(codes, of.quantized_weight(raw).codes)
    for ours, before in zip(found.grid.factors(), of.quantized_weight(raw).grid.factors(), strict=True):
        assert torch.equal(ours, before)
