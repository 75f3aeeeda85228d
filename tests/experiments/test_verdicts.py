"""The table of verdicts at the top of docs/results.md."""
import pytest

from experiments import results_page
from experiments.claims.evidence import CONFIRMED, NOT_CONFIRMED, OPPOSITE
from experiments.claims.verdicts import PAPERS, joined, verdict_of, verdicts_table


@pytest.mark.parametrize(("finding", "judged"), [
    ("A scores above B, each at its best (at 3 bits, that of 4) (Shen et al.): confirmed at 4 bits (+1.2 [+0.1, +2.3] "
     "points, p 0.03); not confirmed at 3 bits (C -4.2 points; D +1 points). Best rate at an edge: C.",
     ("A scores above B, each at its best (at 3 bits, that of 4)", "confirmed at 4 bits; not confirmed at 3 bits")),
    ("Open question 1: A is above B: the opposite at this scale (0 of 18 above).",
     ("Open question 1: A is above B", "the opposite at this scale")),
    ("A equals B (Kanda & Hatano, Sec. 4): some-task, 4 bits: confirmed (+0.4 points); some-task, 3 bits: the opposite "
     "(-13.7 points).", ("A equals B", "some-task, 4 bits: confirmed; some-task, 3 bits: the opposite")),
    ("A is above B (Zhu et al. found no difference): the opposite at this scale (0 of 2).",
     ("A is above B (Zhu et al. found no difference)", "the opposite at this scale")),
    ("A is above B (Shen et al., Table 6; not in the plan; Holm over the 8 tests of this part): "
     "confirmed at 4 bits (+1).",
     ("A is above B (not in the plan)", "confirmed at 4 bits")),
    ("A is above B: not decided at 3 and 2 bits (not run).", ("A is above B", "not decided at 3 and 2 bits")),
    ("How verdicts are made: a claim is confirmed if most are above.", None),
    ("On banking77, restoring brings +1.7 points (p 1).", None)])
def test_claim_and_verdicts_are_read_without_figures(finding, judged):
    assert verdict_of(finding) == judged


def test_the_same_verdict_is_said_once():
    assert joined(["so at 4 bits", "so at 3 bits", "so at 2 bits"]) == "so at 4, 3 and 2 bits"
    assert joined(["not so at 4 bits", "so at 3 and 2 bits", "x"]) == "not so at 4 bits; so at 3 and 2 bits; x"


def test_only_claims_of_a_paper_are_listed():
    records = {"methods": {"findings": ["Ours is above (not in the plan): confirmed at 4 bits (+1).",
                                        "Theirs is above (Shen et al.): confirmed at 4 bits (+1)."]},
               "ptq_qlora": {"findings": ["It helps: confirmed at this scale (1 of 1).", "Without GPTQ, none."]}}
    rows = verdicts_table(records, {"methods": "a", "ptq_qlora": "b"})["rows"]
    assert rows == [["Shen et al.", "Theirs is above", "confirmed at 4 bits", "[embedded base](#a)"],
                    ["Zhu et al.", "It helps", "confirmed at this scale", "[SmolLM2-135M](#b)"]]


def test_no_verdict_of_the_recorded_findings_is_left_out():
    """Every finding of a paper's claim that holds a verdict has a row; the sections are those of the page."""
    records = results_page.records()
    assert set(PAPERS) <= set(records)
    table = verdicts_table(records, {name: results_page.anchor(record["title"]) for name, record in records.items()})
    for name, (paper, _) in PAPERS.items():
        for finding in records[name]["findings"]:
            words = finding.replace("(", ": ").split(": ")
            if paper in finding and any(word.startswith((CONFIRMED, NOT_CONFIRMED, OPPOSITE)) for word in words):
                claim, verdicts = verdict_of(finding) or ("", "")
                section = f"(#{results_page.anchor(records[name]['title'])})"
                assert any(row[1:3] == [claim, verdicts] and row[3].endswith(section) for row in table["rows"]), finding
