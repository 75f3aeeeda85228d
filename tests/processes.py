"""What tests of locks and rights share: other processes, made by fork, and a process that may not write."""
import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune.lock import hold

DAC_OVERRIDE = 1 << 1  # the right by which root writes where the file's mode forbids it (capabilities(7))


@contextmanager
def another_process(task: Callable[[], object]) -> Iterator[int]:
    """Does `task`, and then waits for its end, which comes with that of the block. Gives its pid once the task is
    done."""
    done, say = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            task()
        finally:
            os.close(say)
            signal.pause()
    os.close(say)
    os.read(done, 1)  # returns at the end of the file
    os.close(done)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def another_holds(directory: Path):
    return another_process(lambda: hold(directory))


def said_by(task: Callable[[], str], processes: int) -> list[str]:
    """What as many processes come to that start at once. None ends before all have come to theirs."""
    start, go = os.pipe()
    ends, pipes = os.pipe(), []
    children = []
    for _ in range(processes):
        read, write = os.pipe()
        if not (pid := os.fork()):
            try:
                os.close(go)
                os.read(start, 1)
                os.write(write, task().encode())
                os.close(write)
                os.close(ends[1])
                os.read(ends[0], 1)
            finally:
                os._exit(0)
        os.close(write)
        children.append(pid)
        pipes.append(read)
    os.close(go)  # now all start
    found = [os.read(read, 4096).decode() for read in pipes]
    os.close(ends[1])
    for child in children:
        os.waitpid(child, 0)
    for descriptor in (start, ends[0], *pipes):
        os.close(descriptor)
    return found


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Rights(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Inside, this process cannot write in the directory, though it may be root's: it lays down the right to."""
    paths = [directory, *directory.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    libc, header, rights = ctypes.CDLL(None, use_errno=True), _Header(0x20080522, 0), (_Rights * 2)()
    assert libc.capget(ctypes.byref(header), rights) == 0
    before = rights[0].effective
    rights[0].effective &= ~DAC_OVERRIDE
    assert libc.capset(ctypes.byref(header), rights) == 0
    try:
        yield
    finally:
        rights[0].effective = before
        assert libc.capset(ctypes.byref(header), rights) == 0
        for path, mode in modes.items():
            path.chmod(mode)
