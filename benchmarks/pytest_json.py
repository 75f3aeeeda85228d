"""A pytest plugin: outcomes as JSON, written while the tests run, so that a run that is stopped leaves what it had.

    REPORT=tests.json python -m pytest -p benchmarks.pytest_json -m cuda tests/cuda"""
import json
import os
import time
from collections import Counter
from pathlib import Path

PLACE, WORKER = os.environ.get("REPORT"), os.environ.get("PYTEST_XDIST_WORKER")
START = time.monotonic()
outcomes: Counter[str] = Counter()
failures: list[dict] = []
skipped: Counter[str] = Counter()
seconds: dict[str, float] = {}


def pytest_runtest_logreport(report) -> None:
    if WORKER:
        return
    seconds[report.nodeid] = seconds.get(report.nodeid, 0.0) + report.duration
    if report.when == "call" or report.outcome != "passed":
        outcomes[report.outcome if report.when == "call" or report.skipped else "error"] += 1
    if report.failed:
        failures.append({"test": report.nodeid, "when": report.when, "text": report.longreprtext[-2500:]})
    if report.skipped:
        skipped[report.longrepr[-1] if isinstance(report.longrepr, tuple) else str(report.longrepr)] += 1
    save(False)


def pytest_collectreport(report) -> None:
    if report.failed and not WORKER:
        failures.append({"test": report.nodeid, "when": "collect", "text": report.longreprtext[-2500:]})
        save(False)


def pytest_sessionfinish(session, exitstatus) -> None:
    if not WORKER:
        save(True)


def save(finished: bool) -> None:
    if not PLACE:
        return
    slowest = sorted(seconds.items(), key=lambda item: -item[1])[:12]
    content = {"finished": finished, "seconds": round(time.monotonic() - START, 1), "outcomes": dict(outcomes),
               "failed": [failure["test"] for failure in failures], "failures": failures, "skipped": dict(skipped),
               "slowest": {name: round(taken, 2) for name, taken in slowest}}
    beside = Path(f"{PLACE}.part")
    beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, PLACE)
