"""SIGINT, SIGTERM, SIGHUP and SIGUSR1 in a step, in validation, and while files are written."""
import json
import os
import signal
import struct
from collections.abc import Callable, Container
from pathlib import Path

from tests.faults.bench import Bench
from tests.faults.events import SIGNAL, Fault
from tests.faults.kills import after_crash
from tests.faults.report import LOST, SAME, TRACEBACK, Report
from tests.faults.trial import Ended

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def in_forward(number: int, which: int, training: bool, times: int = 1) -> Callable[[], None]:
    """A patch: the signal comes in the `which`-th forward pass of training, or of validation."""
    def patch() -> None:
        import torch

        from finetune import loop
        summed_loss, calls = loop.summed_loss, [0]

        def signalled(*rest, **more):
            calls[0] += torch.is_grad_enabled() == training
            if calls[0] == which and torch.is_grad_enabled() == training:
                for _ in range(times):
                    os.kill(os.getpid(), number)
            return summed_loss(*rest, **more)
        loop.summed_loss = signalled
    return patch


def event_of(bench: Bench, part: str, number: int) -> int:
    return [e.number for e in bench.events if e.op == "write" and part in e.path][number]


def saved_step(run: Path) -> int:
    """The step of the newest state; 0 without one."""
    steps = [0]
    for file in run.glob("state/*.safetensors"):
        data = file.read_bytes()
        header = json.loads(data[8:8 + struct.unpack("<Q", data[:8])[0]])
        steps.append(json.loads(header["__metadata__"]["place"])["step"])
    return max(steps)


def done_steps(run: Path) -> int:
    file = run / "metrics.jsonl"
    return max([0, *(json.loads(line)["step"] for line in file.read_text().splitlines())]) if file.is_file() else 0


def stopped(bench: Bench, report: Report, number: signal.Signals, where: str, ended: Ended, cwd: Path) -> None:
    run = cwd / "x"
    lost = done_steps(run) - saved_step(run)
    promised = ended.status == 128 + number and "--resume" in ended.out
    found = (TRACEBACK, ended.sentence) if ended.traceback else after_crash(bench, cwd, saved_step(run) > 0)
    report.add("signal", where, found[0], f"{number.name}: status {ended.status}, {ended.sentence}; {found[1]}",
               status_and_sentence_as_promised=int(promised), steps_lost=lost)


def all_signals(bench: Bench, report: Report, signals=SIGNALS, places: Container[str] | None = None) -> None:
    """In `places`, or everywhere."""
    for number in signals:
        for where, more in moments(bench, number).items():
            if places is None or where in places:
                cwd = bench.fresh()
                stopped(bench, report, number, where, bench.train(cwd, **more), cwd)


def moments(bench: Bench, number: int) -> dict[str, dict]:
    """Where the signal comes, and what makes it come there."""
    def at(part: str, which: int) -> dict:
        return {"fault": Fault(SIGNAL, event_of(bench, part, which), number)}
    return {"before the first step": at("/metrics", 0), "in step 4": {"patch": in_forward(number, 4, True)},
            "in validation": {"patch": in_forward(number, 1, False)}, "while a state is saved": at("/state/", 1),
            "while metrics are written": at("/metrics", 1), "while answers are written": at("/answers-", 3)}


def twice(bench: Bench, report: Report) -> None:
    """The second signal ends the program at once; what was saved before goes on."""
    for number in SIGNALS:
        cwd = bench.fresh()
        ended = bench.train(cwd, patch=in_forward(number, 6, True, times=2))
        found = (TRACEBACK, ended.sentence) if ended.traceback else after_crash(bench, cwd, True)
        outcome = LOST if ended.status == 0 else found[0]
        report.add("signal", "twice in step 6", outcome, f"{number.name}: {ended.status} {ended.sentence} {found[1]}",
                   **({} if outcome != SAME else {"ended": 1}))
