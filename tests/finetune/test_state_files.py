"""The newest state and the one before it: a damaged newest one costs some steps, not the run."""
import errno
import json
import re
from pathlib import Path

import pytest
import torch

import train as train_script
from finetune.state_files import StateFiles
from model import durable
from model.files import Damaged, read_json, write_json, write_record, write_text
from model.journal import Journal
from model.tensor_files import open_safetensors
from tests.cli import call, interrupted_after
from tests.finetune.test_loop import adapted_model, trainer

FEW = ("--task", "banking77", "--method", "lora", "--limit", "20", "--test-limit", "2", "--steps", "6",
       "--batch-size", "4", "--max-new-tokens", "1", "--save-every", "2")


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def step_of(path: Path) -> int:
    with open_safetensors(path) as file:
        return json.loads(file.metadata()["place"])["step"]


# ---- the files ------------------------------------------------------------------------------------------------------

def saved(tmp_path: Path, *numbers: float) -> StateFiles:
    states = StateFiles(tmp_path / "state" / "state.safetensors")
    for number in numbers:
        states.save({"x": torch.tensor([number])}, {"place": json.dumps({"step": number})})
    return states


def loaded(states: StateFiles) -> float:
    found = []
    states.load(lambda file: found.append(file.get_tensor("x").item()))
    return found[-1]


def test_the_newest_state_is_loaded_and_the_one_before_it_stays(tmp_path):
    states = saved(tmp_path, 1, 2, 3)
    assert loaded(states) == 3
    assert (step_of(states.newest), step_of(states.previous)) == (3, 2)
    assert len(list(states.newest.parent.iterdir())) == 2


@pytest.mark.parametrize("damage", [lambda path: flip(path, -1), lambda path: flip(path, 30), Path.unlink,
                                    lambda path: path.write_bytes(path.read_bytes()[:-1]),
                                    lambda path: path.write_bytes(b"")])
def test_a_damaged_newest_state_gives_way_to_the_one_before_it(tmp_path, damage, capsys):
    states = saved(tmp_path, 1, 2)
    assert states.stand() == "saved at step 2"
    damage(states.newest)
    bad = states.newest.read_bytes() if states.newest.exists() else None
    assert states.stand().startswith(f"saved at step 1, in {states.previous} ({states.newest}")
    assert loaded(states) == 1
    said = capsys.readouterr().out
    assert str(states.newest) in said and f"Going on from the state before it, {states.previous}" in said
    assert (f"{states.newest} is missing. Going on" in said) == (bad is None) != ("is kept as" in said)
    assert loaded(states) == 1 and not states.previous.exists()  # the damaged one is never kept as the previous one
    assert bad == (states.damaged.read_bytes() if states.damaged.exists() else None)
    assert states.stand() == "saved at step 1"
    states.save({"x": torch.tensor([9.0])}, {"place": "{}"})
    assert loaded(states) == 9 and states.previous.is_file()


def test_two_damaged_states_are_an_error_that_says_what_to_do(tmp_path):
    states = saved(tmp_path, 1, 2)
    for path in (states.newest, states.previous):
        flip(path, -1)
    with pytest.raises(Damaged, match=r"state.previous.safetensors: tensor x is damaged: .* Restore the file"):
        states.load(lambda file: file.check())
    assert states.newest.is_file() and states.previous.is_file()
    assert re.fullmatch(r"no saved state is whole \(.*state.safetensors: .*; .*previous.*\): restore one from a copy "
                        "first", states.stand())
    states.previous.unlink()
    assert "no saved state is whole" in states.stand() and "previous.safetensors is missing" in states.stand()
    with pytest.raises(Damaged, match=r"state.safetensors: tensor x is damaged: .* No other state is there"):
        states.load(lambda file: file.check())


def test_two_whole_states_are_on_the_disk_while_the_third_is_written(tmp_path, monkeypatch):
    states, seen, original = saved(tmp_path, 1, 2), [], durable.flush
    monkeypatch.setattr(durable, "flush", lambda fd: (seen.append((step_of(states.newest), step_of(states.previous))),
                                                      original(fd)))
    states.save({"x": torch.tensor([3.0])}, {"place": json.dumps({"step": 3})})
    assert seen[0] == (2, 1) and seen[-1] == (3, 2)


# ---- of a training --------------------------------------------------------------------------------------------------

def test_a_run_that_falls_back_ends_in_the_same_bytes(tmp_path):
    """Also where the kept adapter is newer than the state: its steps are taken again."""
    kept = {}

    def at(name):
        run = trainer(tmp_path / name, adapted_model(dropout=0.2))
        run.keep_best = lambda: kept.update({name: [p.detach().clone() for p in run.parameters.values()]})
        return run
    torch.manual_seed(3)
    at("a").run()
    torch.manual_seed(3)
    at("b").run()
    newest = at("b").states.newest
    assert (step_of(newest), step_of(newest.with_name("state.previous.safetensors"))) == (15, 14)
    flip(newest, -1)
    again = at("b")
    again.load_state()
    assert again.step == 14
    again.run()
    assert all(map(torch.equal, kept["a"], kept["b"])) and step_of(newest) == 15


def test_the_log_is_flushed_before_the_state_and_the_best_adapter_is_kept_before_both(tmp_path):
    order = []
    run = trainer(tmp_path, adapted_model(), keep=lambda: order.append("keep"))
    run.flush_log = lambda: order.append("log")
    save = run.states.save
    run.states.save = lambda *rest: (order.append("state"), save(*rest))
    run.run()
    assert order[:7] == ["log", "state", "log", "state", "keep", "log", "state"]
    assert "log,log" not in ",".join(order) and order.count("log") == order.count("state")


