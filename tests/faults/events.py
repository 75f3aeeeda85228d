"""Builds events.c, preloads it, and reads what it wrote down."""
import ctypes
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

COUNT, KILL, TEAR, SIGNAL, FULL, LOG, SHORT = range(7)
NAMES = {1: "open", 2: "write", 3: "length", 4: "flush", 5: "rename", 6: "remove", 7: "mkdir", 8: "link",
         9: "exchange"}
HEAD = struct.Struct("<IIIIQqQQ")
ENVIRONMENT = "TESTS_FAULTS"


@dataclass(frozen=True)
class Event:
    """`place`: of a write, its offset; of an open, whether the file was there; of a flush, whether of a directory."""
    number: int
    op: str
    path: str
    other: str
    inode: int
    place: int
    size: int
    data: bytes


@dataclass(frozen=True)
class Fault:
    """What happens at event `at` of the files below the directory where a trial runs."""
    mode: int
    at: int = 0
    number: int = 0         # of a signal, or of an error
    log: Path | None = None


def why_not() -> str | None:
    """Why no events can be watched here, in words."""
    if not sys.platform.startswith("linux"):
        return f"events are watched on Linux only, this is {sys.platform}"
    return None if shutil.which("cc") else "no C compiler (cc) is installed"


def preloaded() -> None:
    """Starts this program again with the library preloaded, unless it is."""
    if os.environ.get(ENVIRONMENT) or why_not():
        return
    library = Path(tempfile.mkdtemp(prefix="faults-")) / "events.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-w", "-o", library, Path(__file__).with_name("events.c"), "-ldl"],
                   check=True)
    os.execve(sys.executable, [sys.executable, "-m", "tests.faults", *sys.argv[1:]],
              {**os.environ, "LD_PRELOAD": str(library), ENVIRONMENT: str(library), "OMP_NUM_THREADS": "1"})


def arm(root: Path, fault: Fault) -> None:
    log = os.open(fault.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if fault.log else -1
    ctypes.CDLL(os.environ[ENVIRONMENT]).faults_arm(os.fsencode(f"{root}/"), fault.mode, ctypes.c_long(fault.at),
                                                    fault.number, log)


def read_log(file: Path) -> list[Event]:
    data, place, found = file.read_bytes(), 0, []
    while place + HEAD.size <= len(data):
        op, a, b, _, inode, offset, size, held = HEAD.unpack_from(data, place)
        place += HEAD.size
        path, other = data[place:place + a].decode(), data[place + a:place + a + b].decode()
        place += a + b
        found.append(Event(len(found) + 1, NAMES[op], path, other, inode, offset, size, data[place:place + held]))
        place += held
    return found
