"""Draw the picture of the recorded runs on the embedded base again: scores against the memory of the weights.

    python -m experiments.restoration_picture                  # experiments/results/restoration.png
    python -m experiments.restoration_picture --out DIR
"""
from pathlib import Path

from experiments.results_page import RESULTS, read
from experiments.shared import experiment_parser, run_experiment
from scoring.show_tradeoff import plot_tradeoff
from scoring.tradeoff import Average


def main() -> None:
    parser = experiment_parser(__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="write to this directory (default: %(default)s)")
    out, found = parser.parse_args().out, read("restoration")
    out.mkdir(parents=True, exist_ok=True)
    plot_tradeoff([Average(**mean) for mean in found["averages"]], out / "restoration.png", found["metric"])


if __name__ == "__main__":
    run_experiment(main)
