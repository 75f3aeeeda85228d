"""A run needs its base only for what it does not hold itself; what is missing is said before training goes on."""
import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import eval as eval_script
import export as export_script
import sample as sample_script
import train as train_script
from finetune import sessions
from finetune.kept import add_facts
from finetune.loop import TrainingDiverged
from finetune.run import Run, new_run
from model.files import read_json
from model.tensor_files import write_safetensors
from model.tokenizer_files import copy_tokenizer
from tests.cli import call, interrupted_after, rows_of
from tests.processes import another_process

pytestmark = pytest.mark.usefixtures("elsewhere")
X, WHOLE = Path("x"), Path("whole")
FLAGS = ("--limit", "40", "--test-limit", "2", "--max-new-tokens", "1", "--batch-size", "12", "--epochs", "3",
         "--save-every", "2")  # 3 steps an epoch
ROUNDED, FULL = ("--method", "qlora", "--block", "16x1"), ("--method", "full")
MOVED = Path("moved")


@pytest.fixture
def base(small_base, tmp_path, elsewhere) -> Path:
    """A copy of the model, which a test may remove."""
    return Path(shutil.copytree(small_base, tmp_path / "base"))


def cut_after(steps: int, monkeypatch, base: Path, *flags) -> None:
    with interrupted_after(steps, monkeypatch):
        assert "--resume x" in call(train_script, "--model", base, *FLAGS, *flags, "--out", "x")


def trained(run: Path) -> bytes:
    file = run / "adapter.safetensors"
    return (file if file.is_file() else run / "model.safetensors").read_bytes()


# ---- without the base -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("flags,steps", [(ROUNDED, 4), (FULL, 2)], ids=["qlora", "full-in-its-first-epoch"])
def test_a_run_goes_on_and_is_scored_without_its_base(base, monkeypatch, capsys, flags, steps):
    assert call(train_script, "--model", base, *FLAGS, *flags, "--out", "whole") is None
    cut_after(steps + 1, monkeypatch, base, *flags)
    shutil.move(base, MOVED)
    capsys.readouterr()
    assert call(train_script, "--resume", "x") is None
    said = capsys.readouterr().out
    missing = "the table at its end will have no row for the base"
    assert said.index(missing) < said.index("training rows") and f"{base}: no such model directory" in said
    assert trained(X) == trained(WHOLE)
    assert rows_of(X).keys() == rows_of(WHOLE).keys() - {"base"}
    assert str(base) in read_json(X / "results.json")["missing"]["base"]
    assert read_json(WHOLE / "results.json")["missing"] == {}
    assert call(eval_script, "x") is None and "base" not in rows_of(X, "eval.json")
    assert call(sample_script, "x", "--prompt", "a", "--max-new-tokens", "1") is None
    assert call(export_script, "x", "--format", "safetensors", "--to", "dense") is None
    if flags == ROUNDED:
        assert "no such model directory" in call(eval_script, "x", "--restore", "3")


def test_a_base_that_the_run_does_not_hold_is_asked_for_before_training(base, monkeypatch):
    cut_after(4, monkeypatch, base, "--method", "lora")
    shutil.move(base, MOVED)

    def not_reached(*rest):
        raise AssertionError("training went on")
    with monkeypatch.context() as inside:
        inside.setattr(train_script, "train", not_reached)
        said = call(train_script, "--resume", "x")
    assert said == f"error: {base}: no such model directory; x holds no copy of its base, which must be there again"
    shutil.move(MOVED, base)
    assert call(train_script, "--resume", "x") is None


def test_what_cannot_be_scored_after_training_is_scored_later(base, monkeypatch):
    """The base goes while a run on it trains: no state of a LoRA run can be scored without it."""
    train = train_script.train

    def then_removed(*rest):
        train(*rest)
        shutil.move(base, MOVED)
    with monkeypatch.context() as inside:
        inside.setattr(train_script, "train", then_removed)
        said = call(train_script, "--model", base, *FLAGS, "--method", "lora", "--out", "x")
    assert "no copy of its base" in said and "Training has ended" in said and "python eval.py x scores it" in said
    shutil.move(MOVED, base)
    assert call(eval_script, "x") is None


