"""Copy cells into experiments/results/cells.json, without the loss and the gradient norm of each step.

    python -m experiments.copy_cells runs/cells/cells.json

They are kept of the methods that are compared at the same rate (experiments/claims/method_gradients.py). No other table
or picture reads them.
"""
import argparse
from pathlib import Path

from experiments.cells.file import read_cells, write_cells
from experiments.cells.pool import Facts
from experiments.results_page import RESULTS
from experiments.shared import experiment_parser, run_experiment

BY_STEP = ("losses", "gradient_norms")
NOTE = f"Left out of this copy: {' and '.join(BY_STEP)} of all cells but those of the part \"methods\"."


def options_parser() -> argparse.ArgumentParser:
    parser = experiment_parser(__doc__)
    parser.add_argument("cells", type=Path, help="copy this file of experiments.run")
    parser.add_argument("--out", type=Path, default=RESULTS / "cells.json",
                        help="write this file (default: experiments/results/cells.json)")
    return parser


def short(facts: Facts) -> Facts:
    if facts["tags"].get("part") == "methods" or "training" not in facts:
        return facts
    return {**facts, "training": {name: value for name, value in facts["training"].items() if name not in BY_STEP}}


def main() -> None:
    options = options_parser().parse_args()
    found = read_cells(options.cells)
    cells = {name: short(facts) for name, facts in found["cells"].items()}
    write_cells(options.out, {**found, "note": NOTE, "cells": cells})
    print(f"{len(cells)} cells: {options.out}")


if __name__ == "__main__":
    run_experiment(main)
