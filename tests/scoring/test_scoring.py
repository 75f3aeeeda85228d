"""Scoring as a user does it: other tasks than the run's own, perplexity, what is kept, and resuming."""
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import eval as eval_script
import train
from finetune.config import EMBEDDED_BASE
from finetune.source import Source
from model.checkpoint import load_model
from model.config_json import config_to_json
from model.directory import load_config, weight_files
from model.files import read_json, write_json
from model.generate import generate
from model.tokenizer import load_tokenizer
from scoring.resume import KeptAnswers
from scoring.score_run import read_by
from scoring.scores import TAKEN_UP
from tasks.banking77 import Banking77
from tasks.generative import CUT_GOLD, EMPTY, TRUNCATED
from tasks.labels import NO_LABEL
from tasks.perplexity import Perplexity, Text
from tasks.piqa import Piqa
from tasks.task import Asking, Example
from tests.cli import FEW, SMALL, call, rows_of


@pytest.fixture(scope="session")
def model(small_base):
    return load_model(weight_files(small_base), load_config(small_base), torch.float32)


@pytest.fixture(scope="session")
def tokenizer(small_base):
    return load_tokenizer(small_base)


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"The {i} th bank card has not come yet, what now?" for i in range(60)))
    return path


@pytest.fixture(scope="session")
def run(small_base, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "x"
    assert call(train, "--model", small_base, "--method", "qablora", *FEW, "--out", path) is None
    return path


# ---- perplexity ---------------------------------------------------------------------------------------------------

def naive_perplexity(model, tokens, window):
    """Its definition, one whole pass a window and one probability at a time."""
    logs = []
    for start in range(0, len(tokens) - window + 1, window):
        part = torch.tensor(tokens[start:start + window])
        p = model(part[None])[0].double().softmax(-1)
        logs += [math.log(p[t, part[t + 1]]) for t in range(window - 1)]
    return math.exp(-sum(logs) / len(logs)), len(logs)


def test_perplexity_is_its_definition(small_base, model, tokenizer, text_file, tmp_path, elsewhere):
    assert call(eval_script, "--model", small_base, "--task", "perplexity", "--test-data", text_file, "--max-length",
                "32", "--out", "p") is None
    row = rows_of(tmp_path / "p")["base"]
    expected, scored = naive_perplexity(model, tokenizer.encode(text_file.read_text()), 32)
    assert row["scores"]["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert row["scores"]["nats_per_token"] == pytest.approx(math.log(expected), rel=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "p" / "predictions.jsonl").read_text().splitlines()]
    assert sum(line["tokens"] for line in lines) == scored == 31 * row["counts"]["rows"]
    other, _ = naive_perplexity(model, tokenizer.encode(text_file.read_text()), 64)
    assert abs(other - expected) > 1e-3 * expected  # control: another window is another number


def test_flags_without_an_effect_are_said(small_base, text_file, elsewhere, capsys):
    assert call(eval_script, "--model", small_base, "--task", "perplexity", "--test-data", text_file, "--seed", "3",
                "--max-new-tokens", "5", "--out", "e") is None
    said = capsys.readouterr().err
    assert "--seed 3 has no effect: --task perplexity has no training rows" in said
    assert "--max-new-tokens 5 has no effect: --task perplexity has no written answers" in said


def test_windows_do_not_overlap_and_the_rest_is_left_out(tokenizer):
    text = "a bank card " * 30
    tokens = tokenizer.encode(text)
    windows = [w.tokens for w in Perplexity().test_rows([Text(text)], tokenizer, 16)]
    assert {len(w) for w in windows} == {16} and sum(windows, []) == tokens[:16 * (len(tokens) // 16)]
    # the only window, though not whole
    assert [w.tokens for w in Perplexity().test_rows([Text(text)], tokenizer, 1000)] == [tokens]


@pytest.mark.parametrize("arguments,message", [
    (["--task", "perplexity"], "--task perplexity needs --test-data"),
    (["--task", "perplexity", "--test-data", "nowhere.txt"], "nowhere.txt: no such text file"),
    (["--task", "perplexity", "--test-data", "bytes.txt"], "bytes.txt: not UTF-8 text"),
    (["--task", "perplexity", "--test-data", "empty.txt"], "a perplexity needs at least 2"),
    (["--task", "perplexity", "--test-data", "text.txt", "--quantizer", "gptq", "--block", "16x1"],
     "--task perplexity has no training rows to calibrate gptq on"),
    (["--task", "perplexity", "--test-data", "text.txt", "--max-length", "4000"],
     "positions: too few for --max-length 4000"),
    (["--task", "perplexity", "--test-data", "text.txt", "--max-length", "1"],
     "--max-length 1: a window needs at least 2 tokens"),
    (["--task", "perplexity", "--test-data", "text.txt", "--data", "text.txt"],
     "text.txt: --task perplexity takes no --data"),
    (["--task", "perplexity", "--test-data", "text.txt", "--limit", "3"],
     "--limit 3 is for training rows, and --task perplexity has none")])
def test_what_perplexity_cannot_be_is_said_before_a_weight_is_read(small_base, text_file, tmp_path, elsewhere,
                                                                   monkeypatch, arguments, message):
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xe9")
    (tmp_path / "empty.txt").write_text("")
    monkeypatch.setattr("scoring.score_model.load_base", lambda *rest: pytest.fail("weights were read"))
    assert message in call(eval_script, "--model", small_base, *arguments)
    assert not (tmp_path / "evals").exists()


def test_a_text_or_calibration_beyond_the_models_vocabulary_is_named_before_a_weight_is_read(
    small_base, text_file, tmp_path, elsewhere, monkeypatch):
    shutil.copytree(small_base, "cut")
    write_json(tmp_path / "cut" / "config.json", {**config_to_json(SMALL), "vocab_size": 300})
    monkeypatch.setattr(Source, "check_tensors", lambda *rest: None)
    monkeypatch.setattr("scoring.score_model.load_base", lambda *rest: pytest.fail("weights were read"))
    asked, message = ["--model", "cut", "--task", "perplexity", "--test-data"], "config.json says vocab_size 300"
    (tmp_path / "few.txt").write_text("a a a")
    assert message in call(eval_script, *asked, text_file)
    assert message in call(eval_script, *asked, "few.txt", "--quantizer", "gptq", "--block", "16x1", "--calibration",
                           text_file)


def test_training_on_a_benchmark_is_refused(small_base, text_file, elsewhere):
    assert "argument --task: perplexity has test rows only: train on one of auto, messages" in call(
        train, "--model", small_base, "--task", "perplexity", "--test-data", text_file)


def test_perplexities_of_other_texts_or_windows_are_not_compared(small_base, text_file, tmp_path, elsewhere, capsys):
    (tmp_path / "other.txt").write_text(text_file.read_text().replace("card", "note"))
    for out, text, window in (("p", text_file, 32), ("q", tmp_path / "other.txt", 32), ("r", text_file, 30),
                              ("s", text_file, 32)):
        assert call(eval_script, "--model", small_base, "--task", "perplexity", "--test-data", text, "--max-length",
                    window, "--test-limit", "3", "--out", out) is None
    assert "not scored on the same test rows" in call(eval_script, "--compare", "p:base", "q:base")
    assert "not scored on the same test rows" in call(eval_script, "--compare", "p:base", "r:base")
    assert call(eval_script, "--compare", "p:base", "s:base") is None


# ---- a run on another task than its own ---------------------------------------------------------------------------

def test_a_run_is_scored_on_another_task_beside_its_own(run, text_file, tmp_path):
    own = (run / "predictions.jsonl").read_text()
    assert call(eval_script, run, "--task", "perplexity", "--test-data", text_file, "--max-length", "32",
                "--test-limit", "3") is None
    rows = rows_of(run / "benchmarks" / "perplexity")
    assert list(rows) == ["base", "quantized", "trained", "merged-4bit"]
    assert {row["counts"]["rows"] for row in rows.values()} == {3}
    assert all(row["validation_loss"] is None for row in rows.values())
    assert len({row["scores"]["perplexity"] for row in rows.values()}) > 2
    assert rows["merged-4bit"]["scores"]["perplexity"] == pytest.approx(rows["trained"]["scores"]["perplexity"],
                                                                        rel=1e-5)
    assert (run / "predictions.jsonl").read_text() == own


def test_what_another_task_cannot_take_from_the_run_is_refused(run, text_file):
    asked = ["--task", "perplexity", "--test-data", text_file]
    assert "gptq is calibrated on the rows that the run was trained on" in call(eval_script, run, *asked, "--restore",
                                                                                "8", "--restore-quantizer", "gptq")
    assert "--data comes from the run" in call(eval_script, run, "--data", text_file)
    assert "--task perplexity needs --test-data" in call(eval_script, run, "--task", "perplexity")
    assert "--out x is for the scores of one run, and 2 are named" in call(eval_script, run, run, "--out", "x")


def test_scores_of_two_models_do_not_go_into_one_place(small_base, run, text_file, tmp_path, elsewhere):
    asked = ["--task", "perplexity", "--test-data", text_file, "--max-length", "32", "--test-limit", "2", "--out", "p"]
    assert call(eval_script, "--model", small_base, *asked) is None
    assert "p holds the scores of another model" in call(eval_script, "--model", run / "merged", *asked)
    (tmp_path / "rows.jsonl").write_text('{"goal": "a", "sol1": "b", "sol2": "c", "label": 0}')
    assert "p holds scores of --task perplexity" in call(eval_script, "--model", small_base, "--task", "piqa",
                                                         "--test-data", "rows.jsonl", "--out", "p")


def test_results_say_what_was_scored_and_how(small_base, text_file, tmp_path, elsewhere):
    from model.files import sha256_of
    assert call(eval_script, "--model", small_base, "--task", "perplexity", "--test-data", text_file, "--max-length",
                "32", "--out", "p") is None
    results = json.loads((tmp_path / "p" / "results.json").read_text())
    assert results["task"] == "perplexity" and results["protocol"] == Perplexity.protocol.format(32)
    assert results["model"] == sha256_of(small_base / "model.safetensors")
    text_file.write_text(text_file.read_text() + ".")
    assert call(eval_script, "--model", small_base, "--task", "perplexity", "--test-data", text_file, "--max-length",
                "32", "--out", "q") is None
    assert json.loads((tmp_path / "q" / "results.json").read_text())["data"]["test"] != results["data"]["test"]


# ---- going on after an interruption -------------------------------------------------------------------------------

@pytest.mark.parametrize("task,flags", [
    (Perplexity, ["--test-data", "text.txt", "--max-length", "32"]),
    # other batches round otherwise
    (Piqa, ["--test-data", Path(__file__).parent.parent / "fixtures" / "lm_eval" / "piqa.jsonl", "--eval-batch-size",
            "1"])])
def test_an_interrupted_scoring_goes_on_where_it_stopped(task, flags, small_base, text_file, tmp_path, elsewhere,
                                                         monkeypatch, capsys):
    asked = ["--model", small_base, "--task", task.name, *flags, "--bits", "4", "--block", "16x1"]
    assert call(eval_script, *asked, "--out", "whole") is None
    asked_for, original = [], task.answers

    def cut_off_after(n):
        def answers(self, model, rows, asking):
            for place, line in original(self, model, rows, asking):
                if len(asked_for) == n:
                    raise KeyboardInterrupt
                asked_for.append(rows[place])
                yield place, line
        return answers
    rows = rows_of(tmp_path / "whole")["base"]["counts"]["rows"]
    monkeypatch.setattr(task, "answers", cut_off_after(rows + 3))
    assert "SIGINT while scoring: the answers so far are kept" in call(eval_script, *asked, "--out", "p")
    assert not (tmp_path / "p" / "results.json").exists()
    (part,) = (tmp_path / "p").glob("answers-*.part.jsonl")
    with open(part, "a") as file:
        file.write('{"state": "cut o')  # as a killed process leaves it
    monkeypatch.setattr(task, "answers", cut_off_after(10 ** 6))
    assert call(eval_script, *asked, "--out", "p") is None
    assert f"{rows + 3} answers of an interrupted scoring are taken up" in capsys.readouterr().out
    assert len(asked_for) == 2 * rows  # nothing twice
    for state, row in rows_of(tmp_path / "whole").items():
        assert rows_of(tmp_path / "p")[state]["scores"] == row["scores"]
    # whose seconds are in no figure
    assert [row["counts"].get(TAKEN_UP) for row in rows_of(tmp_path / "p").values()] == [rows, 3]
    assert (tmp_path / "p" / "predictions.jsonl").read_text() == (tmp_path / "whole" / "predictions.jsonl").read_text()
    assert not part.exists()


def test_answers_to_another_question_are_not_taken_up(tmp_path):
    kept = KeptAnswers(tmp_path, {"rows": 3})
    kept.add("base", 0, {"text": "a"})
    assert KeptAnswers(tmp_path, {"rows": 3}).of("base") == {0: {"text": "a"}}
    assert KeptAnswers(tmp_path, {"rows": 3}).of("merged") == {}
    assert KeptAnswers(tmp_path, {"rows": 4}).of("base") == {}
    # a look at four rows in between costs nothing
    assert KeptAnswers(tmp_path, {"rows": 3}).of("base") == {0: {"text": "a"}}


def test_whatever_decides_an_answer_is_in_the_key_and_nothing_else(run, small_base, text_file, tmp_path, elsewhere,
                                                                   monkeypatch):
    keys = []

    def interrupted(directory, key):
        keys.append(json.dumps(key, sort_keys=True))
        raise KeyboardInterrupt
    monkeypatch.setattr("scoring.score_run.KeptAnswers", interrupted)
    (tmp_path / "other.txt").write_text(text_file.read_text().replace("card", "note"))
    shutil.copytree(run, "x")

    def asked(*flags, data=text_file):
        assert call(eval_script, "x", "--task", "perplexity", "--test-data", data, *flags).startswith("SIGINT")
    for flags in ([], ["--eval-batch-size", "2"], ["--test-limit", "2"], ["--max-length", "30"],
                  ["--max-new-tokens", "4"], ["--restore", "8"]):
        asked(*flags)
    asked(data="other.txt")
    shutil.copy("other.txt", text_file)
    asked()
    tensors = load_file("x/adapter.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, "x/adapter.safetensors")
    asked()
    for fact, another in (("template_version", 99), ("protocol", "another wording of windows of {} tokens")):
        monkeypatch.setattr(f"tasks.perplexity.Perplexity.{fact}", another)
        asked()
    assert keys[0] == keys[1] and len(set(keys)) == len(keys) - 1


@pytest.mark.parametrize("file,change", [("tokenizer.model", None), ("tokenizer_config.json", {"add_bos_token": False}),
                                         ("config.json", {"rope_theta": 5e5})])
def test_answers_of_another_tokenizer_or_configuration_are_not_taken_up(small_base, tmp_path, file, change):
    """A scoring is interrupted, a mistake in the model directory is corrected, and the same command runs again: the
    weights alone would not show the difference."""
    shutil.copytree(small_base, tmp_path / "model")
    before, path = read_by(Source(tmp_path / "model")), tmp_path / "model" / file
    if change:
        write_json(path, {**(json.loads(path.read_text()) if path.is_file() else {}), **change})
    else:
        path.write_bytes(path.read_bytes() + b"\xa0\x06\x00")  # a field more, which nobody reads
    after = read_by(Source(tmp_path / "model"))
    assert before == read_by(Source(small_base)) and before != after


@pytest.mark.parametrize("ways", [[[], ["--quantized-layers", "attention"]],
                                  [["--quantizer", "gptq", "--calibration", "text.txt", *more]
                                   for more in ([], ["--act-order"])]])
def test_two_ways_of_quantizing_are_two_states_and_are_kept_with_their_flags(small_base, text_file, tmp_path, elsewhere,
                                                                             ways):
    asked = ["--model", small_base, "--task", "perplexity", "--test-data", text_file, "--max-length", "32",
             "--test-limit", "2", "--bits", "4", "--block",
             "16x1", "--without-base", "--out", "p"]
    for flags in ways:
        assert call(eval_script, *asked, *flags) is None
    states = [json.loads(line)["state"] for line in (tmp_path / "p" / "predictions.jsonl").read_text().splitlines()]
    assert len(states) == 4 and len(set(states)) == 2
    base = json.loads((tmp_path / "p" / "results.json").read_text())["config"]["base"]
    reports = tmp_path / "p" / "quantization.json"
    assert (set(read_json(reports)) if reports.is_file() else set()) == (set(states) if "gptq" in ways[0]
                                                                                      else set())
    assert (base["quantized_layers"], base["quantization"]) == (
        ("attention", "minmax@16x1-4bit") if len(ways[1]) == 2 else ("all", "gptq:minmax@16x1-4bit+act-order"))


# ---- writing answers ----------------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_generation_stops_at_the_stop_text_and_what_is_before_it_counts(tokenizer, batch_size):
    """Against plain generation of all tokens, cut afterwards, at any batch size. The embedded base writes words."""
    model = load_model(weight_files(EMBEDDED_BASE), load_config(EMBEDDED_BASE), torch.float32)
    rows = [Example(f"Where is my card number {i * 7}? {'Please tell me. ' * (i % 3)}", "x") for i in range(7)]
    prompts = [tokenizer.encode(row.prompt) for row in rows]
    whole = [tokenizer.decode(ids) for ids in generate(model, prompts, 12, (2,), 1)]
    task, stop = Banking77(), whole[0].strip()[len(whole[0]) // 2]
    task.stop_texts = (stop, "never written")
    lines = dict(task.answers(model, rows, Asking(tokenizer, (2,), 12, batch_size)))
    assert [lines[i]["text"] for i in range(7)] == [text.split(stop)[0].strip() for text in whole]
    assert lines[0]["text"] != whole[0].strip()  # control: there was something to stop at


def test_a_stop_text_ends_the_generation_of_tokens(model, tokenizer, monkeypatch):
    passes, hidden = [], model.hidden
    monkeypatch.setattr(model, "hidden", lambda *rest, **more: passes.append(1) or hidden(*rest, **more))

    class AtOnce(Banking77):
        stop_texts = ("",)  # in every text
    list(AtOnce().answers(model, [Example("a", "b")], Asking(tokenizer, (2,), 12, 1)))
    assert len(passes) == 1


def test_cut_prompts_and_empty_answers_are_flagged_and_counted(model, tokenizer):
    class Nothing(Banking77):
        stop_texts = ("",)
    rows = [Example("short", "x"), Example("card " * 400, "x")]
    lines = dict(Nothing().answers(model, rows, Asking(tokenizer, (2,), 12, 2)))
    assert lines[0]["flags"] == [EMPTY, CUT_GOLD, NO_LABEL] and lines[1]["flags"] == [
        TRUNCATED, EMPTY, CUT_GOLD, NO_LABEL]


# ---- without the base ---------------------------------------------------------------------------------------------

def test_the_base_can_be_left_out(small_base, run, text_file, tmp_path, elsewhere):
    asked = ["--task", "perplexity", "--test-data", text_file, "--max-length", "32", "--test-limit", "2",
             "--without-base"]
    assert call(eval_script, "--model", small_base, *asked, "--bits", "4", "--block", "16x1", "--out", "p") is None
    assert list(rows_of(tmp_path / "p")) == ["quantized-4bit-minmax-16x1"]
    assert call(eval_script, run, *asked) is None
    assert list(rows_of(run / "benchmarks" / "perplexity")) == ["quantized", "trained", "merged-4bit"]
    assert "--without-base leaves nothing to score" in call(eval_script, "--model", small_base, *asked)


def test_what_is_no_share_of_one_is_compared_in_its_own_unit(small_base, text_file, tmp_path, elsewhere, capsys):
    asked = ["--task", "perplexity", "--test-data", text_file, "--max-length", "32", "--test-limit", "3", "--bits", "2",
             "--block", "16x1", "--out", "p"]
    assert call(eval_script, "--model", small_base, *asked) is None
    assert "the papers' rows are" not in capsys.readouterr().out  # they are perplexities, not nats
    assert call(eval_script, "--compare", "p:base", "p:quantized-2bit-minmax-16x1") is None
    printed = capsys.readouterr().out
    assert "%" not in printed.replace("95 % interval", "")
    assert f"({rows_of(tmp_path / 'p')['base']['scores']['nats_per_token']:.4f})" in printed
