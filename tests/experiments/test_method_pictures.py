"""Records and pictures of the comparison of methods, from made-up cells."""
import json

import pytest

from experiments import findings
from experiments.claims import method_gradients, method_lams, method_pictures, method_sizes, methods
from experiments.claims.evidence import Cells
from experiments.claims.method_pictures import far_off, floor
from experiments.claims.method_rows import gather
from experiments.claims.pictures import balanced
from tests.cli import call
from tests.experiments.fakes import a_row


def test_tables_and_pictures_from_cells(tmp_path):
    """Of both plans, one row of which diverged at a rate: no row is lost."""
    pytest.importorskip("matplotlib")
    cells = {}
    for plan in ("methods", "methods_real"):
        of_plan = a_row("lora", (3.0, 1.0, 2.0), ["110"] * 2, 16, "merged-16bit")
        for bits in (4, 2):
            for row in ("qlora", "qblora-2", "qblora-8"):
                of_plan |= a_row(row, (3.0, 1.0, None), ["110", "011"], bits, f"requantized-{bits}bit-gptq")
            of_plan |= a_row("qablora-4x8", (3.0, 1.0, 2.0), ["111", "011"], bits, f"merged-{bits}bit")
        cells |= {f"{plan}-{name}": {"plan": plan, **facts} for name, facts in of_plan.items()}
    session = {"machine": {"device": "a GPU", "torch": "2"}, "began": "2026-11-27 11:10:00", "jobs": 2,
               "plans": ["methods", "methods_real"]}
    about = {plan: "what\nis tested" for plan in session["plans"]}
    (tmp_path / "cells.json").write_text(json.dumps({"cells": cells, "plans": about, "sessions": [session]}))
    assert call(findings, str(tmp_path / "cells.json"), "--out", str(tmp_path)) is None
    for plan in session["plans"]:
        record = json.loads((tmp_path / f"{plan}.json").read_text())
        first = record["tables"][0]
        assert [row[0] for row in first["rows"]] == ["LORA", "QLORA", "QBLORA-2", "QBLORA-8", "QABLORA-4X8"]
        assert all(len(row) == len(table["columns"]) for table in record["tables"] for row in table["rows"])
        assert all((tmp_path / file).stat().st_size > 10_000 for _, file in record["pictures"])
    assert record["pictures"][-1][1] == "methods_sizes.png"


