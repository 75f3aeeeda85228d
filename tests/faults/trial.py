"""A script of the product, called in a forked process: torch is imported once, so that a trial takes a fraction of a
second. And what a run holds, in a form that two equal runs share."""
import hashlib
import json
import os
import re
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.events import Fault, arm

# What differs from run to run, and checksums of it.
TIMED = {"seconds", "peak_memory_mb", "tokens_per_s", "versions", "saved_at", "started", "time", "host", "pid",
         "sha256_of_the_rest", "check", "run"}
RESUMED = "answers of an interrupted scoring"  # how many were taken up, which is said
SENTENCE = re.compile(r"^(error: |interrupted|stopped|saved at|.*saved at step)", re.M)


@dataclass
class Ended:
    """`status`: exit status, or minus the signal; None: it did not end in time."""
    status: int | None
    out: str
    seconds: float

    @property
    def traceback(self) -> bool:
        """Whether one was shown, or written to error.log: the product did not know the error."""
        return "Traceback (most recent call last)" in self.out or "(traceback in " in self.out

    @property
    def sentence(self) -> str:
        """The last line that says why it stopped."""
        lines = [line for line in self.out.replace("\r", "\n").splitlines() if line.strip()]
        said = [line for line in lines if SENTENCE.match(line)]
        return (said or lines or [""])[-1][:300]


@dataclass
class Process:
    pid: int
    file: Path
    started: float = field(default_factory=time.monotonic)

    def wait(self, timeout: float = 60) -> Ended | None:
        """None: it has not ended. A process that was stopped counts as not ended."""
        while time.monotonic() - self.started < timeout:
            pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
            if pid and os.WIFSTOPPED(status):
                return None
            if pid:
                return Ended(os.waitstatus_to_exitcode(status), self.file.read_text(errors="replace"),
                             time.monotonic() - self.started)
            time.sleep(0.005)
        return None

    def go_on(self, timeout: float = 60) -> Ended:
        os.kill(self.pid, signal.SIGCONT)
        self.started = time.monotonic()
        return self.wait(timeout) or self.killed()

    def killed(self) -> Ended:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return Ended(None, self.file.read_text(errors="replace"), time.monotonic() - self.started)


def start(tree: Path, cwd: Path, script: str, *arguments: object, fault: Fault | None = None,
          patch: Callable[[], None] | None = None) -> Process:
    """`patch` is called in the new process, before the script."""
    handle, name = tempfile.mkstemp(prefix="faults-out-")
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(handle)
        return Process(pid, Path(name))
    status = 1
    try:
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_RDONLY)
        for new, old in ((null, 0), (handle, 1), (handle, 2)):
            os.dup2(new, old)
        os.chdir(cwd)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)  # nohup and background jobs of a shell ignore some
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = [script, *map(str, arguments)]
        if patch:
            patch()
        if fault:
            arm(cwd, fault)
        status = as_main(tree / script)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def as_main(script: Path) -> int:
    """The exit status of a script that is run as the shell runs it."""
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as exit:
        if isinstance(exit.code, str):
            print(exit.code, file=sys.stderr)
        return exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException as error:
        traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):  # Python itself ends by the signal then
            sys.stderr.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        return 1
    return 0


def run(tree: Path, cwd: Path, script: str, *arguments: object, timeout: float = 60, **more) -> Ended:
    process = start(tree, cwd, script, *arguments, **more)
    ended = process.wait(timeout) or process.killed()
    process.file.unlink()
    return ended


# ---- what a run holds ------------------------------------------------------------------------------------------------

def without_times(value: object) -> object:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMED and not k.startswith(RESUMED)}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def content(file: Path) -> str:
    """A checksum of the bytes; of JSON, without what differs from run to run."""
    data = file.read_bytes()
    try:
        if file.suffix == ".json":
            data = json.dumps(without_times(json.loads(data))).encode()
        if file.suffix == ".jsonl":
            data = json.dumps([without_times(json.loads(line)) for line in data.splitlines()]).encode()
    except ValueError:
        pass
    return hashlib.sha256(data).hexdigest()


# Pictures, and what says when and where a run was written.
NO_RESULTS = {"loss.png", "sessions.jsonl", "error.log", "lock", ".lock"}


def contents(run: Path) -> dict[str, str]:
    return {str(file.relative_to(run)): content(file) for file in sorted(run.rglob("*"))
            if file.is_file() and not file.is_symlink() and file.name not in NO_RESULTS}


def copied(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target, symlinks=True))
