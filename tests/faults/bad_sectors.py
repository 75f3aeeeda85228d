"""Files of a run that cannot be read: ext4 on a loop device whose file is cut off below it. Every read behind the cut
is an input/output error, and ends a process by SIGBUS if it comes in a memory map. What happens to lie behind the file
cannot be read either."""
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
SIZE, FILLERS = 24 << 20, (2 << 20, BLOCK << 4, BLOCK)


def every_file(bench: Bench, report: Report) -> None:
    for subject in (resumed(bench), scored(bench)):
        right = undamaged(subject, bench)
        for file in subject.files:
            found = one(bench, subject, file, right)
            if found is None:
                report.skipped["damage, unreadable files"] = "mounting is not allowed here, or mkfs.ext4 is missing"
                return
            outcome, ended = found
            report.add("damage: unreadable file", f"{subject.name}: {kind_of(file)}", outcome,
                       f"{ended.status} {ended.sentence}")


def one(bench: Bench, subject: Subject, file: str, right: object) -> tuple[str, Ended] | None:
    disk, mounted = bench.place / "bad-disk", bench.place / "bad"
    mounted.mkdir(exist_ok=True)
    with open(disk, "wb") as empty:
        empty.truncate(SIZE)
    if not shutil.which("mkfs.ext4") or command("mkfs.ext4", "-q", "-F", "-b", BLOCK, disk) or command(
            "mount", "-o", "loop", disk, mounted):
        return None
    try:
        begin = placed_behind(subject, file, mounted)
        assert command("umount", mounted) == 0 and command("mount", "-o", "loop", disk, mounted) == 0
        os.truncate(disk, begin * BLOCK)
        return outcome_of(bench, subject, file, mounted, right)
    finally:
        unmounted(mounted)


def placed_behind(subject: Subject, file: str, disk: Path) -> int:
    """Copies a run to a disk, the file behind all others. Its first block."""
    fillers = filled(disk)
    max(fillers, key=lambda filler: blocks(filler)[0]).unlink()
    (disk / file).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(subject.place / file, disk / file)
    begin = blocks(disk / file)[0]
    for filler in {*fillers, *filled(disk)}:
        if filler.exists() and blocks(filler)[1] < begin:
            filler.unlink()
    shutil.copytree(subject.place, disk, dirs_exist_ok=True,
                    ignore=lambda place, names: {Path(file).name} & {*names} if Path(place) == (
                        subject.place / file).parent else ())
    return begin


def filled(disk: Path) -> list[Path]:
    """Files that take all the space."""
    fillers: list[Path] = []
    for size in FILLERS:
        while True:
            path = disk / f"filler-{os.urandom(4).hex()}"
            try:
                with open(path, "wb") as filler:
                    os.posix_fallocate(filler.fileno(), 0, size)
            except OSError:
                path.unlink(missing_ok=True)
                break
            fillers.append(path)
    return fillers


def blocks(file: Path) -> tuple[int, int]:
    """The first and the last of the disk that a file has."""
    command("sync", "-f", file)
    told = subprocess.run(["filefrag", "-v", f"-b{BLOCK}", file], capture_output=True, text=True).stdout
    parts = re.findall(r"^ *\d+: +\d+\.\. +\d+: +(\d+)\.\. +(\d+):", told, re.M)
    return min(int(begin) for begin, _ in parts), max(int(end) for _, end in parts)


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
