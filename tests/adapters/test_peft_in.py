"""adapter_config.json is checked before it is used: types, ranges, and regular expressions that would take for ever."""
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.peft_in import CONFIG, WEIGHTS, read_peft
from model.files import write_json
from tests.model.test_model import TINY

STATED = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


def adapter(directory, dtype=torch.float32, rank: int = 2, **stated):
    tensors = {f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_{side}.weight": torch.ones(shape).to(dtype)
               for i in range(2) for side, shape in (("A", (rank, 24)), ("B", (24, rank)))}
    save_file(tensors, directory / WEIGHTS)
    write_json(directory / CONFIG, {**STATED, **stated})
    return directory


@pytest.mark.parametrize("stated", [
    {"exclude_modules": ["lm_head"]}, {"exclude_modules": ".*mlp.*"}, {"exclude_modules": None},
    {"eva_config": {"rho": 2.0, "tau": 0.99}, "init_lora_weights": "eva"}, {"eva_config": None}])
def test_what_only_says_where_adapters_came_from_is_not_needed(tmp_path, stated):
    layers = read_peft(adapter(tmp_path, **stated), TINY).layers
    assert sorted(layers) == [f"model.layers.{i}.self_attn.q_proj" for i in range(2)]
    assert {(layer.rank, layer.scaling) for layer in layers.values()} == {(2, 2.0)}


@pytest.mark.parametrize("pattern", [
    "q_proj", "self_attn.q_proj", r"self_attn\.q_proj", r"layers.\d.self_attn.q_proj", ".*q_proj",
    r"layers\.[01]\..*q_proj",
    "(q|k)_proj", "(?:q|k)_proj", "(self_attn.)?q_proj",
    "model.layers.0.self_attn.q_proj|model.layers.1.self_attn.q_proj"])
def test_patterns_in_use_are_read(tmp_path, pattern):
    layers = read_peft(adapter(tmp_path, rank=3, rank_pattern={pattern: 3}, alpha_pattern={pattern: 9}), TINY).layers
    assert {(layer.rank, layer.scaling) for layer in layers.values()} == {(3, 3.0)}


@pytest.mark.parametrize("pattern", [
    "(a+)+$", "(a|a)*b", "(.*)*x", "(.*.*)+x", "([a-z]+)*_proj", "(q_proj){1,99999}", ".*.*.*.*.*.*.*x", "(a*)*(a*)*b",
    "(?:(?:a+)+)+b", r"(.)\1\1\1", "(?=(a+))a*b", "x" * 300, ".?" * 60 + "!"])
@pytest.mark.parametrize("name", ["rank_pattern", "alpha_pattern"])
def test_patterns_that_may_take_for_ever_are_refused_at_once(tmp_path, pattern, name):
    started = time.monotonic()
    with pytest.raises(ValueError, match=f"{CONFIG}: {name} holds .*which may take very long to match"):
        read_peft(adapter(tmp_path, **{name: {pattern: 2}}), TINY)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("stated,message", [
    ({"rank_pattern": {"[": 2}}, r"rank_pattern holds '\[', which is no regular expression"),
    ({"rank_pattern": {"a{99999999999}": 2}}, "which is no regular expression"),
    ({"rank_pattern": {"q_proj": "2"}}, "rank_pattern 'q_proj' is 2, not an integer above 0"),
    ({"rank_pattern": {"q_proj": 0}}, "rank_pattern 'q_proj' is 0"),
    ({"rank_pattern": {"q_proj": 2.0}}, "is 2.0, not an int"),
    ({"rank_pattern": [1]}, "rank_pattern is .1., but must be an object"),
    ({"alpha_pattern": {"q_proj": float("nan")}}, "alpha_pattern 'q_proj' is nan, not a number"),
    ({"alpha_pattern": {"q_proj": 10 ** 400}}, "alpha_pattern 'q_proj' is 1000"),
    ({"r": True}, "r is True, not an integer above 0"), ({"r": 2.0}, "r is 2.0"), ({"r": -2}, "r is -2"),
    ({"r": 10 ** 30}, "r is 1000"), ({"lora_alpha": "16"}, "lora_alpha is 16, not a number above 0"),
    ({"lora_alpha": float("inf")}, "lora_alpha is inf"), ({"use_rslora": "yes"}, "use_rslora is 'yes'"),
    ({"peft_type": ["LORA"]}, "peft_type .* is not read")])
def test_every_field_has_a_type_and_a_range(tmp_path, stated, message):
    with pytest.raises(ValueError, match=f"{CONFIG}: .*{message}"):
        read_peft(adapter(tmp_path, **stated), TINY)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_tensors_of_other_types_are_refused(tmp_path, dtype):
    with pytest.raises(ValueError, match=f"{WEIGHTS}: .*lora_A.weight is of type .*, but must be F32"):
        read_peft(adapter(tmp_path, dtype), TINY)


