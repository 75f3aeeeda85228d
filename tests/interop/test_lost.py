"""Whatever is exported is measured beside what was trained: a run's own results, full fine-tuning, bases that are runs;
and what rounding costs is said in validation loss."""
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import train as train_script
from finetune.adapted_model import merge_best, save_beside
from finetune.data import prepare_data
from finetune.loop import mean_loss
from finetune.run import open_run
from finetune.saving import saved_with
from finetune.source import Source
from interop import before
from interop.before import of_adapters, of_restored, without_adapters
from interop.lost import Lost
from interop.trained import Trained
from model.files import say_once
from tests.cli import call, rows_of
from tests.export_runs import as_trained, difference, export, made_run, refusal
from tests.interop.test_export_loss import QABLORA, shrunk

pytestmark = pytest.mark.usefixtures("elsewhere")
FEW_ROWS = ["--limit", "40"]
GGUF = ["--bits", "4", "--block", "32x1", *QABLORA, *FEW_ROWS]
SMALL_STEPS = 1e-4


def with_result(run, name, change=lambda model: None):
    """The run with its merged model in the directory `name`, as train.py and eval.py leave it."""
    model = as_trained(run)
    merge_best(model, torch.bfloat16)
    change(model)
    save_beside(model, open_run(run), run / name)
    return run / name


def shifted(model):
    """The base of the directory is another than the run's, as after --restore 8 --merge: every offset moves by 0.01."""
    for layer in model.modules():
        if hasattr(layer, "offset"):
            layer.offset = layer.offset + 0.01


def loss_of_run(run, model):
    """Of a model on the run's validation rows."""
    return mean_loss(Trained.at(model).load(), prepare_data(Source(run), open_run(run).config, False).validation, 8)


@pytest.fixture(scope="module")
def small_steps(tmp_path_factory, small_base):
    pytest.importorskip("gguf")
    return shrunk(made_run(tmp_path_factory.mktemp("runs") / "run", small_base, *GGUF), SMALL_STEPS)


def test_a_merged_directory_is_measured_as_its_run_is(small_steps, tmp_path, capsys):
    merged = with_result(small_steps, "merged")
    for exported in (merged, small_steps):
        message = refusal(exported, "gguf", tmp_path / "out.gguf")
        assert "of what was trained" in message and "--allow-loss" in message and "validation loss on 4 rows" in message
    here, there = (export(path, "gguf", tmp_path / f"{path.name}.gguf", "--allow-loss")
                   for path in (merged, small_steps))
    assert here["training_lost"] == pytest.approx(there["training_lost"], rel=1e-3) and here["training_lost"] > 0.5
    assert here["logits_lost"] == pytest.approx(there["logits_lost"], rel=1e-2)
    assert here["loss_trained"] == pytest.approx(there["loss_trained"], abs=1e-5)
    assert "WARNING: the rounding of the exported weights is" in capsys.readouterr().out


def test_a_directory_that_is_not_the_runs_result_has_nothing_to_lose(small_steps, tmp_path, capsys):
    """Controls: the same files outside the run, or under another name; a float32 export of the result."""
    merged = with_result(small_steps, "merged")
    for place in (tmp_path / "merged", small_steps / "other"):
        shutil.copytree(merged, place)
        assert export(place, "gguf", tmp_path / f"{place.parent.name}.gguf")["training_lost"] is None
        assert Trained.at(place).run_of_result is None
    shutil.rmtree(small_steps / "other")
    exact = export(merged, "safetensors", tmp_path / "float32", "--dtype", "float32")
    assert exact["training_lost"] == 0 and "rounding beside" not in capsys.readouterr().out


def test_a_merged_directory_that_the_run_has_outgrown_is_measured_beside_the_run(small_base, tmp_path):
    """As after more epochs of --resume: the directory holds another adapter than the run."""
    pytest.importorskip("gguf")
    run = made_run(tmp_path / "run", small_base, *GGUF)
    merged = with_result(run, "merged")
    assert export(merged, "gguf", tmp_path / "x.gguf")["training_lost"] < 0.1
    shrunk(run, -1)
    assert "is 200% of what was trained" in refusal(merged, "gguf", tmp_path / "y.gguf")


@pytest.mark.parametrize("name", ["restored-8bit-merged", "requantized"])
def test_other_results_of_a_run_are_measured_beside_the_runs_delta(small_steps, tmp_path, capsys, name):
    result = with_result(small_steps, name, shifted)
    assert "of what was trained" in refusal(result, "gguf", tmp_path / "x.gguf")
    report = export(result, "gguf", tmp_path / "x.gguf", "--allow-loss")
    assert report["training_lost"] > 0.5 and report["logits_lost"] > 0
    assert report["loss_exported"] == pytest.approx(loss_of_run(small_steps, tmp_path / "x.gguf"), abs=1e-6)
    as_it_was_trained = small_steps if name == "requantized" else result
    assert report["loss_trained"] == pytest.approx(loss_of_run(small_steps, as_it_was_trained), abs=1e-6)
    assert abs(loss_of_run(small_steps, small_steps) - loss_of_run(small_steps, result)) > 1e-4
    lossy = "the directory is lossy: its weights differ from the run's by" in capsys.readouterr().out
    assert lossy == (name == "requantized") == ((report["result_lost"] or 0) > 1)
    shutil.rmtree(result)


