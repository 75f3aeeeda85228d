"""The command of every cell of Shen et al., Tables 1 to 5, and of Kanda & Hatano, Table 1.

    python -m experiments.paper_cells --table shen-1       # print the commands of a table
    python -m experiments.paper_cells --check              # train.py --dry-run on each, from its model's config.json
    python -m experiments.paper_cells --write              # write experiments/papers/*.jsonl

A line of experiments/papers/TABLE.jsonl is a cell: what the paper reports, the training command, the commands that
score it, and the hours that training takes on one H200. Cells of one run share a command.

    seconds of a micro-batch = max(LAUNCHES * layers, operations / RATE)

Neither paper states everything. What follows is taken from the works that Shen et al. name as their configurations
(QLoRA, QA-LoRA, PEQA, Stanford Alpaca), as far as those state it: look there before a number is compared.

| | rank, alpha | lr (33B and 65B) | rows of a step | steps | more |
|---|---|---|---|---|---|
| LoRA, BLoRA | 64, 16 | 2e-4 (1e-4) | 16 (32, 64) | 10,000 (5,000, 2,500) | dropout 0.1 (0.05) |
| QLoRA, Q-BLoRA, IR-QLoRA | the same | | | | also double quantization |
| QA-LoRA, QA-BLoRA | 64, 16 | 2e-5 (1e-5) | 16 | 10,000; FLAN v2: 20,000 | |
| PEQA, full | - | 2e-5 | 128 | 3 epochs | |
| Kanda & Hatano | 16, 16 | 2e-4 | 32 | 10 epochs | attention layers, GPTQ on 500 rows |

All but Kanda & Hatano: constant rate after a warm-up of 3 %, clipping at 0.3, rows of at most 512 tokens, blocks of 32.
"""
import argparse
import contextlib
import io
import json
import math
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

from experiments.shared import experiment_parser, run_experiment
from finetune.by_process import ALONE
from finetune.command_line import train_parser
from finetune.config import RunConfig
from finetune.cost import step_operations
from finetune.dry_run import dry_run
from finetune.resolve import resolve_run
from model.config import LlamaConfig
from model.directory import load_config
from model.files import write_text

HERE = Path(__file__).parent / "papers"
MODELS = {  # folder of its config.json -> repository
    "llama-7b": "huggyllama/llama-7b", "llama-13b": "huggyllama/llama-13b", "llama-33b": "huggyllama/llama-30b",
    "llama-65b": "huggyllama/llama-65b", "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "llama-2-13b": "meta-llama/Llama-2-13b-hf", "llama-3.2-1b": "meta-llama/Llama-3.2-1B",
    "llama-3.2-3b": "meta-llama/Llama-3.2-3B", "llama-3.1-8b": "meta-llama/Llama-3.1-8B",
    "llama-3.1-70b": "meta-llama/Llama-3.1-70B"}
FLAN_FILE = "flan_v2.jsonl"  # 320,000 rows of inputs and targets, drawn from FLAN v2
DATA = {"alpaca": ("--task", "alpaca", "--data", "tatsu-lab/alpaca"), "flan": ("--task", "flan", "--data", FLAN_FILE),
        "gsm8k": ("--task", "gsm8k", "--data", "openai/gsm8k:main/train-00000-of-00001.parquet",
                  "--test-data", "openai/gsm8k:main/test-00000-of-00001.parquet"),
        "scc": ("--task", "sql-create-context", "--data", "b-mc2/sql-create-context:sql_create_context_v4.json")}
ROWS = {"alpaca": 46802, "flan": 288000, "gsm8k": 6726, "scc": 62862}  # that train: without validation and test
TOKENS = {"alpaca": 112, "flan": 86, "gsm8k": 192, "scc": 78}  # the mean of a row, by SmolLM2's tokenizer
MMLU = "--task mmlu --protocol hendrycks --data cais/mmlu:all/dev-00000-of-00001.parquet " \
       "--test-data cais/mmlu:all/test-00000-of-00001.parquet"
