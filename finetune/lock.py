"""One writer at a time: `DIR/.lock` is locked by flock(2) for as long as the process lives.

The kernel releases the lock when the process ends, however it ends, so no lock is ever stale. The file says who holds
it. A process that only reads needs no lock.
"""
import errno
import json
import os
import re
import shlex
import socket
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from model import processes
from model.durable import is_still_there, lock
from model.files import say_once

LOCK = ".lock"
SHOWN = 200  # characters of the holder's command
_open: dict[Path, int] = {}  # the lock files that this process holds, and their descriptors


class Held(ValueError):
    """Another process writes there."""


class ReadOnly(OSError):
    """This process cannot write there."""


TRIES = 100  # to make a directory that is gone again each time


def hold(directory: Path, name: str = LOCK, shared: bool = False) -> None:
    """Locks `directory` for this process until it ends. A directory that is absent is made. A shared lock goes beside
    other shared ones: for processes that write nothing in common. Of several processes on one run, the first one holds
    the lock.

    Raises Held, naming the process that has the lock, and ReadOnly."""
    if not processes.is_first():
        return
    file, gone = directory.resolve() / name, 0
    while True:
        try:
            if not _is_open(file):
                directory.mkdir(parents=True, exist_ok=True)
                _open[file] = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            _lock(_open[file], file, directory, shared)
        except FileNotFoundError as error:
            gone += 1  # another process has just removed the directory; or it can never be made, as in /proc
            if gone == TRIES:
                raise ReadOnly(f"{directory} cannot be made ({error.strerror})") from None
            continue
        except BaseException as error:
            release(directory, name)
            if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
                raise ReadOnly(f"{directory} cannot be written ({error.strerror})") from None
            raise
        if _is_open(file):  # else it was removed between opening and locking
            return _say_who(_open[file])


def release(directory: Path, name: str = LOCK, remove: bool = False) -> None:
    """Before the end of the process. `remove`: the lock file goes too."""
    file = directory.resolve() / name
    if file in _open:
        if remove:
            file.unlink(missing_ok=True)
        os.close(_open.pop(file))


def sweep_locks(directory: Path, name: str) -> None:
    """Removes the lock file `name`, and the others that processes left which were killed just before they removed
    them: `.NAME.lock`, not locked, and telling who held it. Whoever opens one meanwhile notices that it is gone."""
    try:
        files = [file for file in directory.iterdir() if re.fullmatch(r"\..+\.lock", file.name)]
    except OSError:
        return
    for file in files:
        with suppress(OSError):
            descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                ours = file.name == name and not os.fstat(descriptor).st_size or tells_who(file)
                if ours and lock(descriptor):
                    file.unlink()
            finally:
                os.close(descriptor)


def release_all() -> None:
    """As the end of the process does."""
    while _open:
        os.close(_open.popitem()[1])


def _is_open(file: Path) -> bool:
    """Whether this process has the lock file open that is there now. Closes one that is there no more."""
    if file not in _open:
        return False
    if is_still_there(_open[file], file):
        return True
    os.close(_open.pop(file))
    return False


def _lock(descriptor: int, file: Path, directory: Path, shared: bool) -> None:
    ours = lock(descriptor, shared)
    if ours is False:
        raise Held(f"{directory}: {holder(file)} writes there now")
    if ours is None:
        say_once(f"{directory}: this file system has no locks (flock): let nothing else write there")


def _say_who(descriptor: int) -> None:
    who = {"pid": os.getpid(), "host": socket.gethostname(), "command": shlex.join(["python", *sys.argv]),
           "since": datetime.now().astimezone().isoformat(" ", "seconds")}
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(who) + "\n").encode(), 0)


def holder(file: Path) -> str:
    """`process 4242 on host7 (python train.py --resume runs/x, since 2026-11-27 03:12:11+00:00)`"""
    return tells_who(file) or "another process"


def tells_who(file: Path) -> str:
    """What a lock file says of its holder; nothing for any other file."""
    try:
        who = json.loads(file.read_text(encoding="utf-8"))
        said = f"on {who['host']} ({who['command'][:SHOWN]}, since {who['since']})"
        return f"process {int(who['pid'])} " + "".join(c if c.isprintable() else "?" for c in said)
    except (OSError, ValueError, KeyError, TypeError):
        return ""
