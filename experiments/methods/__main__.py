"""Write the tables and the pictures of the comparison of methods.

    python -m experiments.methods runs/methods runs/methods-smollm2

Each directory holds cells.json of `python -m experiments.run methods`, on the embedded base or on a real model, and
perhaps costs-*.json of `python -m experiments.methods.costs`. Results go to --to: a JSON record for each directory,
which experiments/results_page.py puts on its page, and pictures.
"""
import argparse
import subprocess
from pathlib import Path

from experiments.methods.found import Found, bases, failures, gather
from experiments.methods.pictures import draw_gradients, draw_rates, draw_scores, draw_sizes
from experiments.methods.tables import (
    against_reference,
    balance_table,
    bases_table,
    costs_table,
    gradients_table,
    methods_table,
    part_table,
)
from experiments.shared import experiment_parser
from model.files import read_json, write_json

RESULTS = Path(__file__).parent.parent / "results"
PARTS = (("operators", "Other operators (Shen et al., Table 6), at 4 bits.",
          ("qblora-2", "qblora-4", "qablora-4x8", "qablora-8x8")),
         ("blocks", "Blocks of 32 and of 64 weights (Shen et al., Figure 7b), at 4 bits.",
          ("qablora-4x8", "qablora-8x8")),
         ("parameters", "Equal trainable parameters: those of QA-BLoRA with 4x8 blocks, or a few less.",
          ("qablora-4x8", "peqa")),
         ("time", "Equal wall-clock: Q-BLoRA with fewer steps, as its step takes longer.", ("qlora", "qblora-2")),
         ("targets", "Three targets on one base (GPTQ, min-max 32x1): offset, codes, scale and offset.",
          ("qalora", "lota")))


def options_parser() -> argparse.ArgumentParser:
    parser = experiment_parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="DIR", help="read cells.json and costs-*.json there")
    parser.add_argument("--to", type=Path, default=RESULTS, metavar="DIR",
                        help="write JSON files and pictures to this directory (default: experiments/results)")
    return parser


def main() -> None:
    options = options_parser().parse_args()
    drawn: dict[str, list[Found]] = {}
    for folder in options.runs:
        kept = read_json(folder / "cells.json")
        model = kept["settings"]["model"]
        name = f"methods_{'embedded' if model is None else 'real'}"
        base = "embedded base, BANKING77" if model is None else f"{model}, sql-create-context"
        found = gather(of_plan(kept["cells"]))
        costs = [read_json(file) for file in sorted(folder.glob("costs-*.json"))]
        write_json(options.to / f"{name}.json", record(kept, found, costs, base, folder))
        draw_scores(found, options.to / f"{name}.png", base)
        draw_rates(found, options.to / f"{name}_rates.png", base)
        draw_gradients(found, options.to / f"{name}_gradients.png", base)
        drawn[base] = found
    draw_sizes(drawn, options.to / "methods_sizes.png")


def of_plan(cells: dict) -> dict:
    return {name: facts for name, facts in cells.items() if facts.get("plan", "methods") == "methods"}


def record(kept: dict, found: list[Found], costs: list[dict], base: str, folder: Path) -> dict:
    """A record of results_page.py. Findings are written by hand, and kept."""
    widths = sorted({one.bits for one in found if one.bits < 16}, reverse=True)
    cells, tested = of_plan(kept["cells"]), against_reference(found)
    tables = [bases_table(bases(cells)), *(methods_table(found, bits, tested) for bits in widths), balance_table(found),
              gradients_table(found), *(part_table(found, *part) for part in PARTS), *map(costs_table, costs)]
    machine, failed = kept["sessions"][-1]["machine"], failures(cells)
    return {"title": f"Every method with a rate of its own: {base}", "date": kept["sessions"][-1]["began"][:10],
            "machine": f"{machine['device']}, torch {machine['torch']}", "commit": commit(), "command": [
                f"python -m experiments.run methods --out {folder}", f"python -m experiments.methods {folder}"],
            "about": [*kept["plans"]["methods"].splitlines(), told(cells, failed)],
            "tables": [table for table in tables if table["rows"]], "findings": [], "failed": failed}


def told(cells: dict, failed: dict[str, str]) -> str:
    return (f"{len(cells)} cells were done; {len(failed)} of them failed or diverged"
            f"{': ' if failed else ''}{', '.join(failed)}.")


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=RESULTS, capture_output=True, text=True)
    return done.stdout.strip() or "not recorded"


if __name__ == "__main__":
    main()
