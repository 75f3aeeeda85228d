"""What the models of the papers need that do not fit here: memory and traffic of each process, and hours.

    python -m experiments.scale            # print the tables of docs/scale.md
    python -m experiments.scale --write    # put them into the page

Memory and traffic are those that `train.py --mem-report --nproc N` predicts, from each model's config.json alone. Hours
are those of `experiments.paper_cells`.
"""
import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from experiments.paper_cells import ROWS, RUNS, TOKENS, config_of, hours, restored_run, run_of, words_of
from experiments.shared import experiment_parser, markdown, run_experiment
from finetune.adapted_model import linear_names
from finetune.by_process import ALONE, Processes
from finetune.checks import put_adapters, put_codes
from finetune.command_line import train_parser
from finetune.config import RunConfig
from finetune.memory import moved, predicted, trained_numbers
from finetune.resolve import resolve_run
from model.checkpoint import empty_model
from model.config import LlamaConfig
from model.files import read_json, write_text
from model.llama import Llama
from tasks.task import Encoded

PAGE = Path(__file__).parent.parent / "docs" / "scale.md"
BENCHMARKS = Path(__file__).parent.parent / "benchmarks" / "results"
BEGIN, END = "<!-- experiments.scale: begin -->", "<!-- experiments.scale: end -->"
SHOWN = ("llama-7b", "llama-33b", "llama-65b", "llama-3.1-8b", "llama-3.1-70b")
METHODS = {"QLoRA": RUNS["QLoRA"], "Q-BLoRA": RUNS["Q-BLoRA (ours)"], "QA-BLoRA": RUNS["QA-BLoRA (ours)"]}
ROWS_AT_A_TIME, LENGTH, ANSWER = 4, 512, 128  # tokens of a row, and those of them that are learned
DEVICES = (24, 80, 141)  # GB
SPARE = 1.5              # GB: what CUDA, its libraries and freed blocks take
WAYS = {"1": (ALONE, False), "1 c": (ALONE, True), "4 s": (Processes(4, True), True), "8 s": (Processes(8, True), True)}


# ---- what is planned ----------------------------------------------------------------------------------------------

def shen(model: str, name: str) -> RunConfig:
    """All linear layers, rank 64."""
    _, command = run_of(*METHODS[name][:2], model, "alpaca")
    return planned_run(command)


def kanda(model: str, name: str) -> RunConfig:
    """Attention layers, rank 16, batches of 32 rows."""
    method, quantization, _ = METHODS[name]
    _, command = restored_run(4, model, "gsm8k")
    return planned_run(command.replace("--method qlora --quantizer gptq --bits 4 --calibration-rows 500",
                                       f"--method {method} {quantization}"))


def planned_run(command: str) -> RunConfig:
    given = train_parser().given(words_of(command))
    return resolve_run({**given, "micro_batch": ROWS_AT_A_TIME, "device": "cuda", "dtype": "bfloat16"})


@cache
def planned_for(setting: Callable[[str, str], RunConfig], model: str, name: str) -> tuple[RunConfig, Llama]:
    run = setting(model, name)
    return run, planned(config_of(model), run)


def planned(config: LlamaConfig, run: RunConfig) -> Llama:
    """Codes and adapters on the meta device."""
    model = empty_model(config, torch.bfloat16)
    if run.base.quantization:
        put_codes(model, linear_names(model, run.base.quantized_layers), run.base.quantization)
    put_adapters(model, run)
    return model


def gigabytes(model: Llama, run: RunConfig, processes: Processes, checkpointing: bool, length: int = LENGTH,
              learned: int = ANSWER) -> float:
    run = replace(run, training=replace(run.training, gradient_checkpointing=checkpointing))
    rows = [Encoded([0] * (length + 1), length + 1 - learned)] * processes.rows_at_a_time(run)
    return sum(predicted(model, run, rows, processes).values()) / 1e9


# ---- tables -------------------------------------------------------------------------------------------------------

