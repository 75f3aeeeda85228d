"""How the cost of a training step grows with tokens, layers and parameters; and a step of a model of 7B's shape.

    python -m benchmarks.growth --cpu-time            # 1x, 2x and 4x of each
    python -m benchmarks.growth --cpu-time --shape 7B # quantized tensor by tensor, one step

Random models, one thread, QLoRA by default (NF4, rank 16 on attention), bfloat16. Each size has a process of its own,
so that its peak memory is its own. Beside the measured peak stands what `--mem-report` predicts from sizes alone.
"""
import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.processes import write

LENGTH = 128
BASE = {"rows": 4, "layers": 6, "hidden": 576, "inner": 1536}  # SmolLM2-135M's layers, a fifth of them
SIZES = {"tokens": [BASE | {"rows": rows} for rows in (4, 8, 16)],
         "layers": [BASE | {"layers": layers} for layers in (6, 12, 24)],
         "parameters": [BASE | {"hidden": hidden, "inner": inner}
                        for hidden, inner in ((576, 1536), (832, 2112), (1152, 3072))]}


def measure(given: argparse.Namespace, size: dict) -> dict:
    """Seconds to make the model and of one step, and peak memory."""
    import torch

    from benchmarks.shapes import SHAPES, adapted_model, run_config
    from finetune.allocator import kept_blocks
    from finetune.cost import step_operations
    from finetune.loop import summed_loss
    from finetune.memory import predicted
    from model.checkpoint import empty_model
    from model.config import LlamaConfig
    from tasks.task import Encoded
    torch.set_num_threads(1)
    config = SHAPES[given.shape] if given.shape else LlamaConfig(
        8192, size["hidden"], size["inner"], size["layers"], size["hidden"] // 64, size["hidden"] // 64, 64,
        tie_word_embeddings=True)
    clock = time.process_time if given.cpu_time else time.perf_counter
    start, run = clock(), run_config(given.method, "cpu", size["rows"])
    model, parameters = adapted_model(config, run)
    made, peak_of_making = clock() - start, peak_mb()
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-4)
    rows = [Encoded(torch.randint(3, config.vocab_size, (LENGTH + 1,),
                                  generator=torch.Generator().manual_seed(i)).tolist(), 1) for i in range(size["rows"])]

    def step() -> float:
        start = clock()
        loss, n = summed_loss(model, rows)
        (loss / n).backward()
        optimizer.step()
        optimizer.zero_grad()
        return clock() - start
    with kept_blocks():
        taken = [step() for _ in range(1 if given.shape else 4)]
    parts = predicted(planned(config, run), run, rows)
    return {"parameters": sum(p.numel() for p in empty_model(config, torch.bfloat16).parameters()),
            "tokens": LENGTH * size["rows"], "seconds_to_make": made, "peak_mb_of_making": peak_of_making,
            "seconds_a_step": sorted(taken[1:] or taken)[0], "peak_mb": peak_mb(), "first_step": taken[0],
            "predicted_mb": {name: value / 1e6 for name, value in parts.items()},
            "operations": step_operations(config, LENGTH * size["rows"], LENGTH)}


def planned(config, run):
    """The model on the meta device, as `--mem-report` plans it."""
    import torch

    from finetune.adapted_model import linear_names
    from finetune.checks import put_adapters, put_codes
    from model.checkpoint import empty_model
    model = empty_model(config, torch.float32)
    put_codes(model, linear_names(model, "all"), run.base.quantization)
    put_adapters(model, run)
    return model


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def child(given: argparse.Namespace, size: dict) -> dict:
    ended = subprocess.run([sys.executable, "-m", "benchmarks.growth", *sys.argv[1:], "--child", json.dumps(size)],
                           capture_output=True, text=True)
    if ended.returncode:
        return {"failed": (ended.stderr.strip() or "killed").splitlines()[-1][:300]}
    return json.loads(ended.stdout.splitlines()[-1])


def line(named: str, row: dict, first: dict) -> str:
    if "failed" in row:
        return f"{named}: failed: {row['failed']}"
    times = row["seconds_a_step"] / first["seconds_a_step"] / (row["operations"] / first["operations"])
    return (f"{named:<14} {row['parameters'] / 1e6:7.0f} M weights {row['tokens']:5} tokens  "
            f"{row['seconds_a_step']:7.2f} s a step, {times:.2f} of the first's a multiplication  "
            f"{row['peak_mb']:6.0f} MB, predicted {sum(row['predicted_mb'].values()):.0f}  "
            f"made in {row['seconds_to_make']:.1f} s, {row['peak_mb_of_making']:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", help="one model of benchmarks/shapes.py, such as 7B")
    parser.add_argument("--rows", type=int, default=1, help=f"with --shape: rows of {LENGTH} tokens")
    parser.add_argument("--method", default="qlora")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(given, json.loads(given.child))))
        return
    sizes = {given.shape: [{"rows": given.rows}]} if given.shape else SIZES
    report: dict = {"method": given.method, "clock": "processor" if given.cpu_time else "wall", "rows": []}
    for what, some in sizes.items():
        rows = [child(given, size) for size in some]
        for i, row in enumerate(rows):
            print(line(f"{what} {2 ** i}x" if len(rows) > 1 else what, row, rows[0]), flush=True)
            report["rows"].append({"what": what, "times": 2 ** i, **row})
    write(report, given.out)


if __name__ == "__main__":
    main()