QUESTIONS = {  # as experiments/benchmarks orders them; files of the data sets' published splits
    "hellaswag": "Rowan/hellaswag:data/validation-00000-of-00001.parquet",
    "arc_easy": "allenai/ai2_arc:ARC-Easy/test-00000-of-00001.parquet",
    "arc_challenge": "allenai/ai2_arc:ARC-Challenge/test-00000-of-00001.parquet", "piqa": "piqa.jsonl",
    "winogrande": "winogrande.jsonl", "boolq": "google/boolq:data/validation-00000-of-00001.parquet",
    "openbookqa": "allenai/openbookqa:main/test-00000-of-00001.parquet"}
COMMON = "--lr-schedule constant --warmup 0.03 --clip 0.3 --max-length 512"
LORA = "--rank 64 --lora-alpha 16"
AT_A_TIME = {"llama-7b": 16, "llama-2-7b": 16, "llama-13b": 8, "llama-2-13b": 8, "llama-33b": 4, "llama-65b": 2,
             "llama-3.2-1b": 32, "llama-3.2-3b": 16, "llama-3.1-8b": 8, "llama-3.1-70b": 2}  # rows, in 141 GB
# A row of the tables -> the method of its run, its quantization, and the state of the run that it is.
NF = "--block 32x1 --double-quant"
RUNS = {"Full fine-tune": ("full", "", "trained"), "LoRA": ("lora", "", "trained"),
        "BLoRA": ("blora", "--lam 2", "trained"), "QLoRA": ("qlora", NF, "trained"),
        "IR-QLoRA": ("irqlora", NF, "trained"), "IR-QLoRA(merged)": ("irqlora", NF, "merged-16bit"),
        "Q-BLoRA (ours)": ("qblora", f"{NF} --lam 2", "trained"), "PEQA": ("peqa", "--block 32x1", "merged-4bit"),
        "QLoRA w/ GPTQ": ("qlora", NF, "requantized-4bit"), "QA-LoRA": ("qalora", "--block 32x1", "merged-4bit"),
        "QA-BLoRA (ours)": ("qablora", "--block 4x8", "merged-4bit"),
        "QA-BLoRA (ours), 64": ("qablora", "--block 8x8", "merged-4bit")}
MMLU_AVERAGES = {  # Tables 1 to 3: (table, model, data) -> row -> the average over MMLU, in percent
    ("shen-1", "llama-7b", "alpaca"): {
        "base": 34.6, "QLoRA": 38.4, "IR-QLoRA": 40.8, "IR-QLoRA(merged)": 39.4, "Q-BLoRA (ours)": 41.4, "PEQA": 34.8,
        "QLoRA w/ GPTQ": 36.0, "QA-LoRA": 39.4, "QA-BLoRA (ours)": 40.7},
    ("shen-1", "llama-13b", "alpaca"): {
        "base": 46.3, "QLoRA": 48.4, "IR-QLoRA": 49.3, "IR-QLoRA(merged)": 48.5, "Q-BLoRA (ours)": 49.9, "PEQA": 45.0,
        "QLoRA w/ GPTQ": 48.0, "QA-LoRA": 49.2, "QA-BLoRA (ours)": 49.5},
    ("shen-1", "llama-33b", "alpaca"): {
        "base": 58.2, "QLoRA": 57.7, "IR-QLoRA": 58.2, "Q-BLoRA (ours)": 59.0, "QA-LoRA": 58.1,
        "QA-BLoRA (ours)": 58.3},
    ("shen-1", "llama-65b", "alpaca"): {
        "base": 63.4, "QLoRA": 63.1, "IR-QLoRA": 63.1, "Q-BLoRA (ours)": 63.7, "QA-LoRA": 62.5,
        "QA-BLoRA (ours)": 63.3},
    ("shen-2", "llama-2-7b", "alpaca"): {
        "base": 45.5, "QLoRA": 47.0, "IR-QLoRA": 46.2, "IR-QLoRA(merged)": 45.6, "Q-BLoRA (ours)": 48.2,
        "QLoRA w/ GPTQ": 45.1, "QA-LoRA": 43.9, "QA-BLoRA (ours)": 46.3},
    ("shen-2", "llama-2-13b", "alpaca"): {
        "base": 55.3, "QLoRA": 55.6, "IR-QLoRA": 54.4, "Q-BLoRA (ours)": 56.2, "QLoRA w/ GPTQ": 53.8,
        "QA-BLoRA (ours)": 55.6},
    ("shen-3", "llama-7b", "flan"): {
        "base": 34.6, "QLoRA": 44.3, "IR-QLoRA": 47.4, "Q-BLoRA (ours)": 47.6, "QLoRA w/ GPTQ": 41.4, "QA-LoRA": 47.0,
        "QA-BLoRA (ours)": 47.2},
    ("shen-5", "llama-7b", "alpaca"): {
        "Full fine-tune": 41.0, "LoRA": 41.3, "BLoRA": 41.3, "QLoRA": 38.4, "IR-QLoRA": 40.8, "Q-BLoRA (ours)": 41.4,
        "QLoRA w/ GPTQ": 36.0, "QA-LoRA": 36.4, "QA-BLoRA (ours)": 40.7, "QA-BLoRA (ours), 64": 38.2}}
