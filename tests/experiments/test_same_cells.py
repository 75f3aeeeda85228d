"""Cells that were run on two devices, compared."""
import json

import pytest

from experiments import results_page, same_cells
from experiments.claims.evidence import Cells


def cells_of(tmp_path, device, marks, **argv):
    """A file with a cell for each name of marks."""
    kept = {name: {"plan": "methods", "tags": {"seed": 0},
                   "states": {"trained": {"marks": text, "validation_loss": 1.0}},
                   "argv": ["--lr", argv.get(name, "0.1"), "--device", device, "--eval-batch-size", str(len(device)),
                            *(["--cuda-graphs"] if device == "cuda" else []), "--seed", "0"]}
            for name, text in marks.items()}
    file = tmp_path / f"{device}.json"
    file.write_text(json.dumps({"plans": {"methods": "what is asked"}, "cells": kept, "sessions": [{
        "machine": {"device": device, "torch": "0"}, "jobs": 2, "began": "2026-11-27 00:00:00", "plans": ["methods"],
        "commit": "abc"}]}))
    return file


def test_only_the_same_cells_on_another_device_are_compared(tmp_path):
    first = cells_of(tmp_path, "cuda", {"a": "1100" * 10, "b": "1111", "gone": "1"})
    second = cells_of(tmp_path, "cpu", {"a": "0101" * 10, "b": "1111", "new": "1"}, b="0.2")
    record = same_cells.record(Cells([first]), Cells([second]))
    [table] = record["tables"]
    [row] = table["rows"]
    assert row[:6] == ["a", "trained", "1.0000", "1.0000", "50.0", "50.0"] and row[-1] == "50.0"
    assert record["findings"] == ["Of 1 pairs of scores, of 1 cell, 0 differ with p below 0.05, not corrected."]
    assert record["commit"] == "abc" and results_page.section("same_cells", record)
    with pytest.raises(ValueError, match="on two devices: none. One pair of devices is needed"):
        same_cells.record(Cells([first]), Cells([first]))
    gpu, cpu = Cells([first]), Cells([second])
    gpu.facts["b"], cpu.facts["b"] = cpu.facts["b"], {**gpu.facts["b"], "argv": ["--device", "cuda"]}
    gpu.facts["b"]["argv"] = ["--device", "cpu"]
    with pytest.raises(ValueError, match="on two devices: cpu and cuda; cuda and cpu"):
        same_cells.record(gpu, cpu)


def test_a_difference_is_told(tmp_path):
    first, second = (cells_of(tmp_path, device, {"a": mark * 40}) for device, mark in (("cuda", "0"), ("cpu", "1")))
    [said] = same_cells.record(Cells([first]), Cells([second]))["findings"]
    assert said.startswith("Of 1 pairs of scores, of 1 cell, 1 differ") and "a, trained (+100.0" in said
