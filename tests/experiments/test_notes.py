"""What is told of how cells were made, on made-up cells."""
import pytest

from experiments.claims import notes, pictures, plr, plr_recipe
from experiments.claims.evidence import Cells, Judged
from tasks.significance import compare_scores
from tests.experiments import fake_results


def cells_of(*found):
    cells = Cells([])
    cells.facts = {f"{i}": {"plan": "plr", **facts} for i, facts in enumerate(found)}
    return cells


def trained(task, times):
    """As workers write it: a line of the norm beside each line of the loss."""
    lines = [{"step": 1, "validation_loss": 1.0}, {"step": 1, "delta_norm": 2.0}] * times
    return {"tags": {"task": task}, "training": {"validations": lines}}


def scored(method, marks, task="bitext", bits=2, seed=0):
    return {"tags": {"task": task, "method": method, "bits": bits, "seed": seed},
            "states": {"trained": {"marks": marks}}}


def test_counts_of_validations_are_told_where_the_plan_says_another():
    cells = cells_of(trained("banking77", 4), trained("banking77", 7), trained("bitext", 5),
                     {"tags": {"task": "bitext"}, "training": {}})
    [said] = notes.validations(cells, "plr", 4)
    assert "computed 4 times" in said and "banking77: 4 to 7; bitext: 5." in said
    assert notes.validations(cells_of(trained("bitext", 4)), "plr", 4) == []
    assert notes.validations(cells, "scale", 4) == []


def calibrated(rows, length="256"):
    return {"argv": ["--calibration", "CELLS/x.txt", "--calibration-rows", rows, "--max-length", length]}


def test_the_calibration_is_told_in_windows_and_in_the_rows_that_they_hold():
    windows, rows = notes.calibration(cells_of(calibrated("96"), calibrated("96"), {"argv": ["--lr", "1"]}), "plr")
    assert "96 windows of 256 tokens at most" in windows
    assert "25,712 tokens" in rows and "24,576" in rows and "453 rows" in rows and "203 of 250" in rows
    [other] = notes.calibration(cells_of(calibrated("8")), "plr")  # at another scale, the rows were not counted
    assert "8 windows" in other and notes.calibration(cells_of({}), "plr") == []


def test_rows_that_learned_little_are_named_with_their_task_by_their_scores():
    low, high = "0" * 100, "1" * 30 + "0" * 70
    cells = cells_of(scored("qablora", low), scored("qalora", high), scored("qablora", high, "banking77"))
    [said] = notes.learned_little(cells, "plr", ["bitext", "banking77"])
    little, _, others = said.partition("There, the rows")
    assert "QA-BLoRA 0.0 % on bitext" in little and "banking77" not in little and "QA-LoRA" not in little
    assert "QA-BLoRA 30.0 % on banking77" in others and "QA-LoRA 30.0 % on bitext" in others
    assert notes.learned_little(cells, "plr", ["banking77"]) == []


def test_rows_with_fewer_seeds_are_told():
    assert notes.uneven_seeds({"LoRA": {0: {}, 1: {}}, "QLoRA": {0: {}}, "none": {}})[0].startswith(
        "Seeds of the rows: 2 of LoRA, 1 of QLoRA.")
    assert notes.uneven_seeds({"LoRA": {0: {}}, "QLoRA": {0: {}}}) == []


def test_the_recipe_has_the_caveats_of_its_plan(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    fake_results.write(tmp_path / "cells.json", monkeypatch, lambda cell: cell.tags.get("seed") == 1
                       and cell.tags.get("method") == "qlora")
    findings = plr_recipe.record(Cells([tmp_path / "cells.json"]), tmp_path)["findings"]
    assert notes.BASE_OF_CODES in findings
    for start in ("The plan says that the validation loss is computed 10 times", "Seeds of the rows: 2 of LoRA",
                  "Intervals and tests are over test rows"):
        assert [text for text in findings if text.startswith(start)], start


def test_a_level_is_over_the_seeds_of_the_points(monkeypatch):
    """LoRA has two seeds, 0 and 100 %; its points have seed 1 alone."""
    drawn = []
    monkeypatch.setattr(pictures, "level", lambda axes, score, color, label: drawn.append((score, label)))
    both = {seed: {"states": {"trained": {"marks": marks}}} for seed, marks in enumerate(("00", "11"))}
    pictures.level_beside(None, both, "trained", [{1: {}}, {}], "black", "LoRA")
    pictures.level_beside(None, both, "trained", [{0: {}, 1: {}}], "black", "LoRA")
    (of_one, named), (of_both, plain) = drawn
    assert (of_one.mean, named, of_both.mean, plain) == (1.0, "LoRA, seed 1", 0.5, "LoRA")


def judged(ups, downs):
    a, b = [1.0] * ups + [0.0] * downs, [0.0] * ups + [1.0] * downs
    return Judged({}, compare_scores(a, b), 1, 0.01)


def test_titles_of_pictures_say_what_was_found():
    up, down = judged(20, 0), judged(0, 20)
    assert plr.title_of("A", [down, down]) == "A: no significant gain in 2 comparisons, 2 losses"
    assert plr.title_of("A", [up, up, down]) == "A: 2 significant gains in 3 comparisons, 1 loss"
    assert plr.title_of("A", [up]) == "A: 1 significant gain in 1 comparison, no loss"
    assert plr.title_of("A", []) == "A: no comparisons"
