"""Signals that ask a command to stop: SIGINT, SIGTERM, SIGHUP, and SIGUSR1, which schedulers send ahead of time.

The first signal raises `Stopped` where the command is. Inside `STOP.held()` it only sets `STOP.asked`: the training
loop then finishes its step and saves. A second signal ends the process at once; files are whole or absent at any time.
"""
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from model import processes

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
ONE_REQUEST = 1.0  # seconds; `timeout` and a closing terminal send their signal twice, and mean one stop


class Stopped(KeyboardInterrupt):
    """A signal has asked the command to stop. `saved`: what was saved because of it, for the last line."""

    def __init__(self, number: int, saved: str = ""):
        super().__init__(signal.Signals(number).name)
        self.number, self.saved = number, saved


class Stop:
    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.asked: int | None = None  # the first signal
        self.clock, self.since, self.holding = clock, 0.0, False
        self.last_line: Callable[[str], str] = str  # what is said when a second signal ends the process

    @contextmanager
    def watching(self, last_line: Callable[[str], str]) -> Iterator[None]:
        """Inside, the signals are handled. One that was ignored before (nohup, `&` in a script) stays ignored."""
        self.asked, self.holding, self.last_line = None, False, last_line
        ours = SIGNALS if threading.current_thread() is threading.main_thread() else ()
        before = {n: signal.getsignal(n) for n in ours if signal.getsignal(n) not in (signal.SIG_IGN, None)}
        for number in before:
            signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        name = signal.Signals(number).name
        if self.asked is None:
            self.asked, self.since = number, self.clock()
            if self.holding and not processes.several():  # torchrun says so itself, and sends one when a process fails
                say(f"{name}: stopping after this step; a second signal stops at once")
            self.check()
        elif self.clock() - self.since >= ONE_REQUEST:
            say(self.last_line(f"a second {name}"))
            os._exit(128 + number)

    def check(self) -> None:
        """Raises Stopped if a stop was asked for. An exception out of a signal handler can be lost: Python drops it in
        a destructor, and sqlite3 in a callback."""
        if self.asked is not None and not self.holding:
            raise Stopped(self.asked)

    def ending(self) -> None:
        """From now on a first signal does nothing: torchrun sends one as soon as another process has failed, and this
        one may still have to say why."""
        self.holding = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, a signal only sets `asked`. At the end, `Stopped` is raised for one that nobody looked at."""
        with self._set(holding=True):
            yield
        self.check()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, within `held`, a signal raises Stopped again. Not in one of several processes, for which the others
        would wait: they stop together (`loop.mean_loss`)."""
        with self._set(holding=processes.several()):
            self.check()
            yield

    @contextmanager
    def _set(self, holding: bool) -> Iterator[None]:
        before, self.holding = self.holding, holding
        try:
            yield
        finally:
            self.holding = before


def say(line: str) -> None:
    """A line on stderr, from a signal handler: print() must not be entered twice."""
    if processes.is_first():
        os.write(2, f"\n{line}\n".encode(errors="replace"))


STOP = Stop()
