"""Two processes on one run, in every pairing. The first is stopped where it changes or reads a file, the second runs to
its end beside it, then the first goes on: what chance makes rare happens every time."""
import os
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

from tests.faults.bench import Bench
from tests.faults.events import KILL, LOG, SIGNAL, Fault, read_log
from tests.faults.report import HANGS, LOST, SAME, SENTENCE, SILENT, TRACEBACK, Report
from tests.faults.trial import Ended, Process, content, contents, run, start

STOP = 19
OTHER_FLAGS = ("--max-new-tokens", "2")


def commands(bench: Bench) -> dict[str, tuple[str, ...]]:
    asked = ("--prompt", "Where is my card?", "--max-new-tokens", "4")
    return {"train": ("train.py", *bench.training), "resume": ("train.py", "--resume", "x"), "eval": ("eval.py", "x"),
            "eval, other flags": ("eval.py", "x", *OTHER_FLAGS), "sample": ("sample.py", "x", *asked),
            "export": ("export.py", "x", "--format", "peft", "--to", "peft", "--allow-loss"),
            "judge": ("judge.py", "x", "x:quantized", "--dry-run")}


NAMES = ("train", "resume", "eval", "eval, other flags", "sample", "export", "judge")


def usual_run(first: str, second: str) -> str:
    """The run on which two commands have most to do with each other."""
    if "train" in (first, second):
        return "nothing" if first == "train" else "whole" if first == "judge" else "cut"
    return "cut" if "resume" in (first, second) and "judge" not in (first, second) else "whole"


# (who is stopped, who comes, on which run)
PAIRINGS = [(first, second, usual_run(first, second)) for first, second in product(NAMES, NAMES)] + [
    ("resume", "resume", "whole"), ("eval", "resume", "whole"), ("resume", "eval", "whole")]


def place_of(bench: Bench, which: str) -> Path:
    if which in ("cut", "whole"):
        return bench.copy(bench.cut if which == "cut" else bench.whole)
    cwd = bench.fresh()
    if which == "first epoch":  # killed before it keeps what the second one has trained
        kept = [e.number for e in bench.events if e.op == "rename" and e.other.endswith("/adapter.safetensors")]
        bench.train(cwd, fault=Fault(KILL, kept[-1]))
    return cwd


def reads(root: Path, seen: Callable[[], None]) -> Callable[[], None]:
    """Calls `seen` whenever this process opens a file below `root` to read it."""
    def hook(event: str, given: tuple) -> None:
        if event == "open" and isinstance(given[0], str | bytes) and not given[2] & (os.O_WRONLY | os.O_RDWR):
            if os.path.abspath(os.fsdecode(given[0])).startswith(f"{root}/"):
                seen()
    return lambda: sys.addaudithook(hook)


def stopped_at_read(number: int) -> Callable[[], None]:
    left = iter(range(number - 1, -1, -1))
    return lambda: os.kill(os.getpid(), STOP) if next(left, None) == 0 else None


