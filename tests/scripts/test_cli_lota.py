"""--method lota as a user runs it, on a very small model."""
import json

import pytest
import torch
from safetensors.torch import load_file

import eval as eval_script
import export as export_script
import train as train_script
from tests.cli import FEW, call, forbid_loading, goes_on_to_the_bytes_of, rows_of, train_once

pytestmark = pytest.mark.usefixtures("elsewhere")
LOTA = ("--method", "lota", "--quantizer", "minmax", "--bits", "3", "--rank", "4", "--omega", "0.5", *FEW)


def test_a_run_ends_with_a_k_bit_model_that_is_what_was_trained(small_base, tmp_path):
    train_once(small_base, *LOTA)
    rows = rows_of(tmp_path / "x")
    assert list(rows) == ["base", "quantized", "trained", "merged-3bit"]
    assert rows["merged-3bit"]["logit_difference"] == 0
    assert rows["merged-3bit"]["validation_loss"] == rows["trained"]["validation_loss"] != rows["quantized"][
        "validation_loss"]
    base, merged = load_file("x/base.safetensors"), load_file("x/merged/model.safetensors")
    changed = {name.rpartition(".")[2] for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {"codes", "offset"} and base.keys() == merged.keys()
    adapter = load_file("x/adapter.safetensors")
    assert {value for t in adapter.values() for value in t.unique().tolist()} == {-1, 0, 1}
    steps = [json.loads(line) for line in open("x/metrics.jsonl", encoding="utf-8")]
    assert "sigma" in steps[0] and "lr" not in steps[0]
    assert call(eval_script, "x") is None
    assert rows_of(tmp_path / "x", "eval.json")["trained"]["validation_loss"] == rows["trained"]["validation_loss"]
    assert call(eval_script, "--model", "x/merged", "--limit", "40", "--test-limit", "6") is None


def test_an_interrupted_run_goes_on_to_the_same_numbers(small_base, monkeypatch):
    arguments = ["--model", small_base, *LOTA, "--steps", "5", "--save-every", "2"]
    assert call(train_script, *arguments, "--out", "whole") is None
    goes_on_to_the_bytes_of("whole", arguments, monkeypatch)


def test_another_base_and_a_lora_are_refused_with_the_reason(small_base, monkeypatch):
    train_once(small_base, *LOTA)
    forbid_loading(monkeypatch)
    assert "it moved the k-bit codes by whole steps" in call(eval_script, "x", "--restore", "8")
    assert "lota trains the codes and offset of its base, and a LoRA" in call(
        export_script, "x", "--format", "peft", "--to", "y")
    assert "this run merges into k bits exactly" in call(eval_script, "x", "--requantize", "minmax@16x1")


NO_RATE = "lota, which steps ternary numbers by t-SignSGD, which is not AdamW and has no learning rate: leave it out"


@pytest.mark.parametrize("flags,message", [
    *((flag, f"{flag[0]} does not go with --method {NO_RATE}") for flag in (
        ["--lr", "0.1"], ["--warmup", "0"], ["--lr-schedule", "linear"], ["--clip", "2"], ["--weight-decay", "0.1"],
        ["--beta2", "0.9"], ["--find-lr"])),
    (["--dropout", "0.1"], "--dropout does not go with --method lota, which has no use for it"),
    (["--merge-into", "codes"], "--merge-into does not go with --method lota, which has no use for it"),
    (["--lora-alpha", "8"], "--lora-alpha does not go with --method lota"),
    (["--quantizer", "nf"], "--method lota moves codes by steps of an even grid, which nf is not: use --quantizer"),
    (["--quantizer", "none"], "q_proj: its base is not quantized, and lota moves codes"),
    (["--quantizer", "minmax", "--block", "16x1", "--rank", "4", "--omega", "4"], "omega=4 moves no code")])
def test_what_does_not_go_with_it_is_refused_before_anything_is_loaded(small_base, monkeypatch, flags, message):
    forbid_loading(monkeypatch)
    assert message in call(train_script, "--model", small_base, "--limit", "40", "--method", "lota", *flags)


def test_codes_of_a_base_whose_levels_are_not_even_are_refused(small_base, monkeypatch):
    train_once(small_base, "--method", "qblora", "--block", "16x1", "--lam", "16", *FEW[:-4])
    forbid_loading(monkeypatch)
    asked = ["--model", "x/merged", "--limit", "40", "--method", "lota", "--quantizer", "none"]
    for command in (asked, [*asked, "--dry-run"]):
        assert "q_proj: lota moves codes by one step of an even grid" in call(train_script, *command)
