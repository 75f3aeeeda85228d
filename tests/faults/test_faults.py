"""A run survives kills, full disks, loss of power, damage and another process: the short selection of python -m
tests.faults. And what that command itself counts."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import events
from tests.faults.events import Event
from tests.faults.power import Disk
from tests.faults.report import Report, beside

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(events.why_not() is not None, reason=str(events.why_not()))
def test_no_run_is_lost_and_no_number_changes_in_silence(tmp_path):
    ended = subprocess.run([sys.executable, "-m", "tests.faults", "--short", "--out", tmp_path / "faults"], cwd=ROOT,
                           capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = json.loads((tmp_path / "faults.json").read_text())["rows"]
    assert {row["section"].partition(",")[0].partition(":")[0] for row in rows} == {
        "kill", "signal", "full disk", "power", "damage", "two at once"}
    assert all("left over files" not in row["extra"] for row in rows)


# ---- the simulated disk ----------------------------------------------------------------------------------------------

NUMBERS = {"/r/d": 1, "/r/part": 2}


def disk_after(*steps: tuple) -> Disk:
    """Steps: (op, path, other, place, data)."""
    disk = Disk(Path("/r"))
    for number, (op, path, other, place, data) in enumerate(steps, 1):
        disk.apply(Event(number, op, path, other, NUMBERS[path], place, len(data), data))
    return disk


CREATE, WRITE = ("open", "/r/part", "", 0, b""), ("write", "/r/part", "", 0, b"new!")
FLUSH, RENAME = ("flush", "/r/part", "", 0, b""), ("rename", "/r/part", "/r/whole", 0, b"")
FLUSH_DIRECTORY = ("flush", "/r", "", 1, b"")


@pytest.fixture(autouse=True)
def root_has_a_number(monkeypatch):
    monkeypatch.setitem(NUMBERS, "/r", 9)


def test_what_was_not_flushed_may_be_gone_torn_or_there():
    disk = disk_after(CREATE, WRITE, RENAME)
    assert [disk.tree("all", data) for data in ("none", "zeros", "half", "all")] == [
        {"whole": b""}, {"whole": bytes(4)}, {"whole": b"ne\0\0"}, {"whole": b"new!"}]
    assert disk.tree("flushed", "all") == {}


def test_a_flushed_file_keeps_its_bytes_and_may_lose_its_name():
    disk = disk_after(CREATE, WRITE, FLUSH, RENAME)
    assert disk.tree("all", "none") == {"whole": b"new!"}
    assert disk.tree("flushed", "none") == {} and disk.tree("journal", "none") == {"part": b"new!"}


def test_a_flushed_directory_keeps_the_name():
    disk = disk_after(CREATE, WRITE, FLUSH, RENAME, FLUSH_DIRECTORY)
    assert all(disk.tree(names, "none") == {"whole": b"new!"} for names in ("flushed", "journal", "all"))


def test_a_file_in_a_directory_that_was_not_flushed_is_gone():
    NUMBERS["/r/d/file"] = 3
    steps = [("mkdir", "/r/d", "", 0, b""), ("open", "/r/d/file", "", 0, b""), ("flush", "/r/d", "", 1, b"")]
    assert disk_after(*steps).tree("flushed", "all") == {}
    assert disk_after(*steps, FLUSH_DIRECTORY).tree("flushed", "all") == {"d": None, "d/file": b""}


def test_two_directories_that_are_exchanged_take_their_files_along():
    NUMBERS.update({"/r/d/a": 3, "/r/e": 4, "/r/e/b": 5})
    steps = [("mkdir", "/r/d", "", 0, b""), ("open", "/r/d/a", "", 0, b""), ("mkdir", "/r/e", "", 0, b""),
             ("open", "/r/e/b", "", 0, b""), ("exchange", "/r/d", "/r/e", 0, b"")]
    assert disk_after(*steps).tree("all", "all") == {"d": None, "d/b": b"", "e": None, "e/a": b""}


def test_a_rename_that_was_not_seen_is_found_by_the_inode():
    NUMBERS["/r/other"] = NUMBERS["/r/part"]
    disk = disk_after(CREATE, WRITE, ("rename", "/r/other", "/r/whole", 0, b""))
    assert disk.tree("all", "all") == {"whole": b"new!"}


# ---- the table -------------------------------------------------------------------------------------------------------

def test_the_table_counts_and_names_what_is_not_the_same(capsys, tmp_path):
    report = Report()
    report.add("kill", "a", "same")
    report.add("kill", "a", "lost", "event 3", steps_lost=2)
    report.write(tmp_path / "x")
    assert "| kill | a | 2 | 1 |  |  | 1 |  |  |  | steps lost 2 |" in (tmp_path / "x.md").read_text()
    assert json.loads((tmp_path / "x.json").read_text())["rows"][0]["details"] == ["lost: event 3"]
    assert report.bad == 1 and "kill, a: lost: event 3" in capsys.readouterr().out


def test_two_reports_stand_side_by_side(tmp_path):
    for name, outcome in (("a", "lost"), ("b", "same")):
        report = Report()
        report.add("kill, full", "each", outcome)
        report.write(tmp_path / name)
    assert beside(tmp_path / "a.json", tmp_path / "b.json").splitlines() == [
        "| section | cases | same | lost |", "|---|---:|---:|---:|", "| kill | 1 / 1 | 0 / 1 | 1 / 0 |"]