@pytest.mark.usefixtures("elsewhere")
def test_train_flushes_the_runs_own_metrics(small_base, monkeypatch):
    """Up to the step of each state."""
    seen, flush, save = [], Journal.flush, StateFiles.save
    monkeypatch.setattr(Journal, "flush", lambda self: (
        seen.append(len(list(self))) if self.path.name == "metrics.jsonl" else None, flush(self)))
    monkeypatch.setattr(StateFiles, "save", lambda self, tensors, place: (
        seen.append(json.loads(place["place"])["step"]), save(self, tensors, place)))
    assert call(train_script, "--model", small_base, *FEW, "--out", "x") is None
    assert seen[:4] == [2, 2, 4, 4]


@pytest.mark.usefixtures("elsewhere")
def test_resume_says_which_tensor_is_damaged_and_ends_in_the_same_bytes(small_base, monkeypatch, capsys):
    assert call(train_script, "--model", small_base, *FEW, "--out", "whole") is None
    with interrupted_after(5, monkeypatch):
        call(train_script, "--model", small_base, *FEW, "--out", "x")
    state = Path("x/state/state.safetensors")
    assert step_of(state) == 5
    flip(state, -1)
    with open("x/metrics.jsonl", "ab") as file:
        file.write(b"\0\0\0{")  # as when the power goes
    assert call(train_script, "--resume", "x") is None
    said = capsys.readouterr().out
    assert "x/state/state.safetensors: tensor " in said and " is damaged: its sha256 is " in said
    assert "Going on from the state before it, x/state/state.previous.safetensors" in said
    assert Path("x/adapter.safetensors").read_bytes() == Path("whole/adapter.safetensors").read_bytes()
    steps = [[record.get("loss") for record in Journal(Path(run, "metrics.jsonl"))] for run in ("x", "whole")]
    assert steps[0] == steps[1] and len(steps[0]) > 6


# ---- what else a run holds ------------------------------------------------------------------------------------------

@pytest.mark.usefixtures("elsewhere")
def test_a_flipped_digit_or_bit_of_a_run_is_named(small_base):
    import eval as eval_script
    assert call(train_script, "--model", small_base, *FEW, "--out", "x") is None
    for name, change, message in (
            ("config.json", lambda c: c.replace(b'"seed": 0', b'"seed": 1'), "changed after it was written"),
            ("config.json", lambda c: c.replace(b'"rope_theta": 1', b'"rope_theta": 2'), "sha256_of_the_rest"),
            ("tokenizer.model", lambda c: c[:5000] + bytes([c[5000] ^ 1]) + c[5001:], "fingerprints, tokenizer"),
            ("adapter.safetensors", lambda c: c[:-1] + bytes([c[-1] ^ 1]), "adapter.safetensors: tensor model.layers")):
        whole = Path("x", name).read_bytes()
        Path("x", name).write_bytes(change(whole))
        assert Path("x", name).read_bytes() != whole
        said = call(eval_script, "x", "--without-base") or ""
        assert f"x/{name}" in said and message in said, said
        Path("x", name).write_bytes(whole)
    assert call(eval_script, "x", "--without-base") is None


def test_a_record_that_was_changed_on_purpose_is_read_once_its_checksum_is_gone(tmp_path):
    write_record(tmp_path / "config.json", {"lr": 1e-4, "names": ["é", 3], "no": None})
    assert read_json(tmp_path / "config.json") == {"lr": 1e-4, "names": ["é", 3], "no": None}
    text = (tmp_path / "config.json").read_text().replace("0.0001", "0.0002")
    write_text(tmp_path / "config.json", text)
    with pytest.raises(Damaged, match=r"config.json: changed after it was written: .* delete the entry sha256_of_the_"):
        read_json(tmp_path / "config.json")
    write_text(tmp_path / "config.json", text[:text.index(',\n  "sha256_of_the_rest')] + "}")
    assert read_json(tmp_path / "config.json")["lr"] == 2e-4
    write_json(tmp_path / "older.json", {"lr": 1})
    assert read_json(tmp_path / "older.json") == {"lr": 1}


def test_a_process_without_descriptors_does_not_cost_the_newest_state(tmp_path, monkeypatch):
    files = StateFiles(tmp_path / "state.safetensors")
    for step in (1, 2):
        files.save({"a": torch.full((3,), float(step))}, {})

    def refused(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")
    for opening in ("model.tensor_files.safe_open", "model.tensor_files.open"):
        with monkeypatch.context() as inside:
            inside.setattr(opening, refused, raising=False)
            with pytest.raises(OSError, match="Too many open files"):
                files.load(lambda file: None)
    assert files.newest.is_file() and files.previous.is_file()


@pytest.mark.parametrize("call", ["os.pread", "os.preadv"])
def test_an_input_output_error_leaves_every_state_as_it_is(tmp_path, monkeypatch, call):
    """Of the header, or of a tensor: another attempt may read it."""
    files = saved(tmp_path, 1, 2)
    with monkeypatch.context() as inside:
        def broken(descriptor, *rest):
            raise OSError(errno.EIO, "Input/output error")
        inside.setattr(call, broken)
        message = r"state.safetensors cannot be read \(Input/output error\). It was left as it is: .* or move this file"
        with pytest.raises(OSError, match=message):
            files.load(lambda file: file.check())
        with pytest.raises(OSError, match=message):  # Work.stands says that it cannot be read
            files.stand()
    assert loaded(files) == 2 and len(list(files.newest.parent.iterdir())) == 2
    files.newest.rename(tmp_path / "away")  # what the message says
    assert loaded(files) == 1
