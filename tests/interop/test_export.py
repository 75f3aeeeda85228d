"""export.py, and --format safetensors: an export is complete or absent, states its differences to the run, and computes
what the run computes."""
import hashlib
import json
import resource
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import export as export_script
from finetune.adapted_model import merge_best, save_beside
from finetune.run import open_run
from finetune.source import Source, load_trained
from interop import comparison as reporting
from interop import hand_over, hugging_face
from interop.trained import dense_tensors
from model.checkpoint import load_model, random_model, save_model
from model.config_json import config_to_json
from model.directory import load_config, weight_files
from model.files import read_json, write_json
from quant.linear import QuantLinear
from tests.cli import SMALL, call
from tests.export_runs import as_trained, difference, export, in_format_1, made_run, refusal

pytestmark = pytest.mark.usefixtures("elsewhere")
METHODS = [["full"], ["lora"], ["blora"], ["qlora", "--block", "32x1"], ["qblora", "--block", "32x1", "--double-quant"],
           ["irqlora", "--block", "32x1"],
           ["qalora", "--quantizer", "minmax"], ["qablora", "--bits", "3"], ["peqa"],
           ["qlora", "--block", "32x1", "--targets", "mlp"]]


def loaded(directory, dtype=torch.float32):
    return load_model(weight_files(directory), load_config(directory), dtype)


# ---- the model ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("flags", METHODS, ids=" ".join)
def test_a_dense_export_in_float32_computes_what_every_run_computes(small_base, tmp_path, flags):
    run = made_run(tmp_path / "run", small_base, "--method", *flags)
    report = export(run, "safetensors", tmp_path / "out", "--dtype", "float32")
    ours, theirs = as_trained(run), loaded(tmp_path / "out")
    assert not any(isinstance(module, QuantLinear) for module in theirs.modules())
    assert difference(ours, theirs) < 2e-4
    assert difference(ours, loaded(small_base)) > 0.05  # the run is another model than its base
    assert report["largest_weight_difference"] == 0 and report["largest_logit_difference"] < 2e-4


@pytest.mark.parametrize("dtype,kept,most", [(None, torch.float16, 2e-3), ("bfloat16", torch.bfloat16, 2e-2),
                                             ("float16", torch.float16, 2e-3)])
def test_the_type_is_that_of_the_base_unless_asked_otherwise_and_its_rounding_is_reported(small_base, tmp_path, dtype,
                                                                                          kept, most):
    run = made_run(tmp_path / "run", small_base, "--method", "qlora", "--block", "32x1")
    report = export(run, "safetensors", tmp_path / "out", *(["--dtype", dtype] if dtype else []))
    tensors = load_file(tmp_path / "out/model.safetensors")
    assert {t.dtype for t in tensors.values()} == {kept}
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == str(kept).removeprefix(
        "torch.") == report["type"]
    exact = dict(dense_tensors(as_trained(run)))
    largest = max((exact[name].float() - t.float()).abs().max().item() for name, t in tensors.items())
    assert report["largest_weight_difference"] == pytest.approx(largest) and 0 < largest < most
    assert report["largest_logit_difference"] > 0


def test_names_config_and_tokenizer_are_those_that_transformers_reads(small_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    write_json(base / "generation_config.json", {"eos_token_id": [2, 7]})
    run = made_run(tmp_path / "run", base, "--method", "lora")
    export(run, "safetensors", tmp_path / "out")
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file, safe_open(base / "model.safetensors",
                                                                                "pt") as original:
        assert set(file.keys()) == set(original.keys()) and file.metadata()["format"] == "pt"
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["architectures"], config["model_type"], config["eos_token_id"]) == (["LlamaForCausalLM"], "llama",
                                                                                       [2, 7])
    assert (tmp_path / "out/tokenizer.model").read_bytes() == (base / "tokenizer.model").read_bytes()
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text()) == {"bos_token": "<s>", "eos_token": "</s>",
                                                                                "add_bos_token": True}
    assert (tmp_path / "out/generation_config.json").is_file()
    assert Source(tmp_path / "out").tokenizer.encode("a b") == Source(base).tokenizer.encode("a b")


def test_a_result_directory_and_a_run_on_a_run_leave_too(small_base, tmp_path):
    """RUN/merged is exported as a model directory. The base of the second run is a run with an adapter."""
    first = made_run(tmp_path / "first", small_base, "--method", "qablora", "--block", "16x1")
    model = as_trained(first)
    merge_best(model, torch.float16)
    save_beside(model, open_run(first), tmp_path / "merged")
    assert export(tmp_path / "merged", "safetensors", tmp_path / "a", "--dtype",
                  "float32")["largest_weight_difference"] == 0
    assert difference(as_trained(first), loaded(tmp_path / "a")) < 1e-4
    second = made_run(tmp_path / "second", first, "--method", "lora")
    export(second, "safetensors", tmp_path / "b", "--dtype", "float32")
    run = open_run(second)
    assert difference(load_trained(run, run.config, torch.float32, "cpu"), loaded(tmp_path / "b")) < 1e-4
    assert difference(as_trained(first), loaded(tmp_path / "b")) > 0.01


