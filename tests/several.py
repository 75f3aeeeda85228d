"""The product in several processes, as torchrun starts it: each is a fork of one process that has imported all modules
and has computed nothing. When one fails, the others get SIGTERM, and SIGKILL half a minute later, as torchrun does it.

    python -m tests.several < commands.json

runs [{"cwd": ..., "processes": 2, "script": "train.py", "arguments": [...], "signal": [rank, SIGNAL, step]}, ...] and
prints how each ended. The signal, if one is named, comes to a process in that step.
"""
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.events import Fault
from tests.faults.trial import Ended, start

GRACE = 30.0  # seconds
LAST_LINE = re.compile(r"^(error: |SIG[A-Z]+[ :]|the reader of the output)")
ROOT = Path(__file__).parents[1]


@dataclass
class Together(Ended):
    """`status` is torchrun's: 0, or 1 if one failed; None: they did not end in time."""
    statuses: list[int] = field(default_factory=list)
    after: float = 0.0  # seconds from the first failure to the end of all

    @property
    def sentences(self) -> list[str]:
        """The lines that say why the command ended: there must be one."""
        return [line for line in self.out.replace("\r", "\n").splitlines() if LAST_LINE.match(line)]


def as_rank(rank: int, size: int, port: int, more: Mapping[str, str], patch: Callable[[], None] | None):
    def before() -> None:
        os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
                           "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
                           "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0", **more})
        if patch:
            patch()
    return before


def run_several(size: int, tree: Path, cwd: Path, script: str, *arguments: object,
                patches: Mapping[int, Callable[[], None]] | None = None, faults: Mapping[int, Fault] | None = None,
                timeout: float = 120, **environment: str) -> Together:
    """`patches` and `faults` by rank."""
    import torch.distributed as dist
    store = dist.TCPStore("localhost", 0, None, is_master=True, wait_for_workers=False)
    started = [start(tree, cwd, script, *arguments, fault=(faults or {}).get(rank),
                     patch=as_rank(rank, size, store.port, environment, (patches or {}).get(rank)))
               for rank in range(size)]
    begun, failed, statuses = time.monotonic(), None, dict[int, int]()
    while len(statuses) < size:
        now = time.monotonic()
        for rank in set(range(size)) - set(statuses):
            pid, status = os.waitpid(started[rank].pid, os.WNOHANG)
            if pid:
                statuses[rank] = os.waitstatus_to_exitcode(status)
        left = [started[rank].pid for rank in range(size) if rank not in statuses]
        if any(statuses.values()) and failed is None:
            failed = now
            for pid in left:
                os.kill(pid, signal.SIGTERM)
        if now - begun > timeout or failed is not None and now - failed > GRACE:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    out = "".join(process.file.read_text(errors="replace") for process in started)
    for process in started:
        process.file.unlink()
    ended, hung = time.monotonic(), time.monotonic() - begun > timeout
    return Together(None if hung else int(any(statuses.values())), out, ended - begun,
                    [statuses[rank] for rank in range(size)], 0.0 if failed is None else ended - failed)


def main() -> None:
    from tests.faults.__main__ import load_product
    from tests.faults.stop_signals import in_forward
    load_product(ROOT)
    for command in json.load(sys.stdin):
        patches = {rank: in_forward(number, step, True) for rank, number, step in [command["signal"]] if number}
        ended = run_several(command["processes"], ROOT, Path(command["cwd"]), command["script"], *command["arguments"],
                            patches=patches)
        print(json.dumps({"status": ended.status, "statuses": ended.statuses, "out": ended.out,
                          "sentences": ended.sentences, "seconds": ended.seconds, "after": ended.after}), flush=True)


if __name__ == "__main__":
    main()
