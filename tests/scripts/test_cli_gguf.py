"""train.py and eval.py on a GGUF file, as a user runs them."""
import json
import re
import sys

import pytest
import torch
from safetensors.torch import load_file

import eval as eval_script
import train as train_script
from finetune.run import open_run
from finetune.source import Source
from model.checkpoint import load_model
from model.directory import load_config, weight_files
from model.tokenizer import load_tokenizer
from tests.cli import SMALL, call, few, interrupted_after, rows_of
from tests.gguf_files import strong_model, write_gguf

pytestmark = pytest.mark.usefixtures("elsewhere")
AS_IT_IS = ["--model", "x.gguf", "--quantizer", "none", *few("full"), "--lr", "0.01"]
EVALUATE = ["--limit", "40", "--test-limit", "4", "--max-new-tokens", "2"]


@pytest.fixture
def q4_1(tmp_path):
    return write_gguf(tmp_path / "x.gguf", strong_model(SMALL), "Q4_1")


def codes_and_scales(model) -> dict[str, bytes]:
    return {name: t.numpy().tobytes() for name, t in model.state_dict().items()
            if name.endswith((".codes", ".scale", ".levels"))}


@pytest.mark.parametrize("kind,bits,method", [
    ("Q4_1", 4, ["qablora", "--lam", "32x8"]), ("Q4_0", 4, ["qablora", "--lam", "32x8"]),
    ("Q8_0", 8, ["qalora", "--lam", "32x1"]),
    ("Q4_1", 4, ["qblora", "--lam", "32", "--rank", "4", "--targets", "mlp"])])
def test_a_file_trains_as_it_is_and_merges_into_its_own_offsets(tmp_path, kind, bits, method):
    path = write_gguf(tmp_path / "x.gguf", strong_model(SMALL), kind)
    assert call(train_script, "--method", *method, *AS_IT_IS, "--out", "run") is None
    merged = rows_of(tmp_path / "run")[f"merged-{bits}bit"]
    assert merged["logit_difference"] < 1e-5
    assert merged["validation_loss"] != rows_of(tmp_path / "run")["base"]["validation_loss"]
    base = load_model([path], load_config(path), torch.float32)
    after = load_model(weight_files(tmp_path / "run/merged"), load_config(tmp_path / "run/merged"), torch.float32)
    assert codes_and_scales(base) == codes_and_scales(after) and len(codes_and_scales(base)) == 3 * 7
    adapted = "model.layers.0.mlp.up_proj.offset"
    assert not torch.equal(base.state_dict()[adapted] + torch.zeros(1, 1), after.state_dict()[adapted])


def test_the_run_is_a_model_of_its_own(q4_1, tmp_path):
    call(train_script, "--method", "qablora", "--lam", "32x8", *AS_IT_IS, "--out", "run")
    saved = json.loads((tmp_path / "run/config.json").read_text())
    assert saved["fingerprints"]["base"] == Source(q4_1).fingerprint
    assert saved["config"]["base"]["codes"] == "4 bits, block 32x1" and saved["config"]["base"]["quantization"] is None
    config = open_run(tmp_path / "run").config
    assert (config.base.bits, str(config.base.block)) == (4, "32x1")
    original = load_tokenizer(q4_1).encode("Where is my card?")
    call(eval_script, "run")
    again, first = (rows_of(tmp_path / "run", file) for file in ("eval.json", "results.json"))
    assert list(again) == ["base", "trained", "merged-4bit"]
    assert all(again[state]["validation_loss"] == first[state]["validation_loss"] for state in first)
    q4_1.unlink()
    assert load_tokenizer(tmp_path / "run/merged").encode("Where is my card?") == original
    assert call(eval_script, "--model", "run/merged", *EVALUATE) is None
    assert "x.gguf" in call(eval_script, "run")  # its base, which is no longer there


def test_lam_follows_the_files_blocks_where_it_is_not_given(q4_1, tmp_path):
    assert call(train_script, "--method", "qablora", *AS_IT_IS, "--out", "run") is None
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["adapter"]["lam"] == "32x1"


@pytest.mark.parametrize("arguments,message", [
    (["--method", "qablora"],
     r"x.gguf is quantized already .*4 bits, block 32x1\): give --quantizer none to train on it as it is"),
    (["--method", "full"], "is quantized: codes do not train"),
    (["--method", "peqa", "--quantizer", "none"], "has no integer zero points"),
    (["--method", "qablora", "--quantizer", "none", "--lam", "32x5"], "D_out=32 is not a multiple of lam_out=5"),
    (["--method", "qablora", "--quantizer", "none", "--model", "nowhere.gguf"], "nowhere.gguf: no such GGUF file")])
def test_what_cannot_be_done_with_a_quantized_file_is_said_before_anything_is_made(q4_1, tmp_path, arguments, message):
    assert re.search(message, call(train_script, "--model", "x.gguf", *arguments, "--out", "run"))
    assert not (tmp_path / "run").exists()


def test_reading_needs_no_package(q4_1, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    for script, arguments in ((train_script, ["--data", "nowhere", "--out", "run"]),
                              (eval_script, ["--data", "nowhere"])):
        assert "gguf package" not in call(script, "--model", "x.gguf", *arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_adapter(q4_1, tmp_path, monkeypatch):
    arguments = ["--method", "qablora", "--lam", "32x8", *AS_IT_IS, "--steps", "5", "--save-every", "2"]
    call(train_script, *arguments, "--out", "whole")
    with interrupted_after(3, monkeypatch):
        assert "train.py --resume cut" in call(train_script, *arguments, "--out", "cut")
    assert call(train_script, "--resume", "cut") is None
    assert (tmp_path / "whole/adapter.safetensors").read_bytes() == (tmp_path / "cut/adapter.safetensors").read_bytes()
    write_gguf(q4_1, strong_model(SMALL), "Q4_0")
    assert "is not what the run was trained from" in call(train_script, "--resume", "cut")


@pytest.mark.slow
def test_a_dense_file_is_quantized_as_a_directory_is(tmp_path):
    write_gguf(tmp_path / "x.gguf", strong_model(SMALL), "F16")
    call(train_script, "--method", "qablora", "--block", "16x1", "--model", "x.gguf", *few("full"), "--out", "run")
    assert {"base", "quantized", "merged-4bit"} <= set(rows_of(tmp_path / "run"))
    assert "model.layers.0.mlp.up_proj.codes" in load_file(tmp_path / "run/base.safetensors")
    assert call(eval_script, "--model", "x.gguf", "--quantizer", "nf", "--block", "32x1", *EVALUATE) is None
