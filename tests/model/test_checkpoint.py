"""Checkpoints in and out."""
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import load_model, save_model
from model.directory import load_config, weight_files
from model.tensor_files import write_safetensors
from model.tokenizer import load_tokenizer
from quant.grid import Block
from quant.linear import QuantLinear
from quant.minmax import MinMax
from quant.normal_float import NormalFloat
from tests.model.test_model import FIXTURES, TINY, tokens

CASE = FIXTURES / "grouped_tied"
SHARDED = FIXTURES / "linear_rope_sharded"


def load(files, config=None, **options):
    return load_model(files, config or load_config(CASE), torch.float32, **options)


def spoiled(tmp_path: Path, change) -> list[Path]:
    tensors = load_file(CASE / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    return [tmp_path / "model.safetensors"]


def test_unknown_missing_and_wrongly_shaped_tensors_are_named_in_one_error(tmp_path):
    def change(t):
        t["model.layers.9.surprise"] = torch.zeros(1)
        del t["model.layers.0.mlp.up_proj.weight"]
        t["model.norm.weight"] = torch.zeros(5)
    with pytest.raises(ValueError) as error:
        load(spoiled(tmp_path, change))
    for part in ("missing: model.layers.0.mlp.up_proj.weight", "unknown: model.layers.9.surprise",
                 "model.norm.weight [5] instead of [32]", str(tmp_path)):
        assert part in str(error.value)


def test_rotary_frequencies_in_old_files_are_ignored(tmp_path):
    load(spoiled(tmp_path, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})))


def test_a_second_copy_of_tied_embeddings_is_ignored(tmp_path):
    load(spoiled(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()})))


def test_a_damaged_file_is_named(tmp_path):
    whole = (CASE / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match=f"{tmp_path}.*damaged, or not a safetensors file"):
        load([tmp_path / "model.safetensors"])


def test_a_missing_shard_is_named(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    with pytest.raises(FileNotFoundError, match="model-00001-of-00002.safetensors: no such weight file"):
        weight_files(tmp_path)


def test_an_index_without_its_map_is_named(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="index.json: holds no weight_map"):
        weight_files(tmp_path)


def test_a_damaged_list_of_quantized_layers_is_named(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {"x": torch.zeros(1)}, {"quantized": "{"})
    with pytest.raises(ValueError, match="m.safetensors: damaged header"):
        load([tmp_path / "m.safetensors"], TINY)


def test_a_directory_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer there"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("quantizer", [MinMax(3, Block(4, 8)), NormalFloat(4, Block(16, 1))])
def test_a_quantized_model_comes_back_from_disk_bit_for_bit(tmp_path, quantizer):
    def change(name, layer):
        if "self_attn" not in name:
            return layer
        return QuantLinear.from_weight(quantizer.quantize(layer.weight.detach(), name))
    model = load(weight_files(SHARDED), load_config(SHARDED), change=change)
    save_model(model, tmp_path / "base.safetensors")
    again = load([tmp_path / "base.safetensors"], load_config(SHARDED))
    assert model.state_dict().keys() == again.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == again.state_dict()[name].dtype and torch.equal(tensor, again.state_dict()[name]), name
    assert torch.equal(model(tokens(2, 9)), again(tokens(2, 9)))
    assert sum(isinstance(m, QuantLinear) for m in again.modules()) == 8


def test_quantizing_while_loading_equals_quantizing_what_was_loaded():
    quantizer = MinMax(4, Block(4, 8))
    streamed = load(weight_files(CASE), change=lambda name, layer: QuantLinear.from_weight(
        quantizer.quantize(layer.weight.detach(), name)))
    whole = load(weight_files(CASE))
    for name, layer in streamed.named_modules():
        if isinstance(layer, QuantLinear):
            later = QuantLinear.from_weight(quantizer.quantize(whole.get_submodule(name).weight))
            assert torch.equal(layer.codes, later.codes)


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": torch.ones(2)})

    def fail(tensor):
        raise OSError("disk full")
    monkeypatch.setattr("model.tensor_files.bytes_of", fail)
    with pytest.raises(OSError, match="disk full"):
        write_safetensors(path, {"a": torch.zeros(2)})
    assert torch.equal(load_file(path)["a"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_quantized_layer_unknown_to_the_config_is_refused(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {"x.codes": torch.zeros(1, dtype=torch.uint8)},
                      {"quantized": '{"x": {"bits": 4, "block": "4x8"}}'})
    with pytest.raises(ValueError, match="bad header for quantized layer x"):
        load([tmp_path / "m.safetensors"], TINY)
