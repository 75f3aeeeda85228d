"""Do the cells of one or several plans, many at a time, within a time limit. Given again, do what is missing.

    python -m experiments.run plr --model smollm2 --data DATA --jobs 12 --seconds 280 --device cuda --out DIR
    python -m experiments.run plr --data DATA --scale 0.01 --out DIR      # try a plan out, embedded base

A plan is a module of experiments/plans. Cells of all plans named go by their priority: 0 for the first seed of what a
claim needs, 1 for the second, and so on. The results go to DIR/cells.json as cells end. Runs and quantized bases
are kept in --scratch while they are needed; a directory in memory, such as /dev/shm, saves time.

Each session records the commit of this tree. Where there is no git, name it by the environment variable
EXPERIMENTS_COMMIT.
"""
import argparse
import importlib
import json
import os
import pkgutil
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from experiments import plans as every_plan
from experiments.cells.file import read_cells, write_cells
from experiments.cells.plan import Cell, Plan, Settings, checked, selected
from experiments.cells.pool import Facts, Pool
from experiments.cells.work import do
from experiments.shared import experiment_parser, run_experiment, tree_commit
from finetune.values import default_dtype

PLANS = tuple(module.name for module in pkgutil.iter_modules(every_plan.__path__)
              if module.name not in ("method_rows", "rows"))


def options_parser() -> argparse.ArgumentParser:
    parser = experiment_parser(__doc__)
    parser.add_argument("plan", nargs="+", choices=PLANS, metavar="plan", help=f"do these plans: {', '.join(PLANS)}")
    parser.add_argument("--out", type=Path, default=Path("runs/cells"),
                        help="write cells.json and logs to this directory (default: %(default)s)")
    parser.add_argument("--model", type=Path, help="start from this model (default: the embedded base)")
    parser.add_argument("--data", type=Path, default=Path("data"),
                        help="read data sets in this directory (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N",
                        help="do this many cells at a time (default: the number of CPUs)")
    parser.add_argument("--seconds", type=float, default=1e9, metavar="S",
                        help="end after S seconds; cells that would take longer are not started (default: no limit)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                        help="compute on this device (default: cuda if there is one, else cpu)")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X",
                        help="multiply rows and steps by X, to try a plan out (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD",
                        help="do only cells whose name holds one of the words, and what they need (default: all)")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="keep runs in this directory (default: OUT/runs)")
    parser.add_argument("--list", action="store_true", help="list the cells and their guessed seconds; do nothing")
    return parser


def main() -> None:
    began, options = time.monotonic(), options_parser().parse_args()
    out, scratch = options.out, options.scratch or options.out / "runs"
    model = options.model.resolve() if options.model else None
    plans = plans_of(options.plan, Settings(model, options.data.resolve(), options.device, options.scale,
                                            scratch.resolve()))
    cells = selected([cell for plan in plans for cell in plan.cells], options.only)
    if options.list:
        return show(cells)
    settings = {"model": options.model and options.model.name, "scale": options.scale}
    session = {"machine": machine(options.device), "jobs": options.jobs,
               "began": time.strftime("%Y-%m-%d %H:%M:%S"), "plans": options.plan, "commit": tree_commit()}
    results = Results(out / "cells.json", plans, settings, session, {
        str(scratch.resolve()): "CELLS", str(options.data.resolve()): "DATA",
        **({str(options.model.resolve()): options.model.name} if options.model else {})})
    (out / "logs").mkdir(parents=True, exist_ok=True)
    scratch.mkdir(parents=True, exist_ok=True)
    pool = Pool(do, options.jobs, scratch.resolve(), out / "logs", results.keep, began + options.seconds,
                results.done())
    try:
        pool.run(cells)
    finally:
        results.end(time.monotonic() - began)
    print(results.line(cells))


def plans_of(names: Sequence[str], settings: Settings) -> list[Plan]:
    """Raises ValueError for cells of the same name, in one plan or in two."""
    plans = [importlib.import_module(f"experiments.plans.{name}").plan(settings) for name in names]
    checked([cell for plan in plans for cell in plan.cells])
    return plans


def show(cells: list[Cell]) -> None:
    for cell in sorted(cells, key=lambda cell: cell.priority):
        states = ", ".join(cell.states)
        print(f"{cell.priority:3} {cell.seconds:6.1f} s  {cell.name}: {' '.join(cell.argv)}  -> {states}")
    print(f"{len(cells)} cells, {sum(cell.seconds for cell in cells):.0f} s by the plan's guesses")


SAVED_EVERY = 5.0  # seconds: all cells take some tenths of a second to write


class Results:
    """cells.json: read once, written anew at the end, and after a cell if the last time is SAVED_EVERY ago.

    settings: what all cells of the file have in common. session: of this run. places: directories of this machine, and
    what the file calls them."""

    def __init__(self, file: Path, plans: list[Plan], settings: dict, session: dict, places: dict[str, str]):
        self.file, self.places, self.saved_at = file, places, -SAVED_EVERY
        self.plan_of = {cell.name: plan.name for plan in plans for cell in plan.cells}
        self.kept = read_cells(file) if file.is_file() else {"plans": {}, "cells": {}, "sessions": []}
        if self.kept.get("settings", settings) != settings:
            sys.exit(f"error: {file} holds cells with other settings, {json.dumps(self.kept['settings'])}: give "
                     "another --out")
        self.kept.pop("note", None)  # of a copy, which this is no more
        self.kept["settings"] = settings
        self.kept["plans"] |= {plan.name: plan.about for plan in plans}
        planned = {plan.name: [cell.name for cell in plan.cells] for plan in plans}
        self.kept["planned"] = {**self.kept.get("planned", {}), **planned}
        self.kept["sessions"].append(session)

    def done(self) -> dict[str, Facts]:
        return {name: facts for name, facts in self.kept["cells"].items() if "error" not in facts}

    def keep(self, name: str, facts: Facts) -> None:
        facts = {"plan": self.plan_of[name], **facts}
        if "argv" in facts:
            facts["argv"] = [named(word, self.places) for word in facts["argv"]]
        self.kept["cells"][name] = facts
        if time.monotonic() - self.saved_at >= SAVED_EVERY:
            write_cells(self.file, self.kept)
            self.saved_at = time.monotonic()

    def end(self, seconds: float) -> None:
        self.kept["sessions"][-1]["seconds"] = round(seconds, 1)
        write_cells(self.file, self.kept)

    def line(self, cells: list[Cell]) -> str:
        done, failed = self.done(), [n for n, facts in self.kept["cells"].items() if "error" in facts]
        n = sum(cell.name in done for cell in cells)
        return (f"{n} of {len(cells)} cells done, {len(failed)} failed, "
                f"{self.kept['sessions'][-1]['seconds']:.0f} s: {self.file}")


def named(word: str, places: dict[str, str]) -> str:
    """`named("/tmp/x/rows.txt", {"/tmp/x": "CELLS"}) == "CELLS/rows.txt"`"""
    return next((name + word.removeprefix(place) for place, name in places.items()
                 if word == place or word.startswith(f"{place}/")), word)


def machine(device: str) -> dict:
    name = torch.cuda.get_device_name() if device.startswith("cuda") else f"CPU, {platform.machine()}"
    return {"device": name, "torch": torch.__version__, "python": platform.python_version(), "dtype": default_dtype()}


if __name__ == "__main__":
    run_experiment(main)
