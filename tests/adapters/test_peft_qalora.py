"""PEFT's QA-LoRA (use_qalora): the logits that PEFT computed, exact merges, and what is refused.

The fixture is made by tests/fixtures/make_qalora.py."""
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.adapted import adapted_layers, replace_layers
from adapters.lora import LoRA
from adapters.merge import MergeRefused, merge_into_codes, merge_target, merge_to_dense
from adapters.peft_config import CONFIG
from adapters.peft_in import WEIGHTS, attach_peft, read_peft
from adapters.qalora import QALoRA
from model.checkpoint import load_model
from model.directory import load_config, weight_files
from quant import QUANTIZERS
from quant.grid import Block
from quant.linear import QuantLinear

FIXTURES = Path(__file__).parent.parent / "fixtures"
BASE, ADAPTERS = FIXTURES / "grouped_tied", FIXTURES / "peft_qalora"
GOLDEN = load_file(ADAPTERS / "logits.safetensors")


def base_model():
    return load_model(weight_files(BASE), load_config(BASE), torch.float32)


@torch.no_grad()
def logits_of(model):
    return model(GOLDEN["tokens"])


def with_adapter(name, model=None):
    model = model or base_model()
    attach_peft(model, read_peft(ADAPTERS / name, model.config))
    return model


@pytest.mark.parametrize("name,kind", [("means", QALoRA), ("patterns", QALoRA), ("ignored", LoRA)])
def test_logits_are_those_of_peft(name, kind):
    """`ignored`: beside a layer that is not GPTQ's, PEFT trains and saves a plain LoRA in spite of use_qalora."""
    model = with_adapter(name)
    assert {type(layer.adapter) for layer in adapted_layers(model).values()} == {kind}
    torch.testing.assert_close(logits_of(model), GOLDEN[f"logits.{name}"], rtol=1e-4, atol=1e-4)
    assert (logits_of(base_model()) - GOLDEN[f"logits.{name}"]).abs().max() > 0.05  # the adapter counts


def test_the_mean_alone_is_not_what_peft_computes():
    """Control: without PEFT's factor D_in / group, and with that of sums."""
    for factor in (lambda means, group: 1 / means, lambda means, group: group / means):
        model = with_adapter("means")
        for layer in adapted_layers(model).values():
            group = layer.adapter.lam.lam_in
            layer.adapter.scaling *= factor(layer.base.in_features // group, group)
        assert (logits_of(model) - GOLDEN["logits.means"]).abs().max() > 0.02


def test_patterns_and_rslora_set_rank_and_scaling():
    layers = read_peft(ADAPTERS / "patterns", load_config(BASE)).layers
    up, v = (layers[f"model.layers.0.{name}"] for name in ("mlp.up_proj", "self_attn.v_proj"))
    assert (up.rank, up.group, up.scaling) == (4, 4, pytest.approx(3 / 4 ** 0.5 * 32 / 4))
    assert (v.rank, v.group, v.scaling) == (2, 4, pytest.approx(5 / 2 ** 0.5 * 32 / 4))


def quantized(block, grid="minmax"):
    model = base_model()
    names = [name for name, layer in model.named_modules() if name.endswith("_proj")]
    replace_layers(model, names, lambda name, layer: QuantLinear.from_weight(
        QUANTIZERS[grid](4, block).quantize(layer.weight.detach()), layer.bias))
    return model


@pytest.mark.parametrize("grid", ["minmax", "nf"])
@pytest.mark.parametrize("n_in", [8, 4, 16, None])
def test_it_merges_into_the_offsets_exactly_where_blocks_lie_inside_its_groups(n_in, grid):
    """PEFT merges none. Groups of 8; 16 inputs or a whole row in a block are refused, and merge to 16 bits."""
    model = with_adapter("means", quantized(Block(n_in, 1), grid))
    before = logits_of(model)
    if n_in in (8, 4):
        assert all(merge_target(layer.base, layer.adapter).into == "offset" for layer in adapted_layers(model).values())
        replace_layers(model, list(adapted_layers(model)), lambda name, layer: merge_into_codes(layer, name))
        assert torch.equal(logits_of(model), before)
        return
    name, layer = next(iter(adapted_layers(model).items()))
    with pytest.raises(MergeRefused, match=f"layer {name}: .*lam_in=8 x lam_out=1"):
        merge_into_codes(layer, name)
    replace_layers(model, list(adapted_layers(model)), lambda name, layer: merge_to_dense(layer, torch.float32))
    torch.testing.assert_close(logits_of(model), before, rtol=1e-4, atol=1e-4)


def changed(directory, **stated):
    shutil.copytree(ADAPTERS / "means", directory)
    before = json.loads((directory / CONFIG).read_text())
    values = {name: value for name, value in {**before, **stated}.items() if value is not ...}
    (directory / CONFIG).write_text(json.dumps(values))
    return directory


@pytest.mark.parametrize("stated,message", [
    ({"qalora_group_size": ...}, "qalora_group_size is None, but with use_qalora it must be a whole number above 1"),
    ({"qalora_group_size": None}, "qalora_group_size is None"), ({"qalora_group_size": 0}, "qalora_group_size is 0"),
    ({"qalora_group_size": 1}, "qalora_group_size is 1"), ({"qalora_group_size": -8}, "qalora_group_size is -8"),
    ({"qalora_group_size": 8.0}, "is 8.0"), ({"qalora_group_size": "8"}, "qalora_group_size is 8"),
    ({"qalora_group_size": True}, "qalora_group_size is True"), ({"use_qalora": "yes"}, "use_qalora is yes, but must"),
    ({"use_qalora": 1}, "use_qalora is 1, but must be true or false"),
    ({"qalora_group_size": 5}, "qalora_group_size 5 in adapter_config.json does not divide D_in=48 of model.layers.0"),
    ({"qalora_group_size": 10 ** 30}, "does not divide D_in=48"),
    ({"qalora_group_size": 4}, r"down_proj.lora_A.weight has shape \[2, 6\] instead of \[2, 12\]"),
    ({"use_qalora": False}, r"down_proj.lora_A.weight has shape \[2, 6\] instead of \[2, 48\]"),
    ({"use_dora": True}, "use_dora True is not plain LoRA")])
def test_what_does_not_fit_is_refused_by_name(tmp_path, stated, message):
    with pytest.raises(ValueError, match=message):
        read_peft(changed(tmp_path / "x", **stated), load_config(BASE))


def test_an_a_that_is_missing_is_refused(tmp_path):
    place = changed(tmp_path / "x")
    tensors = {name: tensor for name, tensor in load_file(place / WEIGHTS).items() if "q_proj.lora_A" not in name}
    save_file(tensors, place / WEIGHTS)
    with pytest.raises(ValueError, match=r"q_proj.lora_A.weight has shape \[\] instead of \[2, 4\]"):
        read_peft(place, load_config(BASE))
