"""Disks that fill: an error at every event that takes space, and a small tmpfs where mounting is allowed."""
import errno
import os
import shutil
import subprocess
from pathlib import Path

from tests.faults.bench import Bench
from tests.faults.events import FULL, SHORT, Fault
from tests.faults.kills import TAKES_SPACE, add, after_crash, told
from tests.faults.report import LOST, SAME, SILENT, TRACEBACK, Report
from tests.faults.trial import Ended


def when_freed(bench: Bench, cwd: Path, ended: Ended, had_state: bool) -> tuple[str, str]:
    """The run was told that there is no space; then there is some."""
    if ended.traceback:
        return TRACEBACK, ended.sentence
    if ended.status == 0:
        return SILENT, "the run ended as if all had been written"
    found = after_crash(bench, cwd, had_state)
    return found[0], f"{ended.sentence} / {found[1]}"


def at_every_event(bench: Bench, report: Report, every: int = 1, number: int = errno.ENOSPC) -> None:
    """From this event on, no write and no new file succeeds."""
    taking = [e for e in bench.events if e.op in TAKES_SPACE]
    for event in taking[::every]:
        cwd = bench.fresh()
        ended = bench.train(cwd, fault=Fault(FULL, event.number, number))
        found = when_freed(bench, cwd, ended, event.number > bench.first_state)
        named = os.strerror(number).lower().partition(" on ")[0] in ended.sentence.lower()
        add(report, "full disk", f"{errno.errorcode[number]} from each event on", found,
            f"{told(event, bench)}: {ended.sentence}", bench, cwd)
        report.rows[-1].extra["sentences_with_the_cause"] += int(named)


def short_writes(bench: Bench, report: Report, every: int = 1) -> None:
    """A write that does half of what it was asked for, without an error: the rest has to be written then."""
    for event in [e for e in bench.events if e.op == "write" and e.size > 1][::every]:
        cwd = bench.fresh()
        ended = bench.train(cwd, fault=Fault(SHORT, event.number))
        wrong = bench.wrong(cwd)
        found = (TRACEBACK if ended.traceback else LOST if ended.status else SILENT if wrong else SAME,
                 f"{ended.sentence} {wrong}")
        add(report, "full disk", "a write that does half", found, told(event, bench), bench, cwd)


def mounting_allowed(place: Path) -> bool:
    place.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], capture_output=True)
    if mounted.returncode == 0:
        subprocess.run(["umount", place], check=True)
    return mounted.returncode == 0


def small_tmpfs(bench: Bench, report: Report, trials: int) -> None:
    """File systems of `trials` sizes, up to what a run needs."""
    place = bench.place / "mounted"
    if not shutil.which("mount") or not mounting_allowed(place):
        report.skipped["full disk, a small tmpfs"] = "mounting is not allowed here"
        return
    needs = sum(f.stat().st_size for f in (bench.whole / "x").rglob("*") if f.is_file())
    for number in range(trials):
        size = 4096 * (2 + int(needs * number / (trials - 1) / 4096))
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place], check=True)
        try:
            ended = bench.train(place)
            if ended.status == 0:
                continue  # this size is enough
            had_state = any((place / "x").glob("state/*.safetensors"))
            subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
            found = when_freed(bench, place, ended, had_state)
            if found[0] != LOST or had_state:
                add(report, "full disk", "small tmpfs, then enlarged", found, f"{size} bytes", bench, place)
        finally:
            subprocess.run(["umount", place], check=True)
