"""QuantSpec, the phrase in which people and files say how a weight is quantized."""
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant import QUANTIZERS
from quant.grid import Block
from quant.spec import DEFAULT_BITS, FORM, GPTQ, GPTQ_BLOCK, QuantSpec
from tests.strategies import bits as any_bits

GRIDS = [(name, bits, double) for name, kind in QUANTIZERS.items()
         for bits in ((2, 3, 4) if name in ("nf", "icq") else (2, 3, 4, 5, 6, 8))
         for double in ((False, True) if kind.usual_storage == torch.float32 else (False,))]
blocks = st.builds(Block, st.sampled_from([None, 1, 4, 32, 64]), st.sampled_from([1, 8]))


@st.composite
def specs(draw):
    (name, bits, double), block = draw(st.sampled_from(GRIDS)), draw(blocks)
    if draw(st.booleans()):
        return QuantSpec.of(GPTQ, bits, block, name, double, draw(st.booleans()))
    return QuantSpec.of(name, bits, block, None, double)


@given(specs(), any_bits, blocks)
def test_what_is_printed_is_read_back_whatever_the_defaults_are(spec, bits, block):
    assert QuantSpec.parse(str(spec), bits, block) == spec
    assert QuantSpec.parse(spec.how, spec.bits, block) == spec
    assert re.fullmatch(r"[a-z0-9-]+", spec.key)


@given(specs(), specs())
def test_two_ways_have_two_phrases_and_two_keys(a, b):
    assert (a == b) == (str(a) == str(b)) == (a.key == b.key)


@pytest.mark.parametrize("text,printed", [
    ("gptq", "gptq:minmax@32x1-4bit"), ("gptq:nf", "gptq:nf@32x1-4bit"), ("minmax@4x8", "minmax@4x8-4bit"),
    ("nf-3bit", f"nf@{QUANTIZERS['nf'].usual_block}-3bit"),
    ("gptq@rowx1-2bit+act-order", "gptq:minmax@rowx1-2bit+act-order"),
    ("gptq:nf+act-order+double-quant", "gptq:nf@32x1-4bit+double-quant+act-order")])
def test_parts_that_are_left_out_take_defaults(text, printed):
    assert str(QuantSpec.parse(text)) == printed


def test_the_caller_may_set_the_defaults():
    assert QuantSpec.parse("gptq", 3, Block(16, 1)) == QuantSpec.of(GPTQ, 3, Block(16, 1), "minmax")
    assert QuantSpec.parse("gptq@8x1-2bit", 3, Block(16, 1)) == QuantSpec.of(GPTQ, 2, Block(8, 1), "minmax")
    assert QuantSpec.of(GPTQ).block == GPTQ_BLOCK and QuantSpec.of("minmax").bits == DEFAULT_BITS


@pytest.mark.parametrize("text", ["", "rounding", "none", "minmax:nf", "gptq:gptq", "gptq:none", "minmax@", "minmax-4",
                                  "minmax-bit", "minmax+fast", "nf 4bit", "MINMAX", "minmax-4bit@4x8",
                                  "minmax@4x8-4bit "])
def test_text_of_another_form_is_refused_with_the_form(text):
    with pytest.raises(ValueError, match=re.escape(f"{text!r} is not a way to quantize; the form is {FORM}")) as error:
        QuantSpec.parse(text)
    assert all(name in str(error.value) for name in QUANTIZERS)


@pytest.mark.parametrize("text,message", [
    ("nf-8bit", "bits=8 is not possible with quantizer nf; allowed: 2, 3, 4"),
    ("minmax-7bit", "bits=7 is not possible"), ("nf-5bit", "bits=5 is not possible"),
    ("minmax+double-quant", "use nf or icq"), ("minmax+act-order", "--act-order is for gptq only"),
    ("minmax@five", "block 'five' is not of the form"), ("gptq:minmax+double-quant", "use nf or icq")])
def test_values_that_do_not_go_together_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        QuantSpec.parse(text)


def test_a_grid_is_for_gptq_only_and_a_spec_does_not_change():
    with pytest.raises(ValueError, match="--grid nf is for --quantizer gptq only; minmax is a grid itself"):
        QuantSpec.of("minmax", grid="nf")
    with pytest.raises(AttributeError):
        QuantSpec.of("minmax").bits = 3
