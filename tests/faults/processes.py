"""Several processes on one run: one is killed, stopped, slow, raises an error, or finds the disk full."""
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.bench import Bench
from tests.faults.events import FULL, KILL, Fault
from tests.faults.kills import after_crash
from tests.faults.report import HANGS, LOST, SAME, SILENT, TRACEBACK, Report
from tests.faults.stop_signals import done_steps, in_forward, saved_step
from tests.several import GRACE, Together, run_several

TIMEOUT = 4.0  # seconds, in the trials of a process that does not answer
SOON = 15.0    # seconds after the first failure in which all have to have ended


@dataclass
class SeveralBench(Bench):
    size: int = 2

    def start(self, cwd: Path, *arguments: str, fault: Fault | None = None, patch: Callable | None = None,
              of_rank: int = 0, **environment: str) -> Together:
        return run_several(self.size, self.tree, cwd, "train.py", *arguments, faults={of_rank: fault},
                           patches={of_rank: patch}, **environment)

    def train(self, cwd: Path, **more) -> Together:
        return self.start(cwd, *self.training, **more)

    def resume(self, cwd: Path, **more) -> Together:
        return self.start(cwd, "--resume", "x", **more)


def at_call(module: str, name: str, which: int, do: Callable[[], None]) -> Callable[[], None]:
    """A patch: something happens at the `which`-th call of a function."""
    def patch() -> None:
        owner = __import__(module, fromlist=["_"])
        original, calls = getattr(owner, name), [0]

        def called(*rest, **more):
            calls[0] += 1
            if calls[0] == which:
                do()
            return original(*rest, **more)
        setattr(owner, name, called)
    return patch


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def raise_error() -> None:
    raise ValueError("this row is no row")


def slow(seconds: float) -> Callable[[], None]:
    def patch() -> None:
        from finetune import loop
        summed_loss = loop.summed_loss

        def slowly(*rest, **more):
            time.sleep(seconds)
            return summed_loss(*rest, **more)
        loop.summed_loss = slowly
    return patch


def judged(bench: SeveralBench, report: Report, case: str, ended: Together, cwd: Path, said: str,
           soon: float = SOON) -> None:
    """After a failure. There must be one last line, which holds `said`; `--resume` must end in the same bytes, and no
    step is lost but those after the last state."""
    run = cwd / "x"
    lost, had_state = done_steps(run) - saved_step(run), saved_step(run) > 0
    if ended.status is None or ended.after > soon:
        found = (HANGS, f"{ended.after:.1f} s after the first failure")
    elif ended.traceback:
        found = (TRACEBACK, ended.out[-300:])
    elif ended.status == 0:
        found = (SILENT, "the command ended as if nothing had been")
    else:
        found = after_crash(bench, cwd, had_state)
    as_promised = len(ended.sentences) == 1 and said in ended.sentences[0]
    detail = f"{ended.statuses}, {ended.after:.1f} s, {ended.sentences}; {found[1]}"
    if not as_promised and found[0] == SAME:
        found = (LOST, "the last line is not as promised")
    report.add("processes", case, found[0], detail, one_line_as_promised=int(as_promised), steps_lost=lost)
    report.rows[-1].extra["tenths_of_a_second"] = max(report.rows[-1].extra["tenths_of_a_second"],
                                                      round(10 * ended.after))


GONE = "another of the 2 processes has ended"


def killed(bench: SeveralBench, report: Report) -> None:
    moments = {"in step 4": in_forward(signal.SIGKILL, 4, True),
               "in validation": at_call("finetune.loop", "mean_loss", 1, die),
               "while the base is read": at_call("finetune.source", "load_run_base", 1, die),
               "while answers are scored": at_call("scoring.scores", "mean_loss", 2, die)}
    for where, patch in moments.items():
        for rank in range(bench.size):
            cwd = bench.fresh()
            ended = bench.train(cwd, patch=patch, of_rank=rank)
            judged(bench, report, f"killed {where}", ended, cwd, "")


def killed_in_saving(bench: SeveralBench, report: Report, every: int = 1) -> None:
    for event in [e for e in bench.events if "/state/" in e.path or "/state/" in e.other][::every]:
        cwd = bench.fresh()
        ended = bench.train(cwd, fault=Fault(KILL, event.number))
        judged(bench, report, "the first killed while it saves a state", ended, cwd, "")


def full_disk(bench: SeveralBench, report: Report, every: int = 1) -> None:
    import errno
    for event in [e for e in bench.events if e.op in ("open", "write", "mkdir", "link")][::every]:
        cwd = bench.fresh()
        ended = bench.train(cwd, fault=Fault(FULL, event.number, errno.ENOSPC))
        judged(bench, report, "a full disk", ended, cwd, "no space left on")


def others(bench: SeveralBench, report: Report) -> None:
    for rank in range(bench.size):
        cwd = bench.fresh()
        ended = bench.train(cwd, patch=at_call("finetune.loop", "summed_loss", 4, raise_error), of_rank=rank)
        judged(bench, report, "an error in step 4", ended, cwd, "this row is no row")
        cwd = bench.fresh()
        ended = bench.train(cwd, patch=in_forward(signal.SIGSTOP, 4, True), of_rank=rank,
                            PROCESSES_TIMEOUT=str(TIMEOUT))
        judged(bench, report, "stopped, so that the time-out comes", ended, cwd, f"silent for {TIMEOUT:g} s",
               GRACE + SOON)  # SIGTERM does not end a process that is stopped
        cwd = bench.fresh()
        ended = bench.train(cwd, patch=in_forward(signal.SIGTERM, 4, True), of_rank=rank)
        judged(bench, report, "SIGTERM to one of them in step 4", ended, cwd, "SIGTERM")
        cwd = bench.fresh()
        ended = bench.train(cwd, patch=at_call("finetune.loop", "mean_loss", 1, interrupt), of_rank=rank)
        judged(bench, report, "SIGINT to one of them in validation", ended, cwd, "SIGINT: saved at step 5")
        cwd = bench.fresh()
        ended = bench.train(cwd, patch=slow(0.2), of_rank=rank)
        wrong = bench.wrong(cwd) if ended.status == 0 else ended.sentences
        report.add("processes", "one is slow", SAME if not wrong else SILENT, f"{wrong}")


def every_fault(bench: Bench, report: Report, every: int = 1) -> None:
    several = SeveralBench(bench.tree, bench.method)
    killed(several, report)
    killed_in_saving(several, report, every)
    others(several, report)
    full_disk(several, report, 6 * every)