def alone(bench: Bench, name: str, which: str) -> dict[str, int]:
    """How often the first command changes files and reads files, undisturbed."""
    log, cwd = bench.place / "pair-log", place_of(bench, which)
    counted = os.open(bench.place / "pair-reads", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    run(bench.tree, cwd, *commands(bench)[name], fault=Fault(LOG, log=log),
        patch=reads(cwd, lambda: os.write(counted, b".")))
    os.close(counted)
    return {"event": len(read_log(log)), "read": (bench.place / "pair-reads").stat().st_size}


def stops(counts: dict[str, int], points: int) -> list[tuple[str, int]]:
    """A command that changes files is stopped where it does, and once where it reads; others where they read."""
    at_reads = spread(range(1, counts["read"] + 1), 1 if counts["event"] and points > 1 else
                      0 if counts["event"] else points)
    return [("event", n) for n in spread(range(1, counts["event"] + 1), points)] + [("read", n) for n in at_reads]


def spread(events: range, n: int) -> list[int]:
    """From the first one on; a single one is from the middle."""
    places = [len(events) // 2] if n == 1 else [len(events) * i // n for i in range(n)]
    return sorted({events[place] for place in places}) if events else []


def refused(ended: Ended) -> bool:
    return bool(ended.status) and ended.status > 0 and not ended.traceback


def every_pairing(bench: Bench, report: Report, points: int = 5, pairings=PAIRINGS) -> None:
    allowed = {name: products(bench, name) for name in {name for pair in pairings for name in pair[:2]}}
    for first, second, which in pairings:
        for kind, number in stops(alone(bench, first, which), points):
            cwd = place_of(bench, which)
            process = stopped(bench, cwd, first, kind, number)
            if process is None:  # it has fewer events here
                continue
            beside = start(bench.tree, cwd, *commands(bench)[second])
            came = beside.wait(20)
            last = process.go_on()
            if came is None:  # it waited for the first one
                came = beside.go_on()
            made = [(name, ended, made_by(cwd, name, ended)) for name, ended in ((first, last), (second, came))]
            outcome, said = judge_pair(bench, cwd, last, came, which, "resume" in (first, second))
            if outcome in (SAME, SENTENCE):
                for name, ended, found in made:
                    if ended.status == 0 and found not in allowed[name]:
                        outcome, said = SILENT, f"{name} gives what it gives on no state of the run: {said}"
            report.add("two at once", f"{first} + {second} ({which})", outcome, f"{kind} {number}: {said}")
            for ended in (process, beside):
                ended.file.unlink(missing_ok=True)


def stopped(bench: Bench, cwd: Path, name: str, kind: str, number: int) -> Process | None:
    """The command, stopped. None if it ended before."""
    how = {"fault": Fault(SIGNAL, number, STOP)} if kind == "event" else {"patch": reads(cwd, stopped_at_read(number))}
    process = start(bench.tree, cwd, *commands(bench)[name], **how)
    return None if process.wait(30) else process


def judge_pair(bench: Bench, cwd: Path, first: Ended, second: Ended, which: str, resumes: bool) -> tuple[str, str]:
    """Training must end in the same bytes, after one more --resume; a run that was whole must be whole."""
    said = f"{first.status} {first.sentence} | {second.status} {second.sentence}"
    if first.status is None or second.status is None:
        return HANGS, said
    if first.traceback or second.traceback:
        return TRACEBACK, said
    if first.status < 0 or second.status < 0:
        return LOST, said
    refused = bool(first.status or second.status)
    if which != "whole" or resumes:
        if refused or not resumes:
            bench.resume(cwd)
        if wrong := bench.wrong(cwd):
            return SILENT, f"{wrong} differ: {said}"
    found = (SENTENCE if refused else SAME), said
    return unharmed(bench, cwd, found) if which == "whole" else found


def unharmed(bench: Bench, cwd: Path, found: tuple[str, str]) -> tuple[str, str]:
    """The trained weights are what they were; answers are whole, and of one command."""
    here = contents(cwd / "x")
    wrong = [name for name in bench.right if name.endswith(".safetensors") and here.get(name) != bench.right[name]]
    ended = run(bench.tree, cwd, "judge.py", "x", "x:quantized", "--dry-run")
    if ended.status:
        return LOST, f"predictions.jsonl: {ended.sentence}"
    return (SILENT, f"{wrong} differ") if wrong else found


# ---- what readers give -----------------------------------------------------------------------------------------------

def made_by(cwd: Path, name: str, ended: Ended) -> object:
    """What a command that only reads the run prints or writes; of what they print of the run's progress, nothing."""
    if name == "export":
        return sorted((str(f.relative_to(cwd)), content(f)) for f in (cwd / "peft").rglob("*.safetensors"))
    if name in ("sample", "judge"):
        return [line for line in ended.out.splitlines() if "unfinished" not in line and "training has not" not in line]
    return None


def products(bench: Bench, name: str) -> list:
    """What it gives on each state of a run: after each epoch, at the end, and after an eval with other flags."""
    found = []
    for which, before in (("first epoch", ()), ("cut", ()), ("whole", ()), ("whole", ("eval, other flags",))):
        if name not in ("export", "sample", "judge"):
            return [None]
        cwd = place_of(bench, which)
        for earlier in before:
            run(bench.tree, cwd, *commands(bench)[earlier])
        found.append(made_by(cwd, name, run(bench.tree, cwd, *commands(bench)[name])))
    return found
