"""Judge the papers' claims by cells: write a record and pictures for each plan, for docs/results.md.

    python -m experiments.findings runs/cells/cells.json
    python -m experiments.results_page

A record is experiments/results/PLAN.json; its pictures are beside it. With cells of the plans methods_real, plr and
ptq_qlora, overview.png is drawn, too: README.md shows it. Several files of cells are read as one.
"""
import argparse
import importlib
import pkgutil
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from experiments import claims
from experiments.cells.plan import value_after
from experiments.claims import overview
from experiments.claims.claim import listed
from experiments.claims.evidence import Cells
from experiments.results_page import RESULTS
from experiments.shared import NOT_RECORDED, experiment_parser, run_experiment
from finetune.config import DataConfig
from model.files import some, write_json


def options_parser() -> argparse.ArgumentParser:
    parser = experiment_parser(__doc__)
    parser.add_argument("cells", type=Path, nargs="+", help="read these files of experiments.run")
    parser.add_argument("--out", type=Path, help="write to this directory (default: experiments/results)")
    parser.add_argument("--commit", metavar="TEXT",
                        help="name what made the cells by this text: a commit, or several and when each was used "
                             "(default: the commits that the sessions recorded)")
    return parser


def main() -> None:
    options = options_parser().parse_args()
    cells, out = Cells(options.cells), options.out or RESULTS
    out.mkdir(parents=True, exist_ok=True)
    for name, facts in cells.failed.items():
        print(f"failed: {name}: {facts['error']}")
    for name in judged_plans(cells):
        record = importlib.import_module(f"experiments.claims.{name}").record(cells, out)
        write_json(out / f"{name}.json", {**provenance(cells, name, options.commit), **record})
        print(f"{record['title']}\n" + "\n".join(f"- {finding}" for finding in record["findings"]))
    if overview.can_be_drawn(cells):
        overview.draw(cells, out / overview.NAME)


def judged_plans(cells: Cells) -> list[str]:
    """Those that have cells here, and a module of claims."""
    modules = [module.name for module in pkgutil.iter_modules(claims.__path__)]
    plans = {facts["plan"] for facts in cells.facts.values()}
    return [name for name in modules if name in plans]


def provenance(cells: Cells, plan: str, commit: str | None) -> dict:
    """Date, machine and command of the sessions that did cells of this plan, and the plan's own text."""
    sessions = [session for file in cells.files for session in file["sessions"] if plan in session["plans"]]
    jobs: dict[str, set[int]] = {}
    for session in sessions:
        machine = session["machine"]
        words = [machine["device"], f"torch {machine['torch']}", *([machine["dtype"]] if "dtype" in machine else [])]
        jobs.setdefault(", ".join(words), set()).add(session["jobs"])
    machines = [f"{name}, {', '.join(map(str, sorted(of_name)))} workers" for name, of_name in sorted(jobs.items())]
    plans = " ".join(dict.fromkeys(name for session in sessions for name in session["plans"]))
    planned = cells.planned(plan)
    done = sum(facts["plan"] == plan and (name in planned or not planned) for name, facts in cells.facts.items())
    failed = sum(facts["plan"] == plan for facts in cells.failed.values())
    seconds, unknown = (sum(session.get("seconds", 0) for session in sessions),
                        sum("seconds" not in session for session in sessions))
    failures = f", {failed} failed" if failed else ""
    of = f" of {len(planned)}" if planned else ""
    lost = f", {unknown} of them without a record of its seconds" * bool(unknown)
    counted = (f"{done}{of} cells of this plan are done{failures}, in {len(sessions)} sessions of {seconds:.0f} s in "
               f"all{lost}, which other plans shared.{missing(planned, set(cells.facts))}")
    return {"date": min(session["began"] for session in sessions)[:10], "machine": "; ".join(machines),
            "commit": commit or commits_of(sessions),
            "command": [f"python -m experiments.run {plans} --model smollm2 --data DATA"],
            "about": [*paragraphs(cells.about(plan)), *rows_used(cells, plan), *on_devices(cells, plan),
                      counted]}