CHOICES = {  # Table 4, the seven tasks in the order of QUESTIONS, and their average
    "llama-7b": {
        "base": (56.3, 67.3, 38.2, 78.2, 67.1, 72.9, 28.4, 58.3),
        "QLoRA": (61.8, 75.8, 43.6, 78.1, 68.4, 73.7, 32.8, 62.0),
        "IR-QLoRA": (54.7, 76.6, 45.1, 78.8, 72.6, 80.6, 37.2, 63.7),
        "Q-BLoRA (ours)": (76.3, 57.2, 43.8, 78.7, 70.2, 78.4, 60.4, 66.4),
        "QLoRA w/ GPTQ": (57.4, 70.9, 41.8, 77.6, 66.2, 73.5, 31.2, 59.8),
        "QA-LoRA": (58.6, 71.2, 43.9, 78.0, 66.9, 79.9, 43.0, 61.8),
        "QA-BLoRA (ours)": (76.3, 56.6, 43.4, 79.2, 70.2, 77.9, 58.2, 66.0)},
    "llama-2-7b": {
        "base": (75.0, 60.4, 40.3, 75.2, 65.8, 75.2, 65.6, 65.4),
        "QLoRA": (75.6, 68.9, 45.7, 77.8, 68.6, 77.2, 72.2, 69.4),
        "IR-QLoRA": (75.4, 68.9, 45.5, 77.0, 68.4, 77.0, 69.4, 68.8),
        "Q-BLoRA (ours)": (76.3, 70.0, 46.8, 78.6, 70.2, 77.5, 69.4, 69.8),
        "QLoRA w/ GPTQ": (75.1, 66.2, 44.5, 76.2, 67.1, 73.5, 69.4, 67.4),
        "QA-LoRA": (75.0, 65.6, 44.2, 75.8, 66.7, 73.2, 69.2, 67.1),
        "QA-BLoRA (ours)": (75.6, 65.8, 48.8, 78.7, 69.9, 77.5, 65.4, 68.8)}}
WIDTHS = (16, 8, 4, 3, 2)
# Of one H200, measured (benchmarks/results/gpu_h200.json): a step of a 7B QLoRA of 2,048 tokens takes 356 ms, and with
# recorded kernels, of which none waits to be launched, 157 ms. 135M and 1B take 10 and 9 ms a layer.
LAUNCHES = 0.356 / 32  # seconds for each decoder layer
RATE = 3.5e14          # operations a second
RESTORED = {  # Kanda & Hatano: (data, model) -> bits trained on -> as trained, then restored to 3, 4, 8, 16 above them
    ("gsm8k", "llama-3.2-1b"): {16: (21.60,), 8: (22.13, 21.83), 4: (18.19, 18.95, 19.41),
                                3: (11.22, 15.31, 16.91, 16.53), 2: (3.18, 3.11, 3.03, 2.81, 2.43)},
    ("gsm8k", "llama-3.2-3b"): {16: (42.91,), 8: (43.06, 42.07), 4: (37.75, 41.32, 42.38),
                                3: (29.56, 34.50, 37.76, 37.30), 2: (4.17, 6.60, 15.61, 15.39, 15.85)},
    ("gsm8k", "llama-3.1-8b"): {16: (59.66,), 8: (58.75, 58.98), 4: (56.56, 58.15, 58.00),
                                3: (50.34, 57.31, 58.98, 59.59), 2: (5.16, 18.27, 33.35, 33.73, 34.34)},
    ("scc", "llama-3.2-1b"): {16: (69.21,), 8: (67.29, 63.33), 4: (25.84, 30.11, 31.60),
                              3: (23.90, 22.19, 37.69, 37.63), 2: (0.00, 0.00, 0.22, 0.22, 0.19)},
    ("scc", "llama-3.2-3b"): {16: (72.30,), 8: (83.02, 82.79), 4: (75.22, 80.49, 80.41),
                              3: (68.65, 68.15, 75.54, 75.44), 2: (2.97, 32.93, 39.51, 35.83, 35.87)},
    ("scc", "llama-3.1-8b"): {16: (84.96,), 8: (84.30, 84.21), 4: (84.38, 84.47, 84.46),
                              3: (77.35, 79.46, 80.04, 79.94), 2: (4.81, 36.73, 32.20, 36.13, 36.20)}}


