"""export.py --format gptq and compressed-tensors, --base-format for a base beside its adapter, and the way back."""
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import export as export_script
import train as train_script
from adapters.adapted import AdaptedLinear, adapted_layers
from adapters.merge import merge_into_codes
from adapters.peft_in import attach_peft, read_peft
from finetune.config import AdapterConfig
from interop.peft import vllm_rank
from model.checkpoint import load_model, random_model, save_model
from model.config_json import config_to_json
from model.directory import load_config, weight_files
from model.files import read_json, write_json
from model.tokenizer_files import copy_tokenizer
from quant.linear import QuantLinear
from tests.cli import FEW, call
from tests.export_runs import as_trained, difference, export, made_run, refusal
from tests.prebuilt import TOOLS, WIDE, write_model

pytestmark = pytest.mark.usefixtures("elsewhere")
FORMATS = ["gptq", "compressed-tensors"]
FIXTURES = Path(__file__).parents[1] / "fixtures"
CODES = ["--method", "qlora", "--rank", "4", "--merge-into", "codes", "--block", "32x1"]
PEQA = ["--method", "peqa", "--block", "32x1"]


@pytest.fixture(scope="module")
def base(small_base, tmp_path_factory):
    """Sizes that all bits of GPTQ take."""
    path, model = tmp_path_factory.mktemp("wide"), random_model(WIDE, torch.float32, seed=1)
    save_model(model, path / "model.safetensors")
    write_json(path / "config.json", config_to_json(WIDE))
    copy_tokenizer(small_base, path)
    return path


def loaded(directory):
    return load_model(weight_files(directory), load_config(directory), torch.float32)


def codes_of(model) -> dict[str, torch.Tensor]:
    return {name: module.codes for name, module in model.named_modules() if isinstance(module, QuantLinear)}


@pytest.mark.parametrize("form", FORMATS)
def test_peqa_is_held_with_its_scales_rounded_to_16_bits_or_as_they_are(base, tmp_path, form):
    run = made_run(tmp_path / "run", base, *PEQA)
    report, ours = export(run, form, tmp_path / "out"), as_trained(run)
    theirs, before = loaded(tmp_path / "out"), loaded(base)
    assert 1e-5 < report["largest_weight_difference"] < 1e-2 and report["largest_logit_difference"] > 1e-5
    layers = adapted_layers(ours)
    assert layers and codes_of(theirs).keys() == layers.keys()
    for name, layer in layers.items():
        assert torch.equal(theirs.get_submodule(name).codes, layer.base.codes), name
        assert theirs.get_submodule(name).scale.dtype == torch.float16
    exact = export(run, form, tmp_path / "exact", "--dtype", "float32")
    assert exact["largest_weight_difference"] < 1e-6
    assert difference(ours, loaded(tmp_path / "exact")) < 2e-4 < 0.05 < difference(ours, before)


@pytest.mark.parametrize("form,quantizer,bits,symmetric", [
    ("gptq", "absmax", 4, True), ("gptq", "absmax", 3, True), ("gptq", "intminmax", 4, False),
    ("compressed-tensors", "absmax", 4, True), ("compressed-tensors", "intminmax", 3, False)])
def test_moved_codes_are_held_exactly(base, tmp_path, form, quantizer, bits, symmetric):
    run = made_run(tmp_path / "run", base, *CODES, "--quantizer", quantizer, "--bits", bits)
    report, theirs = export(run, form, tmp_path / "out"), loaded(tmp_path / "out")
    assert report["largest_weight_difference"] == 0
    for name, layer in adapted_layers(as_trained(run)).items():
        assert torch.equal(theirs.get_submodule(name).dequantize(), merge_into_codes(layer).dequantize()), name
        assert not torch.equal(theirs.get_submodule(name).dequantize(), layer.base.dequantize()), name
    stated = read_json(tmp_path / "out/config.json")["quantization_config"]
    if form == "gptq":
        assert stated["sym"] == symmetric and stated["checkpoint_format"] == ("gptq" if symmetric else "gptq_v2")
    served = report["vllm_not_tried_here"]
    assert served.startswith("vllm serve ") == (bits == 4 and (symmetric or form != "gptq")), served