def commits_of(sessions: Sequence[dict]) -> str:
    """`not recorded (2 sessions), 50195cf (1 session)`; of one commit, its name alone."""
    counts = Counter(session.get("commit", NOT_RECORDED) for session in sessions)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{commit} ({n} session{'s' * (n > 1)})" for commit, n in counts.items())


def rows_used(cells: Cells, plan: str) -> list[str]:
    """`Rows that were trained on, and of validation. banking77: 1,800 and 200. ...`"""
    of_tasks: dict[str, set[str]] = {}
    for facts in (facts for facts in cells.facts.values() if facts["plan"] == plan and "rows" in facts):
        task = value_after(facts["argv"], "--task") if "--task" in facts["argv"] else DataConfig.task
        of_tasks.setdefault(task, set()).add(f"{facts['rows']['train']:,} and {facts['rows']['validation']:,}")
    said = "; ".join(f"{task}: {' or '.join(sorted(counts))}" for task, counts in sorted(of_tasks.items()))
    told = f"Rows that were trained on, and of validation. {said}. Rows longer than --max-length are left out."
    return [told] if said else []


DIFFERENT = 24  # names of cells that are told, seeds apart


def on_devices(cells: Cells, plan: str) -> list[str]:
    """Which planned cells were computed on another device than most. No sentence if all were on one."""
    planned = set(cells.planned(plan)) or set(cells.facts)
    found: dict[str, list[str]] = {}
    for name, facts in cells.facts.items():
        if facts["plan"] == plan and name in planned and "--device" in facts.get("argv", ()):
            found.setdefault(value_after(facts["argv"], "--device"), []).append(name.removeprefix(f"{plan}-"))
    if len(found) < 2:
        return []
    most = max(found, key=lambda device: len(found[device]))
    stays = set(map(without_seed, found[most]))
    said = [f"{len(names)} with --device {device} ({some(seeds_together(names, stays), DIFFERENT, '; ')})"
            for device, names in sorted(found.items()) if device != most]
    return [f"Devices. {len(found[most])} cells were computed with --device {most}, {' and '.join(said)}. "
            "experiments.same_cells compares cells of two devices."]


def seeds_together(names: Sequence[str], elsewhere: set[str]) -> list[str]:
    """`["a, seeds 1 and 2", "b"]`: the seeds are told where others of the same cell are elsewhere."""
    seeds: dict[str, list[str]] = {}
    for name in names:
        seeds.setdefault(without_seed(name), []).append(name.rpartition("-seed")[2])
    return [f"{cell}, seed{'s' * (len(own) > 1)} {listed(own)}" if cell in elsewhere else cell
            for cell, own in seeds.items()]


def without_seed(name: str) -> str:
    return name.rpartition("-seed")[0] or name


NAMED = 6  # missing cells of a seed that are named; of more, their number is told


def missing(planned: list[str], done: set[str]) -> str:
    """` Missing: of seed 1, 1 of 14 (plr-banking77-qablora-2); of seed 2, 10 of 10.` No text if nothing is."""
    seeds: dict[str, list[str]] = {}
    for name in planned:
        cell, _, seed = name.rpartition("-seed")
        seeds.setdefault(f"of seed {seed}" if cell else "of cells without a seed", []).append(name)
    said = []
    for seed, names in sorted(seeds.items()):
        gone = [name for name in names if name not in done]
        listed = ", ".join(map(without_seed, gone))
        if gone:
            said.append(f"{seed}, {len(gone)} of {len(names)}" + (f" ({listed})" if len(gone) <= NAMED else ""))
    return f" Missing: {'; '.join(said)}." if said else ""


def paragraphs(text: str) -> list[str]:
    """A line that begins with a word and a colon begins a paragraph: `Tests: ...`."""
    found: list[str] = []
    for line in text.splitlines():
        if found and not re.match(r"[A-Z][\w ]*:", line):
            found[-1] += f" {line}"
        else:
            found.append(line)
    return found


if __name__ == "__main__":
    run_experiment(main)
