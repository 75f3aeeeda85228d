"""Memory of each process that trains, with the whole base and with its part (--shard-base), beside the prediction.

    python -m benchmarks.shared_base --model MODEL_DIR --data rows.jsonl --out shared_base.json
    python -m benchmarks.shared_base --shape 1B --tokenizer MODEL_DIR --data rows.jsonl --out shared_base.json

QLoRA, NF4, rank 16 on attention, bfloat16, one thread a process, rows of sql-create-context. A sampler reads
/proc/PID/smaps_rollup of every process: memory of its own (Pss_Anon) and with its part of what they share (Pss). A
model in the shape of a larger one has random weights. Rows are appended to --out.
"""
import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.processes import write
from benchmarks.shapes import SHAPES, random_weight
from finetune.by_process import Processes
from finetune.checks import planned_model
from finetune.command_line import train_parser
from finetune.data import prepare_data
from finetune.dry_run import Described
from finetune.memory import moved, predicted
from finetune.resolve import resolve_run
from model.checkpoint import empty_model, stored_tensors
from model.config_json import config_to_json
from model.files import read_json, write_json
from model.tensor_files import write_in_turn
from model.tokenizer import copy_tokenizer


def made(shape: str, tokenizer: Path, place: Path) -> Path:
    """A model directory with random weights, and the words of another's tokenizer."""
    import torch
    known = read_json(tokenizer / "config.json")
    config = replace(SHAPES[shape], vocab_size=known["vocab_size"], bos_token_id=known["bos_token_id"],
                     eos_token_ids=(known["eos_token_id"],))
    write_json(place / "config.json", config_to_json(config))
    copy_tokenizer(tokenizer, place)
    described = stored_tensors(empty_model(config, torch.bfloat16))
    described = {name: t.to(torch.bfloat16) for name, t in described.items()}
    write_in_turn(place / "model.safetensors", described, lambda name: random_weight(
        name, config, tuple(described[name].shape), "cpu", torch.bfloat16))
    return place


def flags(given: argparse.Namespace, model: Path) -> list[str]:
    return ["--model", str(model), "--method", "qlora", "--targets", "attention", "--task", "sql-create-context",
            "--data", str(given.data), "--limit", "400", "--test-limit", "1", "--max-length", str(given.length),
            "--dtype", "bfloat16", "--batch-size", str(given.rows), "--micro-batch", str(given.rows // 2),
            "--steps", "2", "--lr", "1e-3", "--max-new-tokens", "1"]


def peaks(command: list[str], log: Path, ended: Path) -> tuple[list[dict[str, float]], float]:
    """MB of each process that `command` starts, until the file `ended` is there, and seconds until then."""
    start, most = time.monotonic(), dict[int, dict[str, float]]()
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
        while process.poll() is None and not ended.is_file():
            for pid in children(process.pid):
                for name, megabytes in memory_of(pid).items():
                    kept = most.setdefault(pid, {})
                    kept[name] = max(kept.get(name, 0.0), megabytes)
            time.sleep(0.02)
        seconds = time.monotonic() - start
        process.wait()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed: see {log}\n{log.read_text()[-2000:]}")
    return [most[pid] for pid in sorted(most)], seconds


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def memory_of(pid: int) -> dict[str, float]:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return {}
    return {name: int(found[1]) / 1e3 for name in ("Rss", "Pss", "Pss_Anon")
            if (found := re.search(rf"^{name}: +(\d+) kB", text, re.MULTILINE))}


def prediction(words: list[str], processes: Processes) -> dict[str, float]:
    """MB, part by part, and MB that a process sends in a step."""
    config = resolve_run({**train_parser().given(words), "device": "cpu"})
    source = Described(config.base.model)
    rows = sorted(prepare_data(source, config, False).train, key=lambda e: len(e.tokens))
    model = planned_model(source, config)
    parts = predicted(model, config, rows[-processes.rows_at_a_time(config):], processes)
    return {**{name: size / 1e6 for name, size in parts.items()},
            "sent_in_a_step": sum(moved(model, config, processes).values()) / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="measure this model")
    parser.add_argument("--shape", choices=SHAPES, help="measure a random model of this shape")
    parser.add_argument("--tokenizer", type=Path, help="with --shape: a model directory whose tokenizer it gets")
    parser.add_argument("--data", type=Path, required=True, help="rows of sql-create-context")
    parser.add_argument("--rows", type=int, default=4, help="rows of a step (default: 4)")
    parser.add_argument("--length", type=int, default=64, help="tokens of a row at most (default: 64)")
    parser.add_argument("--nproc", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--only", choices=("whole", "shared"), help="measure one of the two (default: both)")
    parser.add_argument("--out", type=Path, required=True, help="add the rows to this file")
    given = parser.parse_args()
    found = read_json(given.out)["rows"] if given.out.is_file() else []
    with tempfile.TemporaryDirectory(dir=given.out.parent) as place:
        model = given.model or made(given.shape, given.tokenizer, Path(place))
        words = flags(given, model)
        for sharded in (False, True):
            if given.only == ("whole" if sharded else "shared"):
                continue
            run = Path(place) / f"run-{sharded}"
            command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(given.nproc), "train.py",
                       *words, *(["--shard-base"] if sharded else []), "--out", str(run)]
            by_process, seconds = peaks(command, Path(place) / "log", run / "training.json")
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            found.append({"model": given.shape or given.model.name, "processes": given.nproc, "sharded": sharded,
                          "measured_mb": by_process, "seconds": round(seconds, 1),
                          "losses": [line["loss"] for line in lines if "loss" in line],
                          "predicted_mb": prediction(words, Processes(given.nproc, sharded))})
            write({"command": "python -m benchmarks.shared_base", "rows": found}, given.out)
            print(json.dumps(found[-1], indent=1))


if __name__ == "__main__":
    main()
