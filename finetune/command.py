"""How every command runs, and the one line that it ends with when it is cut short.

| what happens | exit status | the line says |
|---|---|---|
| a signal (`stop.py`) | 128 + its number | what was being done, what is safe, how to go on |
| bad input: ValueError, OSError | 1 | the message of the error; the file first |
| no space, permission, memory or package | 1 | the file, what was being done, what is safe, how to go on |
| the reader of the output has gone (`| head`) | 141, as from SIGPIPE | what is safe; nothing if all was done |
| any other error | 1 | the error, and the file that its traceback was written to |

No traceback is shown unless --debug is given. Several processes that torchrun has started end with one such line
(model/processes.py); torchrun adds a report of its own, and its exit status is 1.
"""
import errno
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from finetune.stop import STOP, Stopped
from model import processes

if TYPE_CHECKING:
    from finetune.command_line import Parser

Given = dict[str, Any]  # what the command line says, by flag
LOG = "error.log"
REFUSED = {errno.ENOSPC: ("no space left on the disk", "free some space"),
           errno.EDQUOT: ("the disk quota is used up", "free some space"),
           errno.EFBIG: ("the file is larger than is allowed here", "free some space"),
           errno.EACCES: ("permission denied", "change its permissions"),
           errno.EPERM: ("permission denied", "change its permissions"),
           errno.EROFS: ("the file system is read-only", "name another place"),
           errno.EIO: ("input/output error", "look after the disk")}
WRONG_PATH = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)
NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)
TRIED = re.compile(r"tried to allocate ([\d.]+ ?\w+)", re.IGNORECASE)


class Ended(SystemExit):
    """The last line of a command, and its exit status."""

    def __init__(self, line: str, status: int):
        super().__init__(status)
        self.line = line

    def __str__(self) -> str:
        return self.line


@dataclass
class Work:
    """What a command is doing. Its last line says so if it is cut short."""
    doing: str = "checking the command"
    safe: str | Callable[[], str] = "nothing was written"  # a function: read from the disk when it is needed
    go_on: str = "give the same command again"
    memory: str = "it needs a machine with more memory"  # the remedy
    log: Path | None = None  # the directory in which a traceback is kept

    def begins(self, doing: str, **more: Any) -> None:
        self.doing = doing
        for name, value in more.items():
            setattr(self, name, value)

    def done(self) -> None:
        """What is left is to print. Nothing is lost if nobody reads it."""
        self.doing = ""

    def stands(self) -> str:
        try:
            return self.safe if isinstance(self.safe, str) else self.safe()
        except (ValueError, OSError) as error:  # the last line itself must not fail
            return f"what is saved cannot be read ({message_of(error)})"

    def stopped(self, by: str, saved: str = "") -> str:
        return f"{by}: {saved}; {self.go_on}" if saved else f"{by} while {self.doing}: {self.stands()}; {self.go_on}"

    def failed(self, what: str, remedy: str = "") -> str:
        state = f", while {self.doing}; {self.stands()}" if self.doing else ""
        return f"error: {what}{state}; {remedy or self.go_on}"


def run_command(parser: "Parser", do: Callable[[Given, Work], None], several: bool = False) -> None:
    """Reads the command line and does it. `do` gets the flags, and the `Work` that it keeps up to date. several:
    whether the command knows how to work in several processes."""
    work, debug = Work(), False
    with STOP.watching(work.stopped):
        try:
            try:
                processes.begin()
                given = parser.given()
                debug = given.pop("debug", False)
                if processes.several() and not several:
                    raise ValueError(f"WORLD_SIZE={processes.size()}: {Path(sys.argv[0]).name} works in one process: "
                                     f"start it by python, without torchrun")
                do(given, work)
                work.done()
                processes.leave()
            finally:
                sys.stdout.flush()
        except SystemExit as error:
            if processes.several() and isinstance(error.code, str):  # of the parser
                STOP.ending()
                end(error, error.code, 1, False)
            raise
        except BrokenPipeError as error:
            STOP.ending()
            silent = not work.doing or isinstance(error.__context__, SystemExit)  # all was done, or --help
            line = "" if silent else work.stopped("the reader of the output has gone")
            end(error, line, 128 + signal.SIGPIPE, debug)
        except KeyboardInterrupt as error:
            STOP.ending()
            number, saved = (error.number, error.saved) if isinstance(error, Stopped) else (signal.SIGINT, "")
            end(error, work.stopped(named(number), saved), 128 + number, debug)
        except BaseException as error:  # a panic of a Rust library is no Exception
            STOP.ending()
            end(error, line_of(error, work), 1, debug)


