"""Contenders in processes of their own, one after the other, in several rounds.

A contender may import the packages of another checkout, so that two commits are compared in one run."""
import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def add_arguments(parser: argparse.ArgumentParser, rounds: int) -> None:
    parser.add_argument("--tree", action="append", metavar="NAME=DIR", help="a checkout to measure; default: this one")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--cpu-time", action="store_true", help="count processor seconds, for busy machines")
    parser.add_argument("--out", type=Path, help="write this JSON file")
    parser.add_argument("--child", help=argparse.SUPPRESS)


def trees_of(given: argparse.Namespace) -> dict[str, Path]:
    named = (one.partition("=") for one in given.tree or [f"ours={ROOT}"])
    return {name: Path(place).resolve() for name, _, place in named}


def contenders(given: argparse.Namespace, python: str | None, peers: tuple[str, ...], without: str) -> dict[str, tuple]:
    """Ours of each tree, in 16 bits and in NF4, and the peers. Without an interpreter that has them, `without` is
    said."""
    found = {f"{name} {base}": (f"ours {base}", tree, sys.executable)
             for name, tree in trees_of(given).items() for base in ("bf16", "nf4")}
    if python is None:
        print(without, file=sys.stderr)
    return found | {peer: (peer, ROOT, python) for peer in peers if python}


def facts(given: argparse.Namespace) -> dict:
    return {"clock": "processor" if given.cpu_time else "wall", "rounds": given.rounds,
            "trees": {name: str(tree) for name, tree in trees_of(given).items()}}


def child(script: str, kind: str, tree: Path, python: str) -> dict:
    """What `script --child kind` prints in a process that imports the packages of `tree`. {"failed": why} if it ends in
    an error."""
    environment = {**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1",
                   "MKL_NUM_THREADS": "1"}
    ended = subprocess.run([python, script, *sys.argv[1:], "--child", kind],
                           env=environment, capture_output=True, text=True)
    if ended.returncode:
        return {"failed": (ended.stderr.strip() or "no message").splitlines()[-1][:300]}
    return json.loads(ended.stdout.splitlines()[-1])


def summary(samples: list[float]) -> dict:
    if len(samples) < 2:
        return {"median": samples[0], "quartiles": [samples[0]] * 2, "samples": 1}
    low, _, high = statistics.quantiles(samples, n=4)
    return {"median": statistics.median(samples), "quartiles": [low, high], "samples": len(samples)}


def gather(script: str, contenders: dict[str, tuple], rounds: int) -> dict[str, list[dict]]:
    """name -> what its process measured, round by round; the order turns round after round."""
    found: dict[str, list[dict]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name in sorted(contenders, reverse=bool(turn % 2)):
            found[name].append(child(script, *contenders[name]))
            print(f"round {turn + 1}: {name} {found[name][-1].get('failed', 'done')}", file=sys.stderr, flush=True)
    return found


def write(report: dict, path: Path | None) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
