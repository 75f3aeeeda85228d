"""Layers that the libraries themselves packed: every weight is the library's, bit for bit. make_prebuilt.py made
tests/fixtures/prebuilt."""
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quant.formats import format_of
from quant.normal_float import NormalFloat
from tests.prebuilt import bitsandbytes_config, compressed_config, gptq_config, hqq_config

FILES = sorted((Path(__file__).parent.parent / "fixtures" / "prebuilt").glob("*.safetensors"))


def config_of(name: str) -> dict:
    """`compressed_tensors_8_symmetric`: 8 bits, by channel."""
    tool, _, settings = name.partition("_")
    if tool == "compressed":
        _, bits, kind = settings.split("_")
        return compressed_config(int(bits), None if bits in "58" else 32, kind == "symmetric")
    if tool == "gptq":
        bits, version = settings.split("_")
        stated = {"v1": "gptq", "v2": "gptq_v2"}[version]
        return gptq_config(int(bits), checkpoint_format=stated, meta={"quantizer": ["gptqmodel:7.7.0"]})
    return {"bitsandbytes": bitsandbytes_config(), "hqq": hqq_config()}[tool]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_weights_are_those_of_the_library(file):
    parts = load_file(file)
    weight = parts.pop("dequantized")
    stored = format_of({"quantization_config": config_of(file.stem)})
    assert set(stored.parts) <= parts.keys() <= {*stored.parts, *stored.optional}
    layer = stored.layer("layer", parts)
    assert torch.equal(layer.dequantize(), weight)
    assert len(layer.quantized_weight().codes.unique()) >= min(2 ** layer.bits, 200)


def test_every_format_has_its_files():
    tools = {file.stem.split("_")[0] for file in FILES}
    assert len(FILES) == 24 and tools == {"bitsandbytes", "compressed", "gptq", "hqq"}


@pytest.mark.parametrize("name", [file.stem for file in FILES if file.stem[-2:] == "v2" or "compressed" in file.stem])
def test_what_is_written_is_what_the_library_wrote(name):
    parts = load_file(FILES[0].with_name(f"{name}.safetensors"))
    del parts["dequantized"]
    stored = format_of({"quantization_config": config_of(name)})
    again = stored.write("layer", stored.layer("layer", parts), None)
    assert again.keys() == parts.keys()
    for part, tensor in parts.items():
        assert tensor.dtype == again[part].dtype and torch.equal(tensor, again[part]), part


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_borrow_between_zeros_is_read_as_gptqmodel_made_it(bits):
    parts = load_file(FILES[0].with_name(f"gptq_{bits}_v1.safetensors"))
    weight, config = parts.pop("dequantized"), config_of(f"gptq_{bits}_v1")
    by_fields = format_of({"quantization_config": {**config, "meta": {"quantizer": ["another"]}}})
    assert torch.equal(by_fields.layer("layer", parts).dequantize(), weight) == (bits == 3)


def test_the_levels_of_bitsandbytes_are_those_of_our_normal_float():
    layer = format_of({"quantization_config": bitsandbytes_config()})
    parts = load_file(next(file for file in FILES if file.stem == "bitsandbytes"))
    weight = parts.pop("dequantized")
    read = layer.layer("layer", parts)
    assert torch.equal(read.levels, NormalFloat(4, read.block).quantize(weight).grid.levels)
