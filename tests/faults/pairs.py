"""Two processes on one run, in every pairing. The first is stopped at a file event, the second runs to its end beside
it, then the first goes on: what chance makes rare happens every time."""
from pathlib import Path

from tests.faults.bench import Bench
from tests.faults.events import LOG, SIGNAL, Fault, read_log
from tests.faults.report import HANGS, LOST, SAME, SENTENCE, SILENT, TRACEBACK, Report
from tests.faults.trial import Ended, contents, run, start

STOP = 19
OTHER_FLAGS = ("--max-new-tokens", "2")


def commands(bench: Bench) -> dict[str, tuple[str, ...]]:
    asked = ("--prompt", "Where is my card?", "--max-new-tokens", "4")
    return {"train": ("train.py", *bench.training), "resume": ("train.py", "--resume", "x"), "eval": ("eval.py", "x"),
            "eval, other flags": ("eval.py", "x", *OTHER_FLAGS), "sample": ("sample.py", "x", *asked),
            "export": ("export.py", "x", "--format", "peft", "--to", "peft", "--allow-loss"),
            "judge": ("judge.py", "x", "x:quantized", "--dry-run")}


# (who is stopped, who comes, on which run)
PAIRINGS = [("train", "train", "nothing"), ("train", "resume", "nothing"), ("train", "eval", "nothing"),
            ("resume", "resume", "cut"), ("resume", "eval", "cut"), ("resume", "sample", "cut"),
            ("resume", "export", "cut"), ("eval", "resume", "cut"), ("export", "resume", "cut"),
            ("eval", "eval", "whole"), ("eval", "eval, other flags", "whole"), ("eval", "resume", "whole"),
            ("eval", "judge", "whole"), ("eval", "export", "whole"), ("export", "export", "whole"),
            ("resume", "judge", "whole"), ("resume", "resume", "whole")]


def place_of(bench: Bench, which: str) -> Path:
    return bench.fresh() if which == "nothing" else bench.copy({"cut": bench.cut, "whole": bench.whole}[which])


def alone(bench: Bench, name: str, which: str) -> list[int]:
    """The events of the first command, undisturbed."""
    log = bench.place / "pair-log"
    run(bench.tree, place_of(bench, which), *commands(bench)[name], fault=Fault(LOG, log=log))
    return [e.number for e in read_log(log)]


def spread(events: list[int], n: int) -> list[int]:
    return sorted({events[len(events) * i // n] for i in range(n)}) if events else []


def refused(ended: Ended) -> bool:
    return bool(ended.status) and ended.status > 0 and not ended.traceback


def judge_pair(bench: Bench, cwd: Path, first: Ended, second: Ended | None, trains: bool) -> tuple[str, str]:
    said = f"{first.status} {first.sentence} | {second and second.status} {second and second.sentence}"
    if second is None:
        return HANGS, said
    if first.traceback or second.traceback:
        return TRACEBACK, said
    if first.status is None or first.status < 0:
        return LOST, said
    if trains:
        if refused(first) or refused(second):  # the one that was refused comes again
            bench.resume(cwd)
        wrong = bench.wrong(cwd)
        if wrong:
            return SILENT, f"{wrong} differ: {said}"
    return (SENTENCE if refused(first) or refused(second) else SAME), said


def every_pairing(bench: Bench, report: Report, points: int = 5, pairings=PAIRINGS) -> None:
    for first, second, which in pairings:
        for number in spread(alone(bench, first, which), points):
            cwd = place_of(bench, which)
            process = start(bench.tree, cwd, *commands(bench)[first], fault=Fault(SIGNAL, number, STOP))
            ended = process.wait(30)
            if ended:  # it has fewer events here
                continue
            beside = start(bench.tree, cwd, *commands(bench)[second])
            came = beside.wait(20)
            last = process.go_on()
            if came is None:  # it waited for the first one
                came = beside.go_on()
            trains = which != "nothing" or "train" in (first, second)
            found = judge_pair(bench, cwd, last, came, trains and "resume" in (first, second) or first == "train")
            if found[0] in (SAME, SENTENCE) and which == "whole":
                found = unharmed(bench, cwd, found)
            report.add("two at once", f"{first} + {second} ({which})", found[0], f"event {number}: {found[1]}")


def unharmed(bench: Bench, cwd: Path, found: tuple[str, str]) -> tuple[str, str]:
    """The trained weights are what they were; answers are whole, and of one command."""
    here = contents(cwd / "x")
    wrong = [name for name in bench.right if name.endswith(".safetensors") and here.get(name) != bench.right[name]]
    ended = run(bench.tree, cwd, "judge.py", "x", "x:quantized", "--dry-run")
    if ended.status:
        return LOST, f"predictions.jsonl: {ended.sentence}"
    return (SILENT, f"{wrong} differ") if wrong else found