def test_the_run_and_its_restored_directory_without_what_was_trained_are_their_bases(small_steps):
    run, model, base = (Trained.at(path).load() for path in (
        small_steps, with_result(small_steps, "merged"), small_steps))
    with without_adapters(base):
        with of_adapters(run, run).before() as plain:
            assert difference(plain, base) == 0
        with of_restored(run, model).before() as less:
            assert difference(less, base) < 1e-5
        assert difference(model, base) > 1e-6
    assert difference(model, as_trained(small_steps)) < 1e-5  # both are whole again
    assert difference(run, as_trained(small_steps)) == 0


# ---- full fine-tuning -----------------------------------------------------------------------------------------------

@pytest.fixture
def full(tmp_path, small_base):
    """A run of full fine-tuning whose weights moved by 1e-6; kept in float32. Its base can be taken away."""
    base = shutil.copytree(small_base, tmp_path / "base")
    run = made_run(tmp_path / "run", base, "--method", "full", "--save-dtype", "float32", *FEW_ROWS)
    start, end = load_file(base / "model.safetensors"), load_file(run / "model.safetensors")
    save_file({name: start[name].float() + SMALL_STEPS * (tensor - start[name].float())
               for name, tensor in end.items()}, run / "model.safetensors", metadata={"format": "pt"})
    return run


def test_full_fine_tuning_is_measured_beside_its_base(full, tmp_path):
    message = refusal(full, "safetensors", tmp_path / "out", "--dtype", "float16")
    share = float(re.search(r"is (\d+)% of what was trained", message)[1]) / 100
    start, end = load_file(tmp_path / "base" / "model.safetensors"), load_file(full / "model.safetensors")
    rounding, delta = (sum(part.double().square().sum().item() for part in parts) ** 0.5 for parts in (
        [t.half().float() - t for t in end.values()], [t - start[name].float() for name, t in end.items()]))
    assert share == pytest.approx(rounding / delta, abs=0.01) and share > 0.5
    assert "of what training moved them; validation loss on 4 rows" in message
    exact = export(full, "safetensors", tmp_path / "exact", "--dtype", "float32")
    assert exact["training_lost"] == 0 and exact["not_measured"] == ""


@pytest.mark.parametrize("gone", [True, False])
def test_a_base_that_is_not_at_hand_is_said_and_not_guessed(full, tmp_path, capsys, gone):
    (tmp_path / "base" / "model.safetensors").unlink() if gone else save_file(
        {name: t + 1 for name, t in load_file(tmp_path / "base/model.safetensors").items()},
        tmp_path / "base/model.safetensors")
    report = export(full, "safetensors", tmp_path / "out", "--dtype", "float16")
    assert report["training_lost"] is None and str(tmp_path / "base") in report["not_measured"]
    assert "what rounding takes of what was trained: not measured, " in capsys.readouterr().out


def test_random_weights_that_were_trained_have_no_base_to_be_measured_beside(small_base, tmp_path, capsys):
    run = made_run(tmp_path / "run", small_base, "--from-scratch", "--method", "full", *FEW_ROWS)
    report = export(run, "safetensors", tmp_path / "out", "--dtype", "bfloat16")
    assert report["training_lost"] is None and "measured" not in capsys.readouterr().out
    assert saved_with(open_run(run)) == (None, "")


@pytest.mark.parametrize("lr,flags,warned", [("1e-6", (), True), ("1e-6", ("--save-dtype", "float32"), False),
                                             ("5e-2", (), False)])
def test_saving_full_fine_tuning_in_16_bits_says_what_it_loses(small_base, tmp_path, capsys, lr, flags, warned):
    call(train_script, "--method", "full", "--model", small_base, "--lr", lr, "--limit", "40", "--test-limit", "2",
         "--steps", "2", "--max-new-tokens", "2", *flags, "--out", "x")
    out, row = capsys.readouterr().out, rows_of(tmp_path / "x")["trained"]
    saved = json.loads((tmp_path / "x/saving.json").read_text())
    assert row["training_lost"] == saved["training_lost"]
    assert ("WARNING: as trained: the rounding of the weights that train.py saved in float16 is" in out) == warned
    if flags:
        return
    assert (saved["training_lost"] > 0.1) == warned
    if warned:
        assert export(tmp_path / "x", "safetensors", tmp_path / "out", "--allow-loss")["training_lost"] == 0
        assert "the rounding of the weights that train.py saved in float16 is" in capsys.readouterr().out


