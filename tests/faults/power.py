"""Loss of power: what a disk may hold after each event, if only what was flushed is sure to be there.

Simulated from the log of one run. The states after event n differ in two ways:

    names   "flushed": a change of a directory is there once that directory was flushed, and no sooner;
            "journal": any flush also writes all changes of names before it, as ext4 does;
            "all": every change of a name so far is there
    data    of bytes that were written and not flushed: "none", "zeros", "half" or "all" are there
"""
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.bench import Bench
from tests.faults.events import SIGNAL, Event, Fault
from tests.faults.kills import add, after_crash, told
from tests.faults.report import Report
from tests.faults.trial import start

NAMES, DATA = ("flushed", "journal", "all"), ("none", "zeros", "half", "all")


@dataclass
class Inode:
    directory: bool = False
    data: bytearray = field(default_factory=bytearray)
    flushed: bytes = b""                   # what was there at the last flush
    fresh: list[tuple[int, int]] = field(default_factory=list)  # written since: from, to

    def write(self, place: int, data: bytes) -> None:
        if len(self.data) < place:
            self.data.extend(bytes(place - len(self.data)))
        self.data[place:place + len(data)] = data
        self.fresh.append((place, place + len(data)))

    def cut(self, length: int) -> None:
        self.data = self.data[:length] + bytes(max(0, length - len(self.data)))
        self.fresh.append((0, 0))

    def flush(self) -> None:
        self.flushed, self.fresh = bytes(self.data), []

    def after(self, data: str) -> bytes:
        if data == "all" or not self.fresh:
            return bytes(self.data)
        if data == "none":
            return self.flushed
        found = bytearray(self.data)
        for begin, end in self.fresh:
            lost = begin if data == "zeros" else (begin + end) // 2
            found[lost:end] = bytes(end - lost)
        return bytes(found)


@dataclass
class Change:
    """Of names: `gone` and `come` are (path, inode). `sure` when the directories were flushed."""
    gone: list[str]
    come: list[tuple[str, int]]
    directories: set[str]
    sure: bool = False


