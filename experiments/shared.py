"""Helpers of all experiments: one fixed sample of test rows, and runs in separate processes."""
import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from model.files import write_json
from tasks.banking77 import HERE
from tasks.task import shuffled

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def draw_test_rows(path: Path, n: int) -> None:
    """Write n of banking77's 3080 test rows, the same rows every time. They are shuffled because the file is sorted by
    intent."""
    lines = (HERE / "test.jsonl").read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(shuffled(lines, 0)[:n]) + "\n", encoding="utf-8")


def keep_settings(options: argparse.Namespace, names: Sequence[str]) -> None:
    """Save the named settings in --out. Runs with different settings must not share a table, so the program exits if
    --out holds runs with other settings."""
    settings = {name: str(value) if isinstance(value := getattr(options, name), Path) else value for name in names}
    file = options.out / "settings.json"
    if file.is_file() and json.loads(file.read_text()) != settings:
        sys.exit(f"error: {options.out} holds runs with other settings, {file.read_text().strip()}: give another --out")
    write_json(file, settings)


def python(arguments: Sequence[str], log: Path) -> None:
    """Run `python ARGUMENTS` in a separate process on one thread. Its peak memory is then its own, and its numbers do
    not depend on other processes. Its output goes to LOG.part, which is renamed to `log` on success. Raises
    RuntimeError if the process fails."""
    part = log.with_name(f"{log.name}.part")
    with open(part, "w", encoding="utf-8") as file:
        done = subprocess.run([sys.executable, *arguments], stdout=file, stderr=file, env=ONE_THREAD)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed with exit status {done.returncode}: see {part}")
    part.replace(log)


def make_run(arguments: Sequence[str], folder: Path, finished: str) -> None:
    """Run `python ARGUMENTS --out FOLDER`, unless FOLDER already holds the file `finished`. An interrupted run starts
    again from the beginning, because these runs are too short to be worth resuming."""
    if not (folder / finished).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        python([*arguments, "--out", str(folder)], folder.with_suffix(".log"))


def at_once(jobs: int, calls: Sequence[tuple], desc: str) -> None:
    """Call each (function, *arguments), `jobs` of them at a time. `desc` labels the progress bar."""
    with ThreadPoolExecutor(jobs) as pool:
        for _ in tqdm(pool.map(lambda call: call[0](*call[1:]), calls), total=len(calls), desc=desc, disable=None):
            pass
