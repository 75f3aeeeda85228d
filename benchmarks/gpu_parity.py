"""The losses of every method on a device against those of the CPU: train.py on the embedded base, the same rows.

    python -m benchmarks.gpu_parity --device cuda --out parity.json

Each method runs three times: on the CPU in float32, on the device in float32 and in bfloat16. Several runs go at once,
so their speeds say little."""
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.measure import Report, arguments
from finetune.methods import METHODS

ROOT = Path(__file__).parent.parent
FLAGS = ("--steps", "10", "--batch-size", "16", "--limit", "300", "--test-limit", "48")
CALIBRATION = ("--calibration-rows", "64")
AT_ONCE = max(2, min(8, (os.cpu_count() or 2) // 2))
WITHIN = {"float32": 1e-3, "bfloat16": 3e-2}  # of a loss
GPTQ_WITHIN = 3e-2  # a near tie takes another code, and all later columns follow


def trained(method: str, device: str, dtype: str, place: Path, seconds: float) -> dict:
    """Losses, gradient norms, table and memory of one run; or how it failed."""
    out = place / f"{method}-{device.replace(':', '')}-{dtype}"
    more = CALIBRATION if METHODS[method].quantizer == "gptq" else ()
    command = [sys.executable, "train.py", "--method", method, "--device", device, "--dtype", dtype, *FLAGS, *more,
               "--out", str(out)]
    start = time.monotonic()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, seconds),
                              env={**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"})
    except subprocess.TimeoutExpired as error:
        return {"error": f"stopped after {seconds:.0f} s",
                "output": ((error.stdout or b"")[-700:] + (error.stderr or b"")[-1500:]).decode(errors="replace")}
    if done.returncode:
        return {"error": f"exit code {done.returncode}", "output": (done.stdout[-700:] + done.stderr[-2500:])}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = json.loads((out / "results.json").read_text())["rows"]
    return {"losses": [line["loss"] for line in lines if "gradient_norm" in line],
            "gradient_norms": [line["gradient_norm"] for line in lines if "gradient_norm" in line],
            "validation_losses": {row["state"]: row["validation_loss"] for row in rows},
            "accuracy": {row["state"]: row["scores"].get("accuracy") for row in rows},
            "logit_difference": {row["state"]: row["logit_difference"] for row in rows if row["logit_difference"]},
            "training": json.loads((out / "training.json").read_text()), "wall": round(time.monotonic() - start, 1)}


def compared(method: str, runs: dict[tuple[str, str], dict], device: str) -> dict:
    """The largest relative differences from the CPU, and whether they are within rounding."""
    cpu, row = runs["cpu", "float32"], {"runs": {" ".join(key): run for key, run in runs.items()}}
    for dtype in ("float32", "bfloat16"):
        ours = runs[device, dtype]
        if "error" in ours or "error" in cpu:
            row[f"{dtype}_agrees"] = False
            row[f"{dtype}_error"] = ours.get("error") or f"on the CPU: {cpu.get('error')}"
            continue
        off = max(abs(a / b - 1) for a, b in zip(ours["losses"], cpu["losses"], strict=True))
        ends = max(abs(a / cpu["validation_losses"][state] - 1) for state, a in ours["validation_losses"].items())
        within = max(WITHIN[dtype], GPTQ_WITHIN if METHODS[method].quantizer == "gptq" else 0)
        row |= {f"{dtype}_agrees": max(off, ends) <= within, f"{dtype}_training_losses_differ_by": off,
                f"{dtype}_first_loss_differs_by": abs(ours["losses"][0] / cpu["losses"][0] - 1),
                f"{dtype}_final_losses_differ_by": ends}
    return row


def main() -> None:
    given = arguments(__doc__, ())
    device = given.device
    kinds = [("cpu", "float32"), (device, "float32"), (device, "bfloat16")]
    report = Report(given.out, given.seconds, question="losses on a device and on the CPU", device=device, flags=FLAGS,
                    within=WITHIN)
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(AT_ONCE) as pool:
        end = time.monotonic() + given.seconds

        def job(method: str, number: int) -> dict:
            if time.monotonic() > end:
                return {"error": "out of time before it began"}
            return trained(method, *kinds[number], Path(place) / str(number), end + 5 - time.monotonic())
        jobs = {(method, number): pool.submit(job, method, number) for method in METHODS
                for number in range(len(kinds))}
        for method in METHODS:
            runs = {number: jobs[method, number].result() for number in range(len(kinds))}
            report.attempt(lambda m=method, r=runs: compared(m, {kind: r[n] for n, kind in enumerate(kinds)}, device),
                           late=True, method=method)
    report.finish()


if __name__ == "__main__":
    main()
