"""The picture of README.md: its titles say what the cells say, and no text lies on another."""
import json
from itertools import combinations

import pytest

from experiments import findings
from experiments.claims import overview
from experiments.claims.evidence import Cells, Judged
from experiments.claims.method_rows import Found
from tasks.significance import compare_scores
from tests.cli import call
from tests.experiments import fake_results
from tests.experiments.fakes import a_row

REAL = (("lora", 16, "merged-16bit"), ("qlora", 2, "requantized-2bit-gptq"), ("qalora", 2, "merged-2bit"),
        ("qablora-4x8", 2, "merged-2bit"))


def write_cells(path, monkeypatch, rows=REAL):
    """Of all plans of the picture; each row of `rows` gets two of three test rows right."""
    fake_results.write(path, monkeypatch)
    file = json.loads(path.read_text())
    for row, bits, key in rows:
        file["cells"] |= {f"real-{name}": {"plan": "methods_real", **facts} for name, facts in
                          a_row(row, (3.0, 1.0, 2.0), ["110"], bits, key).items()}
    path.write_text(json.dumps(file))
    return Cells([path])


def texts(cells, tmp_path, monkeypatch):
    """What is written into the picture, and where, in pixels."""
    kept = []
    monkeypatch.setattr(overview.pictures, "save", lambda figure, path: kept.append(figure))
    overview.draw(cells, tmp_path / "x.png")
    figure, = kept
    figure.canvas.draw()
    found = [figure._suptitle, *(text for panel in figure.axes for text in (
        panel.title, *panel.texts, panel.xaxis.label, panel.yaxis.label, *panel.get_legend().get_texts(),
        *panel.get_xticklabels()))]
    return figure, [(text.get_text(), text.get_window_extent()) for text in found if text.get_text()]


def test_no_text_lies_on_another_or_outside(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    figure, found = texts(write_cells(tmp_path / "cells.json", monkeypatch), tmp_path, monkeypatch)
    words = "\n".join(text for text, _ in found)
    assert all(part in words for part in ("Shen et al.", "Kanda & Hatano", "Zhu et al.", "95 % interval", "banking77",
                                          "test score, %", "1 seed", "2 seeds", "QLoRA rounded"))
    # A title ends with an empty line, which the note below it fills.
    titles = {panel.get_title() for panel in figure.axes}
    for (a, box), (b, other) in combinations(found, 2):
        assert a in titles or b in titles or not box.overlaps(other), (a, b)
    for (a, box), (b, other) in combinations([one for one in found if one[0] in titles], 2):
        assert not box.overlaps(other), (a, b)
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for _, box in found)
    overview.pyplot().close(figure)


def test_findings_draw_it_when_all_three_plans_have_cells(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(findings, "judged_plans", lambda cells: [])
    for rows, drawn in (((), False), (REAL[:2], True)):
        write_cells(tmp_path / "cells.json", monkeypatch, rows)
        assert call(findings, str(tmp_path / "cells.json"), "--out", str(tmp_path)) is None
        assert (tmp_path / overview.NAME).exists() is drawn
    assert (tmp_path / overview.NAME).stat().st_size > 10_000


def judged(ups, downs, adjusted=0.01, **what):
    a, b = [1.0] * ups + [0.0] * downs, [0.0] * ups + [1.0] * downs
    same = [0.0] * (100 - ups - downs)
    return Judged(what, compare_scores(a + same, b + same), 1, adjusted)


def test_the_title_of_restoring_counts_only_what_is_significant():
    title = overview.restoring_title
    lost, lost_more, won = judged(0, 20), judged(1, 41), judged(12, 2)
    chance = judged(0, 60, 0.2)
    assert title([lost, lost_more, chance]) == (
        "Restoring QLoRA to 16 bits:\nno significant gain, up to 40 points lost")
    assert title([lost, won]) == "Restoring QLoRA to 16 bits:\nup to 10 points gained, up to 20 points lost"
    assert title([chance]) == "Restoring QLoRA to 16 bits:\nno significant gain"
    assert title([]) == "Restoring QLoRA to 16 bits:\nnot run"


def test_the_title_of_recovering_is_of_the_width_with_the_highest_gain():
    title = overview.recovering_title
    some = [judged(16, 0, bits=4), judged(37, 0, bits=2), judged(14, 0, bits=2), judged(9, 0, 0.3, bits=2)]
    assert title(some) == "QLoRA after PTQ wins back\n14 to 37 points at 2 bits"
    assert title(some[:1]) == "QLoRA after PTQ wins back\n16 points at 4 bits"
    assert title(some[3:]) == title([judged(0, 30, bits=2)]) == "QLoRA after PTQ\nbrings no significant gain"
    assert title([]) == "QLoRA after PTQ\nwas not run"


def a_found(row, bits, before, after, key):
    def state(right):
        return {"marks": "1" * right + "0" * (200 - right), "metric": "accuracy", "scores": {"accuracy": right / 200}}
    return Found(row, row, "methods", bits, finals={0: {"states": {"trained": state(before), key: state(after)}}})


def test_the_title_of_merging_tells_rounded_from_exact():
    def title(rounded_4, rounded_3, exact):
        rows = {("qlora", bits): a_found("qlora", bits, 120, right, "requantized") for bits, right in
                ((4, rounded_4), (3, rounded_3))}
        return overview.merging_title({**rows, ("qalora", 3): a_found("qalora", 3, 110, exact, "merged-3bit")})
    assert title(118, 102, 110) == "Rounding QLoRA to 3 bits costs 9.0 points,\nan exact merge costs none"
    assert title(80, 102, 109) == "Rounding QLoRA to 4 bits costs 20 points,\nan exact merge costs 0.5 at most"
    assert title(118, 119, 110).startswith("Rounding QLoRA brings no significant loss,")
    assert overview.merging_title({}) == "Rounding QLoRA was not run,\nno exact merge was run"


def test_balance_is_told_where_no_best_rate_is_at_an_edge():
    def rows(ours_3, ours_2):
        return {(row, bits): a_found(row, bits, right, right, f"merged-{bits}bit") for row, bits, right in
                (("qalora", 3, 110), ("qalora", 2, 60), ("qablora-4x8", 3, ours_3), ("qablora-4x8", 2, ours_2))}

    assert overview.balance_note(rows(109, 14)) == "Shen et al.: QA-BLoRA above QA-LoRA at 0 of 2 widths, below at 1"
    assert overview.balance_note(rows(130, 61)) == "Shen et al.: QA-BLoRA above QA-LoRA at 1 of 2 widths"
    at_the_edge = rows(130, 14)
    tried = a_row("qablora-4x8", (3.0, 2.0, 1.0), [], 2)
    at_the_edge["qablora-4x8", 2].rates = [{"plan": "methods", **facts} for facts in tried.values()]
    assert at_the_edge["qablora-4x8", 2].at_edge
    assert overview.balance_note(at_the_edge) == "Shen et al.: QA-BLoRA above QA-LoRA at 1 of 1 width"
    assert overview.balance_note({}).endswith("no cells")


def test_a_row_without_right_answers_has_learned_nothing():
    assert overview.nothing_learned(a_found("qlora", 2, 0, 0, "requantized-2bit-gptq"))
    assert not overview.nothing_learned(a_found("qlora", 2, 1, 0, "requantized-2bit-gptq"))
    assert not overview.nothing_learned(None)


def test_names_are_moved_apart():
    assert overview.apart([50, 21, 20], 10) == [50, 30, 20]
    assert overview.apart([0, 0], 10) == [15, 25] and overview.apart([], 10) == []