@pytest.mark.parametrize("name,form", [("awq", "gptq"), ("gptq", "compressed-tensors"), ("gptq_v2", "gptq")])
def test_a_base_of_another_format_is_handed_on_and_trained_on(name, form, small_base, tmp_path):
    write_model(TOOLS[name], tmp_path / "base", small_base, dense="o_proj")
    report = export(tmp_path / "base", form, tmp_path / "out")
    before, after = loaded(tmp_path / "base"), loaded(tmp_path / "out")
    assert report["largest_weight_difference"] == 0 and report["layers_of_codes"] == len(codes_of(before)) > 4
    assert codes_of(before).keys() == codes_of(after).keys()
    for layer, codes in codes_of(before).items():
        assert torch.equal(codes, codes_of(after)[layer]) and "o_proj" not in layer
    assert call(train_script, "--model", tmp_path / "out", "--method", "qalora", "--quantizer", "none", "--lam", "32x1",
                "--targets", "mlp",
                *FEW[:4], "--steps", "2", *FEW[6:8], *FEW[10:], "--out", "x") is None
    merged = loaded(tmp_path / "x" / "merged")
    assert all(torch.equal(codes, codes_of(merged)[layer]) for layer, codes in codes_of(before).items())
    assert "its adapter merges into offsets, which become real numbers" in refusal(tmp_path / "x", form, tmp_path / "y")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("flags", [CODES[:6], PEQA[:2], ["--method", "qlora"]], ids=" ".join)
def test_a_symmetric_gptq_file_stays_symmetric(base, tmp_path, form, flags):
    """With zero points that are all 8, as files of the hub have them. vLLM reads no other GPTQ."""
    made = made_run(tmp_path / "made", base, *CODES, "--quantizer", "absmax")
    export(made, "gptq", tmp_path / "gptq")
    assert load_file(tmp_path / "gptq/model.safetensors").keys() >= {"model.layers.0.mlp.up_proj.qzeros"}
    run = made_run(tmp_path / "run", tmp_path / "gptq", *flags, "--quantizer", "none")
    beside = flags == ["--method", "qlora"]
    report = export(run, "peft", tmp_path / "out", "--base-format", form) if beside else export(run, form,
                                                                                               tmp_path / "out")
    stated = read_json(tmp_path / ("out/base" if beside else "out") / "config.json")["quantization_config"]
    groups = stated.get("config_groups", {"group_0": {"weights": {"symmetric": stated.get("sym")}}})
    assert [group["weights"]["symmetric"] for group in groups.values()] == [True]
    assert report["vllm_not_tried_here"].startswith("vllm serve ")
    assert report["largest_weight_difference"] < (1e-2 if flags == PEQA[:2] else 1e-6)


@pytest.mark.parametrize("form", FORMATS)
def test_an_adapter_stands_beside_the_codes_of_its_base(base, tmp_path, form):
    run = made_run(tmp_path / "run", base, "--method", "qablora", "--quantizer", "absmax", "--block", "32x1",
                   "--lam", "32x8")
    report = export(run, "peft", tmp_path / "out", "--base-format", form)
    held_base, ours = loaded(tmp_path / "out/base"), as_trained(run)
    for name, layer in adapted_layers(ours).items():
        held = held_base.get_submodule(name)
        assert isinstance(held, QuantLinear) and not isinstance(held, AdaptedLinear)
        assert torch.equal(held.dequantize(), layer.base.dequantize()), name
    assert difference(ours, held_base) > 0.05
    attach_peft(held_base, read_peft(tmp_path / "out", held_base.config))
    assert difference(ours, held_base) < 2e-4
    ranks = {tensor.shape[0] for name, tensor in load_file(tmp_path / "out/adapter_model.safetensors").items()
             if "lora_A" in name}
    wanted = f"vllm serve {tmp_path}/out/base --dtype float16 --enable-lora --max-lora-rank 8 --lora-modules " \
             f"run={tmp_path}/out"
    assert max(ranks) <= 8 and report["vllm_not_tried_here"] == wanted
    assert "form" not in report and report["base"].endswith(f"its codes as {form}: load the adapter with this base")


