"""The comparison of methods: its plan, its statistics, and its tables and pictures from made-up cells."""
import importlib
import json
from pathlib import Path

import pytest

from experiments.cells.plan import Settings, checked
from experiments.methods import found, tables
from experiments.methods.found import Found, gather, holm
from experiments.plans import method_rows
from experiments.plans import methods as plan_module
from tests.cli import call

SETTINGS = Settings(None, Path("nowhere"), "cpu")


def cells_by_name():
    return {cell.name: cell for cell in checked(plan_module.plan(SETTINGS).cells)}


def value_after(cell, flag):
    return cell.argv[cell.argv.index(flag) + 1]


# ---- the plan -----------------------------------------------------------------------------------------------------

def test_every_row_is_tuned_by_the_same_rule_and_has_three_seeds():
    """At each of its widths: three values, and seeds that take the best of them."""
    cells = cells_by_name()
    for row in method_rows.every_row():
        for bits in row.widths:
            own = [cell for cell in cells.values()
                   if (cell.tags["row"], cell.tags["bits"], cell.tags["part"]) == (row.name, bits, row.part)]
            rates, finals = ([cell for cell in own if cell.tags["role"] == role] for role in ("rate", "final"))
            assert [value_after(cell, row.tuned) for cell in rates] == row.values() and len(rates) == 3
            assert [value_after(cell, "--seed") for cell in finals] == ["0", "1", "2"]
            assert all(cell.needs == [rate.name for rate in rates] for cell in finals)


def test_rates_are_a_third_once_and_three_times_the_usual_one():
    rows = {row.name: row for row in method_rows.every_row()}
    assert rows["qlora"].values() == ["0.00167", "0.005", "0.015"] and rows["lota"].values() == ["4", "8", "12"]
    assert rows["qlora"].values(256 / 576)[1] == "0.00222" and rows["lota"].values(0.5) == ["4", "8", "12"]


def test_the_merged_model_is_rounded_again_where_it_ends_in_16_bits():
    cells = cells_by_name()
    assert value_after(cells["qblora-2-4bit-seed1"], "--requantize") == "gptq:minmax@32x1+act-order"
    assert "--requantize" not in cells["qalora-4bit-seed1"].argv
    assert "--calibration-rows" in cells["qalora-4bit-seed1"].argv


def test_in_equal_time_a_slower_row_gets_fewer_steps():
    cells = cells_by_name()
    assert value_after(cells["qblora-2-4bit-1.4-seed0"], "--steps") == "202"
    assert value_after(cells["qblora-2-2bit-1.1-seed2"], "--steps") == "257"


def test_training_is_recorded_on_a_gpu_where_it_can_be():
    plan = plan_module.plan(Settings(None, Path("nowhere"), "cuda"))
    recorded = {cell.tags["row"]: "--cuda-graphs" in cell.argv for cell in plan.cells}
    assert recorded["qlora"] and recorded["qablora-4x8"] and not recorded["codes"] and not recorded["lota"]


# ---- statistics ---------------------------------------------------------------------------------------------------

def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.2, None, 0.04]) == [pytest.approx(0.2), None, pytest.approx(0.08)] and holm([0.9, 0.8]) == [1.0, 1.0]


def facts(row, role, seed, loss, marks=None, bits=4, value=1.0, factor=1.0, key="merged-4bit", **more):
    state = {"marks": marks, "metric": "accuracy", "validation_loss": loss, "bits_per_weight": 5.0,
             "scores": {"accuracy": marks and marks.count("1") / len(marks)}, "title": "as trained"}
    states = {"trained": state, key: state} if marks else {}
    tags = {"row": row, "title": row.upper(), "part": "methods", "bits": bits, "role": role, "seed": seed,
            "value": value, "factor": factor}
    return {"tags": tags, "states": states, "training": {
        "best_validation_loss": loss, "trainable_parameters": 1234, "losses": [loss] * 20,
        "gradient_norms": [loss] * 20, **more}}


def a_row(row, losses, marks, bits=4, key="merged-4bit"):
    """The cells of a row: rates of 1, 2, 3 with the losses, and a seed for each text of marks."""
    cells = {f"{row}-{bits}-{v}": facts(row, "rate", 0, loss, bits=bits, value=v, factor=f)
             for v, f, loss in zip((1.0, 2.0, 3.0), (1 / 3, 1.0, 3.0), losses, strict=True)}
    return cells | {f"{row}-{bits}-seed{i}": facts(row, "final", i, min(filter(None, losses)), m, bits=bits, key=key)
                    for i, m in enumerate(marks)}


def test_the_best_rate_is_marked_at_the_edge_of_those_tried():
    inside, outside, diverged = (gather(a_row("a", losses, ["10"]))[0]
                                 for losses in ((3.0, 1.0, 2.0), (3.0, 2.0, 1.0), (2.0, 1.0, None)))
    assert [tables.value(one) for one in (inside, outside, diverged)] == ["2", "3 (edge)", "2"]


