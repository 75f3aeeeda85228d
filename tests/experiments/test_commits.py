"""Which commit made the cells: recorded by each session, told by findings."""
import subprocess

from experiments import findings, run, shared
from experiments.claims.evidence import Cells
from tests.cli import call

SESSION = {"machine": {"device": "none", "torch": "0"}, "jobs": 2, "began": "2026-11-27 00:00:00", "plans": ["plr"]}


def git(folder, *words):
    subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x", *words], cwd=folder, check=True,
                   capture_output=True)


def test_the_commit_of_the_tree_and_whether_it_was_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPERIMENTS_COMMIT", "of the environment")
    git(tmp_path, "init")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "one")
    git(tmp_path, "tag", "-a", "v1", "-m", "a name that is no commit")
    commit = shared.tree_commit(tmp_path)
    assert len(commit) >= 7 and set(commit) <= set("0123456789abcdef")
    (tmp_path / "a").write_text("2")
    assert shared.tree_commit(tmp_path) == f"{commit}-dirty"


def test_without_git_the_environment_says_it(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("EXPERIMENTS_COMMIT", "1234567")
    assert shared.tree_commit(tmp_path) == "1234567"
    monkeypatch.setenv("PATH", "")  # no git at all
    assert shared.tree_commit(tmp_path) == "1234567"
    monkeypatch.delenv("EXPERIMENTS_COMMIT")
    assert shared.tree_commit(tmp_path) == "not recorded"


def test_a_session_records_it(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "tree_commit", lambda: "1234567-dirty")
    monkeypatch.setattr(run.Pool, "run", lambda pool, cells: None)
    call(run, "methods", "--device", "cpu", "--out", str(tmp_path), "--only", "methods-base-16-16")
    assert run.read_cells(tmp_path / "cells.json")["sessions"][0]["commit"] == "1234567-dirty"


def test_findings_tell_the_commits_of_the_plans_own_sessions():
    cells = Cells([])
    cells.files = [{"plans": {"plr": "Base: x"}, "sessions": [
        SESSION, {**SESSION, "commit": "aaaaaaa"}, SESSION, {**SESSION, "plans": ["scale"], "commit": "bbbbbbb"}]}]
    assert findings.provenance(cells, "plr", None)["commit"] == "not recorded (2 sessions), aaaaaaa (1 session)"
    assert findings.provenance(cells, "plr", "a, b (later)")["commit"] == "a, b (later)"
    cells.files[0]["sessions"] = cells.files[0]["sessions"][1:2]
    assert findings.provenance(cells, "plr", None)["commit"] == "aaaaaaa"