def memory_table(setting) -> str:
    """GB of each process in each way, and the first way that fits a device."""
    rows = []
    for model in SHOWN:
        for name in METHODS:
            run, meta = planned_for(setting, model, name)
            sizes = {way: gigabytes(meta, run, *how) for way, how in WAYS.items()}
            first = [next((way for way, size in sizes.items() if size + SPARE <= room), "-") for room in DEVICES]
            trained = f"{trained_numbers(meta) / 1e6:,.0f}"
            rows.append([model, name, trained, *(f"{size:.1f}" for size in sizes.values()), *first])
    return markdown(["model", "method", "trains, M", *WAYS, *(f"{room} GB" for room in DEVICES)], rows)


def traffic_table(setting) -> str:
    """GB that each process sends, and receives, in a step."""
    ways = [Processes(n, sharded) for sharded in (False, True) for n in (4, 8)]
    rows = []
    for model in SHOWN:
        for name in METHODS:
            run, meta = planned_for(setting, model, name)
            sent = [sum(moved(meta, run, processes).values()) / 1e9 for processes in ways]
            rows.append([model, name, run.training.batch_size, *(f"{x:.2f}" if x < 10 else f"{x:.0f}" for x in sent)])
    return markdown(["model", "method", "rows of a step", "4", "8", "4 s", "8 s"], rows)


def hours_table() -> str:
    """Of training on one H200, by model and data set."""
    rows = []
    for model in SHOWN:
        taken = [hours(config_of(model), shen(model, name), ROWS["alpaca"], TOKENS["alpaca"])
                 for name in ("QLoRA", "QA-BLoRA")]
        taken += [hours(config_of(model), kanda(model, "QLoRA"), ROWS[data], TOKENS[data]) for data in ("gsm8k", "scc")]
        rows.append([model, *(f"{x:.1f}" for x in taken)])
    return markdown(["model", "Alpaca, QLoRA and Q-BLoRA", "Alpaca, QA-BLoRA", "GSM8K, 10 epochs",
                     "sql-create-context, 10 epochs"], rows)


SHAPES = {"1B": "llama-3.2-1b", "7B": "llama-2-7b"}


def checks() -> Iterator[list[str]]:
    """Predicted and measured peaks, MB: one H200, rank 16 on attention, four rows of 512 tokens, all learned."""
    for row in read_json(BENCHMARKS / "gpu_h200.json")["now"]["training_step"]["rows"]:
        if row.get("who") == "ours" and row["shape"] in SHAPES and row["method"] in ("qlora", "qblora", "qablora"):
            run = resolve_run({"method": row["method"], "targets": "attention", "device": "cuda", "dtype": "bfloat16",
                               "batch_size": 4, "steps": 1})
            size = 1e3 * gigabytes(planned(config_of(SHAPES[row["shape"]]), run), run, ALONE, False, 512, 512)
            yield [f"{row['shape']}, {row['method']}", "one H200", f"{size:,.0f}", f"{row['peak_mb']:,.0f}",
                   f"{size / row['peak_mb']:.2f}"]


def check_table() -> str:
    return markdown(["shape, method", "where", "predicted", "measured", "predicted / measured"], checks())


TABLES = {"Settings of Shen et al.: GB of each process": lambda: memory_table(shen),
          "Settings of Kanda & Hatano: GB of each process": lambda: memory_table(kanda),
          "Settings of Shen et al.: GB that each process sends in a step": lambda: traffic_table(shen),
          "Settings of Kanda & Hatano: GB that each process sends in a step": lambda: traffic_table(kanda),
          "Hours on one H200": hours_table, "Predicted and measured, MB": check_table}


@cache
def tables() -> str:
    return "\n\n".join(f"**{title}**\n\n{table()}" for title, table in TABLES.items())


def page() -> str:
    """docs/scale.md with the tables of today."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.partition(END)[2]}"


def options_parser() -> argparse.ArgumentParser:
    parser = experiment_parser(__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    return parser


def main() -> None:
    if options_parser().parse_args().write:
        write_text(PAGE, page())
    else:
        print(tables())


if __name__ == "__main__":
    run_experiment(main)
