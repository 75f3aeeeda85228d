"""The same cells, run twice: how far do their results differ? Write a record for docs/results.md.

    python -m experiments.run methods --device cpu --only NAME ... --out runs/again
    python -m experiments.same_cells experiments/results/cells.json runs/again/cells.json
    python -m experiments.results_page

Cells are compared that both files hold, that differ in --device, and whose other arguments are the same.
"""
import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.cells.plan import value_after
from experiments.claims.evidence import Cells, Facts, compared, marks_of
from experiments.findings import provenance
from experiments.results_page import RESULTS
from experiments.shared import experiment_parser, run_experiment
from model.files import write_json

OF_DEVICES = ("--device", "--cuda-graphs", "--eval-batch-size")  # a GPU records its steps, and scores more rows at once


def options_parser() -> argparse.ArgumentParser:
    parser = experiment_parser(__doc__)
    parser.add_argument("first", type=Path, help="read this file of experiments.run")
    parser.add_argument("second", type=Path, help="read this file of experiments.run")
    parser.add_argument("--out", type=Path, default=RESULTS,
                        help="write same_cells.json to this directory (default: experiments/results)")
    return parser


def settings_of(facts: Facts) -> list[str]:
    """The arguments that both runs must share."""
    kept, words = [], iter(facts["argv"])
    for word in words:
        if word not in OF_DEVICES:
            kept.append(word)
        elif word != "--cuda-graphs":
            next(words)
    return kept


def pairs(first: Cells, second: Cells) -> list[tuple[str, Facts, Facts]]:
    """(name, facts, facts)"""
    return [(name, facts, again) for name, facts in first.facts.items() if (again := second.facts.get(name))
            and value_after(facts["argv"], "--device") != value_after(again["argv"], "--device")
            and settings_of(facts) == settings_of(again)]


def rows_of(name: str, first: Facts, second: Facts) -> list[list[str]]:
    """A row for each state that both runs scored."""
    rows = []
    for state in (state for state in first["states"] if state in second["states"]):
        judged = compared({}, {0: second}, state, {0: first}, state)
        shared = [a == b for a, b in zip(marks_of(first, state), marks_of(second, state), strict=True)]
        losses, scores = ([f"{one['states'][state]['validation_loss']:.4f}" for one in (first, second)],
                          [f"{100 * sum(marks_of(one, state)) / len(shared):.1f}" for one in (first, second)])
        p = judged.comparison.p_value if judged else None
        rows.append([name, state, *losses, *scores, judged.points if judged else "-", f"{p:.2g}" if p is not None
                     else "-", f"{100 * sum(shared) / len(shared):.1f}"])
    return rows


def record(files: Sequence[Path]) -> dict:
    """Raises ValueError if the files share no cell that can be compared."""
    first, second = (Cells([file]) for file in files)
    found = pairs(first, second)
    if not found:
        raise ValueError(f"{files[1]}: holds no cell of {files[0]} that was computed on another device: run some with "
                         "--device and --only")
    a, b = (value_after(found[0][i]["argv"], "--device") for i in (1, 2))
    rows = [row for one in found for row in rows_of(*one)]
    plans = list(dict.fromkeys(facts["plan"] for _, facts, _ in found))
    told = provenance(second, plans[0], None)
    names = " ".join(name for name, *_ in found)
    return {"title": "The same cells on a GPU and on a CPU", "date": told["date"],
            "machine": f"{b}: {told['machine']}; {a}: as in the sections of the plans", "commit": told["commit"],
            "command": [f"python -m experiments.run {' '.join(plans)} --model smollm2 --data DATA --device {b} --only "
                        f"{names}"],
            "about": ["Some cells of the plans were run on a CPU, when no GPU was lent. These were run on both. The "
                      "seed is the same, so the rows and the first adapter are, too. Each device rounds its sums in "
                      "its own order, so two runs drift apart in training."],
            "tables": [{"caption": "Scores in percent; difference in points with its 95 % interval, and its p, not "
                                   "corrected.",
                        "columns": ["cell", "state", f"validation loss, {a}", b, f"score, {a}", b, f"{b} - {a}", "p",
                                    "test rows with the same mark, %"], "rows": rows}],
            "findings": [significant(rows)]}


def significant(rows: Sequence[Sequence[str]]) -> str:
    different = [f"{row[0]}, {row[1]} ({row[6]} points, p {row[7]})" for row in rows if row[7] != "-"
                 and float(row[7]) < 0.05]
    return (f"Of {len(rows)} pairs of scores, {len(different)} differ with p below 0.05, not corrected"
            f"{': ' + '; '.join(different) if different else ''}.")


def main() -> None:
    options = options_parser().parse_args()
    made = record([options.first, options.second])
    write_json(options.out / "same_cells.json", made)
    print("\n".join([*(" | ".join(row) for row in made["tables"][0]["rows"]), *made["findings"]]))


if __name__ == "__main__":
    run_experiment(main)
