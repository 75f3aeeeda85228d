"""The one line that a command ends with, its exit status, and where the traceback goes."""
import errno
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from finetune.command import Ended, Work, run_command
from finetune.command_line import Parser

ROOT = Path(__file__).parents[2]
ALLOCATOR = ("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
             "allocate 8000000000 bytes. Error code 12 (Cannot allocate memory)")


def last_line(error: BaseException, monkeypatch, *flags: str, **work) -> Ended:
    def do(given, its_work: Work):
        assert "debug" not in given
        its_work.begins("training", **{"safe": "saved at step 3", "go_on": "go on with: python x", **work})
        raise error
    monkeypatch.setattr(sys, "argv", ["x.py", *flags])
    with pytest.raises(Ended) as ended:
        run_command(Parser(None), do)
    return ended.value


FAILURES = [
    (OSError(errno.ENOSPC, "No space left on device", "x/state"),
     "x/state: no space left on the disk, while training; saved at step 3; free some space, then go on with"),
    (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
     "Error .* No space left on device .*, while training; saved at step 3; free some space, then go on with"),
    (PermissionError(errno.EACCES, "Permission denied", "x/y"),
     "x/y: permission denied, while training; saved at step 3; change its permissions, then go on with"),
    (OSError(errno.EROFS, "Read-only file system", "x/y"), "x/y: the file system is read-only, while training"),
    (MemoryError(), "not enough memory, while training; saved at step 3; take less$"),
    (RuntimeError(ALLOCATOR), r"not enough memory \(8000000000 bytes more were asked for\), while training"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
     r"not enough memory \(2.00 GiB more were asked for\), while training"),
    (ModuleNotFoundError("No module named 'x'", name="x"),
     "x is not installed, while training; saved at step 3; pip install x, then go on with")]


@pytest.mark.parametrize("error,line", FAILURES, ids=lambda value: type(value).__name__)
def test_a_failure_names_the_file_what_was_done_what_is_safe_and_how_to_go_on(monkeypatch, capsys, tmp_path, error,
                                                                              line):
    ended = last_line(error, monkeypatch, memory="take less", log=tmp_path)
    assert ended.code == 1 and re.match(f"error: {line}", str(ended)) and "\n" not in str(ended)
    assert capsys.readouterr().err == f"{ended}\n"
    assert "Traceback" in (tmp_path / "error.log").read_text()


def test_bad_input_is_its_message_alone(monkeypatch, capsys):
    assert str(last_line(ValueError("--rank: 0 is not above 0"), monkeypatch)) == "error: --rank: 0 is not above 0"
    assert capsys.readouterr().err == "error: --rank: 0 is not above 0\n"


@pytest.mark.parametrize("error,line", [
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.json"),
     "x.json: no such file or directory: check the path"),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "x"), "x: is a directory: check the path"),
    (OSError(errno.EXDEV, "Invalid cross-device link", "x", None, "y"), "x -> y: invalid cross-device link"),
    (FileNotFoundError("x: no run there"), "x: no run there")], ids=lambda value: str(value))
def test_a_file_comes_before_what_the_system_says_of_it(monkeypatch, error, line):
    assert str(last_line(error, monkeypatch)) == f"error: {line}"


def test_the_traceback_of_any_other_error_is_written_into_the_run(monkeypatch, capsys, tmp_path):
    ended = last_line(KeyError("layer"), monkeypatch, log=tmp_path)
    assert ended.code == 1
    assert str(ended) == (f"error: KeyError: 'layer' (traceback in {tmp_path}/error.log), while training; "
                          "saved at step 3; go on with: python x")
    assert "Traceback" not in capsys.readouterr().err
    log = (tmp_path / "error.log").read_text()
    assert "Traceback" in log and "KeyError: 'layer'" in log and "x.py" in log


def test_without_a_run_the_traceback_goes_to_a_temporary_file(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for log in (None, tmp_path / "gone"):
        file = re.search(r"traceback in (\S+)\)", str(last_line(AssertionError(), monkeypatch, log=log)))[1]
        assert Path(file).parent == tmp_path and "AssertionError" in Path(file).read_text()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert "(--debug shows the traceback)" in str(last_line(AssertionError(), monkeypatch))


def test_a_long_message_is_cut_to_one_line(monkeypatch, tmp_path):
    line = str(last_line(RuntimeError("one\ntwo  three " * 100), monkeypatch, log=tmp_path))
    assert "RuntimeError: one two three one" in line and len(line) < 800


@pytest.mark.parametrize("error", [ValueError("a value"), KeyError("layer"), KeyboardInterrupt()])
def test_debug_shows_the_traceback(monkeypatch, capsys, tmp_path, error):
    last_line(error, monkeypatch, "--debug", log=tmp_path)
    shown = capsys.readouterr().err
    assert "Traceback" in shown and f"{type(error).__name__}" in shown and "in do\n" in shown


def test_a_panic_of_a_rust_library_is_one_line_too(monkeypatch, tmp_path):
    class PanicException(BaseException):
        pass
    assert str(last_line(PanicException("index out of bounds"), monkeypatch, log=tmp_path)).startswith(
        "error: PanicException: index out of bounds")


def test_a_state_that_cannot_be_read_does_not_hide_the_failure(monkeypatch):
    def damaged() -> str:
        raise ValueError("state.safetensors: damaged")
    assert "; what is saved cannot be read (state.safetensors: damaged); take less" in str(
        last_line(MemoryError(), monkeypatch, safe=damaged, memory="take less"))


def test_an_interrupt_from_elsewhere_is_one_too(monkeypatch):
    ended = last_line(KeyboardInterrupt(), monkeypatch)
    assert (ended.code, str(ended)) == (130, "SIGINT while training: saved at step 3; go on with: python x")


# ---- output that cannot be written ----------------------------------------------------------------------------------

PRINTS = """
import argparse
from finetune.command import run_command
def do(given, work):
    work.begins("scoring", safe="the answers so far are kept", go_on="the same command goes on")
    {done}
    print("x" * 100_000)
parser = argparse.ArgumentParser()
parser.given = lambda: vars(parser.parse_args())
run_command(parser, do)
"""


def with_output(to: int, code: str, *flags: str) -> tuple[int, str]:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.run([sys.executable, "-c", code, *flags], stdout=to, stderr=subprocess.PIPE, text=True,
                             cwd=ROOT, env=buffered)
    return process.returncode, process.stderr


def test_a_reader_that_has_gone_is_no_traceback():
    """As with `| head`: told if something is left to do, and silent if all was done."""
    read, write = os.pipe()
    os.close(read)
    assert with_output(write, PRINTS.format(done="")) == (
        141, "the reader of the output has gone while scoring: the answers so far are kept; the same command goes on\n")
    assert with_output(write, PRINTS.format(done="work.done()")) == (141, "")
    assert with_output(write, PRINTS.format(done=""), "--help") == (141, "")
    os.close(write)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_to_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        assert with_output(full.fileno(), PRINTS.format(done="work.done()")) == (
            1, "error: the output: no space left on the disk; free some space, then the same command goes on\n")