class Disk:
    def __init__(self, root: Path):
        self.root, self.inodes, self.changes = str(root), {}, []
        self.names: dict[str, int] = {}
        self.journal = 0  # so many changes are sure on a file system with a journal

    def apply(self, event: Event) -> None:
        self._unseen_rename(event)
        inode = self.inodes.setdefault(event.inode, Inode()) if event.op != "remove" else None
        match event.op:
            case "open" if event.place:
                inode.cut(0)
            case "open":
                self.inodes[event.inode] = Inode()
                self._change([], [(event.path, event.inode)])
            case "mkdir":
                self.inodes[event.inode] = Inode(directory=True)
                self._change([], [(event.path, event.inode)])
            case "write":
                inode.write(event.place, event.data)
            case "length":
                inode.cut(event.place)
            case "flush":
                self._flush(event)
            case "rename":
                moved = self._below(event.path)
                self._change([*moved], [(event.other + path[len(event.path):], n) for path, n in moved.items()])
            case "exchange":
                one, other = self._below(event.path), self._below(event.other)
                self._change([*one, *other], [(event.other + path[len(event.path):], n) for path, n in one.items()]
                             + [(event.path + path[len(event.other):], n) for path, n in other.items()])
            case "link":
                self._change([], [(event.other, event.inode)])
            case "remove":
                self._change([event.path], [])

    def _below(self, place: str) -> dict[str, int]:
        return {path: number for path, number in self.names.items()
                if path == place or path.startswith(place + "/")}

    def _unseen_rename(self, event: Event) -> None:
        """safetensors renames by a call that is not seen: the inode then turns up under a name it did not have."""
        known = [path for path, number in self.names.items() if number == event.inode]
        if event.op in ("rename", "write", "flush", "length") and known and event.path not in known:
            self._change(known[:1], [(event.path, event.inode)])

    def _change(self, gone: list[str], come: list[tuple[str, int]]) -> None:
        paths = [*gone, *(path for path, _ in come)]
        self.changes.append(Change(gone, come, {os.path.dirname(path) for path in paths}))
        for path in gone:
            self.names.pop(path, None)
        self.names.update(come)

    def _flush(self, event: Event) -> None:
        self.journal = len(self.changes)
        if not event.place:
            return self.inodes[event.inode].flush()
        for change in self.changes:
            change.directories.discard(event.path)

    def _names(self, which: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for i, change in enumerate(self.changes):
            if which == "all" or (i < self.journal if which == "journal" else not change.directories):
                for path in change.gone:
                    found.pop(path, None)
                found.update(change.come)
        return found

    def tree(self, names: str, data: str) -> dict[str, bytes | None]:
        """Path below the root -> bytes; None for a directory. What has no directory is not there."""
        found: dict[str, bytes | None] = {}
        for path, number in sorted(self._names(names).items()):
            parent = os.path.dirname(path)
            inode = self.inodes[number]
            if parent == self.root or os.path.relpath(parent, self.root) in found:
                found[os.path.relpath(path, self.root)] = None if inode.directory else inode.after(data)
        return found


def states(events: list[Event], root: Path) -> Iterator[tuple[Event, str, str, dict[str, bytes | None]]]:
    """(the last event, names, data, tree) of every state that differs from those before."""
    disk, seen = Disk(root), set()
    for event in events:
        disk.apply(event)
        for names in NAMES:
            for data in DATA:
                tree = disk.tree(names, data)
                digest = hashlib.sha256(repr(sorted(tree.items())).encode()).digest()
                if digest not in seen:
                    seen.add(digest)
                    yield event, names, data, tree


def put(tree: dict[str, bytes | None], cwd: Path) -> None:
    for path, data in tree.items():
        if data is None:
            (cwd / path).mkdir()
        else:
            (cwd / path).write_bytes(data)


def simulated(bench: Bench, report: Report, every: int = 1) -> None:
    for event, names, data, tree in list(states(bench.events, bench.whole))[::every]:
        cwd = bench.fresh()
        put(tree, cwd)
        case = {"flushed": "names as flushed", "journal": "names by a journal", "all": "all names"}[names]
        found = after_crash(bench, cwd, event.number > bench.first_state)
        add(report, f"power, {bench.method}", f"{case}, not flushed bytes: {data}", found, told(event, bench), bench,
            cwd)


# ---- a real file system ----------------------------------------------------------------------------------------------

def command(*words: object) -> int:
    return subprocess.run([*map(str, words)], capture_output=True).returncode


def loop_device(bench: Bench, report: Report, every: int = 2) -> None:
    """ext4 on a loop device: at an event the run is killed, and the device's file is copied before anything else
    reaches it."""
    disk, copy = bench.place / "disk", bench.place / "disk-copy"
    mounted, other = bench.place / "ext4", bench.place / "ext4-copy"
    for path in (mounted, other):
        path.mkdir(exist_ok=True)
    if not shutil.which("mkfs.ext4"):
        report.skipped["power, ext4 on a loop device"] = "no mkfs.ext4"
        return
    for event in bench.events[::every]:
        with open(disk, "wb") as file:
            file.truncate(24 << 20)
        command("mkfs.ext4", "-q", "-F", disk)
        if command("mount", "-o", "loop", disk, mounted):
            report.skipped["power, ext4 on a loop device"] = "mounting is not allowed here"
            return
        try:
            command("sync", "-f", mounted)
            stopped_at(bench, mounted, event.number)
            shutil.copy(disk, copy)
        finally:
            unmounted(mounted)
        assert command("mount", "-o", "loop", copy, other) == 0
        try:
            found = after_crash(bench, other, event.number > bench.first_state)
            add(report, "power, ext4 on a loop device", "at an event", found, told(event, bench), bench, other)
        finally:
            unmounted(other)


def stopped_at(bench: Bench, cwd: Path, number: int) -> None:
    process = start(bench.tree, cwd, "train.py", *bench.training, fault=Fault(SIGNAL, number, 19))  # SIGSTOP
    process.wait()
    process.killed()


def unmounted(place: Path) -> None:
    for _ in range(20):
        if command("umount", place) == 0:
            return
        time.sleep(0.05)
    command("umount", "-l", place)

