"""The same cells, run on two devices: how far do their results differ? Write a record for docs/results.md.

    python -m experiments.run methods --device cpu --only NAME ... --out runs/again
    python -m experiments.same_cells experiments/results/cells.json runs/again/cells.json
    python -m experiments.results_page

Cells are compared that both files hold, that differ in --device, and whose other arguments are the same.
"""
import argparse
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.cells.plan import value_after
from experiments.claims.evidence import LEVEL, Cells, Facts, Judged, marks_of
from experiments.findings import provenance
from experiments.results_page import RESULTS
from experiments.shared import experiment_parser, run_experiment
from model.files import write_json
from tasks.significance import compare_scores

OF_DEVICES = ("--device", "--eval-batch-size")  # a GPU scores more rows at once
RECORDED = "--cuda-graphs"  # and records its steps

Pair = tuple[str, Facts, Facts]  # the name of a cell, and its facts in each file


def options_parser() -> argparse.ArgumentParser:
    parser = experiment_parser(__doc__)
    parser.add_argument("first", type=Path, help="read this file of experiments.run")
    parser.add_argument("second", type=Path, help="read this file of experiments.run")
    parser.add_argument("--out", type=Path, default=RESULTS,
                        help="write same_cells.json to this directory (default: experiments/results)")
    return parser


def device_of(facts: Facts) -> str:
    return value_after(facts["argv"], "--device")


def settings_of(facts: Facts) -> list[str]:
    """The arguments that both runs must share: `["--device", "cuda", "--cuda-graphs", "--lr", "1"]` leaves
    `["--lr", "1"]`."""
    words = [word for word in facts["argv"] if word != RECORDED]
    return [word for before, word in zip(["", *words], words, strict=False)
            if before not in OF_DEVICES and word not in OF_DEVICES]


def pairs_of(first: Cells, second: Cells) -> list[Pair]:
    return [(name, facts, again) for name, facts in first.facts.items() if (again := second.facts.get(name))
            and device_of(facts) != device_of(again) and settings_of(facts) == settings_of(again)]


def judged_states(pairs: Iterable[Pair]) -> list[tuple[Pair, str, Judged]]:
    """Second minus first, of each state that both runs scored. p is not corrected."""
    found = []
    for pair in pairs:
        _, first, second = pair
        for state in (state for state in first["states"] if state in second["states"]):
            comparison = compare_scores(marks_of(second, state), marks_of(first, state))
            found.append((pair, state, Judged({}, comparison, 1, comparison.p_value)))
    return found


def row_of(pair: Pair, state: str, judged: Judged) -> list[str]:
    name, *both = pair
    marks = [marks_of(facts, state) for facts in both]
    same = statistics.mean(a == b for a, b in zip(*marks, strict=True))
    p = judged.adjusted
    return [name, state, *(f"{facts['states'][state]['validation_loss']:.4f}" for facts in both),
            *(f"{100 * statistics.mean(each):.1f}" for each in marks), judged.points, "-" if p is None else f"{p:.2g}",
            f"{100 * same:.1f}"]


def record(first: Cells, second: Cells) -> dict:
    """Raises ValueError if the files share no cell that can be compared, or cells of more than two devices."""
    pairs = pairs_of(first, second)
    devices = sorted({(device_of(a), device_of(b)) for _, a, b in pairs})
    if len(devices) != 1:
        found = "; ".join(f"{a} and {b}" for a, b in devices) or "none"
        raise ValueError(f"cells of both files, on two devices: {found}. One pair of devices is needed: run some cells "
                         "again with --device and --only")
    (a, b), judged = devices[0], judged_states(pairs)
    plans = list(dict.fromkeys(facts["plan"] for _, facts, _ in pairs))
    told = provenance(second, plans[0], None)
    only = textwrap.wrap(f"--only {' '.join(name for name, *_ in pairs)}", 110, break_on_hyphens=False)
    return {"title": "The same cells on two devices", "date": told["date"],
            "machine": f"{b}: {told['machine']}; {a}: see the sections of the plans", "commit": told["commit"],
            "command": [" \\\n    ".join([f"python -m experiments.run {' '.join(plans)} --model smollm2 --data DATA",
                                         f"--device {b} --out runs/again", *only]),
                        "python -m experiments.same_cells experiments/results/cells.json runs/again/cells.json"],
            "about": [f"These cells of the plans were run with --device {a} and with --device {b}. The seed is the "
                      "same, so the rows and the first adapter are, too. Each device rounds its sums in its own order, "
                      "so two runs drift apart in training."],
            "tables": [{"caption": "Scores in percent; difference in points with its 95 % interval, and its p, not "
                                   "corrected.",
                        "columns": ["cell", "state", f"validation loss, {a}", f"validation loss, {b}", f"score, {a}",
                                    f"score, {b}", f"{b} - {a}", "p", "test rows with the same mark, %"],
                        "rows": [row_of(*one) for one in judged]}],
            "findings": [significant(judged)]}


def significant(judged: Sequence[tuple[Pair, str, Judged]]) -> str:
    different = [f"{pair[0]}, {state} ({one.points} points, p {one.adjusted:.2g})" for pair, state, one in judged
                 if one.adjusted is not None and one.adjusted < LEVEL]
    cells = len({pair[0] for pair, _, _ in judged})
    said = f"{': ' * bool(different)}{'; '.join(different)}"
    return (f"Of {len(judged)} pairs of scores, of {cells} cell{'s' * (cells > 1)}, {len(different)} differ with p "
            f"below {LEVEL}, not corrected{said}.")


def main() -> None:
    options = options_parser().parse_args()
    made = record(*(Cells([file]) for file in (options.first, options.second)))
    write_json(options.out / "same_cells.json", made)
    print("\n".join([*(" | ".join(row) for row in made["tables"][0]["rows"]), *made["findings"]]))


if __name__ == "__main__":
    run_experiment(main)