# ---- runs of format 1 -----------------------------------------------------------------------------------------------

NEWER = ("quantized_layers", "double_quant", "grid", "act_order", "protocol", "requantize", "requantize_grid",
         "requantize_bits", "requantize_block")  # flags that the first runs of format 1 do not have


@pytest.mark.slow
@pytest.mark.parametrize("flags,form,without", [
    ("full", "safetensors", ()), ("lora --dropout 0.1 --rank 4 --lora-alpha 3.5", "peft", ()),
    ("lora --dropout 0.1 --rank 4 --lora-alpha 3.5", "safetensors", NEWER), ("peqa", "safetensors", ()),
    ("qlora --block 32x1 --requantize rounding", "peft", ()), ("qblora --block 32x1 --double-quant", "safetensors", ()),
    ("qlora --block 32x1 --targets mlp", "peft", ()), ("qablora --block 32x1 --lam 32x8", "safetensors", NEWER),
    ("qablora --block 32x1 --lam 32x8", "gguf", ())])
def test_a_run_of_format_1_exports_the_same_files(small_base, tmp_path, flags, form, without):
    """The files of format 1 were written by the last version that wrote it."""
    if form == "gguf":
        pytest.importorskip("gguf")
    now = flags.replace("--requantize rounding", "--requantize minmax@32x1") + " --save-every 200"
    run, to = made_run(tmp_path / "run", small_base, "--method", *now.split()), tmp_path / "out" / "x"
    to = to.with_suffix(".gguf") if form == "gguf" else to
    config, before = open_run(run).config, export(run, form, to)
    shutil.move(to.parent, tmp_path / "before")
    in_format_1(run, flags, without)
    assert "format" not in read_json(run / "config.json") and open_run(run).config == config
    assert export(run, form, to) == before  # with the sha256 of every file


# ---- the report ---------------------------------------------------------------------------------------------------

def test_the_report_names_every_file_by_its_sha256(small_base, tmp_path, capsys):
    run = made_run(tmp_path / "run", small_base, "--method", "lora")
    (tmp_path / "out").mkdir()  # an empty directory may be exported to
    report = export(run, "safetensors", tmp_path / "out")
    there = {path.name for path in (tmp_path / "out").iterdir()} - {"export.json", "README.md", "SHA256SUMS"}
    assert set(report["files"]) == there == {"config.json", "model.safetensors", "tokenizer.model",
                                             "tokenizer_config.json"}
    printed = capsys.readouterr().out
    for name, stated in report["files"].items():
        assert stated["sha256"] == hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest()
        assert stated["sha256"] in printed
    assert f"{report['largest_logit_difference']:.3g}" in printed


def test_a_file_that_does_not_read_as_it_was_written_gets_no_name(small_base, tmp_path, monkeypatch):
    """Control of the comparison: one weight of the written file changes before it is read again."""
    run, write = made_run(tmp_path / "run", small_base, "--method", "lora"), hugging_face.write_safetensors

    def damaged(path, tensors):
        tensors["model.layers.0.mlp.up_proj.weight"][3, 4] += 0.5
        write(path, tensors)
    monkeypatch.setattr(hugging_face, "write_safetensors", damaged)
    message = refusal(run, "safetensors", tmp_path / "out")
    assert "model.layers.0.mlp.up_proj.weight: what was read again is not what was written" in message


def test_a_config_or_tokenizer_that_is_another_gets_no_name(small_base, tmp_path, monkeypatch):
    run = made_run(tmp_path / "run", small_base, "--method", "lora")
    with monkeypatch.context() as inside:
        right = hugging_face.hugging_face_config
        inside.setattr(hugging_face, "hugging_face_config", lambda *rest: {**right(*rest), "rope_theta": 123.0})
        assert "config.json, read again, says rope_theta 123.0, but the run has 10000.0" in refusal(run, "safetensors",
                                                                                                    tmp_path / "out")
    monkeypatch.setattr(reporting, "load_tokenizer", lambda place: SimpleNamespace(encode=lambda text: [0]))
    assert "the tokenizer that was read again gives other tokens for" in refusal(run, "safetensors", tmp_path / "out")


