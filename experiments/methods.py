"""Train every method at 4, 3 and 2 bits for the same number of steps, on the embedded base and banking77.

    python -m experiments.methods

This repeats Shen et al., Table 1 (accuracy as trained and merged) and Table 5 (time and memory) at a size for two CPU
cores. Each run is repeated with several seeds.

Each run is a separate process on one thread. Its peak memory is then its own, and its numbers do not depend on other
processes. Finished runs are not repeated.

Step times are measured last. All methods take turns on the same batches in one process, so quote the ratios, not the
seconds. Peak memory counts the whole process, including quantization of the base.

All files are written to --out. The table is in --out/table.md and --out/table.json.
"""
import argparse
import json
import statistics
import time
from itertools import cycle, islice
from pathlib import Path

import torch
from tqdm import tqdm

import train as train_script
from adapters.adapted import adapter_parameters
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
from finetune.adapted_model import attach_adapters
from finetune.command_line import train_parser
from finetune.loop import summed_loss
from finetune.methods import METHODS
from finetune.run import Run, open_run
from finetune.size import bits_per_weight
from finetune.source import load_run_base
from model.files import write_json, write_text
from scoring.score_run import adapted_states
from scoring.scores import Scoring
from tasks.batching import epoch_batches

DENSE = (["lora"], ["blora"])
QUANTIZED = (["qlora", "--double-quant", "--requantize", "gptq"], ["qblora", "--double-quant"],
             ["irqlora", "--double-quant"], ["qalora"], ["qablora"], ["peqa"])
TIMED_BATCHES, WARM_UP = 12, 2

Key = tuple[str, ...]  # ("qlora", "--bits", "4"): runs that differ in their seed only


def options_parser() -> argparse.ArgumentParser:
    parser = experiment_parser(__doc__, "runs/methods")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2],
                        help="quantize the base to these widths (default: 4 3 2)")
    parser.add_argument("--steps", type=int, default=60, help="train this many steps (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="ROWS",
                        help="train on this many rows in each step (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=4000, metavar="N",
                        help="train and validate on the first N rows (default: %(default)s)")
    add_repeated(parser)
    parser.add_argument("--one", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)  # used by the process of one run
    return parser


def main() -> None:
    options = options_parser().parse_args()
    if options.one:
        return train_and_score(options.one)
    keep_settings(options, ("steps", "batch_size", "limit", "test_rows"))
    draw_test_rows(options.out / "test.jsonl", options.test_rows)
    runs = [(command, seed) for seed in options.seeds for command in commands(options)]
    folders = [options.out / f"{command[0]}-{command[2]}-seed{seed}" for command, seed in runs]
    calls = []
    for (command, seed), folder in zip(runs, folders, strict=True):
        words = ["-m", "experiments.methods", "--one", "--method", *command, "--seed", str(seed)]
        calls.append((make_run, words, folder, "states.json"))
    at_once(options.jobs, calls, "runs")
    first = {tuple(command[:3]): folder for (command, seed), folder in zip(runs, folders, strict=True)
             if seed == options.seeds[0]}
    write_table(options, runs, folders, *step_times(first))


def commands(options: argparse.Namespace) -> list[list[str]]:
    """One list for each run: method, "--bits", width, further flags. 16-bit methods occur once, the others at every
    width."""
    shared = ["--steps", str(options.steps), "--batch-size", str(options.batch_size), "--limit", str(options.limit),
              "--test-data", str(options.out / "test.jsonl")]
    return [[method[0], "--bits", str(bits), *method[1:], *shared]
            for widths, methods in (([16], DENSE), (options.bits, QUANTIZED)) for bits in widths for method in methods]


def train_and_score(command: list[str]) -> None:
    """Do what train.py does, but skip the two rows of the base. They would be the same in all runs."""
    given = train_parser().given(command)
    source, config, data = train_script.prepare(given)
    run = Run(given["out"])
    train_script.describe(run, source, config, data)
    train_script.train(run, config, data)
    base = load_run_base(run, config, config.compute.torch_dtype, config.compute.device)
    rows = adapted_states(base, run, config, Scoring(data, config.evaluation.eval_batch_size))
    write_json(run.path / "states.json", {"rows": [row.to_json() for row in rows]})


