"""--merge-into codes as a user runs it, on a very small model."""
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import eval as eval_script
import train as train_script
from adapters.adapted import adapted_layers
from adapters.merge import merge_into_codes
from finetune.run import open_run
from finetune.source import load_trained
from model.files import read_json, write_json
from quant.grid import round_to_grid
from tests.cli import FEW, call, forbid_loading, goes_on_to_the_bytes_of, rows_of, train_once

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
    moved = rows["merged-3bit"]["layers_moved"]
    assert len(moved) == 7 and 0 < min(moved.values()) <= rows["merged-3bit"]["codes_moved"] <= max(moved.values()) < 1
    printed = capsys.readouterr().out.partition("by kind of layer: ")[2].partition(";")[0].split(", ")
    assert printed == [f"{name.rpartition('.')[2]} {share:.1%}" for name, share in moved.items()]  # one decoder layer
    assert rows["trained"]["codes_moved"] is None and not rows["trained"]["layers_moved"]
    base, merged = load_file("x/base.safetensors"), load_file("x/merged/model.safetensors")
    changed = {name.rpartition(".")[2] for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {"codes"} and base.keys() == merged.keys()
    assert call(eval_script, "x") is None
    assert rows_of(tmp_path / "x", "eval.json")["trained"]["validation_loss"] == rows["trained"]["validation_loss"]
    assert call(eval_script, "--model", "x/merged", "--limit", "40", "--test-limit", "6") is None


def test_with_the_residual_the_run_needs_no_original_weights(small_base, tmp_path, capsys, monkeypatch):
    """The merged model is what was trained, a run goes on to the same numbers, and the file has 16 bits a weight."""
    arguments = ["--model", small_base, *CODES, "--keep-residual", "--steps", "5", "--save-every", "2"]
    assert call(train_script, *arguments, "--out", "whole") is None
    assert "adds delta_W to the original weights" in capsys.readouterr().out
    rows = rows_of(tmp_path / "whole")
    assert rows["merged-3bit"]["logit_difference"] == 0
    assert rows["merged-3bit"]["megabytes"] == rows["quantized"]["megabytes"]
    assert rows["merged-3bit"]["bits_per_weight"] == rows["quantized"]["bits_per_weight"] < rows["trained"][
        "bits_per_weight"] - 16
    layers = load_file("whole/residual.safetensors")
    assert len(layers) == 7 and {t.dtype for t in layers.values()} == {torch.float16}
    goes_on_to_the_bytes_of("whole", arguments, monkeypatch)
    (tmp_path / "whole" / "residual.safetensors").unlink()
    assert "residual.safetensors: no such file; it holds the residuals" in call(eval_script, "whole")


def test_a_run_of_an_earlier_version_began_in_the_middle_of_its_cells(small_base, tmp_path):
    """It says nothing of where weights begin, and is read as it trained: delta_W is added to W_hat."""
    train_once(small_base, *CODES)
    config = read_json(tmp_path / "x" / "config.json")
    assert config["config"]["adapter"].pop("begins") == "spread"
    now = merged_codes()
    write_json(tmp_path / "x" / "config.json", config)
    before = merged_codes()
    assert now.keys() == before.keys() and any(not torch.equal(now[name], before[name]) for name in now)
    run = open_run(tmp_path / "x")
    for name, layer in adapted_layers(load_trained(run, run.config, torch.float32, "cpu")).items():
        base, sum = layer.base, layer.base.dequantize() + layer.adapter.delta_weight().detach()
        assert (round_to_grid(sum, base.grid) != before[name]).float().mean() < 0.01, name


def merged_codes():
    run = open_run(Path("x"))
    layers = adapted_layers(load_trained(run, run.config, torch.float32, "cpu"))
    return {name: merge_into_codes(layer).quantized_weight().codes for name, layer in layers.items()}


def test_the_memory_of_the_residual_is_predicted(small_base, capsys):
    assert call(train_script, "--model", small_base, *CODES, "--keep-residual", "--mem-report") is None
    shown = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert shown["residuals"] == ["0.0", "0.0"] and shown["weights"][1] != "0.0"


def test_it_says_what_it_does(small_base, capsys):
    assert call(train_script, "--model", small_base, *CODES, "--limit", "39") is None
    assert "trains through the rounding: the adapter moves codes, and the merge writes these" in capsys.readouterr().out


def test_another_base_is_refused_with_the_reason(small_base, monkeypatch):
    train_once(small_base, *CODES)
    forbid_loading(monkeypatch)
    assert "--merge-into codes trained delta_W through the rounding" in call(eval_script, "x", "--restore", "8")
    assert "this run merges into k bits exactly" in call(eval_script, "x", "--requantize", "minmax@16x1")


def test_an_interrupted_run_goes_on_to_the_same_numbers(small_base, monkeypatch):
    arguments = ["--model", small_base, *CODES, "--steps", "5", "--save-every", "2"]
    assert call(train_script, *arguments, "--out", "whole") is None
    goes_on_to_the_bytes_of("whole", arguments, monkeypatch)


@pytest.mark.parametrize("flags,message", [
    (["--method", "peqa", "--block", "16x1"], "--merge-into does not go with --method peqa, which has no use for it"),
    (["--method", "full"], "--merge-into does not go with --method full, which has no adapter"),
    (["--method", "lora"], "q_proj: its base is not quantized, so it has no codes to merge into"),
    (["--method", "qlora", "--block", "16x1", "--dropout", "0.1"], "--dropout 0.1 does not go with --merge-into codes"),
    (["--method", "qlora", "--quantizer", "none", "--keep-residual"], "this base is not quantized here"),
    (["--method", "lora", "--keep-residual"], "this base is not quantized here: give --quantizer"),
    (["--method", "qlora", "--block", "16x1", "--requantize", "nf@16x1"], "this run merges into k bits exactly")])
def test_what_does_not_go_with_it_is_refused_before_anything_is_loaded(small_base, monkeypatch, flags, message):
    forbid_loading(monkeypatch)
    assert message in call(train_script, "--model", small_base, "--limit", "40", *flags, "--merge-into", "codes")


def test_the_residual_goes_with_codes_only():
    message = call(train_script, "--method", "qlora", "--keep-residual")
    assert "--keep-residual goes with --merge-into codes only: give both" in message
