"""An export says how much of what was trained its rounding takes, and is refused if that is most of it."""
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import export as export_script
import train as train_script
from tests.cli import FEW, call, rows_of
from tests.export_runs import made_run

QABLORA = ["--method", "qablora", "--lam", "32x8"]


def shrunk(run, factor):
    """Every number of the adapter multiplied by this factor."""
    file = run / "adapter.safetensors"
    save_file({name: tensor * factor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    return run


def report(place):
    return json.loads(place.read_text())


@pytest.fixture
def runs(tmp_path, small_base):
    def make(factor, *flags):
        return shrunk(made_run(tmp_path / f"run{factor}", small_base, *flags), factor)
    return make


def test_a_gguf_file_whose_m_rounds_the_adapter_away_is_refused_and_leaves_nothing(runs, tmp_path, capsys):
    pytest.importorskip("gguf")
    run, to = runs(1e-4, "--bits", "4", "--block", "32x1", *QABLORA), tmp_path / "out.gguf"
    message = call(export_script, run, "--format", "gguf", "--to", to)
    assert "of what was trained" in message and "--allow-loss" in message and "of what training moved them" in message
    assert "Give --dtype float32, which makes a gguf file dense, or" in message
    assert [path.name for path in tmp_path.iterdir()] == [run.name]
    assert call(export_script, run, "--format", "gguf", "--to", to, "--allow-loss") is None
    assert "WARNING: the rounding of the exported weights is" in capsys.readouterr().out
    assert report(tmp_path / "out.export.json")["training_lost"] > 0.5


def test_the_same_adapter_in_float32_loses_nothing(runs, tmp_path, capsys):
    run = runs(1e-4, "--bits", "4", "--block", "32x1", *QABLORA)
    assert call(export_script, run, "--format", "safetensors", "--dtype", "float32", "--to", tmp_path / "out") is None
    found = report(tmp_path / "out/export.json")
    assert found["training_lost"] < 1e-3 and found["logits_lost"] < 1e-2
    assert "WARNING" not in capsys.readouterr().out


@pytest.mark.parametrize("factor,refused", [(1.0, False), (1e-4, True)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_dense_export_of_16_bits_is_refused_if_the_steps_are_below_its_own(runs, tmp_path, factor, refused, dtype):
    run = runs(factor, "--method", "lora")
    message = call(export_script, run, "--format", "safetensors", "--dtype", dtype, "--to", tmp_path / "out")
    assert bool(message) == refused and (tmp_path / "out").exists() != refused
    if not refused:
        assert 0 < report(tmp_path / "out/export.json")["training_lost"] < 0.1


def test_what_the_logits_lose_is_beside_what_training_moved(runs, tmp_path):
    """A large adapter in float32: training moves the logits, the export does not."""
    run = runs(1.0, "--method", "lora")
    call(export_script, run, "--format", "safetensors", "--dtype", "float32", "--to", tmp_path / "out")
    assert report(tmp_path / "out/export.json")["logits_lost"] < 1e-4


@pytest.mark.parametrize("lr,warned", [("1e-7", True), ("5e-2", False)])
def test_the_merge_to_16_bits_says_what_it_loses(small_base, elsewhere, tmp_path, capsys, lr, warned):
    call(train_script, "--method", "lora", "--model", small_base, "--lr", lr,
         *[f for f in FEW if f not in ("--block", "16x1")], "--out", "x")
    out, row = capsys.readouterr().out, rows_of(tmp_path / "x")["merged-16bit"]
    assert ("WARNING: merged, 16 bits (float16): the rounding of the merged weights is" in out) == warned
    assert (row["training_lost"] > 0.1) == warned
    assert ("||rounding|| / ||delta_W||" in out) == (row["training_lost"] >= 0.01)
    assert rows_of(tmp_path / "x")["trained"]["training_lost"] is None


def test_a_merge_into_offsets_is_exact_and_says_nothing(small_base, elsewhere, tmp_path, capsys):
    call(train_script, "--model", small_base, *FEW, "--lr", "1e-7", "--out", "x")
    assert rows_of(tmp_path / "x")["merged-4bit"]["training_lost"] is None
    assert "WARNING" not in capsys.readouterr().out
    assert torch.equal(*(load_file(tmp_path / "x" / name)["model.layers.0.self_attn.q_proj.codes"]
                         for name in ("base.safetensors", "merged/model.safetensors")))
