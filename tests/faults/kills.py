"""SIGKILL at every file event of a run, half-way through every write, and at random moments."""
import random
import re
import time
from pathlib import Path

from tests.faults.bench import Bench
from tests.faults.events import KILL, LOG, TEAR, Event, Fault, read_log
from tests.faults.report import AGAIN, HANGS, LOST, SAME, SENTENCE, SILENT, TRACEBACK, Report
from tests.faults.trial import Ended, contents, run, start


def told(event: Event, bench: Bench) -> str:
    def short(path: str) -> str:
        return re.sub(r"\.\d+\.|\.tmp\w+", ".*.", re.sub(r"^.*?/x(/|$)", "", path))
    return f"event {event.number}, {event.op} {short(event.path)}{f' -> {short(event.other)}' if event.other else ''}"


def after_crash(bench: Bench, cwd: Path, had_state: bool) -> tuple[str, str]:
    """Outcome and detail of `--resume`, and of the same command again where that is refused."""
    ended = bench.resume(cwd)
    if ended.status is None:
        return HANGS, ended.sentence
    if ended.traceback:
        return TRACEBACK, ended.sentence
    if ended.status == 0:
        wrong = bench.wrong(cwd)
        return (SILENT, f"{wrong} differ") if wrong else (SAME, "")
    again = bench.train(cwd)
    if again.traceback:
        return TRACEBACK, again.sentence
    if again.status == 0 and not bench.wrong(cwd):
        return (LOST, f"only by starting again: {ended.sentence}") if had_state else (AGAIN, "")
    return (LOST if had_state else SENTENCE), f"{ended.sentence} / {again.sentence}"


def add(report: Report, section: str, case: str, found: tuple[str, str], what: str, bench: Bench, cwd: Path) -> None:
    left = bench.left_over(cwd) if found[0] == SAME else []
    report.add(section, case, found[0], f"{what}: {found[1]}", **({"left_over_files": len(left)} if left else {}))


def at_every_event(bench: Bench, report: Report, every: int = 1) -> None:
    for event in bench.events[::every]:
        for mode, case in ((KILL, "before each file event"), (TEAR, "half-way through each write")):
            if mode == KILL or event.op == "write" and event.size > 1:
                cwd = bench.fresh()
                killed = bench.train(cwd, fault=Fault(mode, event.number))
                assert killed.status == -9, killed
                found = after_crash(bench, cwd, event.number > bench.first_state)
                add(report, f"kill, {bench.method}", case, found, told(event, bench), bench, cwd)


def killed_after(bench: Bench, cwd: Path, seconds: float, *arguments: str) -> Ended:
    process = start(bench.tree, cwd, "train.py", *arguments)
    return process.wait(seconds) or process.killed()


def at_random(bench: Bench, report: Report, trials: int) -> None:
    """Up to three kills one after another, each at a moment of its own."""
    chance = random.Random(0)
    begun = time.monotonic()
    bench.train(bench.fresh())
    whole = time.monotonic() - begun
    for number in range(trials):
        cwd, kills, state = bench.fresh(), 0, False
        for arguments in (bench.training, *[("--resume", "x")] * chance.randrange(3)):
            kills += killed_after(bench, cwd, chance.uniform(0.05, 1) * whole, *arguments).status is None
            state = state or any((cwd / "x").glob("state/*.safetensors"))
            if not (cwd / "x" / "config.json").is_file():
                break
        found = after_crash(bench, cwd, state)
        add(report, f"kill, {bench.method}", "at random, up to three times", found, f"trial {number}, {kills} kills",
            bench, cwd)


TAKES_SPACE = ("open", "write", "mkdir", "link")


def afterwards(bench: Bench) -> dict[str, tuple[str, ...]]:
    kind = "safetensors" if bench.method == "full" else "peft"
    return {"eval.py": ("x",), "export.py": ("x", "--format", kind, "--to", kind, "--allow-loss")}


def commands_again(bench: Bench, report: Report, section: str, mode: int, number: int = 0, every: int = 1) -> None:
    """A fault at every event of eval.py and export.py; the same command, given again, ends with the same files."""
    for script, arguments in afterwards(bench).items():
        cwd, log = bench.copy(bench.whole), bench.place / "command-log"
        assert run(bench.tree, cwd, script, *arguments, fault=Fault(LOG, log=log)).status == 0
        right = contents(cwd)
        for event in [e for e in read_log(log) if mode == KILL or e.op in TAKES_SPACE][::every]:
            cwd = bench.copy(bench.whole)
            first = run(bench.tree, cwd, script, *arguments, fault=Fault(mode, event.number, number))
            ended = run(bench.tree, cwd, script, *arguments)
            here = contents(cwd)
            wrong = [name for name, value in right.items() if here.get(name) != value]
            outcome = (TRACEBACK if ended.traceback or first.traceback else SAME if not wrong else
                       LOST if ended.status else SILENT)  # what is there already is not made again
            left = len(set(here) - set(right))
            report.add(section, f"each event of {script}", outcome,
                       f"{told(event, bench)}: {first.sentence} / {ended.sentence} {wrong}",
                       **({"left_over_files": left} if left else {}))
