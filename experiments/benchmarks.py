"""Score a model in 16 bits and in NF4 on the benchmarks of Shen et al., with standard errors.

    python -m experiments.benchmarks --model smollm2 --data DATA

The tasks are seven zero-shot tasks (Shen et al., Table 4) and five-shot MMLU (Shen et al., Tables 1 to 3). eval.py
scores each task in a separate process on one thread. Finished tasks are not scored again. An interrupted task
continues where it stopped.

--test-limit and --mmlu-limit draw a random sample of rows, the same rows every time, because MMLU's file is sorted by
subject.

The table is written to --out/table.md after each task. --json also receives every figure. The table has the wall-clock
seconds of each state and the CPU seconds of the whole process. The two differ if other processes run on the machine.
"""
import argparse
import resource
from pathlib import Path

from tqdm import tqdm

from experiments.shared import experiment_parser, keep_settings, markdown, python, run_experiment
from model.files import read_json, write_json, write_text
from scoring.scores import TAKEN_UP
from tasks import TASKS
from tasks.task import shuffled

# The order of Shen et al., Table 4, then MMLU.
TASK_NAMES = ("hellaswag", "arc_easy", "arc_challenge", "piqa", "winogrande", "boolq", "openbookqa", "mmlu")
STATES = ("16 bits", "NF4")
METRICS = ("acc", "acc_norm")


def options_parser() -> argparse.ArgumentParser:
    parser = experiment_parser(__doc__, "runs/benchmarks")
    parser.add_argument("--model", required=True, help="score this model; takes the same values as --model of eval.py")
    parser.add_argument("--data", type=Path, required=True,
                        help="read TASK/validation.jsonl, mmlu/dev.jsonl and mmlu/test.jsonl in this directory")
    parser.add_argument("--json", type=Path, help="write all figures to this file (default: benchmarks.json in --out)")
    parser.add_argument("--tasks", nargs="+", choices=TASK_NAMES, default=list(TASK_NAMES), metavar="TASK",
                        help=f"score these tasks (default: {' '.join(TASK_NAMES)})")
    parser.add_argument("--test-limit", type=int, metavar="N",
                        help="draw N rows of each zero-shot task (default: all rows)")
    parser.add_argument("--mmlu-limit", type=int, metavar="N", help="draw N rows of MMLU (default: all rows)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="ROWS",
                        help="score this many rows at a time (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32",
                        help="compute activations in this type (default: %(default)s)")
    return parser


def main() -> None:
    options = options_parser().parse_args()
    keep_settings(options, ("model", "test_limit", "mmlu_limit", "dtype"))
    for task in tqdm(options.tasks, desc="tasks", disable=None):
        if not (options.out / task / "processor.json").is_file():
            score(options, task)
        write_tables(options, [done for done in TASK_NAMES if (options.out / done / "processor.json").is_file()])


def score(options: argparse.Namespace, task: str) -> None:
    """Run `python eval.py --model MODEL --quantizer nf --bits 4 --task TASK ...`. It scores the base in 16 bits and in
    NF4."""
    folder = options.data / task
    rows = folder / ("test.jsonl" if task == "mmlu" else "validation.jsonl")
    if limit := options.mmlu_limit if task == "mmlu" else options.test_limit:
        rows = draw(rows, options.out / f"{task}.jsonl", limit)
    shots = ["--data", str(folder / "dev.jsonl")] if task == "mmlu" else []
    before = processor_seconds()
    command = ["eval.py", "--model", options.model, "--quantizer", "nf", "--bits", "4", "--task", task, *shots,
               "--test-data", str(rows), "--eval-batch-size", str(options.batch_size), "--dtype", options.dtype,
               "--out", str(options.out / task)]
    python(command, options.out / f"{task}.log")
    write_json(options.out / task / "processor.json", {"seconds": processor_seconds() - before})


def processor_seconds() -> float:
    """CPU seconds, user and system, of all ended child processes of this process."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def draw(source: Path, target: Path, n: int) -> Path:
    """Write a random sample of n rows of `source` to `target`, in the file's order. The sample is always the same."""
    # str.splitlines would also split at U+2028, which may occur inside a row.
    lines = source.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    write_text(target, "".join(lines[i] + "\n" for i in sorted(shuffled(range(len(lines)), 0)[:n])))
    return target


def write_tables(options: argparse.Namespace, tasks: list[str]) -> None:
    results = {}
    for task in tasks:
        folder = options.out / task
        results[task] = {**read_json(folder / "results.json"),
                         "processor_seconds": read_json(folder / "processor.json")["seconds"]}
    head = ["task", "rows", "the papers' rows are",
            *(f"{name}, {metric}, %" for name in STATES for metric in METRICS),
            *(f"{name}, s" for name in STATES), "processor, s"]
    lines = []
    for task, result in results.items():
        rows = result["rows"]
        lines.append([task, str(result["test_rows"]), TASKS[task].metric,
                      *(share(row, metric) for row in rows for metric in METRICS),
                      *map(seconds, rows), f"{result['processor_seconds']:.0f}"])
        for category in (name for name in rows[0]["scores"] if name not in METRICS):
            accuracies = [cell for row in rows for cell in (share(row, category), "")]
            lines.append([f"{task}, {category}", "", "acc", *accuracies, "", "", ""])
    text = markdown(head, lines) + "\n"
    write_text(options.out / "table.md", text)
    settings = {name: getattr(options, name) for name in ("model", "dtype", "test_limit", "mmlu_limit")}
    write_json(options.json or options.out / "benchmarks.json", {"settings": settings, "tasks": results})
    print(text)


def seconds(row: dict) -> str:
    """Wall-clock seconds of one state. After an interruption, `1501 (2699 rows)`: the rows that were scored in these
    seconds. The seconds of the other rows are not known."""
    taken_up = row["counts"].get(TAKEN_UP, 0)
    return f"{row['seconds']:.0f}" + (f" ({row['counts']['rows'] - taken_up} rows)" if taken_up else "")


def share(row: dict, metric: str) -> str:
    """`36.40 ± 2.15`: a score and its standard error, both in percent."""
    error = row["standard_errors"].get(metric)
    return f"{100 * row['scores'][metric]:.2f}" + ("" if error is None else f" ± {100 * error:.2f}")


if __name__ == "__main__":
    run_experiment(main)
