"""States that one file keeps, scored at different times with different flags: said, and compared only with a word."""
import json
from pathlib import Path

import pytest

import eval as eval_script
from model.journal import Journal
from scoring import score_model
from scoring.predictions import differing
from scoring.scores import Scoring
from scoring.state import BASE, State
from tests.cli import call


@pytest.fixture
def scored(small_base, tmp_path, elsewhere):
    (tmp_path / "rows.jsonl").write_text("".join(
        json.dumps({"text": f"lost card {i}", "category": "card_arrival"}) + "\n" for i in range(30)))
    asked = ["--model", small_base, "--data", "rows.jsonl", "--test-data", "rows.jsonl", "--test-limit", "8",
             "--out", "a"]

    def score(*flags):
        assert call(eval_script, *asked, *flags) is None
    score.asked = asked
    return score


def states():
    return {line["state"]: line["asked"] for line in map(json.loads, open("a/predictions.jsonl"))}


def test_a_state_that_stays_from_other_flags_is_named(scored, capsys):
    scored("--max-new-tokens", "2", "--bits", "4", "--block", "16x1")
    quantized = next(state for state in states() if state != "base")
    assert "earlier scoring" not in capsys.readouterr().out
    scored("--max-new-tokens", "3")
    out = capsys.readouterr().out
    assert f"state {quantized} stays from an earlier scoring with --max-new-tokens 2, here 3" in out
    assert (states()["base"]["--max-new-tokens"], states()[quantized]["--max-new-tokens"]) == (3, 2)
    assert call(eval_script, "--compare", "a:base", f"a:{quantized}") is None
    assert f"note: a:{quantized} was scored with other flags than a:base: --max-new-tokens 2, here 3" \
        in capsys.readouterr().out


def test_states_of_the_same_flags_are_compared_without_a_word(scored, capsys):
    """Control, also for another type: that is one of the flags."""
    scored("--max-new-tokens", "2", "--bits", "4", "--block", "16x1", "--dtype", "float32")
    quantized = next(state for state in states() if state != "base")
    scored("--max-new-tokens", "2", "--dtype", "float32")
    assert call(eval_script, "--compare", "a:base", f"a:{quantized}") is None
    assert "other flags" not in (out := capsys.readouterr().out) and "earlier scoring" not in out
    scored("--max-new-tokens", "2", "--dtype", "bfloat16")
    assert "--dtype float32, here bfloat16" in capsys.readouterr().out


@pytest.fixture(scope="module")
def lines(small_base, tmp_path_factory):
    """What one scoring of the state `base` keeps."""
    place = tmp_path_factory.mktemp("scored")
    rows = place / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"lost card {i}", "category": "card_arrival"}) + "\n"
                            for i in range(30)))
    assert call(eval_script, "--model", small_base, "--data", rows, "--test-data", rows, "--test-limit", "8",
                "--max-new-tokens", "2", "--out", place / "a") is None
    return list(Journal(place / "a/predictions.jsonl"))


@pytest.fixture
def compared(lines, elsewhere):
    """Compares these lines, as those of the run a, with the same ones, each changed, as those of b."""
    def compare(change):
        for name, of_run in (("a", lines), ("b", [{**line, **change(line)} for line in lines])):
            Path(name).mkdir()
            Path(name, "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in of_run))
        return call(eval_script, "--compare", "a:base", "b:base")
    return compare


@pytest.mark.parametrize("change,message", [
    (lambda line: {"asked": {**line["asked"], "protocol": "another"}},
     "b:base was asked in another way than a:base (protocol another, here "),
    (lambda line: {"asked": {**line["asked"], "template": 0}}, "(template 0, here "),
    (lambda line: {"prompt": f"Text: a shot\n\n{line['prompt']}"}, "not scored on the same test rows"),
    (lambda line: {"gold": "age limit"}, "not scored on the same test rows"),
    (lambda line: {"choices": ["a", "b"]}, "not scored on the same test rows"),
    (lambda line: {"contexts": ["a", "b"]}, "not scored on the same test rows")])
def test_states_that_were_asked_in_another_way_are_not_compared(compared, capsys, change, message):
    assert message in compared(change)
    assert capsys.readouterr().out.count("note:") == 0


@pytest.mark.parametrize("change,note", [
    (lambda line: {}, ""),
    (lambda line: {"asked": {**line["asked"], "--dtype": "bfloat16"}}, "note: b:base was scored with other flags"),
    (lambda line: {"flags": ["prompt cut on the left"]}, "note: b:base read 8 prompts that were cut on the left, "
                                                         "a:base 0"),
    (lambda line: {"asked": None}, "note: b:base: scored by an older version, which did not keep the flags")])
def test_what_may_be_the_point_of_a_comparison_is_said(compared, capsys, change, note):
    assert compared(change) is None
    out = capsys.readouterr().out
    assert note in out and out.count("note:") == bool(note)


def test_two_states_of_one_key_are_an_error_and_not_one_anothers_answers(small_base):
    """Keys leave out all but letters: these two ways of making a state would share their answers."""
    a, b = State("quantized", 4, "nf@64x1+double-quant"), State("quantized", 4, "nf@64x1 double-quant")
    assert a.key == b.key
    scoring = Scoring(None, 1)
    scoring.begin(BASE), scoring.begin(a)
    with pytest.raises(ValueError, match=f"two states share the key {a.key}: .*double-quant.* and .*double-quant"):
        scoring.begin(b)


def test_scoring_a_state_begins_it(scored, monkeypatch):
    monkeypatch.setattr(score_model, "quantized_state", lambda config: BASE)
    with pytest.raises(AssertionError, match="two states share the key base"):
        message = call(eval_script, *scored.asked, "--bits", "4", "--block", "16x1")
        assert not message, message


def test_files_of_older_versions_name_no_flags():
    assert differing({}, {"--dtype": "float32"}) == "" == differing({"--dtype": "float32"}, {})