def step_times(folders: dict[Key, Path]) -> tuple[dict[Key, list[float]], dict[Key, float]]:
    """Two dicts with the keys of `folders`: the seconds of each training step (forward, backward, optimizer step), and
    the bits per weight of the base. On each batch all runs take one step in turn."""
    torch.set_num_threads(1)
    steps, bits, batches = {}, {}, None
    for key, folder in folders.items():
        run = open_run(folder)
        config = run.config
        model = load_run_base(run, config, config.compute.torch_dtype, config.compute.device)
        bits[key] = bits_per_weight(model)
        attach_adapters(model, config)
        parameters = list(adapter_parameters(model).values())
        steps[key] = model, torch.optim.AdamW(parameters, lr=config.training.lr)
        if batches is None:
            rows = train_script.data_of(run).train
            order = epoch_batches([len(e.tokens) for e in rows], config.training.batch_size, 0, 0)
            # A small --limit has too few batches, so they are repeated.
            batches = [[rows[i] for i in indices] for indices in islice(cycle(order), TIMED_BATCHES + WARM_UP)]
    seconds = {key: [] for key in steps}
    for batch in tqdm(batches, desc="step times", disable=None):
        for key, (model, optimizer) in steps.items():
            begin = time.perf_counter()
            loss, n = summed_loss(model, batch)
            (loss / n).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seconds[key].append(time.perf_counter() - begin)
    return {key: values[WARM_UP:] for key, values in seconds.items()}, bits


def write_table(options: argparse.Namespace, runs: list, folders: list[Path], seconds: dict, base_bits: dict) -> None:
    base = seconds[("lora", "--bits", "16")]
    groups: dict[Key, list[Path]] = {}
    for (command, _), folder in zip(runs, folders, strict=True):
        groups.setdefault(tuple(command[:3]), []).append(folder)
    rows = []
    for key, paths in groups.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[key], base, strict=True))
        rows += rows_of(key, paths, ratio, base_bits[key])
    head = ["method", "bits", "bits a weight, base", "as trained, %", "merged, %", "loss as trained", "loss merged",
            "merged into", "bits a weight, merged", "trainable parameters", "step time / LoRA", "peak memory, MB"]
    text = markdown(head, ([row[name] for name in head] for row in rows))
    print(text)
    write_text(options.out / "table.md", text + "\n")
    write_json(options.out / "table.json", {
        "steps": options.steps, "batch_size": options.batch_size, "seeds": options.seeds, "rows": rows,
        "step_seconds": {" ".join(key): values for key, values in seconds.items()}})


def rows_of(key: Key, paths: list[Path], ratio: float, base_bits: float) -> list[dict]:
    """The row of one method. A requantized method has a second row for the requantized model."""
    states = [json.loads((path / "states.json").read_text())["rows"] for path in paths]
    facts = [json.loads((path / "training.json").read_text()) for path in paths]
    shared = {"bits": int(key[2]), "bits a weight, base": f"{base_bits:.3f}",
              "as trained, %": accuracies(rows[0] for rows in states),
              "loss as trained": losses(rows[0] for rows in states),
              "trainable parameters": f"{facts[0]['trainable_parameters']:,}", "step time / LoRA": f"{ratio:.2f}",
              "peak memory, MB": max(fact["peak_memory_mb"] for fact in facts)}
    out = []
    for i in range(1, len(states[0])):
        row, name = states[0][i], METHODS[key[0]].title
        out.append({"method": name if i == 1 else f"{name} w/ GPTQ (lossy)", **shared,
                    "merged, %": accuracies(rows[i] for rows in states),
                    "loss merged": losses(rows[i] for rows in states),
                    "merged into": merged_into(row),
                    "bits a weight, merged": f"{row['bits_per_weight']:.3f}"})
    return out


def merged_into(row: dict) -> str:
    """`4 bits`, `16 bits (float16)`, `4 bits (gptq:minmax@32x1, lossy)`: of a row of states.json."""
    more = ", ".join(filter(None, (row["how"], row["note"])))
    return f"{row['bits']} bits" + (f" ({more})" if more else "")


def accuracies(rows) -> str:
    """Test accuracy in percent, mean and standard deviation over the seeds."""
    return spread([row["scores"]["accuracy"] for row in rows], 1, scale=100)


def losses(rows) -> str:
    """Validation loss in nats per target token, mean and standard deviation over the seeds."""
    return spread([row["validation_loss"] for row in rows], 3)


if __name__ == "__main__":
    main()
