"""Files are whole or absent, flushed in the right order, and no planted link is followed."""
import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from model import durable
from model.durable import copy_file, make_directory, replace_file
from model.files import write_json, write_text
from model.published import publish, scratch_directory

FSYNC = os.fsync  # before tests/conftest.py replaces it


@pytest.fixture(autouse=True)
def flushing(monkeypatch):
    monkeypatch.setattr("os.fsync", FSYNC)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def traced(monkeypatch) -> list[str]:
    """The system calls from now on, in order, with the file that each concerns."""
    calls = []

    def trace(name, shown):
        original = getattr(durable, name)

        def call(*arguments):
            calls.append(f"{name} {shown(*arguments)}")
            return original(*arguments)
        monkeypatch.setattr(durable, name, call)

    def kind(path):
        return "a temporary name" if path.name.endswith(".part") else path.name
    trace("create", kind)
    trace("flush", lambda descriptor: kind(Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
    trace("rename", lambda source, target: f"{kind(source)} to {kind(target)}")
    trace("exchange", lambda one, other: f"{kind(one)} and {kind(other)}")
    trace("link", lambda source, target: f"{kind(source)} to {kind(target)}")
    return calls


# ---- the order ------------------------------------------------------------------------------------------------------

def test_a_file_is_flushed_before_it_is_renamed_and_its_directory_after(tmp_path, monkeypatch):
    calls = traced(monkeypatch)
    write_text(tmp_path / "x", "new")
    assert calls == ["create a temporary name", "flush a temporary name", "rename a temporary name to x",
                     f"flush {tmp_path.name}"]


def test_what_is_flushed_is_all_that_was_written(tmp_path, monkeypatch):
    """Python keeps the last bytes to itself until it flushes its own buffer."""
    sizes, original = [], durable.flush
    monkeypatch.setattr(durable, "flush", lambda fd: (sizes.append(os.fstat(fd).st_size), original(fd)))
    write_text(tmp_path / "x", "abc")
    assert sizes[0] == 3


def test_new_directories_are_flushed_into_their_parents(tmp_path, monkeypatch):
    calls = traced(monkeypatch)
    write_text(tmp_path / "a" / "b" / "x", "")
    assert {"flush a", f"flush {tmp_path.name}"} <= set(calls[:2])


def test_the_file_before_is_kept_under_another_name_at_every_instant(tmp_path, monkeypatch):
    newest, older = tmp_path / "x", tmp_path / "older"
    write_text(newest, "1")
    replace_file(newest, lambda file: file.write(b"2"), keep=older)
    assert (newest.read_text(), older.read_text()) == ("2", "1")
    calls = traced(monkeypatch)
    replace_file(newest, lambda file: file.write(b"3"), keep=older)
    assert (newest.read_text(), older.read_text()) == ("3", "2") and names(tmp_path) == ["older", "x"]
    assert calls[1:-1] == ["flush a temporary name", "link x to a temporary name", "rename a temporary name to older",
                           "rename a temporary name to x"]


def test_a_file_system_without_links_keeps_the_file_before_too(tmp_path, monkeypatch):
    def no_links(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")
    monkeypatch.setattr(durable, "link", no_links)
    write_text(tmp_path / "x", "1")
    replace_file(tmp_path / "x", lambda file: file.write(b"2"), keep=tmp_path / "older")
    assert ((tmp_path / "x").read_text(), (tmp_path / "older").read_text()) == ("2", "1")


# ---- temporary names ------------------------------------------------------------------------------------------------

def test_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    """Whoever knows the temporary name plants a link there: the write takes another name, or fails."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    monkeypatch.setattr(durable.secrets, "token_hex", lambda n: "00" * n)
    (tmp_path / f".x.{'00' * 8}.part").symlink_to(victim)
    with pytest.raises(FileExistsError) as error:
        write_text(tmp_path / "x", "theirs")
    assert victim.read_text() == "mine" and error.value.filename == str(tmp_path / "x")
    with open(tmp_path / f".x.{'00' * 8}.part", "w") as followed:  # control: an ordinary open follows it
        followed.write("theirs")
    assert victim.read_text() == "theirs"


def test_temporary_names_cannot_be_guessed(tmp_path):
    assert len({durable.temporary_name(tmp_path / "x") for _ in range(100)}) == 100


def test_the_mode_is_that_of_the_umask(tmp_path):
    for mask, mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        kept = os.umask(mask)
        try:
            write_text(tmp_path / "x", "")
            copy_file(tmp_path / "x", tmp_path / "y")
        finally:
            os.umask(kept)
        assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "xy"} == {mode}


@pytest.mark.parametrize("name", ["x", "a [b] * ?", "ü" * 120])
def test_leftovers_of_dead_processes_are_swept(tmp_path, name):
    short = name[:90]  # a name of 240 bytes has no room for more
    for left in (f".{short}.0123456789abcdef.part", f".{short}.4711.part"):  # the second as older versions named it
        (tmp_path / left).write_text("half")
    (tmp_path / f".{short}.fedcba9876543210.part").mkdir()
    (tmp_path / f".{short}.fedcba9876543210.part" / "model").write_text("half")
    others = [".y.0123456789abcdef.part", f".{short}.not-hexadecimal.part", f"{short}.part"]
    for other in others:
        (tmp_path / other).write_text("not of this target")
    write_text(tmp_path / name, "whole")
    assert names(tmp_path) == sorted([*others, name])


WRITER = """
import sys, time
from pathlib import Path
from model.durable import replace_file
from model.published import scratch_directory
def write(file):
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    sys.stdin.readline()
if sys.argv[2] == "file":
    replace_file(Path(sys.argv[1]), write)
else:
    with scratch_directory(Path(sys.argv[1])) as place:
        with open(place / "inside", "wb") as file:
            write(file)
"""


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_the_file_of_a_live_writer_is_never_swept_and_of_a_killed_one_always(tmp_path, kind):
    target = tmp_path / "x"
    root = Path(__file__).parents[2]
    other = subprocess.Popen([sys.executable, "-c", WRITER, target, kind], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True, cwd=root)
    try:
        assert other.stdout.readline() == "writing\n"
        write_text(target, "ours")
        assert len(names(tmp_path)) == 2 and target.read_text() == "ours"
        other.kill()
        other.wait()
        assert len(names(tmp_path)) == 2  # control: the kill leaves something
        write_text(target, "again")
        assert names(tmp_path) == ["x"]
    finally:
        other.kill()
        other.communicate()


def test_a_file_that_was_swept_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    original, made = durable.create, []

    def swept(path):
        descriptor = original(path)
        made.append(path)
        if len(made) == 1:
            path.unlink()
        return descriptor
    monkeypatch.setattr(durable, "create", swept)
    write_text(tmp_path / "x", "whole")
    assert len(made) == 2 and (tmp_path / "x").read_text() == "whole"


def test_a_file_system_without_locks_sweeps_nothing_and_writes_all_the_same(tmp_path, monkeypatch):
    def no_locks(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")
    monkeypatch.setattr(durable.fcntl, "flock", no_locks)
    (tmp_path / ".x.0123456789abcdef.part").write_text("of whom?")
    write_text(tmp_path / "x", "whole")
    assert names(tmp_path) == [".x.0123456789abcdef.part", "x"]


# ---- failures -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("call", ["create", "flush", "rename"])
@pytest.mark.parametrize("target", ["x", "directory/x"])
def test_a_failure_leaves_the_old_file_and_names_it(tmp_path, monkeypatch, call, target):
    path = tmp_path / target
    write_text(path, "old")

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", *[str(path) for path in arguments
                                                                 if isinstance(path, Path)][:1])
    monkeypatch.setattr(durable, call, full)
    with pytest.raises(OSError) as error:
        write_json(path, {"new": 1})
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))
    assert ".part" not in str(error.value) and path.read_text() == "old" and names(path.parent) == ["x"]


def test_an_interrupt_while_writing_leaves_nothing(tmp_path):
    def interrupt(file):
        file.write(b"half")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        replace_file(tmp_path / "x", interrupt)
    assert names(tmp_path) == []


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        copy_file(tmp_path / "nowhere", tmp_path / "x")


# ---- directories ----------------------------------------------------------------------------------------------------

def made_in(target: Path, text: str) -> None:
    with scratch_directory(target) as scratch:
        made = scratch / target.name
        make_directory(made / "inner")
        (made / "inner" / "file").write_text(text)  # by a library that does not flush
        publish(made, target)


def test_a_directory_is_published_whole_with_every_file_in_it_flushed_first(tmp_path, monkeypatch):
    calls = traced(monkeypatch)
    made_in(tmp_path / "merged", "1")
    assert calls[-5:] == ["flush file", "flush inner", "flush merged", "rename merged to merged",
                          f"flush {tmp_path.name}"]
    made_in(tmp_path / "merged", "2")
    assert calls[-2:] == ["exchange merged and merged", f"flush {tmp_path.name}"]
    assert (tmp_path / "merged" / "inner" / "file").read_text() == "2" and names(tmp_path) == ["merged"]


def killed_at(call: int, target: Path, text: str) -> bool:
    """Another process makes `target` anew, and is killed just before its `call`-th renaming. Whether it was."""
    if not (pid := os.fork()):
        try:
            calls = [0]

            def counted(original):
                def call_or_die(*arguments):
                    calls[0] += 1
                    if calls[0] == call:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return original(*arguments)
                return call_or_die
            durable.rename, durable.exchange = counted(durable.rename), counted(durable.exchange)
            made_in(target, text)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_a_kill_while_a_directory_is_replaced_leaves_the_old_or_the_new_one(tmp_path, capfd):
    target = tmp_path / "merged"
    made_in(target, "1")
    call = 1
    while killed_at(call, target, "2"):
        assert (target / "inner" / "file").read_text() in "12"
        call += 1
    assert call > 1 and (target / "inner" / "file").read_text() == "2"
    made_in(target, "3")
    assert names(tmp_path) == ["merged"] and capfd.readouterr().err == ""


def test_without_an_exchange_the_old_directory_is_found_again_after_a_kill(tmp_path, capfd, monkeypatch):
    target = tmp_path / "merged"
    monkeypatch.setattr(durable, "exchange", lambda one, other: False)
    made_in(target, "1")
    gone, call = 0, 2  # 1 is the exchange
    while killed_at(call, target, "2"):
        gone += not target.exists()
        with pytest.raises(ValueError, match="no"), scratch_directory(target):
            raise ValueError("no")  # whoever comes next does not end either
        assert (target / "inner" / "file").read_text() in "12" and names(tmp_path) == ["merged"]
        call += 1
    assert gone == 1 and capfd.readouterr().err.count("the one before it is there again") == 1
    assert (target / "inner" / "file").read_text() == "2" and names(tmp_path) == ["merged"]


def test_a_new_directory_that_cannot_get_its_name_leaves_the_old_one(tmp_path, monkeypatch):
    target, original = tmp_path / "merged", durable.rename
    made_in(target, "1")

    def refused(source, to):
        if to == target and ".old" not in source.name:
            raise OSError(errno.EIO, "Input/output error", str(source))
        return original(source, to)
    monkeypatch.setattr(durable, "exchange", lambda one, other: False)
    monkeypatch.setattr(durable, "rename", refused)
    with pytest.raises(OSError, match="Input/output error"):
        made_in(target, "2")
    assert (target / "inner" / "file").read_text() == "1" and names(tmp_path) == ["merged"]


def test_an_exchange_that_the_file_system_does_not_know_is_no_error(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert durable.exchange(tmp_path / "a", tmp_path / "b") and names(tmp_path / "a") == ["b"]
    with pytest.raises(FileNotFoundError) as error:
        durable.exchange(tmp_path / "a", tmp_path / "missing")
    assert error.value.filename == str(tmp_path / "missing")
    proc = Path("/proc/self")
    assert not durable.exchange(tmp_path / "a", proc / "fd")  # of another file system


# ---- what is appended -----------------------------------------------------------------------------------------------

def test_a_short_write_is_gone_on_with_and_a_failed_one_leaves_nothing(tmp_path, monkeypatch):
    write, sizes = os.write, []

    def short(descriptor, content):
        sizes.append(len(content))
        if len(sizes) == full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content[:2])
    monkeypatch.setattr("os.write", short)
    full, descriptor = 0, durable.open_to_append(tmp_path / "x")
    durable.append(descriptor, b"12345")
    assert sizes == [5, 3, 1] and (tmp_path / "x").read_bytes() == b"12345"
    full = 5
    with pytest.raises(OSError, match="No space"):
        durable.append(descriptor, b"6789")
    assert len(sizes) == 5 and (tmp_path / "x").read_bytes() == b"12345"
    monkeypatch.setattr("os.write", lambda descriptor, content: 0)
    with pytest.raises(OSError, match="nothing was written"):
        durable.append(descriptor, b"6")
    os.close(descriptor)


def test_a_directory_that_fails_leaves_the_old_one_and_nothing_else(tmp_path):
    made_in(tmp_path / "merged", "1")
    with pytest.raises(ValueError, match="no"), scratch_directory(tmp_path / "merged") as scratch:
        write_text(scratch / "merged" / "file", "half")
        raise ValueError("no")
    assert names(tmp_path) == ["merged"] and (tmp_path / "merged" / "inner" / "file").read_text() == "1"