def test_marks_are_averaged_over_the_seeds_and_compared_row_by_row():
    a, b = gather(a_row("a", (3.0, 1.0, 2.0), ["1111111100", "1111111111"]) |
                  a_row("b", (3.0, 1.0, 2.0), ["0000000000", "0000000011"]))
    assert a.marks(found.as_trained) == [1.0] * 8 + [0.5] * 2
    result = found.compared(a, b, found.as_trained)
    assert result.difference == pytest.approx(0.8) and result.p_value < 0.05
    b.finals.pop()
    assert found.compared(a, b, found.as_trained) is None  # other seeds


def test_a_row_ends_at_k_bits_rounded_or_merged_or_not_at_all():
    state, other = {"title": "a"}, {"title": "b"}
    rounded = {"states": {"merged-16bit": state, "requantized-4bit-gptq": other}}
    assert found.at_k_bits(rounded) is other and found.rounded_afterwards(rounded) is other
    assert found.at_k_bits({"states": {"merged-16bit": state}}) is None
    assert found.at_k_bits({"states": {"merged-2bit": state}}) is state


def test_tests_against_the_reference_are_corrected_within_a_width():
    n = 40
    cells = {}
    for bits in (4, 2):
        for row, right in (("qablora-4x8", 20), ("qlora", 30), ("peqa", 21)):
            cells |= a_row(row, (3.0, 1.0, 2.0), ["1" * right + "0" * (n - right)] * 2, bits, f"merged-{bits}bit")
    tested = tables.against_reference(gather(cells))["as trained"]
    assert set(tested) == {("qlora", 4), ("peqa", 4), ("qlora", 2), ("peqa", 2)}
    one = tested["qlora", 4]
    assert one.p == pytest.approx(2 * one.result.p_value) and one.b == "qablora-4x8"
    assert tables.difference(one).startswith("+25.0 (p 0.00") and tables.difference(one).endswith("*")


def test_a_fifth_of_the_training():
    assert tables.fifth(range(10), 0) == 0.5 and tables.fifth(range(10), 4) == 8.5


# ---- the command --------------------------------------------------------------------------------------------------

def test_tables_and_pictures_from_cells(tmp_path):
    """All methods at two widths, one of them diverged at a rate: no row is lost."""
    pytest.importorskip("matplotlib")
    cells = a_row("lora", (3.0, 1.0, 2.0), ["110"] * 2, 16, "merged-16bit")
    for bits in (4, 2):
        for row in ("qlora", "qblora-2", "qblora-8"):
            cells |= a_row(row, (3.0, 1.0, None), ["110", "011"], bits, f"requantized-{bits}bit-gptq")
        cells |= a_row("qablora-4x8", (3.0, 1.0, 2.0), ["111", "011"], bits, f"merged-{bits}bit")
    kept = {"cells": cells, "plans": {"methods": "what\nis tested"}, "settings": {"model": None, "scale": 1.0},
            "sessions": [{"machine": {"device": "a GPU", "torch": "2"}, "began": "2026-11-27 11:10:00"}]}
    (tmp_path / "cells.json").write_text(json.dumps(kept))
    module = importlib.import_module("experiments.methods.__main__")
    assert call(module, str(tmp_path), "--to", str(tmp_path)) is None
    record = json.loads((tmp_path / "methods_embedded.json").read_text())
    first = record["tables"][0]
    assert [row[0] for row in first["rows"]] == ["LORA", "QLORA", "QBLORA-2", "QBLORA-8", "QABLORA-4X8"]
    assert all(len(row) == len(table["columns"]) for table in record["tables"] for row in table["rows"])
    for name in ("embedded", "embedded_rates", "embedded_gradients", "sizes"):
        assert (tmp_path / f"methods_{name}.png").stat().st_size > 10_000


def test_rows_of_the_table_say_how_the_model_came_to_k_bits():
    cells = a_row("qlora", (3.0, 1.0, 2.0), ["110"], 4, "requantized-4bit-gptq") | a_row(
        "peqa", (3.0, 1.0, 2.0), ["110"], 4)
    table = tables.methods_table(gather(cells), 4, {name: {} for name, _ in tables.STATES})
    how = table["columns"].index("how")
    assert [row[how] for row in table["rows"]] == ["rounded afterwards", "merged"]


def test_costs_are_a_table():
    row = {"title": "QLoRA", "bits": 4, "base_mb": 4.0, "peak_mb": 10.0, "inference_mb": {"merged": 11.5},
           "seconds_before_training": 0.5, "step_seconds": 0.02, "step_to_lora": 1.1,
           "seconds_after_training": {"merged": 0.1}}
    table = tables.costs_table({"model": "base", "device": "a GPU", "rows": [row, {**row, "peak_mb": None}]})
    assert table["rows"][0] == ["QLoRA", "4", "4.0 + 6.0", "11.5", "-", "0.50", "20.0", "1.10", "0.10", "-"]
    assert table["rows"][1][2] == "-"


def test_found_has_no_best_rate_if_all_diverged():
    one = Found("a", "A", "methods", 4, [facts("a", "rate", 0, None)])
    assert one.best is None and tables.value(one) == "-" and not one.at_edge
