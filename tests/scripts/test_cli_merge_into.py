"""--merge-into codes as a user runs it, on a very small model."""
import pytest
import torch
from safetensors.torch import load_file

import eval as eval_script
import train as train_script
from tests.cli import FEW, call, forbid_loading, interrupted_after, rows_of, train_once

pytestmark = pytest.mark.usefixtures("elsewhere")
CODES = ("--method", "qlora", "--bits", "3", "--lr", "0.05", "--merge-into", "codes", *FEW)


def test_a_run_ends_with_a_k_bit_model_that_is_what_was_trained(small_base, tmp_path, capsys):
    train_once(small_base, *CODES)
    rows = rows_of(tmp_path / "x")
    assert list(rows) == ["base", "quantized", "trained", "merged-3bit"]
    assert rows["merged-3bit"]["logit_difference"] == 0
    assert rows["merged-3bit"]["validation_loss"] == rows["trained"]["validation_loss"] != rows["quantized"][
        "validation_loss"]
    assert rows["merged-3bit"]["megabytes"] == rows["quantized"]["megabytes"]
    base, merged = load_file("x/base.safetensors"), load_file("x/merged/model.safetensors")
    changed = {name.rpartition(".")[2] for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {"codes"} and base.keys() == merged.keys()
    assert call(eval_script, "x") is None
    assert rows_of(tmp_path / "x", "eval.json")["trained"]["validation_loss"] == rows["trained"]["validation_loss"]
    assert call(eval_script, "--model", "x/merged", "--limit", "40", "--test-limit", "6") is None


def test_it_says_what_it_does(small_base, capsys):
    assert call(train_script, "--model", small_base, *CODES, "--limit", "39") is None
    assert "trains through the rounding: the adapter moves codes, and the merge writes these" in capsys.readouterr().out


def test_another_base_is_refused_with_the_reason(small_base, monkeypatch):
    train_once(small_base, *CODES)
    forbid_loading(monkeypatch)
    assert "--merge-into codes trained delta_W through the rounding" in call(eval_script, "x", "--restore", "8")
    assert "this run merges into k bits exactly" in call(eval_script, "x", "--requantize", "minmax@16x1")


def test_an_interrupted_run_goes_on_to_the_same_numbers(small_base, tmp_path, monkeypatch):
    arguments = ["--model", small_base, *CODES, "--steps", "5", "--save-every", "2"]
    assert call(train_script, *arguments, "--out", "whole") is None
    with interrupted_after(3, monkeypatch):
        assert "train.py --resume cut" in call(train_script, *arguments, "--out", "cut")
    assert call(train_script, "--resume", "cut") is None
    for name in ("adapter.safetensors", "merged/model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


@pytest.mark.parametrize("flags,message", [
    (["--method", "peqa", "--block", "16x1"], "--merge-into does not go with --method peqa, which has no use for it"),
    (["--method", "full"], "--merge-into does not go with --method full, which has no adapter"),
    (["--method", "lora"], "q_proj: its base is not quantized, so it has no codes to merge into"),
    (["--method", "qlora", "--block", "16x1", "--dropout", "0.1"], "--dropout 0.1 does not go with --merge-into codes"),
    (["--method", "qlora", "--block", "16x1", "--requantize", "nf@16x1"], "this run merges into k bits exactly")])
def test_what_does_not_go_with_it_is_refused_before_anything_is_loaded(small_base, monkeypatch, flags, message):
    forbid_loading(monkeypatch)
    assert message in call(train_script, "--model", small_base, "--limit", "40", *flags, "--merge-into", "codes")
