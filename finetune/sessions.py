"""On what a run was trained: a line in RUN/sessions.jsonl for its start, and one for each --resume.

The same numbers come out of the same machine and versions. Another number of threads, another torch or another
processor may sum in another order, which changes the last bits.
"""
import platform
from datetime import datetime
from pathlib import Path

import torch

from finetune.config import ComputeConfig
from model import processes
from model.journal import Journal

DECIDES = {  # key -> what a user calls it; the last bits depend on these
    "processes": "the number of processes", "threads": "the number of threads", "torch": "torch", "python": "Python",
    "processor": "the processor",
    "vector_instructions": "the vector instructions", "device": "the device", "dtype": "--dtype",
    "float32_products": "the precision of float32 products"}


def session(compute: ComputeConfig) -> dict:
    """What this process computes on."""
    on_gpu = compute.device.startswith("cuda")
    return {"processes": processes.HERE.size,
            "threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version(),
            "processor": processor(), "vector_instructions": torch.backends.cpu.get_cpu_capability(),
            "device": torch.cuda.get_device_name(compute.device) if on_gpu else compute.device,
            "dtype": compute.dtype, "float32_products": torch.get_float32_matmul_precision()}


def processor() -> str:
    """`Intel(R) Xeon(R) Platinum 8481C`"""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def differing(first: dict, now: dict) -> list[str]:
    """`the number of threads (2, at its start 4)`, for each that both know and do not share."""
    return [f"{name} ({now[key]}, at its start {first[key]})" for key, name in DECIDES.items()
            if key in first and first[key] != now[key]]


def note_session(sessions: Journal, compute: ComputeConfig, step: int) -> None:
    """Adds this session to the run's, and says how it differs from the first."""
    now, before = session(compute), sessions.keep(list(sessions))
    sessions.append({"started": datetime.now().astimezone().isoformat(" ", "seconds"), "step": step, **now})
    sessions.flush()
    if before and (others := differing(before[0], now)):
        print(f"this session differs from the run's first one in {', '.join(others)}: the last bits may differ from "
              f"those of a run in one session")
