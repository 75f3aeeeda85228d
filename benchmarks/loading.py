"""(f) Loading, loading and quantizing to NF4: seconds and peak memory, beside transformers; and how commands start.

    python -m benchmarks.loading MODEL_DIR --cpu-time --peer-python VENV/bin/python

A load is timed from the path to a model on which a forward pass over one token has run, so that weights that are only
mapped are read. Imports are not counted there; they are in the start-up times, which are those of `COMMAND --help`
beside an interpreter that only imports torch. Before any ratio, both models must give the same token.
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.processes import ROOT, add_arguments, contenders, facts, gather, summary, trees_of, write

COMMANDS = {name: [f"{name}.py", "--help"] for name in ("train", "eval", "sample", "export", "judge")}
OTHERS = {"import torch": ["-c", "import torch"],
          "import transformers' Llama": ["-c", "from transformers import LlamaForCausalLM"]}
TOKEN = 100  # that the models read


# ---- in a process of its own, which may import the packages of another checkout -----------------------------------

def measure(given: argparse.Namespace, who: str, quantized: bool) -> dict:
    import torch
    from our_model import loaded, theirs  # of this file's directory, whatever checkout is measured
    torch.set_num_threads(1)
    load, ask = (theirs, lambda m: m(torch.tensor([[TOKEN]])).logits) if who == "peers" else (
        loaded, lambda m: m(torch.tensor([[TOKEN]])))
    imports(who)
    before, clock = peak_mb(), time.process_time if given.cpu_time else time.perf_counter
    start = clock()
    with torch.no_grad():
        logits = ask(load(given.model, quantized))
    return {"seconds": clock() - start, "peak_mb": peak_mb(), "before_mb": before, "token": int(logits[0, -1].argmax())}


def imports(who: str) -> None:
    if who == "peers":
        import bitsandbytes  # noqa: F401
        from transformers import LlamaForCausalLM  # noqa: F401
    else:
        import finetune.quantize  # noqa: F401


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


# ---- one process after the other ----------------------------------------------------------------------------------

def start_up(given: argparse.Namespace, python: str, tree: Path, command: list[str]) -> float | None:
    """Seconds of a process, or None if it fails."""
    before, start = children_seconds(), time.perf_counter()
    ended = subprocess.run([python, *command], cwd=tree, capture_output=True, env={**os.environ, "PYTHONPATH": ""})
    wall, processor = time.perf_counter() - start, children_seconds() - before
    return None if ended.returncode else processor if given.cpu_time else wall


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def start_rows(given: argparse.Namespace) -> list[dict]:
    starts = {f"{name}: {command}": (sys.executable, tree, words) for name, tree in trees_of(given).items()
                  for command, words in COMMANDS.items()}
    for name, words in OTHERS.items():
        python = given.peer_python if "transformers" in name else sys.executable
        starts |= {name: (python, ROOT, words)} if python else {}
    found: dict[str, list[float]] = {}
    for _ in range(given.rounds + 1):  # the first fills the disk cache
        for name, how in starts.items():
            found.setdefault(name, []).append(start_up(given, *how))
    return [{"start": name, "failed": True} if None in taken else {"start": name, "seconds": summary(taken[1:])}
            for name, taken in found.items()]


def load_rows(found: dict[str, list[dict]]) -> list[dict]:
    """Raises ValueError if a model of 16 bits gives another token than the peers'."""
    rows = []
    for name, rounds in found.items():
        who, base = name.split()
        row = {"who": who, "base": base, **rounds[0]}
        if "failed" not in row:
            row["seconds"] = summary([one["seconds"] for one in rounds])
            row["peak_mb"] = summary([one["peak_mb"] for one in rounds])["median"]
        rows.append(row)
    same = {(row["who"], row["base"]): row for row in rows if "failed" not in row}
    for row in same.values():
        if peer := same.get(("peers", row["base"])):
            if row["base"] == "bf16" and row["token"] != peer["token"]:
                raise ValueError(f"loading, {row['who']}: token {row['token']}, the peers' is {peer['token']}")
            row["time_of_the_peers"] = row["seconds"]["median"] / peer["seconds"]["median"]
            row["memory_of_the_peers"] = row["peak_mb"] / peer["peak_mb"]
    return rows


def line(row: dict) -> str:
    if "failed" in row:
        return f"{row.get('start') or row['who'] + ' ' + row['base']}: failed {row['failed']}"
    seconds = f"{row['seconds']['median']:6.2f} s"
    if "start" in row:
        return f"{row['start']:<28} {seconds}"
    ratios = (f"  {row['time_of_the_peers']:.2f} of the peers' time, {row['memory_of_the_peers']:.2f} of their memory"
              if "time_of_the_peers" in row else "")
    memory = f"{row['peak_mb']:6.0f} MB, {row['before_mb']:.0f} before"
    return f"{row['who']:<8} {row['base']:<5} {seconds}  {memory}{ratios}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--peer-python", metavar="PYTHON", help="an interpreter with transformers and bitsandbytes")
    add_arguments(parser, rounds=3)
    given = parser.parse_args()
    if given.child:
        who, base = given.child.split()
        print(json.dumps(measure(given, who, base == "nf4")))
        return
    measured = contenders(given, given.peer_python, ("peers bf16", "peers nf4"),
                          "transformers and bitsandbytes are left out: give --peer-python")
    rows = load_rows(gather(__file__, measured, given.rounds)) + start_rows(given)
    print(*map(line, rows), sep="\n")
    write({**facts(given), "model": str(given.model), "rows": rows}, given.out)


if __name__ == "__main__":
    main()
