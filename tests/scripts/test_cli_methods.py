"""What train.py and eval.py do for GPTQ bases, PEQA, the operators of Table 6 and --requantize, on a small model."""
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

import eval as eval_script
import train as train_script
from finetune.run import open_run
from tests.cli import FEW, as_an_older_version_wrote_it, call, few, forbid_loading, rows_of, train_once

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.mark.parametrize("how,state,title", [
    ("gptq", "requantized-4bit-gptq-minmax-32x1", "requantized, 4 bits (gptq:minmax@32x1, lossy)"),
    ("minmax@32x1", "requantized-4bit-minmax-32x1", "requantized, 4 bits (minmax@32x1, lossy)"),
    pytest.param("gptq:nf@16x2-3bit", "requantized-3bit-gptq-nf-16x2", "requantized, 3 bits (gptq:nf@16x2, lossy)",
                 marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["qlora", pytest.param("lora", marks=pytest.mark.slow)])
def test_requantizing_is_a_row_of_its_own_named_lossy_with_the_error_it_costs(small_base, tmp_path, method, how, state,
                                                                              title):
    assert call(train_script, "--method", method, "--model", small_base, "--lr", "0.05", *few(method), "--requantize",
                how,
                "--out", "x") is None
    rows = rows_of(tmp_path / "x")
    merged, lossy = rows["merged-16bit"], rows[state]
    assert lossy["title"] == title
    assert 0.01 < lossy["weight_error"] < 0.5 and merged["weight_error"] is None
    assert lossy["logit_difference"] > 3 * merged["logit_difference"]
    assert call(eval_script, "--model", "x/requantized", "--limit", "40", "--test-limit", "4", "--max-new-tokens",
                "2") is None
    assert (tmp_path / "x" / "requantized" / "quantization.json").is_file() == how.startswith("gptq")


def test_requantizing_can_be_asked_for_when_a_run_is_scored(small_base, tmp_path):
    train_once(small_base, "--method", "qlora", *FEW)
    assert call(eval_script, "x", "--requantize", "gptq", "--calibration-rows", "20") is None
    assert list(rows_of(tmp_path / "x", "eval.json"))[-1] == "requantized-4bit-gptq-minmax-32x1"
    assert "unrecognized arguments: --requantize-bits 3" in call(eval_script, "x", "--requantize-bits", "3")
    assert "--calibration-rows goes with gptq only" in call(eval_script, "x", "--requantize", "minmax",
                                                            "--calibration-rows", "20")
    assert "--requantize needs a run" in call(eval_script, "--model", small_base, "--requantize", "gptq")


def test_requantizing_what_merges_without_loss_is_refused_before_anything_is_loaded(small_base, tmp_path, monkeypatch):
    train_once(small_base, *FEW)
    forbid_loading(monkeypatch)
    said = call(train_script, "--model", small_base, *FEW, "--requantize", "gptq", "--out", "y")
    assert "this run merges into k bits exactly" in said and not (tmp_path / "y").exists()
    assert "this run merges into k bits exactly" in call(eval_script, "x", "--requantize", "gptq")


@pytest.mark.parametrize("method,flags,message", [
    ("full", ["--requantize", "gptq"], "--requantize does not go with --method full"),
    ("qlora", ["--requantize", "minmax+act-order"], "--act-order is for gptq only, and the quantizer is minmax"),
    ("qlora", ["--requantize", "gptq-0bit"], "bits=0 is not possible"),
    ("qlora", ["--requantize", "gptq", "--calibration", "."], "no such text file"),
    ("qlora", ["--requantize", "gptq@5x1"], "block 5x1 .* does not divide layer")])
def test_flags_that_a_run_cannot_take_are_refused_when_it_is_scored(small_base, method, flags, message):
    train_once(small_base, "--method", method, *few(method))
    assert re.search(message, call(eval_script, "x", *flags))


def test_a_run_of_before_these_flags_is_still_scored(small_base, tmp_path):
    train_once(small_base, *FEW)
    new = open_run(tmp_path / "x").config
    as_an_older_version_wrote_it(tmp_path / "x", "operators", "requantize", "requantize_block", "grid", "double_quant",
                                 "act_order",
                                 "calibration", "calibration_rows")
    assert open_run(tmp_path / "x").config == new
    assert call(eval_script, "x") is None
    assert rows_of(tmp_path / "x", "eval.json").keys() == rows_of(tmp_path / "x").keys()


@pytest.mark.slow
def test_a_base_is_not_made_again_from_another_calibration_text(small_base, tmp_path):
    (tmp_path / "text.txt").write_text("Some words to calibrate on, and some more. " * 100)
    train_once(small_base, "--method", "qalora", *FEW, "--calibration", "text.txt")
    (tmp_path / "x" / "base.safetensors").unlink()
    (tmp_path / "text.txt").write_text("Other words. " * 100)
    assert "text.txt is no longer what the run was calibrated on" in call(train_script, "--resume", "x")


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--act-order"], ["--grid", "nf", "--double-quant"], ["--calibration", "text.txt"]])
def test_a_gptq_base_keeps_its_report_in_the_run(small_base, tmp_path, flags):
    (tmp_path / "text.txt").write_text("Some words to calibrate on, and some more. " * 100)
    assert call(train_script, "--model", small_base, *FEW, "--quantizer", "gptq", "--calibration-rows", "7", *flags,
                "--out", "x") is None
    report = json.loads((tmp_path / "x" / "quantization.json").read_text())
    assert report["calibration"]["rows"] == 7 and len(report["layers"]) == 7
    assert report["calibration"]["source"].endswith("text.txt" if "text.txt" in flags else "training rows of banking77")
    errors = [layer["gptq_error"] for layer in report["layers"]]
    assert errors == sorted(errors, reverse=True) and all(e > 0 for e in errors)
    assert rows_of(tmp_path / "x")["merged-4bit"]["logit_difference"] < 1e-5


@pytest.mark.slow
def test_a_gptq_base_that_was_cut_off_is_made_again_to_the_same_bits(small_base, tmp_path):
    arguments = ["--method", "qalora", "--model", small_base, *FEW]
    call(train_script, *arguments, "--out", "whole")
    call(train_script, *arguments, "--out", "cut")
    for name in ("base.safetensors", "adapter.safetensors"):
        (tmp_path / "cut" / name).unlink()
    shutil.rmtree(tmp_path / "cut" / "state")
    assert call(train_script, "--resume", "cut") is None
    for name in ("base.safetensors", "adapter.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_peqa_changes_scales_only_and_ends_as_an_integer_zero_point_model(small_base, tmp_path):
    train_once(small_base, "--method", "peqa", *FEW)
    base, merged = (load_file(tmp_path / "x" / f"{name}.safetensors") for name in ("base", "merged/model"))
    assert base.keys() == merged.keys() and sum(name.endswith(".offset.zero") for name in base) == 7
    changed = {name.rpartition(".")[2] for name in base if not torch.equal(base[name].float(), merged[name].float())}
    assert changed == {"scale"} and all((merged[n] > 0).all() for n in merged if n.endswith(".scale"))


@pytest.mark.slow
def test_peqa_goes_on_from_its_own_merged_model(small_base, tmp_path):
    train_once(small_base, "--method", "peqa", *FEW)
    more = ["--method", "peqa", "--quantizer", "none", *few("full")]
    assert call(train_script, "--model", "x/merged", *more, "--out", "y") is None
    assert "merged-4bit" in rows_of(tmp_path / "y")
    call(train_script, "--model", small_base, *FEW, "--out", "z")
    for model in ("z/merged", small_base):
        assert "has no integer zero points" in call(train_script, "--model", model, *more, "--out", "w")
        assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("operators", ["truncation", "interval"])
def test_operators_that_leave_inputs_out_merge_to_16_bits(small_base, tmp_path, operators, capsys):
    assert call(train_script, "--model", small_base, *FEW, "--operators", operators, "--out", "x") is None
    assert "merged-16bit" in rows_of(tmp_path / "x")
    assert "the tile is lam_in=1 x lam_out=1" in capsys.readouterr().out