def test_the_same_weights_that_compute_something_else_are_refused_and_so_are_logits_that_are_no_numbers(small_base):
    model, again = loaded(small_base), loaded(small_base)
    rows, unknown = [[1, 5, 6], [1, 7]], lambda model, name: None
    assert reporting.compare(model, again, rows, unknown, 0.0).largest_logit_difference == 0
    again.config = replace(again.config, final_softcap=1e-3)
    with pytest.raises(ValueError, match="although its weights are the run's"):
        reporting.compare(model, again, rows, unknown, 0.0)
    damaged = loaded(small_base)
    damaged.model.norm.weight.data[3] = torch.nan
    with pytest.raises(ValueError, match="differs from the run by nan|differ by nan"):
        reporting.compare(model, damaged, rows, unknown, 1.0)


@pytest.mark.parametrize("form,to", [("safetensors", "out"), ("gguf", "out.gguf"), ("peft", "out")])
def test_an_interrupted_export_leaves_nothing(small_base, tmp_path, monkeypatch, form, to):
    pytest.importorskip("gguf") if form == "gguf" else None
    run = made_run(tmp_path / "run", small_base, "--method", "qablora", "--block", "32x1")

    def interrupted(*rest):
        raise KeyboardInterrupt
    monkeypatch.setattr(hand_over, "compare", interrupted)
    before = set(tmp_path.iterdir())
    assert "nothing was exported" in call(export_script, run, "--format", form, "--to", tmp_path / to)
    assert set(tmp_path.iterdir()) == before


def test_a_full_disk_is_one_line_and_leaves_nothing(small_base, tmp_path):
    """The process may write files of 64 kB at most."""
    run = made_run(tmp_path / "run", small_base, "--method", "lora")
    kept, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, kept[1]))
        message = refusal(run, "safetensors", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
        signal.signal(signal.SIGXFSZ, handler)
    assert "model.safetensors" in message and "the file is larger than is allowed here" in message


# ---- what is refused ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("form,flags", [("safetensors", []), ("safetensors", ["--dtype", "float32"]), ("peft", [])])
def test_a_value_of_the_model_itself_that_is_not_finite_is_named_as_such(tmp_path, small_base, form, flags):
    """The embedding of an unused token does no harm in training. No type holds it, so none is recommended."""
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    tensors = load_file(base / "model.safetensors")
    tensors["model.embed_tokens.weight"][5] = torch.nan
    save_file(tensors, base / "model.safetensors")
    run = made_run(tmp_path / "run", base, "--method", "lora")
    message = refusal(run, form, tmp_path / "out", *flags)
    assert "model.embed_tokens.weight of the model itself holds 32 values of " in message
    assert "cannot be exported" in message and "--dtype" not in message


def test_weights_beyond_float16_are_refused_by_name(tmp_path, small_base):
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    model = random_model(replace(SMALL, num_hidden_layers=2), torch.float32, seed=0)
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = 70000
    write_json(base / "config.json", config_to_json(model.config))
    save_model(model, base / "model.safetensors")
    message = refusal(base, "safetensors", tmp_path / "out", "--dtype", "float16")
    assert ("model.layers.1.mlp.up_proj.weight holds values up to 7e+04, which float16 cannot hold (up to 65504): "
            "give --dtype bfloat16") in message
    assert export(base, "safetensors", tmp_path / "out")["type"] == "bfloat16"


def test_what_cannot_be_is_refused_before_a_weight_is_loaded(small_base, tmp_path, monkeypatch):
    run = made_run(tmp_path / "run", small_base, "--method", "lora")
    monkeypatch.setattr("interop.trained.Trained.load", lambda self: pytest.fail("weights were loaded"))
    full = tmp_path / "full"
    full.mkdir()
    (full / "something").touch()
    assert f"{full} exists already" in refusal(run, "safetensors", full)
    assert "ends in .gguf" in refusal(run, "gguf", tmp_path / "x")
    assert "x.gguf looks like a GGUF file, but this format writes a directory" in refusal(run, "peft",
                                                                                          tmp_path / "x.gguf")
    assert "no model there" in refusal(full, "safetensors", tmp_path / "x")
    assert "holds no adapter.safetensors yet" in refusal(untrained(tmp_path, run), "safetensors", tmp_path / "x")
    assert "invalid choice: 'onnx'" in call(export_script, run, "--format", "onnx", "--to", "x")


def untrained(tmp_path, run):
    shutil.copytree(run, tmp_path / "untrained")
    (tmp_path / "untrained/adapter.safetensors").unlink()
    return tmp_path / "untrained"


def test_a_base_that_is_another_than_the_run_was_trained_from_is_noticed(small_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    run = made_run(tmp_path / "run", base, "--method", "lora")
    save_model(random_model(SMALL, torch.float32, seed=9), base / "model.safetensors", torch.float16)
    assert "is not what the run was trained from" in refusal(run, "safetensors", tmp_path / "out")
