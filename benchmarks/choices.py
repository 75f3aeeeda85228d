"""(e) Scoring of multiple choices, rows a second: HellaSwag and MMLU, beside lm-evaluation-harness on the same texts.

    python -m benchmarks.choices MODEL_DIR DATA_DIR --cpu-time --harness-python VENV/bin/python

DATA_DIR has hellaswag/validation.jsonl, mmlu/dev.jsonl and mmlu/test.jsonl. The harness gets the contexts and the
choices as requests of its own model class (HFLM), which batches them its own way. Tokenizing is counted on both sides,
loading is not. Before any ratio, log-likelihoods must differ by less than 2 % of themselves (median, bfloat16) and nine
of ten answers must be the same.
"""
import argparse
import json
import math
import statistics
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.processes import add_arguments, contenders, facts, gather, summary, write

TASKS = ("hellaswag", "mmlu")
BATCH = 16  # questions of ours; as many sequences as fit the harness' own rule: batch_size=16
TOLERANCE, AGREE = 0.02, 0.9
HELD = ExitStack()  # of contexts that last as long as the process


# ---- in a process of its own, which may import the packages of another checkout -----------------------------------

def measure(given: argparse.Namespace, who: str, quantized: bool) -> dict:
    import resource

    from our_model import loaded
    clock, found = time.process_time if given.cpu_time else time.perf_counter, {}
    score = harness(given) if who == "harness" else ours(given, loaded(given.model, quantized))
    for name in TASKS:
        task, rows = questions(given, name)
        score(task, rows[:1])
        start = clock()
        values = score(task, rows)
        found[name] = {"seconds": clock() - start, "log_likelihoods": values}
    return {"tasks": found, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}


def questions(given: argparse.Namespace, name: str):
    """Rows from the whole file, evenly; of MMLU, of two subjects, so that shots are shared as in the whole test."""
    from tasks.hellaswag import HellaSwag
    from tasks.mmlu import Mmlu
    task, folder = {"hellaswag": HellaSwag, "mmlu": Mmlu}[name](), given.data / name
    if name == "mmlu":
        rows = task.splits(folder / "dev.jsonl", folder / "test.jsonl", None, 0).test
        subjects = sorted({row.subject for row in rows})[5:7]
        return task, [row for subject in subjects
                      for row in [r for r in rows if r.subject == subject][:given.mmlu_rows // 2]]
    rows = task.splits(None, folder / "validation.jsonl", None, 0).test
    return task, rows[::len(rows) // given.hellaswag_rows][:given.hellaswag_rows]


def ours(given: argparse.Namespace, model):
    from adapters.held import dense_weights
    from model.tokenizer import load_tokenizer
    from tasks.task import Asking
    asking = Asking(load_tokenizer(given.model), model.config.eos_token_ids, 1, BATCH)
    HELD.enter_context(dense_weights(model))

    def score(task, rows):
        lines = dict(task.answers(model, rows, asking))
        return [lines[i]["log_likelihoods"] for i in range(len(rows))]
    return score


def harness(given: argparse.Namespace):
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast

    from tasks.choices import prompts
    torch.set_num_threads(1)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(given.model / "tokenizer.json"), eos_token="<|endoftext|>")
    model = HFLM(pretrained=str(given.model), tokenizer=tokenizer, dtype="bfloat16", device="cpu", batch_size=BATCH)

    def score(task, rows):
        asked = [Instance("loglikelihood", {}, (prompts(row)[0], f" {choice}"), i)
                 for i, row in enumerate(rows) for choice in row.choices]
        found = iter(value for value, _ in model.loglikelihood(asked, disable_tqdm=True))
        return [[next(found) for _ in row.choices] for row in rows]
    return score


# ---- one process after the other ----------------------------------------------------------------------------------

def rows_of(found: dict[str, list[dict]]) -> list[dict]:
    """Raises ValueError if log-likelihoods or answers of 16 bits are not the harness'."""
    rows = []
    for name, rounds in found.items():
        for task in TASKS:
            who, base = name.split()
            if "failed" in rounds[0]:
                rows.append({"task": task, "who": who, "base": base, **rounds[0]})
                continue
            values = rounds[0]["tasks"][task]["log_likelihoods"]
            rows.append({"task": task, "who": who, "base": base, "rows": len(values), "values": values,
                         "peak_mb": rounds[0]["peak_mb"], "rows_a_second": summary(
                             [len(values) / one["tasks"][task]["seconds"] for one in rounds])})
    for row in rows:
        compare(row, [other for other in rows if other["task"] == row["task"] and "failed" not in other])
    return [{name: value for name, value in row.items() if name != "values"} for row in rows]


def compare(row: dict, others: list[dict]) -> None:
    if "failed" in row:
        return
    same = {(other["who"], other["base"]): other for other in others}
    speed = row["rows_a_second"]["median"]
    row["of_16_bits"] = speed / same[row["who"], "bf16"]["rows_a_second"]["median"]
    if not (peer := same.get(("harness", "bf16"))):
        return
    row["of_the_harness"] = speed / peer["rows_a_second"]["median"]
    pairs = list(zip(row["values"], peer["values"], strict=True))
    row["difference"] = statistics.median(abs(a / b - 1) for x, y in pairs for a, b in zip(x, y, strict=True))
    row["same_answers"] = statistics.fmean(x.index(max(x)) == y.index(max(y)) for x, y in pairs)
    if row["base"] == "bf16" and not (row["difference"] < TOLERANCE and row["same_answers"] >= AGREE):
        raise ValueError(f"{row['task']}, {row['who']}: log-likelihoods differ by {row['difference']:.2g} of the "
                         f"harness' and {row['same_answers']:.2f} of the answers are the same")


def line(row: dict) -> str:
    if "failed" in row:
        return f"{row['task']:<10} {row['who']:<8} {row['base']:<5} {row['failed']}"
    low, high = row["rows_a_second"]["quartiles"]
    return (f"{row['task']:<10} {row['who']:<8} {row['base']:<5} {row['rows_a_second']['median']:6.2f} rows/s "
            f"({low:.2f} to {high:.2f})  {row.get('of_the_harness', math.nan):.2f} x the harness'  "
            f"{row['of_16_bits']:.2f} x 16 bits  difference {row.get('difference', math.nan):.1e}  "
            f"same answers {row.get('same_answers', math.nan):.2f}  {row['peak_mb']:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("data", type=Path, metavar="DATA_DIR")
    parser.add_argument("--harness-python", metavar="PYTHON", help="an interpreter with lm_eval and transformers")
    parser.add_argument("--hellaswag-rows", type=int, default=48)
    parser.add_argument("--mmlu-rows", type=int, default=32)
    add_arguments(parser, rounds=2)
    given = parser.parse_args()
    if given.child:
        import torch
        torch.set_num_threads(1)
        who, base = given.child.split()
        print(json.dumps(measure(given, who, base == "nf4")))
        return
    measured = contenders(given, given.harness_python, ("harness bf16",),
                          "lm-evaluation-harness is left out: give --harness-python")
    rows = rows_of(gather(__file__, measured, given.rounds))
    print(*map(line, rows), sep="\n")
    write({**facts(given), "model": str(given.model), "batch": BATCH, "rows": rows}, given.out)


if __name__ == "__main__":
    main()
