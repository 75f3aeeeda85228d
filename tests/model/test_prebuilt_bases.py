"""A prebuilt k-bit directory is a base: its codes are taken as they are."""
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import load_model
from model.directory import load_config, weight_files
from model.files import read_json, write_json
from quant.linear import QuantLinear
from tests.prebuilt import TOOLS, write_model

pytestmark = pytest.mark.usefixtures("elsewhere")
UP = "model.layers.0.mlp.up_proj"


def loaded(directory):
    return load_model(weight_files(directory), load_config(directory), torch.float32)


@pytest.mark.parametrize("name", TOOLS)
def test_a_prebuilt_base_holds_the_weights_of_the_tool(name, small_base, tmp_path):
    held = write_model(TOOLS[name], tmp_path / "base", small_base)
    base = loaded(tmp_path / "base")
    for layer, weight in held.items():
        assert torch.equal(base.get_submodule(layer).dequantize(), TOOLS[name].weights(weight)), layer


def test_zero_biases_are_left_out_and_layers_that_are_dense_stay_so(small_base, tmp_path):
    write_model(TOOLS["gptq"], tmp_path / "base", small_base, dense="o_proj")
    file = tmp_path / "base/model.safetensors"
    tensors, before = load_file(file), loaded(tmp_path / "base")
    save_file({**tensors, f"{UP}.bias": torch.zeros(128)}, file)
    assert before.state_dict().keys() == loaded(tmp_path / "base").state_dict().keys()
    assert not isinstance(before.model.layers[0].self_attn.o_proj, QuantLinear)
    save_file({**tensors, f"{UP}.bias": torch.ones(128)}, file)
    with pytest.raises(ValueError, match=f"unknown: {UP}.bias"):
        loaded(tmp_path / "base")
    save_file({name: t for name, t in tensors.items() if name != f"{UP}.qzeros"}, file)
    with pytest.raises(ValueError, match=f"{UP} holds codes in the format gptq, but {UP}.qzeros is missing"):
        loaded(tmp_path / "base")




@pytest.mark.parametrize("name", TOOLS)
def test_a_family_whose_files_join_layers_is_refused(name, small_base, tmp_path):
    write_model(TOOLS[name], tmp_path / "base", small_base)
    stated = read_json(tmp_path / "base/config.json")
    write_json(tmp_path / "base/config.json", {**stated, "model_type": "phi3", "architectures": ["Phi3ForCausalLM"]})
    tool = TOOLS[name].config["quant_method"]
    with pytest.raises(ValueError, match=f"model_type 'phi3' is not read in the format {tool}; give the model"):
        loaded(tmp_path / "base")
