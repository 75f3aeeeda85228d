"""Two commands on one run: the second writer is refused and touches nothing; a reader reads one version of it."""
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import eval as eval_script
import export as export_script
import judge as judge_script
import sample as sample_script
import train as train_script
from finetune.lock import hold
from model.files import sha256_of
from scoring import score_run
from tests.cli import FEW, call, few, interrupted_after, rows_of, train_once
from tests.processes import another_holds, another_process, read_only

pytestmark = pytest.mark.usefixtures("elsewhere")
X = Path("x")
LESS = ("--test-limit", "2", "--max-new-tokens", "1")
PERPLEXITY = ("--task", "perplexity", "--test-data", "text.txt", "--max-length", "32", "--test-limit", "1")
TWO_EPOCHS = ("--limit", "40", "--test-limit", "2", "--max-new-tokens", "1", "--batch-size", "12", "--epochs", "3")
# 40 rows less a tenth make 3 steps an epoch


def files_of(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.rglob("*") if path.is_file()}


def cut_after(steps: int, monkeypatch, base: Path, *flags) -> None:
    with interrupted_after(steps, monkeypatch):
        assert "--resume x" in call(train_script, "--model", base, *TWO_EPOCHS, *flags, "--out", "x")


def test_a_second_writer_says_who_writes_and_touches_nothing(small_base, tmp_path, monkeypatch):
    Path("text.txt").write_text("some words in a row " * 40)
    train_once(small_base, *FEW)
    with another_holds(X) as pid:
        before = files_of(X)
        by_whom = f"error: x: process {pid} on "
        assert call(train_script, "--resume", "x").startswith(by_whom)
        for flags in ((), ("--restore", "8"), PERPLEXITY):
            said = call(eval_script, "x", *flags)
            assert said.startswith(by_whom) and said.endswith("python eval.py x --out DIR"), flags
        assert "x already holds something" in call(train_script, "--model", small_base, *FEW, "--out", "x")
        assert files_of(X) == before
        assert call(sample_script, "x", "--prompt", "a", "--max-new-tokens", "2") is None  # these only read
        assert call(eval_script, "--compare", "x", "x:quantized") is None
        assert call(export_script, "x", "--format", "safetensors", "--to", "dense") is None
        assert call(eval_script, "x", *LESS, "--out", "elsewhere/scores") is None
        assert files_of(X) == before
    assert list(rows_of(tmp_path / "elsewhere" / "scores")) == ["base", "quantized", "trained", "merged-4bit"]
    assert (tmp_path / "elsewhere" / "scores" / "merged" / "model.safetensors").is_file()
    assert call(eval_script, "x", *LESS) is None  # control: nobody writes now


def test_benchmarks_of_one_run_are_scored_beside_each_other_and_one_of_them_once(small_base, tmp_path):
    Path("text.txt").write_text("some words in a row " * 40)
    train_once(small_base, *FEW)
    shutil.rmtree(X / "merged")
    with another_process(lambda: (hold(X, shared=True), hold(X / "benchmarks" / "piqa"))):
        assert call(eval_script, "x", *PERPLEXITY) is None
        assert not (X / "merged").exists()  # another benchmark may read it
        assert "writes there now" in call(eval_script, "x", *LESS)
        assert "writes there now" in call(train_script, "--resume", "x")
    with another_process(lambda: (hold(X, shared=True), hold(X / "benchmarks" / "perplexity"))):
        assert "x/benchmarks/perplexity: process" in call(eval_script, "x", *PERPLEXITY)