# ---- what was kept --------------------------------------------------------------------------------------------------

def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-9]), flip],
                         ids=["removed", "cut", "a-bit-flipped"])
def test_an_adapter_that_was_lost_is_noticed_before_training_goes_on(base, monkeypatch, damage, capsys):
    """Kept at step 3, and the state is of step 4: no other file holds it."""
    cut_after(5, monkeypatch, base, *ROUNDED)
    kept, metrics = (X / "adapter.safetensors").read_bytes(), (X / "metrics.jsonl").read_text()
    damage(X / "adapter.safetensors")
    said = call(train_script, "--resume", "x")
    assert "x/adapter.safetensors" in said and ("missing" in said or "damaged" in said)
    assert "It was kept at step 3, and the state is of step 4" in said and "delete x/state" in said
    assert (X / "metrics.jsonl").read_text() == metrics
    (X / "adapter.safetensors").write_bytes(kept)
    assert call(train_script, "--resume", "x") is None


def test_an_adapter_that_was_lost_is_written_again_from_a_state_of_its_step(base, monkeypatch, capsys):
    cut_after(3, monkeypatch, base, *ROUNDED)
    kept = trained(X)
    (X / "adapter.safetensors").write_bytes(b"nothing")
    with interrupted_after(3, monkeypatch):
        call(train_script, "--resume", "x")
    assert "Written again from the state, which is of the same step" in capsys.readouterr().out
    assert trained(X) == kept


def test_another_adapter_in_its_place_is_refused_and_one_that_was_just_being_written_is_not(base, monkeypatch, capsys):
    """Kept at step 3, and the state is of step 4."""
    cut_after(5, monkeypatch, base, *ROUNDED)
    kept, record = load_file(X / "adapter.safetensors"), (X / "kept.json").read_bytes()
    write_safetensors(X / "adapter.safetensors", {name: tensor + 1 for name, tensor in kept.items()})
    said = call(train_script, "--resume", "x")
    assert "x/adapter.safetensors is not what training kept: its sha256 is " in said and "x/kept.json states" in said
    assert "It was kept at step 3, and the state is of step 4. Put a copy of it back" in said
    add_facts(X / "kept.json", writing=6)  # killed between the adapter of step 6 and its record
    assert call(train_script, "--resume", "x") is None
    assert json.loads(record)["writing"] == 3 and Run(X).keep_still().step in (3, 6, 9)
    capsys.readouterr()
    for another in (False, True):
        if another:
            write_safetensors(X / "adapter.safetensors", kept)
        assert call(eval_script, "x", "--without-base") is None
        assert ("WARNING: x/adapter.safetensors is not what training kept" in capsys.readouterr().err) == another


def test_an_adapter_that_cannot_be_read_is_not_written_again(base, monkeypatch):
    cut_after(3, monkeypatch, base, *ROUNDED)
    kept = trained(X)

    def broken(self):
        if self.path.name == "adapter.safetensors":
            raise OSError(errno.EIO, "Input/output error", str(self.path))
    with monkeypatch.context() as inside:
        inside.setattr("model.tensor_files.TensorFile.check", broken)
        said = call(train_script, "--resume", "x")
    assert said.startswith("error: x/adapter.safetensors: input/output error, while loading the base; saved at step")
    assert said.endswith("; look after the disk, then go on with: python train.py --resume x") and trained(X) == kept


def test_the_last_line_tells_of_the_state_that_resume_would_take(base, monkeypatch):
    cut_after(5, monkeypatch, base, *ROUNDED)

    def interrupt(*rest):
        raise KeyboardInterrupt
    monkeypatch.setattr(train_script, "prepare_data", interrupt)
    for damage, says in ((lambda: None, "saved at step 4; go on"),
                         (lambda: flip(X / "state/state.safetensors"), "saved at step 3, in x/state/state.previous."),
                         ((X / "state/state.safetensors").unlink, "state.safetensors is missing); go on with"),
                         (lambda: flip(X / "state/state.previous.safetensors"), "no saved state is whole (x/state/st"),
                         ((X / "state/state.previous.safetensors").unlink, "no step is saved yet; go on with")):
        damage()
        assert says in call(train_script, "--resume", "x")


