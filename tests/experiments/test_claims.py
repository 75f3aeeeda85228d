"""What is said of the papers' claims, tried on drawn cells."""
import json
import math
import re

import pytest

from experiments import findings, results_page
from experiments.claims import evidence, plr, ratio
from experiments.claims.claim import Claim
from experiments.claims.evidence import CONFIRMED, NOT_CONFIRMED, OPPOSITE, Cells, Judged
from experiments.claims.ratio import Move
from tasks.significance import compare_scores
from tests.experiments import fake_results

PLANS = ("plr", "plr_recipe", "ptq_qlora", "scale")


def found_by(tmp_path, monkeypatch, skip=lambda cell: False):
    fake_results.write(tmp_path / "cells.json", monkeypatch, skip)
    monkeypatch.setattr("sys.argv", ["findings", str(tmp_path / "cells.json"), "--out", str(tmp_path / "out")])
    findings.main()
    return {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")}


def test_records_have_tables_pictures_and_sentences_that_the_page_takes(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    records = found_by(tmp_path, monkeypatch)
    assert set(records) == set(PLANS)
    for name, record in records.items():
        assert all(len(row) == len(table["columns"]) for table in record["tables"] for row in table["rows"])
        assert all((tmp_path / "out" / file).is_file() for _, file in record["pictures"])
        text = results_page.section(name, record)
        assert record["about"][0].startswith("Base: ") and all(finding.split()[0] in text for finding in
                                                               record["findings"])
    restored, _, _, rule = records["plr"]["findings"][:4]
    assert "confirmed at this scale" in restored and "tested" not in rule
    gains = {tuple(row[:4]): row for row in records["plr"]["tables"][1]["rows"]}
    assert len(gains) == 20 and gains["sql-create-context", "qlora", "2", "16"][-1] == CONFIRMED
    assert gains["banking77", "qlora", "8", "16"][-1] == NOT_CONFIRMED


def test_a_part_of_the_cells_is_judged_too(tmp_path, monkeypatch):
    """As after a deadline: only the first seed, only one task."""
    pytest.importorskip("matplotlib")
    records = found_by(tmp_path, monkeypatch, lambda cell: cell.tags.get("seed") or cell.tags["task"] != "banking77")
    assert "not tested, no cells" in records["plr"]["findings"][3]
    assert {row[0] for row in records["plr"]["tables"][1]["rows"]} == {"banking77"}


def test_the_width_of_use_is_the_best_to_train_at_where_narrower_bases_lose(tmp_path, monkeypatch):
    """Made-up cells: 16 and 8 bits are equal but for noise, and 3 and 2 bits never regain all they lost."""
    pytest.importorskip("matplotlib")
    said = next(text for text in found_by(tmp_path, monkeypatch)["plr"]["findings"] if text.startswith("Which width"))
    best, cases = re.search(r"best in (\d+) of (\d+) cases", said).groups()
    assert cases == "8" and int(best) >= 4  # at 3 and 4 bits, on both tasks
    assert "no cells" in plr.which_width(evidence.Cells([]), "plr", ["banking77"])


def test_missing_cells_are_told(tmp_path, monkeypatch):
    """No silent gap: each seed that lacks cells says how many, and names a few."""
    pytest.importorskip("matplotlib")
    gone = "ptq-banking77-sft-qlora-nf4-seed0"
    records = found_by(tmp_path, monkeypatch, lambda cell: cell.name == gone or cell.tags.get("seed") == 1)
    said = records["ptq_qlora"]["about"][-1]
    assert "41 of 84 cells" in said and "of seed 0, 1 of 42 (ptq-banking77-sft-qlora-nf4)" in said
    assert "of seed 1, 42 of 42." in said
    assert "1 more were planned" in records["ptq_qlora"]["findings"][1]
    assert findings.missing(["a-seed0", "b"], {"a-seed0", "b"}) == ""


def test_cells_of_another_device_are_named(tmp_path):
    def on(device, *names):
        return {f"plr-{name}": {"plan": "plr", "argv": ["--device", device]} for name in names}
    cells = Cells([])
    cells.facts = on("cuda", "a-seed0", "b-seed0", "c-seed0") | on("cpu", "a-seed1", "a-seed2", "d")
    assert findings.on_devices(cells, "scale") == []
    cells.facts |= on("cuda", "e")
    assert findings.on_devices(cells, "plr") == [
        "Devices. 4 cells were computed with --device cuda, 3 with --device cpu (a, seeds 1 and 2; d). "
        "experiments.same_cells compares cells of two devices."]
    cells.files = [{"planned": {"plr": ["plr-a-seed0", "plr-a-seed1", "plr-e"]}}]  # others were of an earlier plan
    assert "2 cells were computed with --device cuda, 1 with --device cpu (a, seed 1)" in findings.on_devices(
        cells, "plr")[0]
    cells.facts = on("cuda", "a-seed0")
    assert findings.on_devices(cells, "plr") == []


def test_a_claim_with_few_of_its_comparisons_is_not_decided():
    up = judged(20, 2, 0.01)
    of_three, of_two = (str(evidence.judged_at_this_scale(Claim("A"), [up], planned)) for planned in (3, 2))
    assert "not decided" in of_three and "2 more were planned" in of_three
    assert "confirmed at this scale" in of_two


def test_holm():
    assert evidence.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert evidence.holm([0.9, 0.8]) == [1.0, 1.0] and evidence.holm([]) == []


def judged(ups, downs, adjusted):
    a, b = [1.0] * ups + [0.0] * downs, [0.0] * ups + [1.0] * downs
    return Judged({}, compare_scores(a, b), 1, adjusted)


def test_verdicts():
    up, down, chance = judged(20, 2, 0.01), judged(2, 20, 0.01), judged(20, 2, 0.2)
    assert (up.verdict, down.verdict, chance.verdict) == (CONFIRMED, OPPOSITE, NOT_CONFIRMED)
    assert evidence.overall([up, up, chance]) == CONFIRMED and evidence.overall([up, chance, chance]) == NOT_CONFIRMED
    assert evidence.overall([up, up, down]) == NOT_CONFIRMED and evidence.overall([down, chance]) == OPPOSITE
    assert evidence.overall([]) == NOT_CONFIRMED


def test_seeds_are_averaged_row_by_row_and_only_common_ones():
    def group(**marks):
        return {seed: {"states": {"trained": {"marks": text}}} for seed, text in enumerate(marks.values())}
    a, b = group(x="1100", y="1000"), group(x="0100")
    assert evidence.row_means(a, "trained", [0, 1]) == [1, 0.5, 0, 0]
    one = evidence.compared({}, a, "trained", b, "trained")
    assert one.seeds == 1 and one.comparison.difference == 0.25
    assert evidence.compared({}, a, "trained", b, "restored-8bit") is None
    assert str(evidence.score_of(a, "trained")) == "37.5 ± 17.7"


def test_the_row_with_the_largest_spread_over_seeds_is_named():
    def group(*texts):
        return {seed: {"states": {"trained": {"marks": text}}} for seed, text in enumerate(texts)}
    rows = [(name, evidence.seed_scores(cells, state)) for name, cells, state in (
        ("A", group("1100", "1100"), "trained"), ("B", group("1110", "1000"), "trained"),
        ("C", group("1111"), "trained"), ("D", {}, "trained"), ("E", group("1111", "0000"), "quantized"))]
    [said] = evidence.spread_not_in_tests(rows)
    assert said.endswith("up to 35.4 points (B: 75.0, 25.0 % of 2 seeds).") and "not in them" in said
    [said] = evidence.spread_not_in_tests(rows[2:])
    assert said.startswith("Each row has one seed.") and evidence.spread_not_in_tests(rows[3:]) == []


def test_the_threshold_of_the_ratio_is_between_what_helps_and_what_harms():
    def move(early, gain, task=ratio.FITTED):
        return Move(task, "qlora", 2, 16, early, early, gain)
    some = [move(1, 0.3), move(2, 0.1), move(8, -0.1), move(9, -0.2)]
    assert ratio.threshold(some) == 4.0
    rule = ratio.Rule.of([*some, move(1, 0.1, ratio.HELD_OUT), move(7, 0.1, ratio.HELD_OUT)])
    assert rule.shares(rule.held_out) == (0.5, 1.0) and "not confirmed" in str(rule.claim())
    assert ratio.threshold([move(1, -1)]) == 0.0 and math.isinf(ratio.threshold([move(1, 1)]))
    assert ratio.spearman([1, 2, 3], [10, 30, 20]) == pytest.approx(0.5)
    assert math.isnan(ratio.spearman([1, 1], [2, 3])) and ratio.ranks([5, 1, 5]) == [2.5, 1, 2.5]


def test_the_rule_is_judged_on_the_moves_of_all_methods_as_planned(tmp_path, monkeypatch):
    """And on QLoRA's beside it, said so."""
    pytest.importorskip("matplotlib")
    record = found_by(tmp_path, monkeypatch)["plr"]
    table = next(table for table in record["tables"] if table["caption"].startswith("The rule"))
    whole, held_out, narrow, _ = table["rows"]
    assert [row[1] for row in (whole, held_out, narrow)] == ["46", "46", "30"]  # QA-LoRA, QA-BLoRA: 2 seeds, 4 widths
    assert whole[0].startswith("all moves, fitted") and "QLoRA's moves alone (not in the plan)" in narrow[0]
    rule, qlora = (text for text in record["findings"] if text.startswith("The ratio before training ends"))
    assert "46 fitted" in rule and "not in the plan" not in rule and "30 fitted" in qlora and "not in the plan" in qlora


def test_a_printed_threshold_tells_the_signs_that_it_is_said_to_tell():
    """Between 0.1765 and 0.1781, 0.18 is no threshold: it takes the third move for a gain."""
    def move(early, gain):
        return Move(ratio.HELD_OUT, "qlora", 8, 16, early, early, gain)
    some = [move(0.1, 0.1), move(0.1765, 0.1), move(0.1781, -0.1), move(17, -0.1)]
    assert ratio.digits_of(ratio.threshold(some), some) == "0.177"
    assert ratio.digits_of(0.0, some) == "0" and ratio.digits_of(math.inf, some) == "inf"
    fitted = [Move(ratio.FITTED, "qlora", 2, 16, early, early, 0.1) for early in (0.1, 3)]
    [said] = ratio.Rule.of([*fitted, *some]).hindsight()
    assert "0.177 tells 4 of the 4 held-out signs, the fitted one 2" in said


def test_the_rows_that_were_trained_on_are_told():
    def cell(plan, argv, train):
        return {"plan": plan, "argv": argv, "rows": {"train": train, "validation": 9, "test": 8}}

    cells = Cells([])
    cells.facts = {"a": cell("plr", ["--task", "bitext"], 1000), "b": cell("plr", ["--task", "bitext"], 90),
                   "c": cell("plr", [], 7), "d": cell("scale", [], 8)}
    [said] = findings.rows_used(cells, "plr")
    assert "of validation. banking77: 7 and 9; bitext: 1,000 and 9 or 90" in said
