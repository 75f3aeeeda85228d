"""Claims as data: their sentences, and the table of verdicts at the top of docs/results.md."""
import re

import pytest

from experiments import results_page
from experiments.claims.claim import Claim, Verdict, told
from experiments.claims.evidence import CONFIRMED, NOT_CONFIRMED, OPPOSITE
from experiments.claims.verdicts import PAPERS, verdicts_table

AT_WIDTHS = (Verdict("confirmed", "+1.2 points", (4,)), Verdict("confirmed", "+2 points", (3,)),
             Verdict("not decided", "not run", (2,)))


@pytest.mark.parametrize(("claim", "sentence", "found"), [
    (Claim("A is above B", AT_WIDTHS, "Shen et al., Table 6", "not in the plan", "Holm over these", "Seeds: 1."),
     "A is above B (Shen et al., Table 6; not in the plan; Holm over these): confirmed at 4 bits (+1.2 points); "
     "confirmed at 3 bits (+2 points); not decided at 2 bits (not run). Seeds: 1.",
     "confirmed at 4 and 3 bits; not decided at 2 bits"),
    (Claim("A is above B", (Verdict("the opposite", "0 of 18", where="at this scale"),)),
     "A is above B: the opposite at this scale (0 of 18).", "the opposite at this scale"),
    (Claim("A equals B", (Verdict("confirmed", "+0.4", of="some-task, 4 bits"),
                          Verdict("confirmed", "+0.1", of="some-task, 3 bits"))),
     "A equals B: some-task, 4 bits: confirmed (+0.4); some-task, 3 bits: confirmed (+0.1).",
     "some-task, 4 bits: confirmed; some-task, 3 bits: confirmed"),
    (Claim("A is above B", source="C"), "A is above B (C): not tested, no cells.", "not tested, no cells")])
def test_a_claim_is_one_sentence_and_its_verdicts_go_without_figures(claim, sentence, found):
    assert str(claim) == sentence and claim.row()["found"] == found
    assert claim.headline == f"{claim.words}: {found}"


def test_only_neighbours_of_the_same_word_are_joined():
    yes, no = Verdict("so", "", (4,)), Verdict("not so", "", (3,))
    assert Claim("A", (yes, no, Verdict("so", "", (2,)))).short == "so at 4 bits; not so at 3 bits; so at 2 bits"
    assert Claim("A", (yes, Verdict("so", "", (3,)), Verdict("so", "", (2,)))).short == "so at 4, 3 and 2 bits"
    assert Claim("A", (yes, Verdict("so", "", where="elsewhere"))).short == "so at 4 bits; so elsewhere"


def test_a_row_keeps_the_reservation_and_not_the_family():
    claim = Claim("A", AT_WIDTHS, "B", "not in the plan", "Holm over these", "More.")
    assert claim.row()["claim"] == "A (not in the plan)" and claim.row()["source"] == "B"
    assert told(["Some words.", claim]) == {"findings": ["Some words.", str(claim)], "claims": [claim.row()]}


def test_only_claims_of_a_paper_are_listed():
    ours, theirs = Claim("Ours is above", AT_WIDTHS[:1]), Claim("Theirs is above", AT_WIDTHS[:1], "Shen et al.")
    records = {"methods": told([ours, theirs]), "ptq_qlora": told([Claim("It helps", AT_WIDTHS[2:]), "None."]),
               "main_job": {"findings": []}}
    rows = verdicts_table(records, {"methods": "a", "ptq_qlora": "b"})["rows"]
    assert rows == [["Shen et al.", "Theirs is above", "confirmed at 4 bits", "[embedded base](#a)"],
                    ["Zhu et al.", "It helps", "not decided at 2 bits", "[SmolLM2-135M](#b)"]]


def test_no_verdict_of_the_recorded_findings_is_left_out():
    """A finding that names a paper and holds a verdict has a row in the table."""
    records, verdict = results_page.records(), "|".join((NOT_CONFIRMED, CONFIRMED, OPPOSITE))
    anchors = {name: results_page.anchor(record["title"]) for name, record in records.items()}
    rows = verdicts_table(records, anchors)["rows"]
    link = {name: f"[{model}](#{anchors[name]})" for name, (_, model) in PAPERS.items()}
    assert set(PAPERS) <= set(records)
    for name, (paper, _) in PAPERS.items():
        listed = [row[1].partition(" (")[0] for row in rows if row[3] == link[name]]
        assert listed
        for finding in records[name]["findings"]:
            if paper in finding and re.search(rf"[:;] (?:{verdict}) ", finding):
                assert any(finding.startswith(words) for words in listed), finding
