"""The copy of cells that is kept in the repository."""
import json

from experiments import copy_cells
from experiments.claims.evidence import Cells


def cell(part, **more):
    return {"plan": "methods", "tags": {"part": part}, "states": {}, "training": {
        "best_validation_loss": 1.0, "losses": [2.0], "gradient_norms": [3.0]}, **more}


def test_what_no_table_reads_is_left_out(tmp_path, monkeypatch):
    file, out = tmp_path / "cells.json", tmp_path / "copy.json"
    file.write_text(json.dumps({"plans": {"methods": "about"}, "sessions": [], "outdated": ["old"], "cells": {
        "old": cell("methods"), "failed": {"plan": "methods", "tags": {}, "error": "no memory"},
        "kept": cell("methods"), "further": cell("blocks"), "base": {**cell("methods"), "training": {}}}}))
    monkeypatch.setattr("sys.argv", ["copy_cells", str(file), "--out", str(out)])
    copy_cells.main()
    kept = json.loads(out.read_text())
    assert list(kept["cells"]) == ["kept", "further", "base"] and "outdated" not in kept
    assert kept["cells"]["kept"] == cell("methods")
    assert kept["cells"]["further"]["training"] == {"best_validation_loss": 1.0}
    assert kept["plans"] == {"methods": "about"} and kept["note"] == copy_cells.NOTE
    assert Cells([out]).facts == kept["cells"] and set(Cells([file]).facts) == set(kept["cells"])
