"""Every write of this project: a file or a directory is whole or absent, also after a power loss.

    write to a temporary name beside the target -> flush the file -> rename it -> flush its directory

The temporary name is `.NAME.RANDOM.part`. It is unpredictable, and it is opened exclusively, so that a link that
somebody planted is never followed. Its writer holds a lock (flock) on it. A temporary file whose lock is free is the
leftover of a dead process: the next write of the same target removes it.

Directories that appear as a whole are made in the same way (published.py).

The system calls that decide stand in `create`, `open_to_append`, `append`, `flush`, `rename`, `exchange`, `link`,
`flush_directory` and `lock`, so that a test can trace or replace them. Modes follow the umask.
"""
import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
LONGEST = 180  # bytes of a target's name in its temporary name: most file systems allow 255 in all


# ---- system calls -------------------------------------------------------------------------------------------------

def create(path: Path) -> int:
    """A new, empty file, open for writing. Raises FileExistsError for any existing name, a link included."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def open_to_append(path: Path) -> int:
    """An existing or a new file. Raises OSError for a link."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def append(descriptor: int, content: bytes) -> None:
    """All of it, or nothing: a system may write less than it was given, as a disk does that is about to be full. A
    part of a line would stand before the next one."""
    before, left = os.fstat(descriptor).st_size, memoryview(content)
    try:
        while left:
            if not (n := os.write(descriptor, left)):
                raise OSError(errno.EIO, "nothing was written, and no error given")
            left = left[n:]
    except BaseException:
        with suppress(OSError):
            os.ftruncate(descriptor, before)
        raise


def flush(descriptor: int) -> None:
    """What was written to a file is on the disk, not only in the memory of the system."""
    os.fsync(descriptor)


def rename(source: Path, target: Path) -> None:
    os.replace(source, target)


def exchange(one: Path, other: Path) -> bool:
    """Each gets the name of the other, at one instant. False if the system or the file system cannot do that."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Linux; in musl since 1.2.6
    if call is None:
        return False
    if call(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV):
        return False
    raise OSError(number, os.strerror(number), str(other))


def link(source: Path, target: Path) -> None:
    os.link(source, target)


def flush_directory(path: Path) -> None:
    """The names in a directory are on the disk. Some network file systems cannot do that, and say so: no error."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flush(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


# ---- one file -----------------------------------------------------------------------------------------------------

def replace_file(path: Path, write: Callable[[BinaryIO], None], keep: Path | None = None) -> None:
    """The file at `path` becomes what `write` writes. `write` gets an open file, which it may also seek in.

    keep: the name that the file which stands at `path` gets before it is replaced.
    Raises OSError, naming `path` and not the temporary file."""
    with naming(path):
        make_directory(path.parent)
        sweep(path)
        beside, descriptor = reserve(path, create)
        try:
            with os.fdopen(descriptor, "w+b") as file:
                write(file)
                file.flush()
                flush(file.fileno())
                if keep is not None and path.is_file():
                    keep_as(path, keep)
                rename(beside, path)  # while the lock is held: without a lock, the file would look abandoned
            flush_directory(path.parent)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def copy_file(source: Path, target: Path) -> None:
    """Raises OSError, naming the one that cannot be read or written."""
    with open(source, "rb") as file:
        replace_file(target, lambda copy: shutil.copyfileobj(file, copy, 1 << 20))


def keep_as(path: Path, older: Path) -> None:
    """The file at `path` is at `older` too, whatever stood there. A file system without hard links moves it there."""
    beside = temporary_name(older)
    with naming(older):
        sweep(older)
        try:
            link(path, beside)
        except OSError:
            return rename(path, older)
        try:
            rename(beside, older)
        finally:
            beside.unlink(missing_ok=True)  # renaming one name of a file to another of its names leaves both


def move_file(source: Path, target: Path) -> None:
    with naming(target):
        rename(source, target)
        flush_directory(target.parent)


def make_directory(path: Path) -> None:
    """With its parents. The names of the new ones are flushed."""
    if path.is_dir():
        return
    missing = [one for one in (path, *path.parents) if not one.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for one in missing:
        flush_directory(one.parent)


# ---- temporary names and their locks ------------------------------------------------------------------------------

def is_still_there(descriptor: int, path: Path) -> bool:
    """Whether `path` names the file that is open, and not another one, or none."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def temporary_name(path: Path) -> Path:
    return path.with_name(f".{short_name(path)}.{secrets.token_hex(8)}.part")


def short_name(path: Path) -> str:
    return os.fsencode(path.name)[:LONGEST].decode("utf-8", "ignore")


def reserve(path: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    """A temporary file or directory for a target, and its descriptor, which holds the lock."""
    while True:
        beside = temporary_name(path)
        descriptor = make(beside)
        if lock(descriptor) is not False and beside.exists():
            return beside, descriptor
        os.close(descriptor)  # another process swept it before it was locked


def lock(descriptor: int, shared: bool = False) -> bool | None:
    """Whether the lock of a file is ours now; None on a file system that has no locks. The kernel releases it when the
    process ends, however it ends. A shared lock goes beside other shared ones."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None


def sweep(path: Path) -> None:
    """Removes what dead processes left of a target: temporary files and directories whose lock is free."""
    left = re.compile(rf"\.{re.escape(short_name(path))}\.[0-9a-f]+\.part")
    for name in [entry.name for entry in os.scandir(path.parent) if left.fullmatch(entry.name)]:
        beside = path.with_name(name)
        access = os.O_RDONLY if beside.is_dir() else os.O_RDWR  # NFS locks only what is open for writing
        try:
            descriptor = os.open(beside, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # gone, not ours, or a link
            continue
        try:
            if lock(descriptor):
                shutil.rmtree(beside) if beside.is_dir() else beside.unlink(missing_ok=True)
        except OSError:  # what cannot be removed does no harm
            pass
        finally:
            os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError inside that names a temporary file, or no file at all, names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None and not is_temporary(error.filename):
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from None


def is_temporary(path: object) -> bool:
    return isinstance(path, str | os.PathLike) and any(part.endswith(".part") for part in Path(path).parts)
