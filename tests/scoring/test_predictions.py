"""Answers that are kept, read for a comparison."""
from model.journal import Journal
from scoring import predictions
from scoring.predictions import read_together


def test_two_states_of_a_run_are_of_one_version_though_a_scoring_replaces_the_file(tmp_path, monkeypatch):
    def scored(limit):
        return [{"state": state, "task": "t", "prompt": "p", "gold": "g", "rows": 1, "score": 1.0,
                 "asked": {"--max-new-tokens": limit}} for state in ("trained", "quantized")]

    def lines_then_replaced(path, read=predictions._lines):
        found = read(path)
        Journal(path).rewrite(scored(2))
        return found

    Journal(tmp_path / "predictions.jsonl").rewrite(scored(4))
    monkeypatch.setattr(predictions, "_lines", lines_then_replaced)
    assert [p.asked["--max-new-tokens"] for p in read_together([f"{tmp_path}", f"{tmp_path}:quantized"])] == [4, 4]
