"""A directory that appears, or is replaced, as a whole: `merged/`, exports.

    make it in a scratch directory beside its name -> flush every file in it -> exchange it with the one that is there

The exchange is one system call: at every instant, the name stands for a whole directory. Where the system cannot do
that, the old one is renamed to `.NAME.old` first. A kill then leaves no directory of that name, and the next writer
puts the old one back.
"""
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from model import durable
from model.durable import flush_directory, make_directory, naming, reserve, short_name, sweep


@contextmanager
def scratch_directory(target: Path) -> Iterator[Path]:
    """A new directory beside `target`, in which files are made that `publish` moves to their names. It is removed at
    the end with all that is left in it."""
    with naming(target):
        make_directory(target.parent)
        recover(target)
        sweep(target)
        place, descriptor = reserve(target, create_directory)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(descriptor)


def create_directory(path: Path) -> int:
    os.mkdir(path)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def publish(made: Path, target: Path) -> None:
    """Moves a file or a directory out of its scratch directory to its name, flushed. A directory that stood there goes
    to the scratch directory. Raises OSError, naming `target`."""
    with naming(target):
        flush_tree(made)
        if not (target.is_dir() and not target.is_symlink() and any(target.iterdir())):
            durable.rename(made, target)
        elif not durable.exchange(made, target):
            _replace_in_two_steps(made, target)
        flush_directory(target.parent)


def _replace_in_two_steps(made: Path, target: Path) -> None:
    old = old_name(target)
    durable.rename(target, old)
    try:
        durable.rename(made, target)
    except BaseException:
        durable.rename(old, target)
        raise
    durable.rename(old, made)


def old_name(target: Path) -> Path:
    return target.with_name(f".{short_name(target)}.old")


def recover(target: Path) -> None:
    """Undoes what a kill in `_replace_in_two_steps` left."""
    old = old_name(target)
    if not old.is_dir() or old.is_symlink():
        return
    if target.exists():
        return shutil.rmtree(old, ignore_errors=True)
    with suppress(OSError):
        durable.rename(old, target)
        flush_directory(target.parent)
        print(f"{target}: the process that replaced it was killed; the one before it is there again", file=sys.stderr)


def flush_tree(path: Path) -> None:
    """Every file and every directory below. Libraries that write by themselves do not flush."""
    if path.is_dir():
        for inside in path.iterdir():
            flush_tree(inside)
        return flush_directory(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        durable.flush(descriptor)
    finally:
        os.close(descriptor)
