"""Repeat the comparison of Zhu et al. on the embedded base and banking77: SFT, SFT -> PTQ, and SFT -> PTQ -> QLoRA.

    python -m experiments.sft_ptq_qlora

SFT is in 16 bits. PTQ is done once with NF and once with GPTQ. Two controls are added that the paper lacks: SFT for the
same number of extra steps, and QLoRA directly on the quantized base for the same total number of steps.

Each run is a separate process on one thread. Finished runs are not repeated.

All files are written to --out: the runs, one paired test for each seed (seedN.json), and table.md.
"""
import argparse
import io
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
    spread,
)
from model.files import write_text
from scoring.predictions import compare

PTQ = {"nf": ["--quantizer", "nf"], "gptq": ["--quantizer", "gptq"]}
STATES = {"SFT, 16 bits": "sft", "SFT for the same extra steps": "sft-more",
          **{f"SFT -> PTQ ({how})": f"sft-qlora-{how}:quantized" for how in PTQ},
          **{f"SFT -> PTQ -> QLoRA ({how})": f"sft-qlora-{how}" for how in PTQ},
          **{f"PTQ -> QLoRA ({how}), as many steps in all": f"qlora-{how}" for how in PTQ}}


def options_parser() -> argparse.ArgumentParser:
    parser = experiment_parser(__doc__, "runs/sft_ptq_qlora")
    parser.add_argument("--bits", type=int, default=4, help="quantize to this width (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=5000, metavar="N",
                        help="train and validate on the first N rows (default: %(default)s)")
    parser.add_argument("--sft-epochs", type=int, default=2, metavar="EPOCHS",
                        help="train this many epochs of SFT (default: %(default)s)")
    parser.add_argument("--extra-epochs", type=int, default=1, metavar="EPOCHS",
                        help="train this many epochs of QLoRA or of more SFT after SFT (default: %(default)s)")
    add_repeated(parser)
    return parser


def main() -> None:
    options = options_parser().parse_args()
    keep_settings(options, ("bits", "limit", "sft_epochs", "extra_epochs", "test_rows"))
    draw_test_rows(options.out / "test.jsonl", options.test_rows)
    stages = [[call for seed in options.seeds for call in stage(options, seed)] for stage in (from_the_base, from_sft)]
    for name, calls in zip(("from the base", "from SFT"), stages, strict=True):
        at_once(options.jobs, calls, name)
    with redirect_stdout(io.StringIO()) as printed:
        print(table(options))
    write_text(options.out / "table.md", printed.getvalue())
    print(printed.getvalue())


def from_the_base(options: argparse.Namespace, seed: int) -> list[tuple]:
    """The calls of one seed that start from the embedded base."""
    total = options.sft_epochs + options.extra_epochs
    return [run(options, seed, "sft", ["--method", "full"], options.sft_epochs),
            *(run(options, seed, f"qlora-{how}", qlora(options, flags), total) for how, flags in PTQ.items())]


def from_sft(options: argparse.Namespace, seed: int) -> list[tuple]:
    """The calls of one seed that start from its SFT run."""
    start = ["--model", str(folder(options, seed, "sft"))]
    return [run(options, seed, "sft-more", [*start, "--method", "full"], options.extra_epochs),
            *(run(options, seed, f"sft-qlora-{how}", [*start, *qlora(options, flags)], options.extra_epochs)
              for how, flags in PTQ.items())]


def qlora(options: argparse.Namespace, flags: list[str]) -> list[str]:
    return ["--method", "qlora", "--bits", str(options.bits), *flags]


def folder(options: argparse.Namespace, seed: int, name: str) -> Path:
    return options.out / f"{name}-seed{seed}"


def run(options: argparse.Namespace, seed: int, name: str, flags: list[str], epochs: int) -> tuple:
    """A call for `at_once` that makes one run."""
    shared = ["--epochs", str(epochs), "--batch-size", "32", "--limit", str(options.limit),
              "--test-data", str(options.out / "test.jsonl"), "--seed", str(seed)]
    return make_run, ["train.py", *flags, *shared], folder(options, seed, name), "results.json"


def table(options: argparse.Namespace) -> str:
    """One row for each state: mean and standard deviation over the seeds of the score and of its difference to SFT, and
    the p-value of each seed's paired test."""
    found = {}
    for seed in options.seeds:
        parts = [spec.partition(":") for spec in STATES.values()]  # run, colon, key of the state
        specs = [f"{folder(options, seed, run)}{colon}{key}" for run, colon, key in parts]
        found[seed] = compare(specs, options.out / f"seed{seed}.json")
    first = [results[0].mean_b for results in found.values()]
    rows = [[next(iter(STATES)), spread(first, 1, scale=100), "-", "-"]]
    for i, name in enumerate(list(STATES)[1:]):
        results = [of_seed[i] for of_seed in found.values()]
        rows.append([name, spread([r.mean_a for r in results], 1, scale=100),
                     spread([r.difference for r in results], 1, "+", 100),
                     ", ".join(f"{r.p_value:.2g}" for r in results)])
    return "\n" + markdown(["", "accuracy, %", "beside SFT, points", "p, seed by seed (McNemar, exact)"], rows)


if __name__ == "__main__":
    main()
