"""States that one file keeps, scored at different times with different flags: said, and compared only with a word."""
import json

import pytest

import eval as eval_script
from scoring.predictions import differing
from tests.cli import call


@pytest.fixture
def scored(small_base, tmp_path, elsewhere):
    (tmp_path / "rows.jsonl").write_text("".join(
        json.dumps({"text": f"lost card {i}", "category": "card_arrival"}) + "\n" for i in range(30)))
    asked = ["--model", small_base, "--data", "rows.jsonl", "--test-data", "rows.jsonl", "--test-limit", "8",
             "--out", "a"]

    def score(*flags):
        assert call(eval_script, *asked, *flags) is None
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


def test_files_of_older_versions_name_no_flags():
    assert differing({}, {"--dtype": "float32"}) == "" == differing({"--dtype": "float32"}, {})
