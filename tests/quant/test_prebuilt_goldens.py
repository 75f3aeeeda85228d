"""Layers that the libraries themselves packed: every weight is the library's, bit for bit. make_prebuilt.py made
tests/fixtures/prebuilt."""
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quant.formats import format_of
from quant.normal_float import NormalFloat
from tests.prebuilt import bitsandbytes_config, compressed_config, hqq_config

CONFIGS = {"bitsandbytes": bitsandbytes_config(), "bitsandbytes_nested": bitsandbytes_config(),
           "compressed_tensors_4_symmetric": compressed_config(), "hqq": hqq_config(),
           "compressed_tensors_4_asymmetric": compressed_config(symmetric=False),
           "compressed_tensors_8_symmetric": compressed_config(8, None),
           "compressed_tensors_8_asymmetric": compressed_config(8, None, symmetric=False)}
FILES = sorted((Path(__file__).parent.parent / "fixtures" / "prebuilt").glob("*.safetensors"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_weights_are_those_of_the_library(file):
    parts = load_file(file)
    weight = parts.pop("dequantized")
    stored = format_of({"quantization_config": CONFIGS["hqq" if file.stem.startswith("hqq") else file.stem]})
    assert set(stored.parts) <= parts.keys() <= {*stored.parts, *stored.optional}
    layer = stored.layer("layer", parts)
    assert torch.equal(layer.dequantize(), weight)
    assert len(layer.quantized_weight().codes.unique()) >= min(2 ** layer.bits, 200)


def test_every_format_has_its_files():
    assert len(FILES) == 11 and {file.stem.split("_")[0] for file in FILES} == {"bitsandbytes", "compressed", "hqq"}


def test_the_levels_of_bitsandbytes_are_those_of_our_normal_float():
    layer = format_of({"quantization_config": bitsandbytes_config()})
    parts = load_file(next(file for file in FILES if file.stem == "bitsandbytes"))
    weight = parts.pop("dequantized")
    read = layer.layer("layer", parts)
    assert torch.equal(read.levels, NormalFloat(4, read.block).quantize(weight).grid.levels)