def test_a_tensor_with_a_very_long_name_is_refused_at_once(tmp_path):
    adapter(tmp_path, rank_pattern={".*x.*y": 2})
    save_file({f"base_model.model.{'x.' * 50000}q_proj.lora_A.weight": torch.ones(2, 24)}, tmp_path / WEIGHTS)
    started = time.monotonic()
    with pytest.raises(ValueError, match="is no factor of a linear layer's LoRA") as error:
        read_peft(tmp_path, TINY)
    assert time.monotonic() - started < 1 and len(str(error.value)) < 1000


# What PEFT 0.21.2 writes for LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], task_type="CAUSAL_LM").
WRITTEN = {
    "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None, "auto_mapping": None,
    "base_model_name_or_path": "org/base", "bias": "none", "corda_config": None, "ensure_weight_tying": False,
    "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True,
    "init_lora_weights": True, "kasa_config": None, "layer_replication": None, "layers_pattern": None,
    "layers_to_transform": None, "loftq_config": {}, "lora_alpha": 4, "lora_bias": False, "lora_dropout": 0.05,
    "lora_ga_config": None, "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None,
    "monteclora_config": None, "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 2,
    "rank_pattern": {}, "revision": None, "target_modules": ["q_proj"], "target_parameters": None,
    "task_type": "CAUSAL_LM", "trainable_token_indices": None, "use_bdlora": None, "use_dora": False,
    "use_qalora": False, "use_rslora": False, "velora_config": None}


@pytest.mark.parametrize("stated", [
    {}, {"a_later_feature": None}, {"a_later_feature": False}, {"a_later_feature": []}, {"a_later_feature": {}},
    {"target_modules": r"model\.layers\.\d+\.self_attn\.q_proj"}, {"layers_to_transform": [0, 1]},
    {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["v_proj"]},
    {"target_modules": "all-linear", "exclude_modules": r".*([kvo]|gate|up|down)_proj"},
    {"layers_to_transform": [1, 0], "layers_pattern": "layers"}, {"layers_to_transform": []}])
def test_what_peft_writes_is_read(tmp_path, stated):
    assert len(read_peft(adapter(tmp_path, **{**WRITTEN, **stated}), TINY).layers) == 2


@pytest.mark.parametrize("stated,message", [
    ({"use_newthing": True}, "use_newthing True is not plain LoRA"), ({"newthing": 0.0}, "newthing 0.0 is not plain"),
    ({"ensure_weight_tying": True}, "ensure_weight_tying True"), ({"task_type": "SEQ_CLS"}, "task_type 'SEQ_CLS'"),
    ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "nothing for 4 layers, model.layers.0.self_attn.k_proj the"),
    ({"target_modules": "all-linear"}, "nothing for 12 layers"),
    ({"target_modules": ".*[qv]_proj"}, "nothing for 2 layers, model.layers.0.self_attn.v_proj"),
    ({"target_modules": ["v_proj"], "exclude_modules": ["v_proj"]}, "layers.0.self_attn.q_proj, which .* not name"),
    ({"target_modules": ["proj"]}, "layers.0.self_attn.q_proj, which .* does not name"),
    ({"target_modules": ["embed_tokens", "q_proj"]}, "nothing for 1 layers, model.embed_tokens"),
    ({"layers_to_transform": [1]}, "layers.0.self_attn.q_proj, which .* does not name"),
    ({"layers_to_transform": 1, "target_modules": None}, "layers.0.self_attn.q_proj, which .* does not name"),
    ({"layers_to_transform": [0, 1], "layers_pattern": ["h"]}, "layers.0.self_attn.q_proj, which .* does not name"),
    ({"layers_to_transform": [True]}, "layers_to_transform is .True., but must be integers"),
    ({"layers_pattern": "(a+)+"}, "layers_pattern is .* must be names of modules"),
    ({"target_modules": [1]}, "target_modules is .1., but must be a text or a list of texts"),
    ({"target_modules": "(a+)+$"}, "target_modules holds .*which may take very long")])
def test_what_the_entries_say_and_the_tensors_do_not_is_refused(tmp_path, stated, message):
    with pytest.raises(ValueError, match=message) as error:
        read_peft(adapter(tmp_path, **{**WRITTEN, **stated}), TINY)
    assert str(tmp_path) in str(error.value) and CONFIG in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_named_by_file_and_tensor(tmp_path, value):
    adapter(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    name = sorted(tensors)[1]
    tensors[name][0, 0] = value
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=rf"{WEIGHTS}: {name} holds 1 values that are not finite"):
        read_peft(tmp_path, TINY)