@pytest.mark.parametrize("flags,message", [
    (["--method", "qablora", "--block", "32x1", "--lam", "32x8"], "q_proj: its adapter merges into offsets"),
    (["--method", "qlora", "--block", "32x1"], "an adapter merges into k bits only if"),
    (["--method", "qlora", "--merge-into", "codes", "--block", "32x1"], "levels that are no whole numbers"),
    (["--method", "peqa", "--block", "4x8"], "q_proj: blocks of 4x8 .* nor into whole rows"),
    (CODES + ["--quantizer", "minmax"], "q_proj: .* offsets are no whole multiples of their scales"),
    (["--method", "lora"], "holds no codes")])
def test_what_has_no_place_is_refused_with_the_layer_and_what_to_do(base, tmp_path, flags, message):
    run = made_run(tmp_path / "run", base, *flags)
    for form in FORMATS:
        found = refusal(run, form, tmp_path / "out")
        assert re.search(message, found), found
        assert any(remedy in found for remedy in ("--quantizer intminmax", "quantize with intminmax", "--format safet"))


@pytest.mark.parametrize("flags, offered", [
    (("--method", "qablora", "--quantizer", "absmax", "--block", "32x1", "--lam", "32x8"), True),
    (("--method", "lota", "--quantizer", "absmax", "--block", "32x1"), False),
    (("--method", "scaleoffset", "--quantizer", "absmax"), False),
    (("--method", "qlora", "--block", "64x1", "--merge-into", "codes"), False)])
def test_the_adapter_beside_its_base_is_offered_where_that_is_what_trained(base, tmp_path, flags, offered):
    run = made_run(tmp_path / "run", base, *flags)
    found = [refusal(run, form, tmp_path / "out") for form in FORMATS]
    assert ["--format peft --base-format" in message for message in found] == [offered] * len(found), found
    message = call(export_script, run, "--format", "peft", "--base-format", "gptq", "--to", tmp_path / "out")
    assert (message is None) == offered, message


def test_the_command_in_the_docs_serves_the_usual_rank():
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    assert re.findall(r"--max-lora-rank (\d+)", page) == [str(vllm_rank(AdapterConfig().rank))]


def test_bits_that_one_format_lacks_are_refused_there_only(base, tmp_path):
    run = made_run(tmp_path / "run", base, *CODES, "--quantizer", "absmax", "--bits", "5")
    found = refusal(run, "gptq", tmp_path / "out")
    assert ("5 bits have no place in GPTQ, which has 2, 3, 4, 8: give one of these to --bits, or use "
            "compressed-tensors, which has 2, 3, 4, 5, 6, 8. Train with") in found
    report = export(run, "compressed-tensors", tmp_path / "out")
    assert report["largest_weight_difference"] == 0 and "its package humming" in report["vllm_not_tried_here"]


@pytest.mark.parametrize("form", [*FORMATS, "mlx"])
def test_a_family_whose_files_join_layers_is_refused(tmp_path, form):
    message = refusal(FIXTURES / "phi3", form, tmp_path / "out")
    assert "model_type 'phi3' join layers (" in message and "use --format safetensors" in message


def test_base_format_is_refused_where_it_says_nothing(base, tmp_path):
    run = made_run(tmp_path / "a", base, *PEQA)
    assert "--base-format gptq goes with --format peft only" in refusal(run, "gptq", tmp_path / "out", "--base-format",
                                                                       "gptq")
    run = made_run(tmp_path / "b", base, "--method", "lora")
    assert "leave --base-format out" in refusal(run, "peft", tmp_path / "out", "--base-format", "gptq")
    run = made_run(tmp_path / "c", base, "--method", "qlora", "--block", "64x1")
    assert "levels that are no whole numbers" in refusal(run, "peft", tmp_path / "out", "--base-format",
                                                         "compressed-tensors")