# ---- commands -----------------------------------------------------------------------------------------------------

def settings(method: str, model: str, data: str) -> str:
    """Learning rate, rows of a step, steps and dropout: the table at the top."""
    size = model.rpartition("-")[2]
    if method in ("peqa", "full"):
        return "--lr 2e-5 --batch-size 128 --epochs 3"
    if method in ("qalora", "qablora"):
        return f"{LORA} --lr {'1e-5' if size in ('33b', '65b', '70b') else '2e-5'} --batch-size 16 --steps " \
               f"{20000 if data == 'flan' else 10000}"
    lr, rows, steps, dropout = {"33b": ("1e-4", 32, 5000, 0.05), "65b": ("1e-4", 64, 2500, 0.05)}.get(
        "65b" if size == "70b" else size, ("2e-4", 16, 10000, 0.1))
    return f"{LORA} --lr {lr} --batch-size {rows} --steps {steps} --dropout {dropout}"


def run_of(method: str, quantization: str, model: str, data: str) -> tuple[str, str]:
    """The run's directory, and the command that makes it."""
    block = quantization.partition("--block ")[2].partition(" ")[0]
    run = f"runs/{model}-{data}-{method}{f'-{block}' if block else ''}"
    words = ["python train.py --model", MODELS[model], "--method", method, quantization, *DATA[data],
             settings(method, model, data), COMMON, "--dtype bfloat16 --micro-batch",
             "4 --gradient-checkpointing" if method == "full" else str(AT_A_TIME[model]), "--out", run]
    return run, " ".join(filter(None, words))


def restored_run(bits: int, model: str, data: str) -> tuple[str, str]:
    run = f"runs/{model}-{data}-{bits}bit"
    how = "--method lora" if bits == 16 else f"--method qlora --quantizer gptq --bits {bits} --calibration-rows 500"
    return run, f"python train.py --model {MODELS[model]} {how} {' '.join(DATA[data])} --targets attention --rank 16 " \
                f"--lora-alpha 16 --lr 2e-4 --batch-size 32 --epochs 10 --max-length 1024 --dtype bfloat16 " \
                f"--micro-batch {AT_A_TIME[model]} --out {run}"


def scored(place: str, state: str, task: str) -> str:
    more = " --requantize gptq" if state == "requantized-4bit" else ""
    return f"python eval.py {place} {task}{more}"


# ---- cells --------------------------------------------------------------------------------------------------------

def cells() -> Iterator[dict]:
    """Every cell, in the order of the papers."""
    for (table, model, data), rows in MMLU_AVERAGES.items():
        for row, average in rows.items():
            yield cell(table, model, data, row, "MMLU, average", average, MMLU)
    for model, rows in CHOICES.items():
        for row, numbers in rows.items():
            for (task, place), number in zip(QUESTIONS.items(), numbers, strict=False):
                yield cell("shen-4", model, "alpaca", row, task, number, f"--task {task} --test-data {place}")
    for (data, model), runs in RESTORED.items():
        for bits, numbers in runs.items():
            for width, number in zip((bits, *sorted(w for w in WIDTHS if w > max(bits, 2))), numbers, strict=True):
                yield restored_cell(model, data, bits, width, number)


