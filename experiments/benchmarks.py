"""A model on every benchmark, in 16 bits and rounded to NF4: the tasks of Shen et al., with standard errors.

    python -m experiments.benchmarks --model smollm2 --data DATA

Seven zero-shot tasks (Shen et al., Table 4) and five-shot MMLU (Tables 1 to 3), each scored by eval.py as a process of its own on one thread. Tasks
that are scored already are not scored again, and one that was interrupted goes on where it stopped. With --test-limit and --mmlu-limit, so many rows are
drawn, the same ones each time (MMLU's file is sorted by subject). The table goes to --out/table.md after each task, and with all figures to --json.
Its seconds are those of the clock, for each state, and of the processor, for the whole process: they differ where other work runs beside it.
"""
import argparse
import resource
from pathlib import Path

from tqdm import tqdm

from experiments.shared import keep_settings, python
from model.files import read_json, write_json, write_text
from scoring.scores import TAKEN_UP
from tasks import TASKS
from tasks.task import shuffled

TASK_NAMES = ("hellaswag", "arc_easy", "arc_challenge", "piqa", "winogrande", "boolq", "openbookqa", "mmlu")  # Shen et al., Table 4, then MMLU
STATES = ("16 bits", "NF4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="what eval.py takes as --model")
    parser.add_argument("--data", type=Path, required=True, help="directory with a folder a task: validation.jsonl, and MMLU's dev.jsonl and test.jsonl")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--json", type=Path, help="default: --out/benchmarks.json")
    parser.add_argument("--tasks", nargs="+", choices=TASK_NAMES, default=list(TASK_NAMES))
    parser.add_argument("--test-limit", type=int, help="rows of each zero-shot task")
    parser.add_argument("--mmlu-limit", type=int, help="rows of MMLU")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    keep_settings(options, ("model", "test_limit", "mmlu_limit", "dtype"))
    for task in tqdm(options.tasks, desc="tasks", disable=None):
        if not (options.out / task / "processor.json").is_file():
            score(options, task)
        write_tables(options, [done for done in TASK_NAMES if (options.out / done / "processor.json").is_file()])


def score(options: argparse.Namespace, task: str) -> None:
    """`python eval.py --model MODEL --quantizer nf --bits 4 --task TASK ...`: the base, and the base in NF4."""
    folder = options.data / task
    rows = folder / ("test.jsonl" if task == "mmlu" else "validation.jsonl")
    if limit := options.mmlu_limit if task == "mmlu" else options.test_limit:
        rows = draw(rows, options.out / f"{task}.jsonl", limit)
    shots = ["--data", str(folder / "dev.jsonl")] if task == "mmlu" else []
    before = processor_seconds()
    python(["eval.py", "--model", options.model, "--quantizer", "nf", "--bits", "4", "--task", task, *shots, "--test-data", str(rows),
            "--eval-batch-size", str(options.batch_size), "--dtype", options.dtype, "--out", str(options.out / task)], options.out / f"{task}.log")
    write_json(options.out / task / "processor.json", {"seconds": processor_seconds() - before})


def processor_seconds() -> float:
    """Of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def draw(source: Path, target: Path, n: int) -> Path:
    """n of the file's rows, in its order."""
    lines = source.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # splitlines would also split at U+2028, which may stand inside a row
    write_text(target, "".join(lines[i] + "\n" for i in sorted(shuffled(range(len(lines)), 0)[:n])))
    return target


def write_tables(options: argparse.Namespace, tasks: list[str]) -> None:
    results = {task: {**read_json(options.out / task / "results.json"), "processor_seconds": read_json(options.out / task / "processor.json")["seconds"]}
               for task in tasks}
    head = ["task", "rows", "the papers' rows are", *(f"{name}, {metric}, %" for name in STATES for metric in ("acc", "acc_norm")),
            *(f"{name}, s" for name in STATES), "processor, s"]
    lines = [head, ["---"] * len(head)]
    for task, result in results.items():
        rows = result["rows"]
        lines.append([task, str(result["test_rows"]), TASKS[task].metric, *(share(row, metric) for row in rows for metric in ("acc", "acc_norm")),
                      *map(seconds, rows), f"{result['processor_seconds']:.0f}"])
        lines += [[f"{task}, {category}", "", "acc", *(cell for row in rows for cell in (share(row, category), "")), "", "", ""]
                  for category in rows[0]["scores"] if category not in ("acc", "acc_norm")]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    write_text(options.out / "table.md", text)
    settings = {name: getattr(options, name) for name in ("model", "dtype", "test_limit", "mmlu_limit")}
    write_json(options.json or options.out / "benchmarks.json", {"settings": settings, "tasks": results})
    print(text)


def seconds(row: dict) -> str:
    """`1501 (2699 rows)` where an interruption left the others, whose seconds are in no figure."""
    taken_up = row["counts"].get(TAKEN_UP, 0)
    return f"{row['seconds']:.0f}" + (f" ({row['counts']['rows'] - taken_up} rows)" if taken_up else "")


def share(row: dict, metric: str) -> str:
    """`36.40 ± 2.15`: percent, and the standard error."""
    error = row["standard_errors"].get(metric)
    return f"{100 * row['scores'][metric]:.2f}" + ("" if error is None else f" ± {100 * error:.2f}")


if __name__ == "__main__":
    main()