def test_saving_is_measured_beside_a_gguf_base_and_beside_a_merged_one(small_base, tmp_path):
    pytest.importorskip("gguf")
    run = made_run(tmp_path / "adapters", small_base, "--method", "lora", *FEW_ROWS)
    export(run, "gguf", tmp_path / "base.gguf", "--dtype", "float16")
    shares = [saved_with(open_run(made_run(tmp_path / place.stem, place, "--method", "full", "--save-dtype", "bfloat16",
                                           *FEW_ROWS)))[0]
              for place in (tmp_path / "base.gguf", shutil.copytree(run, tmp_path / "copy" / "run"))]
    assert 0 < shares[0] < 0.2 and shares[0] == pytest.approx(shares[1], rel=0.05)


# ---- a run with an adapter as a base --------------------------------------------------------------------------------

@pytest.mark.parametrize("factor,warned", [(SMALL_STEPS, True), (1.0, False)])
def test_a_run_that_is_used_as_a_base_says_what_its_merge_loses(small_base, tmp_path, capsys, factor, warned):
    say_once.cache_clear()
    run = shrunk(made_run(tmp_path / "run", small_base, "--method", "lora"), factor)
    Source(run).load(torch.float32, "cpu")
    said = capsys.readouterr().err
    assert (f"WARNING: {run}, merged to 16 bits: the rounding of the merged weights is" in said) == warned
    assert not warned or "--dtype float32" in said


# ---- what it costs --------------------------------------------------------------------------------------------------

def test_the_losses_are_those_of_the_three_models_on_the_runs_validation_rows(small_base, tmp_path, capsys):
    run = shrunk(made_run(tmp_path / "run", small_base, "--method", "lora", *FEW_ROWS), 1e-3)
    report = export(run, "safetensors", tmp_path / "out", "--dtype", "bfloat16", "--allow-loss")
    out = capsys.readouterr().out
    rows = prepare_data(Source(run), open_run(run).config, calibrate=False).validation
    model, again = as_trained(run), Source(tmp_path / "out").load(torch.float32, "cpu")
    with without_adapters(model):
        base = mean_loss(model, rows, 8)
    expected = [base, mean_loss(model, rows, 8), mean_loss(again, rows, 8)]
    assert report["loss_rows"] == len(rows) == 4
    assert [report[f"loss_{when}"] for when in ("before", "trained", "exported")] == pytest.approx(expected, abs=1e-6)
    assert len(set(expected)) == 3
    assert f"validation loss on 4 rows: {base:.4f} before training, {expected[1]:.4f} as trained" in out


def test_rows_that_changed_since_the_training_are_not_used(small_base, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"lost card {i}", "category": "card_arrival"}) + "\n"
                            for i in range(30)))
    run = made_run(tmp_path / "run", small_base, "--method", "lora", "--task", "banking77", "--data", rows,
                   "--test-data", rows)
    run = shrunk(run, 1e-3)
    rows.write_text(rows.read_text().replace("lost", "found"))
    report = export(run, "safetensors", tmp_path / "out", "--dtype", "bfloat16", "--allow-loss")
    assert report["loss_exported"] is None and report["training_lost"] > 0.01
    assert "validation loss: not measured, the train rows are no longer those of the run" in capsys.readouterr().out


def test_the_share_of_the_loss_is_that_of_what_was_gained():
    def lost(before, trained, exported):
        return Lost(0.3, "layer 0.7", 0.4, None, 64, before, trained, exported)
    assert lost(3.0, 2.0, 2.81).loss_lost == pytest.approx(0.81)
    assert "3.0000 before training, 2.0000 as trained, 2.8100 exported: 81% of the gain is lost" in lost(
        3.0, 2.0, 2.81).check(False)
    assert lost(2.0, 2.1, 2.5).loss_lost is None and "training gained nothing" in lost(2.0, 2.1, 2.5).losses
    assert "no gain is lost" in lost(3.0, 2.0, 1.9).losses


@pytest.mark.parametrize("share,exported,warned", [(0.02, 2.0, False), (0.02, 2.5, True), (0.2, 2.0, True)])
def test_much_of_either_is_warned_of(share, exported, warned):
    assert bool(Lost(share, "layer", 0.0, None, 64, 3.0, 2.0, exported).check(False)) == warned


def test_what_is_exported_without_rounding_loads_no_other_model(small_steps, tmp_path, monkeypatch):
    merged = with_result(small_steps, "merged")
    monkeypatch.setattr(before, "of_adapters", lambda *models: pytest.fail("another model was loaded"))
    export(merged, "safetensors", tmp_path / "out", "--dtype", "float32")
