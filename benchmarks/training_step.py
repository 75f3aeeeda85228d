"""Time one training step of each method, ours and the peers', in alternating processes on the same inputs.

    python -m benchmarks.training_step --model DIR                                       # ours alone
    python -m benchmarks.training_step --model DIR --tree before=../old --tree after=.   # two versions of ours
    python -m benchmarks.training_step --model DIR --peers VENV/bin/python               # beside PEFT + bitsandbytes

Two workloads: `fixed`, 8 rows of 128 random tokens, all of them learned; `scc`, rows of --data (sql-create-context), 16
a batch, of which the answers are learned. Rank 16 on the attention layers, AdamW, gradients clipped to 1.

Every process reports the losses of its steps. They must agree between the implementations of a method before a time is
printed. Peers shift labels inside a row, as this project does, so both learn the same tokens.

`limit` is the share of a step's time that its matrix products take by themselves (matrix_limit.py), measured in the
same run. It is given for `fixed`, where all tokens reach the vocabulary.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
BLOCKS = {"qlora": "nf 64x1", "qblora": "minmax 8x8 --lam 8", "qalora": "minmax 32x1", "qablora": "minmax 4x8",
          "peqa": "intminmax 4x8"}
METHODS = ("lora", *BLOCKS)
PEERS = ("lora", "qlora")  # what PEFT + bitsandbytes have
TOLERANCE = {"bfloat16": 0.02, "float32": 2e-4}  # of a loss, relative; NF4 codes and factors agree, rounding does not


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="a model directory, such as SmolLM2-135M's")
    add("--data", type=Path, help="rows of sql-create-context; without it, `scc` is left out")
    add("--tree", action="append", metavar="NAME=DIR", help="a checkout of this project (default: ours=this one)")
    add("--peers", metavar="PYTHON", help="an interpreter that has peft, bitsandbytes and transformers")
    add("--methods", nargs="+", default=METHODS, choices=METHODS)
    add("--workloads", nargs="+", default=("fixed", "scc"), choices=("fixed", "scc"))
    add("--dtype", default="bfloat16", choices=TOLERANCE)
    add("--steps", type=int, default=6, help="timed steps of a process, after one that is not timed")
    add("--repeats", type=int, default=3, help="processes of each implementation")
    add("--cpu-time", action="store_true", help="one thread and processor seconds: for a machine that is busy")
    add("--json", type=Path)
    options = parser.parse_args()
    rows = [row for workload in options.workloads if workload == "fixed" or options.data
            for method in options.methods for row in compared(options, workload, method)]
    print(table(rows, "processor" if options.cpu_time else "wall"))
    if options.json:
        options.json.write_text(json.dumps({"settings": {k: str(v) for k, v in vars(options).items()}, "rows": rows},
                                           indent=1) + "\n")


def compared(options: argparse.Namespace, workload: str, method: str) -> list[dict]:
    """One row for each implementation, its processes alternating with the others'."""
    trees = dict(text.split("=", 1) for text in options.tree or [f"ours={HERE.parent}"])
    commands = {name: [sys.executable, __file__.replace("training_step", "one_process"), "ours", tree]
                for name, tree in trees.items()}
    if options.peers and method in PEERS:
        commands["peers"] = [options.peers, __file__.replace("training_step", "one_process"), "peers", "-"]
    found: dict[str, list[dict]] = {name: [] for name in commands}
    limits = []
    for _ in range(options.repeats):
        for name, command in commands.items():
            found[name].append(one_process(options, [*command, method, workload]))
        if workload == "fixed":
            limits.append(matrix_limit(options, next(iter(found.values()))[0]["tokens"]))
    check_losses(method, found, TOLERANCE[options.dtype])
    rows = [summary(method, workload, name, runs, options.cpu_time) for name, runs in found.items()]
    return [{**row, "limit": statistics.median(limits) / row["seconds_a_step"]} for row in rows] if limits else rows


def matrix_limit(options: argparse.Namespace, tokens: int) -> float:
    """Seconds a step of its products alone."""
    command = [sys.executable, "-m", "benchmarks.matrix_limit", options.model.resolve(), options.dtype, f"{tokens:.0f}"]
    return json.loads(output_of(options, command, HERE.parent))["processor" if options.cpu_time else "wall"]


def one_process(options: argparse.Namespace, command: Sequence[str]) -> dict:
    settings = {"model": str(options.model.resolve()), "data": str(options.data.resolve()) if options.data else None,
                "dtype": options.dtype, "steps": options.steps, "flags": flags(command[-2])}
    return json.loads(output_of(options, [*command, json.dumps(settings)]).splitlines()[-1])


def output_of(options: argparse.Namespace, command: Sequence[str | Path], place: str | Path = "/") -> str:
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} if options.cpu_time else {}
    done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True, cwd=place)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed: {done.stderr[-2000:]}")
    return done.stdout


def flags(method: str) -> list[str]:
    if method == "lora":
        return []
    quantizer, block, *more = BLOCKS[method].split()
    return ["--quantizer", quantizer, "--bits", "4", "--block", block, *more]


def check_losses(method: str, found: dict[str, list[dict]], tolerance: float) -> None:
    (first, expected), *others = [(name, runs[0]["losses"]) for name, runs in found.items()]
    for name, losses in others:
        worst = max(abs(a - b) / b for a, b in zip(losses, expected, strict=True))
        if worst > tolerance:
            raise RuntimeError(f"{method}: the losses of {name} are not those of {first}, by {worst:.2g}: {losses}, "
                               f"{expected}")


def summary(method: str, workload: str, name: str, runs: list[dict], cpu_time: bool) -> dict:
    seconds = [run["processor" if cpu_time else "wall"] for run in runs]
    median = statistics.median(seconds)
    return {"method": method, "workload": workload, "implementation": name, "seconds_a_step": median,
            "spread": (max(seconds) - min(seconds)) / median, "tokens_a_second": runs[0]["tokens"] / median,
            "peak_mb": statistics.median(run["peak_mb"] for run in runs),
            "before_training_mb": statistics.median(run["before_training_mb"] for run in runs),
            "losses": runs[0]["losses"]}


def table(rows: list[dict], clock: str) -> str:
    shown: list[tuple[str, Callable[[dict], str]]] = [
        ("workload", lambda r: r["workload"]), ("method", lambda r: r["method"]),
        ("implementation", lambda r: r["implementation"]),
        (f"{clock} s a step", lambda r: f"{r['seconds_a_step']:.3f}"), ("spread", lambda r: f"{r['spread']:.0%}"),
        ("tokens/s", lambda r: f"{r['tokens_a_second']:.0f}"), ("peak MB", lambda r: f"{r['peak_mb']:.0f}"),
        ("speed", lambda r: f"{r['tokens_a_second'] / base_of(rows, r)['tokens_a_second']:.2f}x"),
        ("memory", lambda r: f"{r['peak_mb'] / base_of(rows, r)['peak_mb']:.2f}x"),
        ("limit", lambda r: f"{r['limit']:.0%}" if "limit" in r else "-")]
    lines = ["| " + " | ".join(title for title, _ in shown) + " |", "|" + "---|" * len(shown)]
    return "\n".join([*lines, *("| " + " | ".join(show(row) for _, show in shown) + " |" for row in rows)])


def base_of(rows: list[dict], row: dict) -> dict:
    """What a row is compared with: the peers where they ran, else the first implementation."""
    same = [r for r in rows if (r["workload"], r["method"]) == (row["workload"], row["method"])]
    return next((r for r in same if r["implementation"] == "peers"), same[0])


if __name__ == "__main__":
    main()
