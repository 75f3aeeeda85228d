"""Harms runs of the product in every way that power, disks, signals and other processes do, and counts how they end.

    python -m tests.faults                          # all sections; about half an hour
    python -m tests.faults kill power --out faults  # some; faults.json and faults.md
    python -m tests.faults --short                  # what CI runs; about half a minute
    python -m tests.faults --beside a.json b.json   # two reports in one table

Ends with status 1 if a run was lost, gave other numbers without a word, or showed a traceback.
"""
import argparse
import errno
import shutil
import sys
import time
from pathlib import Path

from tests.faults import events

SECTIONS = ("kill", "signal", "disk", "power", "damage", "pairs", "processes")
METHODS = ("qablora", "full", "gptq")


def command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help=f"run these of {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--tree", type=Path, default=Path(), help="try the product in this directory (default: here)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every N-th event (default: each)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["qablora"], help="train by these methods")
    parser.add_argument("--short", action="store_true", help="a selection for CI")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write FILE.json and FILE.md")
    parser.add_argument("--beside", type=Path, nargs="+", metavar="FILE.json", help="print these reports in one table")
    given = parser.parse_args()
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"{', '.join(unknown)}: not a section; there are {', '.join(SECTIONS)}")
    return given


def main() -> None:
    given = command_line()
    from tests.faults.report import Report, beside
    if given.beside:
        return print(beside(*given.beside))
    if why := events.why_not():
        sys.exit(f"skipped: {why}")
    load_product(given.tree.resolve())
    from tests.faults.bench import Bench
    report, begun = Report(place=given.out), time.monotonic()
    benches = [Bench(given.tree.resolve(), method) for method in given.methods]
    try:
        for bench in benches:
            if given.short:
                short(bench, report)
            else:
                whole(bench, report, given.sections or SECTIONS, given.every)
    finally:
        for bench in benches:
            shutil.rmtree(bench.place, ignore_errors=True)
        print(report.table(), flush=True)
        if given.out:
            report.write(given.out)
    print(f"{sum(sum(r.counts.values()) for r in report.rows)} cases in {time.monotonic() - begun:.0f} s")
    sys.exit(int(report.bad > 0))


def load_product(tree: Path) -> None:
    """All modules, once: a trial is a copy of this process. No tensor is computed with here."""
    sys.path.insert(0, str(tree))
    for name in ("torch._dynamo", "safetensors.torch", "train", "eval", "export", "sample", "judge",
                 "interop.gguf_writer"):
        __import__(name)
    for name in ("matplotlib.pyplot", "pyarrow.parquet"):
        try:
            __import__(name)
        except ImportError:
            pass


def whole(bench, report, sections, every: int) -> None:
    from tests.faults import bad_sectors, damage, foreign, full_disks, kills, pairs, power, processes, stop_signals
    first = bench.method == "qablora"
    if "kill" in sections:
        kills.at_every_event(bench, report, every)
        kills.at_random(bench, report, 20 // every)
        kills.commands_again(bench, report, f"kill, {bench.method}", events.KILL, every=every)
    if "signal" in sections and first:
        stop_signals.all_signals(bench, report)
        stop_signals.twice(bench, report)
    if "disk" in sections and first:
        full_disks.at_every_event(bench, report, every)
        full_disks.at_every_event(bench, report, 4 * every, errno.EIO)
        full_disks.short_writes(bench, report, 2 * every)
        kills.commands_again(bench, report, "full disk", events.FULL, errno.ENOSPC, every)
        full_disks.small_tmpfs(bench, report, max(2, 24 // every))
    if "power" in sections:
        power.simulated(bench, report, every)
        power.loop_device(bench, report, 2 * every)
    if "damage" in sections:
        damage.every_file(bench, report, 6 if every == 1 else 3)
        if first:
            damage.every_file(bench, report, 6 if every == 1 else 3, foreign.subjects(bench))
        bad_sectors.every_file(bench, report)
    if "pairs" in sections and first:
        pairs.every_pairing(bench, report, 5 if every == 1 else 3)
    if "processes" in sections and first:
        processes.every_fault(bench, report, every)


def short(bench, report) -> None:
    """A few cases of each section."""
    from tests.faults import damage, full_disks, kills, pairs, power, stop_signals
    kills.at_every_event(bench, report, len(bench.events) // 2)
    stop_signals.all_signals(bench, report, stop_signals.SIGNALS[1:2], ("in step 4",))
    full_disks.at_every_event(bench, report, len(bench.events) // 4)
    power.simulated(bench, report, len(list(power.states(bench.events, bench.whole))) // 3)
    damage.every_file(bench, report, 1, [damage.states_and_adapter(bench)], most=1)
    pairs.every_pairing(bench, report, 1, [("resume", "resume", "cut")])


if __name__ == "__main__":
    events.preloaded()
    main()
