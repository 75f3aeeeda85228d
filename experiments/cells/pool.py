"""Workers that do cells, and the one process that hands them out.

The ready cell with the lowest priority is next; ready means that what it needs is done. No cell starts that is expected
to end after the deadline. At the deadline the workers are stopped, and cells that they were doing count as not done.
"""
import contextlib
import multiprocessing
import os
import shutil
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.cells.plan import Cell, run_folder, value_after

Facts = dict[str, Any]
Do = Callable[[Cell, Path], Facts]
LONGER = 1.25  # times as long as the median of its kind: what a cell may take beside the deadline
LAST_LINES = 12  # of a traceback that the results keep


def work(connection: Connection, do: Do, folder: Path, log: Path) -> None:
    """A worker: cells come by the connection, facts go back. It ends when None comes, and after a cell that failed:
    an error of CUDA would make all later ones fail."""
    with open(log, "a", encoding="utf-8", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        while (cell := next_cell(connection)) is not None:
            print(f"==== {cell.name}: {' '.join(cell.argv)}")
            try:
                facts = do(cell, folder)
            except (Exception, SystemExit) as error:
                lines = traceback.format_exception(error)
                print("".join(lines))
                facts = {"error": f"{type(error).__name__}: {error}"[:500],
                         "traceback": "".join(lines).splitlines()[-LAST_LINES:]}
            with contextlib.suppress(BrokenPipeError):
                connection.send(facts)
            if "error" in facts:
                return


def next_cell(connection: Connection) -> Cell | None:
    """None if the process that hands out cells is gone, too."""
    try:
        return connection.recv()
    except EOFError:
        return None


class Worker:
    def __init__(self, do: Do, folder: Path, log: Path):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, do, folder, log), daemon=True)
        self.process.start()
        theirs.close()
        self.cell: Cell | None = None
        self.since = 0.0

    def begin(self, cell: Cell) -> None:
        self.cell, self.since = cell, time.monotonic()
        self.connection.send(cell)

    def result(self) -> Facts:
        """What it sent; an error if the process has ended."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            return {"error": f"the worker ended with exit code {self.process.exitcode}", "traceback": []}

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.send(None)
        self.process.join(0.5)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


@dataclass
class Pool:
    """`keep(name, facts)` is called for each cell as it ends. `done` holds the facts of earlier runs."""
    do: Do
    jobs: int
    folder: Path            # of the runs and shared bases
    logs: Path
    keep: Callable[[str, Facts], None]
    deadline: float         # of time.monotonic()
    done: dict[str, Facts] = field(default_factory=dict)
    left: list[Cell] = field(default_factory=list)
    earlier: dict[str, Facts] = field(default_factory=dict)  # done, before all that they choose from was done
    workers: list[Worker] = field(default_factory=list)
    started: int = 0

    def run(self, cells: Sequence[Cell]) -> None:
        """The cells that are not done. A cell whose need failed gets an error, too."""
        for name in unsettled(cells, self.done):
            self.earlier[name] = self.done.pop(name)
        self.left = [cell for cell in missing(cells, self.done, self.folder)]
        try:
            with tqdm(total=len(self.left), desc="cells", disable=None) as bar:
                while self.left or self.busy:
                    self._hand_out()
                    if not self.busy and not self.workers_wait:
                        break
                    self._collect(bar)
                    if time.monotonic() >= self.deadline:
                        break
        finally:
            for worker in self.workers:
                worker.process.kill() if worker.cell else worker.end()

    @property
    def busy(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.cell]

    @property
    def workers_wait(self) -> bool:
        """Whether a cell can start now."""
        return self._next() is not None

    def _hand_out(self) -> None:
        while len(self.busy) < self.jobs and (cell := self._next()):
            self.left.remove(cell)
            try:
                settled = cell.settled(self.done)
            except ValueError as error:
                self._finish(cell, {"error": str(error), "traceback": []})
                continue
            if (facts := self.earlier.get(cell.name)) and same_choice(cell, settled, facts):
                self._finish(cell, facts)
                continue
            idle = next((worker for worker in self.workers if not worker.cell), None)
            (idle or self._new_worker()).begin(settled)

    def _new_worker(self) -> Worker:
        self.workers.append(Worker(self.do, self.folder, self.logs / f"worker-{self.started}.log"))
        self.started += 1
        return self.workers[-1]

    def _next(self) -> Cell | None:
        """The ready cell of the lowest priority that ends in time."""
        time_left = self.deadline - time.monotonic()
        ready = [cell for cell in self.left
                 if all(need in self.done for need in cell.needs) and self.expected(cell) <= time_left]
        return min(ready, key=lambda cell: cell.priority, default=None)

    def expected(self, cell: Cell) -> float:
        """Seconds: LONGER times the median of the kind's cells that this run has done, or the cell's own guess."""
        known = [facts["wall_seconds"] for facts in self.done.values()
                 if facts.get("kind") == cell.kind and "wall_seconds" in facts]
        return LONGER * (statistics.median(known) if known else cell.seconds)

    def _collect(self, bar: tqdm) -> None:
        """Waits for the first worker that has a result, at most a minute or until the deadline."""
        busy = {worker.connection: worker for worker in self.busy}
        for connection in wait(list(busy), min(60.0, max(0.0, self.deadline - time.monotonic()))):
            worker = busy[connection]  # type: ignore[index]
            cell, worker_facts = worker.cell, worker.result()
            assert cell is not None
            worker.cell = None
            if "error" in worker_facts:
                worker.end()
                self.workers.remove(worker)
            self._finish(cell, worker_facts)
            bar.update()

    def _finish(self, cell: Cell, facts: Facts) -> None:
        self.keep(cell.name, {"tags": dict(cell.tags), **facts})
        if "error" in facts:
            tqdm.write(f"{cell.name} failed: {facts['error']}", file=sys.stderr)
            self._fail_dependents(cell)
        else:
            self.done[cell.name] = facts
        self._remove_runs()

    def _fail_dependents(self, failed: Cell) -> None:
        for cell in [cell for cell in self.left if failed.name in cell.needs]:
            self.left.remove(cell)
            self.keep(cell.name, {"tags": dict(cell.tags), "error": f"it needs {failed.name}, which failed",
                                  "traceback": []})
            self._fail_dependents(cell)

    def _remove_runs(self) -> None:
        """Those that no cell needs any more."""
        waiting = [*self.left, *(worker.cell for worker in self.busy if worker.cell)]
        kept = {name for cell in waiting for name in (cell.name, *cell.runs)}
        for name in [name for name in self.done if name not in kept]:
            shutil.rmtree(run_folder(self.folder, name), ignore_errors=True)


def unsettled(cells: Sequence[Cell], done: dict[str, Facts]) -> list[str]:
    """The names of cells that chose before all they choose from was done, or chose otherwise than they would now."""
    return [cell.name for cell in cells if cell.name in done and cell.choices and not (
        all(name in done for _, names in cell.choices for name in names)
        and same_choice(cell, cell.settled(done), done[cell.name]))]


def same_choice(cell: Cell, settled: Cell, facts: Facts) -> bool:
    """Whether a done cell was given the values that it would be given now."""
    return all(value_after(facts["argv"], cell.argv[place - 1]) == settled.argv[place] for place, _ in cell.choices)


def missing(cells: Sequence[Cell], done: dict[str, Facts], folder: Path) -> list[Cell]:
    """The cells to do. One that was done, but whose run is needed again and gone, is done again."""
    again: set[str] = set()
    for cell in reversed(cells):
        if cell.name not in done or cell.name in again:
            again.update(need for need in cell.runs if not run_folder(folder, need).is_dir())
    for name in again:
        done.pop(name, None)
    return [cell for cell in cells if cell.name not in done]