def test_training_begins_again_on_the_same_base_without_its_state(base, monkeypatch):
    assert call(train_script, "--model", base, *FLAGS, *ROUNDED, "--out", "whole") is None
    cut_after(5, monkeypatch, base, *ROUNDED)
    (X / "adapter.safetensors").unlink()
    shutil.rmtree(X / "state")
    assert call(train_script, "--resume", "x") is None
    assert trained(X) == trained(WHOLE)


# ---- what a start leaves --------------------------------------------------------------------------------------------

def test_a_base_that_gptq_made_survives_a_first_step_that_diverges(base, monkeypatch):
    def diverge(*rest):
        raise TrainingDiverged("step 1: the gradient is not finite")
    for quantizer, stays in (("gptq", True), ("minmax", False)):
        with monkeypatch.context() as inside:
            inside.setattr(train_script.Trainer, "_one_step", diverge)
            said = call(train_script, "--model", base, *FLAGS, "--method", "qlora", "--quantizer", quantizer, "--block",
                        "16x1", "--out", quantizer)
        assert Path(quantizer).exists() == stays
        assert ("--model gptq/base --quantizer none --method qlora" in said) == stays
    before = Path("gptq/base.safetensors").read_bytes()
    assert call(train_script, "--model", "gptq/base", "--quantizer", "none", "--method", "qlora", *FLAGS, "--lr",
                "1e-5", "--out", "x") is None
    codes, used = load_file("gptq/base.safetensors"), load_file("gptq/base/model.safetensors")
    assert codes.keys() == used.keys() and all(torch.equal(codes[name], used[name]) for name in codes)
    assert call(train_script, "--resume", "gptq") is None  # or on as it began
    assert Path("gptq/base.safetensors").read_bytes() == before


def test_a_start_that_was_cut_off_before_its_config_may_be_made_again(base):
    """As by a power cut: nothing is cleaned up."""
    with another_process(lambda: (new_run(X, ""), copy_tokenizer(base, X))):
        assert "x: process" in call(train_script, "--model", base, *FLAGS, *ROUNDED, "--out", "x")
    assert {path.name for path in X.iterdir()} == {".lock", "tokenizer.model"}
    assert "no run there" in call(train_script, "--resume", "x")
    assert call(train_script, "--model", base, *FLAGS, *ROUNDED, "--out", "x") is None
    assert "x already holds something" in call(train_script, "--model", base, *FLAGS, *ROUNDED, "--out", "x")


# ---- sessions -------------------------------------------------------------------------------------------------------

def test_sessions_are_recorded_and_a_different_one_is_said(base, monkeypatch, capsys):
    cut_after(3, monkeypatch, base, *ROUNDED)
    with interrupted_after(4, monkeypatch):
        call(train_script, "--resume", "x")
    assert "last bits" not in capsys.readouterr().out
    with open(X / "sessions.jsonl", "a", encoding="utf-8") as file:
        file.write('{"started": "cut of')
    threads = torch.get_num_threads()
    with monkeypatch.context() as inside:
        inside.setattr(sessions, "processor", lambda: "Another 9000")
        inside.setattr(torch, "get_num_threads", lambda: threads + 1)
        assert call(train_script, "--resume", "x") is None
    said = capsys.readouterr().out
    assert (f"this session differs from the run's first one in the number of threads ({threads + 1}, at its start "
            f"{threads}), the processor (Another 9000, at its start {sessions.processor()}): the last bits may differ"
            in said)
    lines = list(Run(X).sessions)
    assert [line["step"] for line in lines] == [0, 3, 4] and lines[2]["threads"] == threads + 1
    assert lines[0].keys() >= {"threads", "torch", "python", "processor", "device", "dtype", "started"}
    assert json.loads((X / "config.json").read_text())["versions"]["torch"] == lines[0]["torch"]
