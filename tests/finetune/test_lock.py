"""One writer in a directory: of processes that really race, one wins, and the others say who it is."""
import errno
import fcntl
import os
import shutil
from pathlib import Path

import pytest

from finetune.lock import LOCK, Held, ReadOnly, hold, release, release_all, sweep_locks
from finetune.run import check_out, new_run
from tests.processes import another_holds, another_process, read_only, said_by

pytestmark = pytest.mark.usefixtures("elsewhere", "released")
X = Path("x")


@pytest.fixture
def released():
    yield
    release_all()


def outcome(task) -> str:
    try:
        task()
        return f"won by {os.getpid()}"
    except (Held, FileExistsError) as error:
        return str(error)


@pytest.mark.parametrize("task", [lambda: hold(X), lambda: new_run(X, "")], ids=["hold", "new_run"])
def test_of_processes_that_start_at_once_one_wins_and_the_others_name_it(task):
    said = said_by(lambda: outcome(task), 6)
    winners = [text for text in said if text.startswith("won by ")]
    assert len(winners) == 1
    pid = winners[0].removeprefix("won by ")
    # between locking and writing its name, the winner is "another process"
    assert all(f"process {pid} on " in text or "another process" in text for text in said if text not in winners)
    hold(X)  # their end has released it


def test_runs_without_a_name_each_get_one_of_their_own():
    said = said_by(lambda: str(new_run(None, "m").path), 4)
    assert sorted(said) == [f"runs/m-{i}" for i in range(1, 5)]


def test_a_killed_process_leaves_no_lock_and_the_message_says_who_holds_it_now():
    with another_holds(X) as pid:
        with pytest.raises(Held, match=rf"x: process {pid} on \S+ \(python .*, since 20\d\d-.*\) writes there now"):
            hold(X)
        with pytest.raises(Held):
            hold(X, shared=True)
    hold(X)  # it was killed
    hold(X)  # one process may ask twice


def test_shared_locks_go_beside_each_other_and_not_beside_a_writer():
    with another_process(lambda: hold(X, shared=True)):
        hold(X, shared=True)
        with pytest.raises(Held):
            hold(X)
    release(X)
    hold(X)


def test_a_directory_that_was_removed_and_made_again_is_locked_anew():
    hold(X)
    shutil.rmtree(X)
    with another_holds(X), pytest.raises(Held):
        hold(X)


def test_lock_files_of_killed_processes_are_swept_and_no_others(tmp_path):
    said = '{"pid": 1, "host": "h", "command": "python export.py", "since": "now"}'
    for name, text in ((".a.lock", said), (".b.lock", ""), (".empty.lock", ""), (".json.lock", "{}"), ("c.lock", said),
                       (".lock", said)):
        Path(name).write_text(text)
    Path(".link.lock").symlink_to("c.lock")
    with another_process(lambda: hold(Path(), ".held.lock")):
        sweep_locks(Path(), ".b.lock")
        assert sorted(path.name for path in Path().iterdir()) == [
            ".empty.lock", ".held.lock", ".json.lock", ".link.lock", ".lock", "c.lock"]
    hold(Path(), ".held.lock")
    sweep_locks(Path(), ".held.lock")  # our own
    assert Path(".held.lock").exists()
    release_all()
    sweep_locks(Path(), ".d.lock")
    assert not Path(".held.lock").exists()
    sweep_locks(Path("nowhere"), ".d.lock")


def test_a_damaged_lock_file_still_locks_and_its_text_is_made_printable():
    with another_holds(X):
        (X / LOCK).write_text("{")
        with pytest.raises(Held, match="x: another process writes there now"):
            hold(X)
        (X / LOCK).write_text('{"pid": 1, "host": "h", "command": "a\\u001b[2Jb", "since": "now"}')
        with pytest.raises(Held, match=r"process 1 on h \(a\?\[2Jb, since now\)"):
            hold(X)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    X.mkdir()
    with read_only(tmp_path), pytest.raises(ReadOnly, match=r"x cannot be written \(Permission denied\)"):
        hold(X)


def test_a_planted_link_is_not_followed(tmp_path):
    X.mkdir()
    Path("precious").write_text("mine")
    (X / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError):
        hold(X)
    assert Path("precious").read_text() == "mine"


def test_a_file_system_without_locks_is_said_and_used(monkeypatch, capsys):
    def none(*rest):
        raise OSError(errno.ENOLCK, "No locks available")
    monkeypatch.setattr(fcntl, "flock", none)
    hold(X)
    said = capsys.readouterr().err
    assert "x: this file system has no locks (flock): let nothing else write there" in said


def test_what_a_start_leaves_that_was_cut_off_is_no_run(tmp_path):
    """It was killed before its config.json had its name. Anything else is somebody's."""
    X.mkdir()
    (X / "tokenizer.json").write_text("{}")
    with pytest.raises(FileExistsError, match="--out x already holds something"):
        check_out(X)  # no lock: of somebody else
    (X / LOCK).touch()
    (X / ".config.json.123.part").write_text("{")
    check_out(X)
    assert new_run(X, "").path == X
    for name in ("config.json", "notes.txt"):
        (X / name).write_text("{}")
        with pytest.raises(FileExistsError):
            check_out(X)
        (X / name).unlink()


def test_a_directory_that_can_never_be_made_is_refused_and_not_tried_for_ever(tmp_path, monkeypatch):
    def mkdir(*arguments, **flags):
        raise FileNotFoundError(2, "No such file or directory")
    monkeypatch.setattr("pathlib.Path.mkdir", mkdir)
    with pytest.raises(ReadOnly, match="x cannot be made .No such file or directory"):
        hold(tmp_path / "x")
