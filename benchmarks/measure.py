"""Timing, the machine's limits, and a report on disk that is whole after every row."""
import gc
import json
import os
import statistics
import time
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SQUARE = 8192  # of the matrix product that shows the machine's rate
COPIED = 1 << 30


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def timed(device: str, work: Callable[[], Any], seconds: float = 1.5, warmup: int = 2, most: int = 50) -> dict:
    """Median, least and most seconds of one call. At least three calls are timed, then as many as fit in `seconds`."""
    for _ in range(warmup):
        work()
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < seconds and len(taken) < most:
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        taken.append(time.perf_counter() - start)
    return {"seconds": statistics.median(taken), "least": min(taken), "most": max(taken), "calls": len(taken)}


def in_turns(device: str, works: dict[str, Callable[[], Any]], rounds: int = 3, seconds: float = 0.6,
             least: int = 2, warmup: int = 1) -> dict[str, dict]:
    """As `timed`, for several works that take turns: a machine that others use too slows all of them alike."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            for _ in range(warmup):
                work()
            own: list[float] = []
            while len(own) < least or sum(own) < seconds and len(own) < 20:
                wait(device)
                start = time.perf_counter()
                work()
                wait(device)
                own.append(time.perf_counter() - start)
            taken[name] += own
    return {name: {"seconds": statistics.median(all_), "least": min(all_), "most": max(all_), "calls": len(all_)}
            for name, all_ in taken.items()}


def seconds_of(device: str, work: Callable[[], Any]) -> float:
    """Of one call, the first as a rule: compilers and recordings included."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def allocated(device: str) -> float:
    """Megabytes of tensors that live on a GPU now."""
    return torch.cuda.memory_allocated(device) / 1e6 if device.startswith("cuda") else 0.0


def median_of(device: str, work: Callable[[], Any], **how) -> float:
    return timed(device, work, **how)["seconds"]


def forget_memory(device: str) -> None:
    """Frees what nobody holds, and counts peak memory anew."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_megabytes(device: str) -> float | None:
    """Of tensors on a GPU, since `forget_memory`."""
    return round(torch.cuda.max_memory_allocated(device) / 1e6, 1) if device.startswith("cuda") else None


def limits(device: str) -> dict:
    """What this machine reaches now: rate of a large bfloat16 product, in operations a second, and bandwidth of a large
    copy, bytes read and written a second. Random numbers: zeros multiply faster."""
    small = not device.startswith("cuda")
    n, size = (1024, COPIED >> 5) if small else (SQUARE, COPIED)
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
    return {"device": name, "torch": torch.__version__,
            "matrix_rate": 2 * n ** 3 / median_of(device, lambda: a @ b, seconds=0.5),
            "copy_bandwidth": 2 * size / median_of(device, lambda: target.copy_(source), seconds=0.3)}


class Report:
    """Rows of figures. The file is written anew after each, so that a stage that is killed leaves what it had."""

    def __init__(self, path: Path, seconds: float, **facts):
        self.path, self.end = path, time.monotonic() + seconds
        self.content: dict[str, Any] = {**facts, "finished": False, "rows": []}
        self.save()

    def late(self) -> bool:
        return time.monotonic() > self.end

    def attempt(self, work: Callable[[], dict], late: bool = False, **named) -> dict:
        """A row: what it is, and its figures; or why there are none. `late`: even if the time is over."""
        start = time.monotonic()
        if self.late() and not late:
            row = {**named, "skipped": "out of time"}
        else:
            try:
                row = {**named, **work()}
            except Exception as error:  # a benchmark that fails must not take the others with it
                row = {**named, "error": f"{type(error).__name__}: {error}"[:600],
                       "traceback": traceback.format_exc()[-2500:]}
            row["took"] = round(time.monotonic() - start, 2)
        self.content["rows"].append(row)
        self.save()
        print(line_of(row), flush=True)
        return row

    def finish(self) -> None:
        self.content["finished"] = True
        self.save()

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.content, indent=1, default=str) + "\n", encoding="utf-8")
        os.replace(beside, self.path)


def line_of(row: dict) -> str:
    """A row in one line, without long texts and lists."""
    def shown(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)[:200]
    return "  ".join(f"{name} {shown(value)}" for name, value in row.items()
                     if name not in ("traceback", "took") and not isinstance(value, list | dict))


def arguments(description: str | None, shapes: tuple[str, ...]) -> Namespace:
    parser = ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True, help="write this JSON file")
    parser.add_argument("--seconds", type=float, default=600, help="begin no new measurement after so many seconds")
    parser.add_argument("--shapes", nargs="+", default=list(shapes))
    return parser.parse_args()
