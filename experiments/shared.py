"""Helpers of all experiments: options, runs in separate processes, Markdown tables."""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from finetune.command import Work, line_of
from finetune.stop import STOP, Stopped
from model.files import write_json

NOT_RECORDED = "not recorded"
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def experiment_parser(doc: str, out: str | None = None) -> argparse.ArgumentParser:
    """A parser whose help is the experiment's own docstring. `out` is the default of --out."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    if out:
        parser.add_argument("--out", type=Path, default=Path(out),
                            help="keep runs, logs and tables in this directory (default: %(default)s)")
    return parser


def run_experiment(main: Callable[[], None]) -> None:
    """An error of what was given is one line; with --debug, and of another kind, a traceback. A signal that asks to
    stop is one line, too, after all that `finally` does: workers are ended, results are written."""
    try:
        with STOP.watching(stopped_line):
            main()
    except Stopped as stopped:
        print(stopped_line(str(stopped)), file=sys.stderr)
        sys.exit(128 + stopped.number)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if "--debug" in sys.argv:
            raise
        sys.exit(line_of(error, Work()))


def stopped_line(by: str) -> str:
    return f"{by}: stopped; give the same command again to go on"


def spread(values: Sequence[float], digits: int, sign: str = "", scale: float = 1) -> str:
    """scale * (mean ± sample standard deviation): `spread([1, 2, 3], 1) == "2.0 ± 1.0"`. One value has no deviation."""
    deviation = f" ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * statistics.mean(values):{sign}.{digits}f}{deviation}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (head, ["---"] * len(head), *rows))


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


def tree_commit(folder: Path = Path(__file__).parent) -> str:
    """The commit of the tree that `folder` is in, with `-dirty` if files of it were changed. Without git, what the
    environment variable EXPERIMENTS_COMMIT says, else `not recorded`."""
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty", "--exclude", "*"], cwd=folder,
                              capture_output=True, text=True)
    except OSError:
        return os.environ.get("EXPERIMENTS_COMMIT") or NOT_RECORDED
    return done.stdout.strip() if done.returncode == 0 else os.environ.get("EXPERIMENTS_COMMIT") or NOT_RECORDED


def make_run(arguments: Sequence[str], folder: Path, finished: str) -> None:
    """Run `python ARGUMENTS --out FOLDER`, unless FOLDER already holds the file `finished`. An interrupted run starts
    again from the beginning, because these runs are too short to be worth resuming."""
    if not (folder / finished).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        python([*arguments, "--out", str(folder)], folder.with_suffix(".log"))
