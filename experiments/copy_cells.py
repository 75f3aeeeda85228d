"""Copy cells into experiments/results/cells.json, without what no table and no picture reads.

    python -m experiments.copy_cells runs/cells/cells.json

Left out: cells that failed, and those whose learning rate is not the best any more; the loss and the gradient norm of
each step, except of the methods that are compared at the same rate.
"""
import argparse
from pathlib import Path

from experiments.claims.evidence import Facts
from experiments.results_page import RESULTS
from experiments.run import write_cells
from experiments.shared import experiment_parser, run_experiment
from model.files import read_json

BY_STEP = ("losses", "gradient_norms")
NOTE = (f"Left out of this copy: {' and '.join(BY_STEP)} of every cell but those of the part \"methods\", cells that "
        "failed, and cells at a rate that is not the best any more.")


def options_parser() -> argparse.ArgumentParser:
    parser = experiment_parser(__doc__)
    parser.add_argument("cells", type=Path, help="copy this file of experiments.run")
    parser.add_argument("--out", type=Path, default=RESULTS / "cells.json",
                        help="write this file (default: experiments/results/cells.json)")
    return parser


def copied(cells: dict) -> dict:
    """What the file of experiments.run holds, without what is left out."""
    gone = {*cells.get("outdated", ()), *(name for name, facts in cells["cells"].items() if "error" in facts)}
    return {**{name: value for name, value in cells.items() if name != "outdated"}, "note": NOTE,
            "cells": {name: short(facts) for name, facts in cells["cells"].items() if name not in gone}}


def short(facts: Facts) -> Facts:
    """The gradients of the part `methods` are compared (experiments/claims/method_gradients.py)."""
    if facts["tags"].get("part") == "methods":
        return facts
    return {**facts, "training": {name: value for name, value in facts["training"].items() if name not in BY_STEP}}


def main() -> None:
    options = options_parser().parse_args()
    kept = copied(read_json(options.cells))
    write_cells(options.out, kept)
    print(f"{len(kept['cells'])} cells: {options.out}")


if __name__ == "__main__":
    run_experiment(main)
