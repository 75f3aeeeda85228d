"""The copy of cells that is kept in the repository."""
import json

from experiments import copy_cells
from experiments.run import Results


def cell(part, **more):
    return {"plan": "methods", "tags": {"part": part}, "states": {}, "training": {
        "best_validation_loss": 1.0, "losses": [2.0], "gradient_norms": [3.0]}, **more}


def test_what_no_table_reads_is_left_out(tmp_path, monkeypatch):
    file, out = tmp_path / "cells.json", tmp_path / "copy.json"
    file.write_text(json.dumps({"plans": {"methods": "about"}, "sessions": [], "cells": {
        "failed": {"plan": "methods", "tags": {}, "error": "no memory"},
        "kept": cell("methods"), "further": cell("blocks"), "base": {**cell("methods"), "training": {}}}}))
    monkeypatch.setattr("sys.argv", ["copy_cells", str(file), "--out", str(out)])
    copy_cells.main()
    kept = json.loads(out.read_text())
    assert list(kept["cells"]) == ["failed", "kept", "further", "base"]
    assert kept["cells"]["kept"] == cell("methods") and kept["cells"]["failed"]["error"] == "no memory"
    assert kept["cells"]["further"]["training"] == {"best_validation_loss": 1.0}
    assert kept["plans"] == {"methods": "about"} and kept["note"] == copy_cells.NOTE
    results = Results(out, [], {}, {}, {})  # what goes on from a copy is none
    results.end(1.0)
    assert "note" not in json.loads(out.read_text())