def named(number: int) -> str:
    name = signal.Signals(number).name
    by_torchrun = processes.several() and number == signal.SIGTERM
    return f"{name} (by torchrun, if another process has ended)" if by_torchrun else name


def end(error: BaseException, line: str, status: int, debug: bool) -> NoReturn:
    """Raises Ended, and prints its line. In several processes: prints it unless another one has said why, and ends."""
    leave_stdout()
    speaks = processes.speaks_last()
    if debug and speaks:
        traceback.print_exception(error)
    if line and speaks:
        print(f"\n{line}" if sys.stderr.isatty() else line, file=sys.stderr)  # behind a progress bar
    processes.end_at_once(status)
    raise Ended(line, status) from None


def leave_stdout() -> None:
    """Output that cannot be written must not fail once more when Python exits."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# ---- errors ---------------------------------------------------------------------------------------------------------

def line_of(error: BaseException, work: Work) -> str:
    what, remedy = known(error, work)
    if what or isinstance(error, (ValueError, OSError)):
        if work.log:
            write_traceback(error, work.log / LOG)
        return work.failed(what, remedy) if what else f"error: {message_of(error)}"
    message = " ".join(str(error).split())[:500]
    return work.failed(f"{type(error).__name__}: {message} ({keep_traceback(error, work)})")


def message_of(error: BaseException) -> str:
    """Of an error of the system, the file first: Python begins with the number of the error."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        files = " -> ".join(str(name) for name in (error.filename, error.filename2) if name)
        remedy = ": check the path" if error.errno in WRONG_PATH else ""
        return f"{files}: {error.strerror[:1].lower()}{error.strerror[1:]}{remedy}"
    return str(error)


def known(error: BaseException, work: Work) -> tuple[str, str]:
    """What has happened and the remedy, of failures that are not the input's; otherwise two empty texts."""
    if isinstance(error, OSError) and error.errno in REFUSED:
        what, remedy = REFUSED[error.errno]
        return f"{error.filename2 or error.filename or 'the output'}: {what}", f"{remedy}, then {work.go_on}"
    if "No space left on device" in str(error):  # from libraries that do not raise OSError, such as safetensors
        return " ".join(str(error).split()), f"free some space, then {work.go_on}"
    if isinstance(error, processes.Gone):
        return str(error), ""
    if is_memory(error):
        tried = TRIED.search(str(error))
        return f"not enough memory{f' ({tried[1]} more were asked for)' if tried else ''}", work.memory
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed", f"pip install {error.name}, then {work.go_on}"
    return "", ""


def is_memory(error: BaseException) -> bool:
    return (isinstance(error, MemoryError) or isinstance(error, OSError) and error.errno == errno.ENOMEM
            or isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error))))


def keep_traceback(error: BaseException, work: Work) -> str:
    """Where it was written: into the run, or a temporary file if there is no run or no room."""
    if work.log and write_traceback(error, work.log / LOG):
        return f"traceback in {work.log / LOG}"
    try:
        handle, name = tempfile.mkstemp(prefix="error-", suffix=".log")
        os.close(handle)
    except OSError:
        name = ""
    return f"traceback in {name}" if name and write_traceback(error, Path(name)) else "--debug shows the traceback"


def write_traceback(error: BaseException, file: Path) -> bool:
    """Adds it to the file. False if that fails, or if the directory is not there."""
    try:
        with open(file, "a", encoding="utf-8", errors="replace") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {' '.join(sys.argv)}\n")
            log.write("".join(traceback.format_exception(error)) + "\n")
    except OSError:
        return False
    return True
