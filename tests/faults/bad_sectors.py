"""Files of a run that cannot be read: ext4 on a loop device whose file is cut off below it. Every read behind the cut
is an input/output error, and ends a process by SIGBUS if it comes in a memory map."""
import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.faults.bench import Bench
from tests.faults.damage import Subject, kind_of, resumed, scored, undamaged
from tests.faults.power import command, unmounted
from tests.faults.report import HANGS, LOST, SAME, SENTENCE, SILENT, TRACEBACK, Report
from tests.faults.trial import Ended, run

BLOCK = 4096
SIZE = 24 << 20


def every_file(bench: Bench, report: Report) -> None:
    for subject in (resumed(bench), scored(bench)):
        right = undamaged(subject, bench)
        for file in subject.files:
            found = one(bench, subject, file, right)
            if found is None:
                report.skipped["damage, unreadable files"] = "mounting is not allowed here, or mkfs.ext4 is missing"
                return
            outcome, ended = found
            unnamed = {"sentences that do not name the file": 1} if outcome == SENTENCE and Path(
                file).name not in ended.out else {}
            report.add("damage: unreadable file", f"{subject.name}: {kind_of(file)}", outcome,
                       f"{ended.status} {ended.sentence}", **unnamed)


def one(bench: Bench, subject: Subject, file: str, right: object) -> tuple[str, Ended] | None:
    disk, mounted = bench.place / "bad-disk", bench.place / "bad"
    mounted.mkdir(exist_ok=True)
    with open(disk, "wb") as empty:
        empty.truncate(SIZE)
    if not shutil.which("mkfs.ext4") or command("mkfs.ext4", "-q", "-F", "-b", BLOCK, disk) or command(
            "mount", "-o", "loop", disk, mounted):
        return None
    try:
        shutil.copytree(subject.place, mounted, dirs_exist_ok=True)
        command("sync", "-f", mounted)
        os.unlink(mounted / file)
        shutil.copy(subject.place / file, mounted / file)  # behind all others, mostly
        begin = first_block(mounted / file)
        assert command("umount", mounted) == 0 and command("mount", "-o", "loop", disk, mounted) == 0
        os.truncate(disk, begin * BLOCK)
        return outcome_of(bench, subject, file, mounted, right)
    finally:
        unmounted(mounted)


def first_block(file: Path) -> int:
    command("sync", "-f", file)
    told = subprocess.run(["filefrag", "-v", f"-b{BLOCK}", file], capture_output=True, text=True).stdout
    return min(int(number) for number in re.findall(r"^ *\d+: +\d+\.\. +\d+: +(\d+)\.\.", told, re.M))


def outcome_of(bench: Bench, subject: Subject, file: str, cwd: Path, right: object) -> tuple[str, Ended]:
    ended = run(bench.tree, cwd, *subject.command)
    if ended.status is None or ended.traceback:
        return (HANGS if ended.status is None else TRACEBACK), ended
    if ended.status:
        return (SENTENCE if ended.status > 0 and (cwd / file).exists() else LOST), ended
    try:
        return (SAME if subject.results(cwd, ended) == right else SILENT), ended
    except OSError as error:
        ended.out += f"\n{error}"
        return SILENT, ended
