"""Repeat Table 1 and Figure 2 of Kanda & Hatano on the embedded base and banking77.

    python -m experiments.restoration

Train LoRA on the 16-bit base and QLoRA on GPTQ bases of 8, 4, 3 and 2 bits, with several seeds. Restore each run to
3, 4, 8 and 16 bits. The adapters are on the attention layers, and all layers are quantized. Rank and alpha are 16, and
a batch has 32 rows. The epoch with the lowest validation loss is kept.

Each run and each evaluation is a separate process on one thread. Finished ones are not repeated.

All files are written to --out: the runs, restoration.png, restoration.json and table.md. table.md has Table 1 and the
ratios ||W_l - W_k|| / ||delta_W||.
"""
import argparse
import io
import json
import statistics
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from experiments.shared import (
    add_repeated,
    at_once,
    draw_test_rows,
    experiment_parser,
    keep_settings,
    make_run,
    markdown,
    python,
    spread,
)
from model.files import write_text
from scoring.show_tradeoff import show_tradeoff
from scoring.tradeoff import Point, averages

RESTORED = (3, 4, 8, 16)


def options_parser() -> argparse.ArgumentParser:
    parser = experiment_parser(__doc__, "runs/restoration")
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 8, 4, 3, 2],
                        help="train on bases of these widths (default: 16 8 4 3 2)")
    parser.add_argument("--epochs", type=int, default=3, help="train this many epochs (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=5e-3, help="train with this learning rate (default: %(default)s)")
    add_repeated(parser)
    return parser


def main() -> None:
    options = options_parser().parse_args()
    keep_settings(options, ("bits", "epochs", "lr", "test_rows"))
    draw_test_rows(options.out / "test.jsonl", options.test_rows)
    folders = {(bits, seed): options.out / f"q{bits}-seed{seed}" for seed in options.seeds for bits in options.bits}
    at_once(options.jobs, [(make_run, ["train.py", *train_command(options, *key)], folder, "results.json")
                           for key, folder in folders.items()], "runs")
    scored = {seed: options.out / f"seed{seed}.json" for seed in options.seeds}
    at_once(options.jobs, [(score, options, [folders[bits, seed] for bits in options.bits], file)
                           for seed, file in scored.items() if not file.is_file()], "evaluations")
    points = [Point(**point) for file in scored.values() for point in json.loads(file.read_text())["runs"]]
    with redirect_stdout(io.StringIO()) as printed:
        show_tradeoff(points, options.out / "restoration.png", None)
        print(f"\n{gain_table(points)}")
    write_text(options.out / "table.md", printed.getvalue())
    print(printed.getvalue())


def train_command(options: argparse.Namespace, bits: int, seed: int) -> list[str]:
    """The arguments of train.py. It scores one test row, because eval.py scores the test rows afterwards."""
    method = ["lora"] if bits == 16 else ["qlora", "--quantizer", "gptq", "--act-order", "--bits", str(bits)]
    return ["--method", *method, "--targets", "attention", "--rank", "16", "--lora-alpha", "16", "--batch-size", "32",
            "--epochs", str(options.epochs), "--lr", str(options.lr), "--test-data", str(options.out / "test.jsonl"),
            "--test-limit", "1", "--seed", str(seed)]


def score(options: argparse.Namespace, folders: Sequence[Path], file: Path) -> None:
    """Score all runs of one seed as trained and restored. Writes `file`, and a picture and a log beside it."""
    command = ["eval.py", *map(str, folders), "--restore", *map(str, RESTORED), "--test-limit", str(options.test_rows),
               "--json", str(file), "--plot", str(file.with_suffix(".png"))]
    python(command, file.with_suffix(".log"))


def gain_table(points: list[Point]) -> str:
    """What restoration gained, in percentage points and in nats, beside how far it moved the base. Gains are computed
    for each run, then averaged over the seeds."""
    trained = {p.run: p for p in points if not p.restored}
    head = ["trained at", "restored to", "weights, MB", "accuracy, %", "gain, points", "validation loss", "gain, nats",
            "norm(W_l - W_k) / norm(delta_W)"]
    rows = []
    for mean in averages(points):
        group = [p for p in points
                 if (p.trained_bits, p.restored, p.bits) == (mean.trained_bits, mean.restored, mean.bits)]
        loss = f"{statistics.mean(p.validation_loss for p in group):.4f}"
        cells = [f"{mean.trained_bits} bits", "as trained", f"{mean.megabytes:.2f}", mean.percent, "-", loss, "-", "-"]
        if mean.restored:
            cells[1] = f"{mean.bits} bits"
            cells[4] = spread([p.score - trained[p.run].score for p in group], 1, "+", 100)
            cells[6] = spread([trained[p.run].validation_loss - p.validation_loss for p in group], 4, "+")
            cells[7] = f"{statistics.mean(p.restoration_ratio for p in group):.2f}"
        rows.append(cells)
    return markdown(head, rows)


if __name__ == "__main__":
    main()