def cell(table: str, model: str, data: str, row: str, column: str, number: float, task: str) -> dict:
    facts = {"table": table, "row": row, "model": model, "data": data, "column": column, "paper": number}
    if row == "base":
        return {**facts, "state": "base", "train": None, "hours": 0.0,
                "score": f"python eval.py --model {MODELS[model]} {task}"}
    method, quantization, state = RUNS[row]
    run, command = run_of(method, quantization, model, data)
    return {**facts, "state": state, "train": command, "hours": hours_of(command, model, data),
            "score": scored(run, state, task)}


def restored_cell(model: str, data: str, bits: int, width: int, number: float) -> dict:
    run, command = restored_run(bits, model, data)
    more = "" if width == bits else f" --restore {width}"
    return {"table": "kanda-1", "row": f"{bits} bits", "model": model, "data": data,
            "column": "as trained" if width == bits else f"restored to {width} bits", "paper": number,
            "state": "trained" if width == bits else f"restored-{width}bit", "train": command,
            "hours": hours_of(command, model, data), "score": f"python eval.py {run}{more}"}


def hours(model: LlamaConfig, config: RunConfig, rows: int, tokens: int) -> float:
    """Of training on `rows` rows of `tokens` tokens each, on one H200, without validations."""
    training = config.training
    at_a_time = ALONE.rows_at_a_time(config)
    operations = step_operations(model, at_a_time * tokens, tokens, training.gradient_checkpointing,
                                 config.adapter_kind is None)
    seconds = max(LAUNCHES * model.num_hidden_layers, operations / RATE)
    steps = training.steps or training.epochs * math.ceil(rows / training.batch_size)
    return steps * ALONE.micro_batches(config) * seconds / 3600


def hours_of(command: str, model: str, data: str) -> float:
    config = resolve_run(train_parser().given(words_of(command)))
    return round(hours(config_of(model), config, ROWS[data], TOKENS[data]), 1)


def config_of(model: str) -> LlamaConfig:
    return load_config(HERE / "configs" / model)


def words_of(command: str) -> list[str]:
    """What stands behind `python train.py`."""
    return shlex.split(command)[2:]


def tables() -> dict[str, str]:
    """Table -> its file: a line a cell."""
    texts: dict[str, str] = {}
    for found in cells():
        texts[found["table"]] = texts.get(found["table"], "") + json.dumps(found) + "\n"
    return texts


# ---- checks -------------------------------------------------------------------------------------------------------

def commands() -> dict[str, str]:
    """Each training command once -> the folder of its model's config.json."""
    return {found["train"]: found["model"] for found in cells() if found["train"]}


def checked(command: str, model: str) -> str:
    """What train.py --dry-run prints of it, with the model's config.json in the place of the model, and two rows of
    FLAN v2 in the place of its file. Raises ValueError as train.py does."""
    with tempfile.TemporaryDirectory() as place:
        flan = Path(place) / FLAN_FILE
        write_text(flan, '{"inputs": "a", "targets": "b"}\n' * 20)
        words = [str(flan) if word == FLAN_FILE else word for word in words_of(command)]
        words[words.index("--model") + 1] = str(HERE / "configs" / model)
        words[words.index("--out") + 1] = str(Path(place) / "run")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            dry_run(train_parser().given(words), ALONE)
    return printed.getvalue()


def options_parser() -> argparse.ArgumentParser:
    parser = experiment_parser(__doc__)
    parser.add_argument("--table", choices=sorted({found["table"] for found in cells()}),
                        help="print the commands of this table (default: all)")
    parser.add_argument("--check", action="store_true", help="check each training command by --dry-run")
    parser.add_argument("--write", action="store_true", help="write experiments/papers/*.jsonl")
    return parser


def main() -> None:
    options = options_parser().parse_args()
    if options.write:
        for table, text in tables().items():
            write_text(HERE / f"{table}.jsonl", text)
    elif options.check:
        for command, model in commands().items():
            print(f"{command}\n{checked(command, model)}")
    else:
        chosen = [found for found in cells() if options.table in (None, found["table"])]
        for command in dict.fromkeys(found[key] for found in chosen for key in ("train", "score") if found[key]):
            print(command)


if __name__ == "__main__":
    run_experiment(main)