def test_pictures_without_cells_are_left_out(tmp_path):
    """LoRA alone, and a quantized row with rates but without a trained model."""
    pytest.importorskip("matplotlib")
    cells = Cells([])
    facts = a_row("lora", (3.0, 1.0, 2.0), ["110"], 16, "merged-16bit") | a_row("peqa", (3.0, 1.0, 2.0), [], 4)
    cells.facts = {name: {"plan": "methods", **one} for name, one in facts.items()}
    record = methods.record(cells, tmp_path)
    assert [file for _, file in record["pictures"]] == ["methods_rates.png", "methods_gradients.png"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["methods_gradients.png", "methods_rates.png"]


def test_a_score_far_below_the_others_is_written_at_the_edge():
    assert far_off([41.44], [41.36]) == "41.4 %" and far_off([41.4], []) == "41.4 % as trained"
    assert far_off([41.4], [30.0]) == "41.4 % as trained and 30.0 % at k bits"
    assert floor([24.0, 73.0, 78.0, 80.0]) == 73.0 and floor([70.0, 78.0, 80.0]) is None


def test_a_title_is_broken_into_lines_of_one_length():
    assert balanced("aaaa bbbb cccc dddd", 15) == "aaaa bbbb\ncccc dddd" and balanced("aaaa bbbb", 15) == "aaaa bbbb"


def test_a_row_that_was_not_run_at_a_width_says_so(tmp_path, monkeypatch):
    """PEQA at 4 bits alone: at 2 bits, beside its name."""
    pytest.importorskip("matplotlib")
    cells, kept = Cells([]), []
    facts = a_row("qlora", (3.0, 1.0, 2.0), ["110"], 4, "requantized-4bit-gptq")
    facts |= a_row("qlora", (3.0, 1.0, 2.0), ["110"], 2, "requantized-2bit-gptq") | a_row("peqa", (3.0, 1.0, 2.0),
                                                                                         ["110"], 4)
    cells.facts = {name: {"plan": "methods", **one} for name, one in facts.items()}
    monkeypatch.setattr(method_pictures, "save", lambda figure, path: kept.append(figure))
    method_pictures.draw_scores(gather(cells, "methods"), tmp_path / "x.png", "a base")
    at_4, at_2 = kept[0].axes
    assert [text.get_text() for text in at_4.texts] == []
    place = dict(zip([label.get_text() for label in at_4.get_yticklabels()], at_4.get_yticks(), strict=True))["PEQA"]
    assert [(text.get_text(), text.get_position()[1]) for text in at_2.texts] == [("not run", place)]
    method_pictures.pyplot().close(kept[0])


def kept_figures(monkeypatch, module):
    kept = []
    monkeypatch.setattr(module, "save", lambda figure, path: kept.append(figure))
    return kept


def test_widths_without_points_have_no_panel(tmp_path, monkeypatch):
    """At 3 bits there are models, and no rates of their own."""
    pytest.importorskip("matplotlib")
    cells = {}
    for bits, key in ((16, "merged-16bit"), (4, "requantized-4bit"), (3, "requantized-3bit")):
        for row in ("lora",) if bits == 16 else ("qlora", "qblora-2"):
            cells |= a_row(row, (3.0, 1.0, 2.0), ["110"], bits, key)
    cells = {name: facts for name, facts in cells.items() if facts["tags"]["bits"] != 3 or "seed" in name}
    every = Cells([])
    every.facts = {name: {"plan": "methods_real", **facts} for name, facts in cells.items()}
    found = gather(every, "methods_real")
    assert any(one.bits == 3 and one.finals for one in found)
    for module, draw in ((method_lams, method_lams.draw_rates), (method_gradients, method_gradients.draw_gradients)):
        kept = kept_figures(monkeypatch, module)
        draw(found, tmp_path / "x.png", "a base")
        assert [axes.get_title() for axes in kept[0].axes] == ["16 bits", "4 bits"]
        assert "4 bits" in kept[0].get_suptitle() and "3" not in kept[0].get_suptitle()
        method_pictures.pyplot().close(kept[0])


def test_sizes_tell_the_seeds_of_each_panel_and_what_was_not_run(tmp_path, monkeypatch):
    """PEQA on one base at 4 bits alone, and on the other not at all; Q-BLoRA on the other without a k-bit model."""
    pytest.importorskip("matplotlib")
    bases = {}
    for plan, seeds in (("methods", 2), ("methods_real", 1)):
        cells = a_row("lora", (3.0, 1.0, 2.0), ["110"] * seeds, 16, "merged-16bit")
        for bits in (4, 2):
            cells |= a_row("qlora", (3.0, 1.0, 2.0), ["110"] * seeds, bits, f"requantized-{bits}bit")
        if plan == "methods":
            cells |= a_row("peqa", (3.0, 1.0, 2.0), ["110"] * seeds, 4)
        for bits in (4, 2):
            key = f"requantized-{bits}bit" if plan == "methods" else "merged-16bit"
            cells |= a_row("qblora-2", (3.0, 1.0, 2.0), ["110"] * seeds, bits, key)
        every = Cells([])
        every.facts = {name: {"plan": plan, **facts} for name, facts in cells.items()}
        bases[plan] = gather(every, plan)
    kept = kept_figures(monkeypatch, method_sizes)
    method_sizes.draw_sizes(bases, tmp_path / "x.png")
    left, right = kept[0].axes
    assert left.get_title().endswith("2 seeds; bars: deviation over seeds")
    assert right.get_title().endswith("one seed, so no bars") and "bars" not in kept[0].get_suptitle()
    assert [text.get_text() for text in left.texts] == ["2 bits: not run"]
    assert [text.get_text() for text in right.texts] == ["not rounded", "not run"]
    method_pictures.pyplot().close(kept[0])