def test_scores_exports_and_judgements_in_one_place_have_one_writer(small_base, wide_base, tmp_path):
    Path("text.txt").write_text("some words in a row " * 40)
    train_once(small_base, *FEW)
    with another_holds(Path("scores")):
        assert "scores: process" in call(eval_script, "--model", small_base, *PERPLEXITY, "--out", "scores")
        assert "scores: process" in call(eval_script, "x", *LESS, "--out", "scores")
    with another_process(lambda: hold(tmp_path, ".dense.lock")):
        assert "process" in call(export_script, "x", "--format", "safetensors", "--to", "dense")
        assert not Path("dense").exists()
    assert call(export_script, "x", "--format", "safetensors", "--to", "dense") is None
    assert not list(tmp_path.glob(".*.lock"))
    lines = [{"state": state, "task": "alpaca", "row": 0, "prompt": "a", "gold": "b", "text": state, "score": 1.0}
             for state in ("trained", "quantized")]
    Path("r").mkdir()
    Path("r/predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with another_holds(Path("judged")):
        assert "judged: process" in call(judge_script, "r", "r:quantized", "--judge-model", wide_base, "--out",
                                         "judged")


def test_scores_of_another_run_in_out_are_left_alone(small_base):
    Path("text.txt").write_text("some words in a row " * 40)
    train_once(small_base, *FEW)
    shutil.copytree("x", "y")
    assert call(eval_script, "x", *LESS, "--out", "scores") is None
    assert "--out scores holds the scores of " in call(eval_script, "y", *LESS, "--out", "scores")
    assert "on --task banking77: give another" in call(eval_script, "x", *PERPLEXITY, "--out", "scores")
    assert "--out y is a run itself" in call(eval_script, "x", *LESS, "--out", "y")
    assert call(eval_script, "x", *LESS, "--out", "scores") is None


def test_a_run_that_cannot_be_written_is_scored_elsewhere_and_sampled_from(small_base, tmp_path):
    train_once(small_base, *FEW)
    with read_only(X):
        before = files_of(X)
        said = call(eval_script, "x", *LESS)
        assert said == ("error: x cannot be written (Permission denied). To keep the scores elsewhere: "
                        "python eval.py x --out DIR")
        assert "x cannot be written" in call(train_script, "--resume", "x")
        assert call(eval_script, "x", *LESS, "--restore", "8", "--merge", "--out", "scores") is None
        assert call(sample_script, "x", "--prompt", "a", "--max-new-tokens", "2") is None
        assert call(export_script, "x", "--format", "safetensors", "--to", "dense") is None
        assert files_of(X) == before
    assert {path.name for path in Path("scores").iterdir()} == {
        ".lock", "merged", "predictions.jsonl", "restoration.json", "restored-8bit", "results.json"}


@pytest.mark.parametrize("method", ["qablora", "full"])
def test_what_was_scored_is_recorded_and_not_what_training_has_put_there_since(small_base, tmp_path, monkeypatch,
                                                                              method):
    """Training keeps another version while the first state is scored."""
    train_once(small_base, "--method", method, *few(method))
    file = X / ("model" if method == "full" else "adapter")
    file = file.with_suffix(".safetensors")
    first, scored = sha256_of(file), []
    right = score_run.score_state
    other = {name: tensor + 0.5 * torch.ones_like(tensor) for name, tensor in load_file(file).items()}

    def replaced(state, *rest):
        if not scored:
            save_file(other, "new.safetensors", metadata={"format": "pt"})
            Path("new.safetensors").replace(file)
        scored.append(state.key)
        return right(state, *rest)
    with monkeypatch.context() as inside:
        inside.setattr(score_run, "score_state", replaced)
        assert call(eval_script, "x", "--out", "a") is None
    results = json.loads(Path("a/results.json").read_text())
    assert results["trained"]["sha256"] == first and first in results["model"] and sha256_of(file) != first
    loss = rows_of(X)["trained"]["validation_loss"]
    assert rows_of(Path("a"))["trained"]["validation_loss"] == loss
    assert call(eval_script, "x", "--out", "b") is None  # control: the other version is another model
    assert rows_of(Path("b"))["trained"]["validation_loss"] != loss


@pytest.mark.parametrize("method", ["lora", "full"])
def test_scores_samples_exports_and_predictions_of_an_unfinished_run_say_at_which_step(small_base, tmp_path,
                                                                                      monkeypatch, capsys, method):
    """The newest state is of step 4, and what was kept of step 3."""
    cut_after(5, monkeypatch, small_base, "--method", method, "--save-every", "4")
    capsys.readouterr()
    assert call(eval_script, "x", *LESS) is None
    assert "unfinished: step 3 of 9" in capsys.readouterr().out
    assert json.loads((X / "eval.json").read_text())["trained"]["unfinished"] == "step 3 of 9"
    lines = [json.loads(line) for line in (X / "predictions.jsonl").read_text().splitlines()]
    assert {line["state"]: line.get("unfinished") for line in lines}["trained"] == "step 3 of 9"
    assert not any("unfinished" in line for line in lines if line["state"] == "base")
    assert call(eval_script, "--compare", "x", "x:base") is None
    assert "note: x:trained was scored before its training ended: step 3 of 9" in capsys.readouterr().out
    assert call(sample_script, "x", "--prompt", "a", "--max-new-tokens", "2") is None
    assert "x is unfinished: step 3 of 9" in capsys.readouterr().err
    assert call(export_script, "x", "--format", "safetensors", "--to", "dense") is None
    assert "unfinished: step 3 of 9" in capsys.readouterr().out
    report = json.loads(Path("dense/export.json").read_text())
    assert report["unfinished"] == report["trained"]["unfinished"] == "step 3 of 9"
    assert call(train_script, "--resume", "x") is None
    assert "unfinished" not in capsys.readouterr().out
    assert json.loads((X / "results.json").read_text())["trained"]["step"] in (3, 6, 9)
    assert not any("unfinished" in line for line in (X / "predictions.jsonl").read_text().splitlines())


def test_the_moment_between_the_adapter_and_its_record_claims_no_step(small_base, monkeypatch, capsys):
    cut_after(5, monkeypatch, small_base)
    file = X / "adapter.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    assert call(eval_script, "x", *LESS, "--without-base") is None
    assert "unfinished: training has not ended" in capsys.readouterr().out
