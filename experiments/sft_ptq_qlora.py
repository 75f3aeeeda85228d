"""Zhu et al. on the embedded base and banking77: 16-bit SFT, SFT -> PTQ, and SFT -> PTQ -> QLoRA, by NF4 and by GPTQ, with the
two controls that the paper lacks: SFT for the same extra steps, and QLoRA straight on the quantized base for as many steps in
all.

    python -m experiments.sft_ptq_qlora

Each run is a process of its own on one thread. Finished runs are not repeated. Everything goes to --out: the runs, one paired
test a seed (seedN.json), and table.md.
"""
import argparse
import os
import statistics
from contextlib import redirect_stdout
from pathlib import Path

from experiments.shared import at_once, draw_test_rows, keep_settings, make_run
from scoring.predictions import compare

PTQ = {"nf": ["--quantizer", "nf"], "gptq": ["--quantizer", "gptq"]}
STATES = {"SFT, 16 bits": "sft", "SFT for the same extra steps": "sft-more",
          **{f"SFT -> PTQ ({how})": f"sft-qlora-{how}:quantized" for how in PTQ},
          **{f"SFT -> PTQ -> QLoRA ({how})": f"sft-qlora-{how}" for how in PTQ},
          **{f"PTQ -> QLoRA ({how}), as many steps in all": f"qlora-{how}" for how in PTQ}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/sft_ptq_qlora"))
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--limit", type=int, default=5000, help="rows to train and validate on")
    parser.add_argument("--sft-epochs", type=int, default=2)
    parser.add_argument("--extra-epochs", type=int, default=1, help="of QLoRA after SFT, and of more SFT")
    parser.add_argument("--test-rows", type=int, default=1000, help="drawn once from banking77's 3080, which are sorted by intent")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time")
    options = parser.parse_args()
    keep_settings(options, ("bits", "limit", "sft_epochs", "extra_epochs", "test_rows"))
    draw_test_rows(options.out / "test.jsonl", options.test_rows)
    stages = [[call for seed in options.seeds for call in stage(options, seed)] for stage in (from_the_base, from_sft)]
    for name, calls in zip(("from the base", "from SFT"), stages):
        at_once(options.jobs, calls, name)
    with open(options.out / "table.md", "w", encoding="utf-8") as file, redirect_stdout(file):
        print(table(options))
    print((options.out / "table.md").read_text(encoding="utf-8"))


def from_the_base(options: argparse.Namespace, seed: int) -> list[tuple]:
    total = options.sft_epochs + options.extra_epochs
    return [run(options, seed, "sft", ["--method", "full"], options.sft_epochs),
            *(run(options, seed, f"qlora-{how}", ["--method", "qlora", "--bits", str(options.bits), *flags], total) for how, flags in PTQ.items())]


def from_sft(options: argparse.Namespace, seed: int) -> list[tuple]:
    start = ["--model", str(folder(options, seed, "sft"))]
    return [run(options, seed, "sft-more", [*start, "--method", "full"], options.extra_epochs),
            *(run(options, seed, f"sft-qlora-{how}", [*start, "--method", "qlora", "--bits", str(options.bits), *flags], options.extra_epochs)
              for how, flags in PTQ.items())]


def folder(options: argparse.Namespace, seed: int, name: str) -> Path:
    return options.out / f"{name}-seed{seed}"


def run(options: argparse.Namespace, seed: int, name: str, flags: list[str], epochs: int) -> tuple:
    """A call for `at_once`."""
    shared = ["--epochs", str(epochs), "--batch-size", "32", "--limit", str(options.limit), "--test-data", str(options.out / "test.jsonl"),
              "--seed", str(seed)]
    return make_run, ["train.py", *flags, *shared], folder(options, seed, name), "results.json"


def table(options: argparse.Namespace) -> str:
    """Score, mean and standard deviation over the seeds; difference to SFT; and the p-value of each seed's paired test."""
    found = {}
    for seed in options.seeds:
        parts = [spec.partition(":") for spec in STATES.values()]  # run, colon, key of the state
        specs = [f"{folder(options, seed, run)}{colon}{key}" for run, colon, key in parts]
        found[seed] = compare(specs, options.out / f"seed{seed}.json")
    first = [results[0].mean_b for results in found.values()]
    lines = ["", "| | accuracy, % | beside SFT, points | p, seed by seed (McNemar, exact) |", "| --- | --- | --- | --- |",
             f"| {next(iter(STATES))} | {spread(first)} | - | - |"]
    for i, name in enumerate(list(STATES)[1:]):
        results = [of_seed[i] for of_seed in found.values()]
        lines.append(f"| {name} | {spread([r.mean_a for r in results])} | {spread([r.difference for r in results], '+')} "
                     f"| {', '.join(f'{r.p_value:.2g}' for r in results)} |")
    return "\n".join(lines)


def spread(values: list[float], sign: str = "") -> str:
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):{sign}.1f}{deviation}"


if __name__ == "__main__":
    main()
