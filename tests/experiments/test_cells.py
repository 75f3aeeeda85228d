"""The pool of cells, with cells that train nothing; and one real cell."""
import json
import os
import signal
import threading
import time

import pytest

from experiments import run as run_script
from experiments.cells.plan import Cell, Plan, Settings, checked, selected
from experiments.cells.pool import Pool, missing
from experiments.cells.work import packed, unpacked
from experiments.shared import run_experiment
from finetune.stop import STOP
from tests.experiments import fakes


def done_by(tmp_path, cells, jobs=2, seconds=60.0, done=None):
    kept = {}
    runs, logs = tmp_path / "runs", tmp_path / "logs"
    for folder in (runs, logs):
        folder.mkdir(exist_ok=True)
    pool = Pool(fakes.do, jobs, runs, logs, kept.__setitem__, time.monotonic() + seconds, dict(done or {}))
    pool.run(cells)
    return kept


def test_failing_cells_are_recorded_and_kill_no_other(tmp_path):
    cells = [Cell("bad", ["fail"]), Cell("leaves", ["exit"]), Cell("dies", ["die"]),
             Cell("good", ["ok"], tags={"n": 1}),
             Cell("after-bad", ["read", "cell:bad"]), Cell("after-good", ["read", "cell:good"]),
             Cell("last", ["ok"], after=["after-bad"])]
    kept = done_by(tmp_path, cells)
    assert set(kept) == {cell.name for cell in cells}
    assert kept["bad"]["error"] == "ValueError: value 7: at most 6" and kept["bad"]["traceback"]
    assert kept["leaves"]["error"].startswith("SystemExit")
    assert kept["dies"]["error"] == "the worker ended with exit code 9"
    assert kept["after-bad"]["error"] == "it needs bad, which failed"
    assert kept["last"]["error"] == "it needs after-bad, which failed"
    assert "error" not in kept["good"] and "error" not in kept["after-good"] and kept["good"]["tags"] == {"n": 1}


def test_workers_are_kept_and_cells_go_by_priority(tmp_path):
    cells = [Cell("c", ["ok"], priority=2), Cell("a", ["ok"], priority=0), Cell("b", ["ok"], priority=1)]
    kept = done_by(tmp_path, cells, jobs=1)
    assert sorted(kept, key=lambda name: kept[name]["ended"]) == ["a", "b", "c"]
    assert len({facts["pid"] for facts in kept.values()}) == 1


def test_a_worker_whose_cell_failed_does_no_other(tmp_path):
    cells = [Cell("a", ["ok"]), Cell("b", ["ok"]), Cell("bad", ["fail"]), Cell("c", ["ok"])]
    kept = done_by(tmp_path, cells, jobs=1)
    assert kept["a"]["pid"] == kept["b"]["pid"] != kept["c"]["pid"]


def test_the_deadline_is_kept(tmp_path):
    """A cell that is expected to end too late does not start, and one that is too slow is stopped."""
    start = time.monotonic()
    kept = done_by(tmp_path, [Cell("slow", ["sleep", "60"], seconds=0.1), Cell("long", ["ok"], seconds=1000)],
                   seconds=1.5)
    assert kept == {} and time.monotonic() - start < 10


def test_a_signal_ends_the_workers_too(tmp_path, capsys, monkeypatch):
    """`timeout` sends it to the process that hands out cells only."""
    monkeypatch.setattr(STOP, "asked", None)  # as before, for the tests after this one
    pool = Pool(fakes.do, 1, tmp_path, tmp_path, print, time.monotonic() + 60)
    sends = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
    sends.start()
    with pytest.raises(SystemExit) as ended:
        run_experiment(lambda: pool.run([Cell("slow", ["sleep", "60"])]))
    sends.join()
    assert ended.value.code == 128 + signal.SIGTERM
    assert "SIGTERM: stopped; give the same command again" in capsys.readouterr().err
    for worker in pool.workers:
        worker.process.join(10)
        assert worker.process.exitcode == -signal.SIGKILL


def test_done_cells_are_not_repeated_unless_their_run_is_needed(tmp_path):
    first, second = Cell("first", ["ok"]), Cell("second", ["read", "cell:first"])
    done = done_by(tmp_path, [first])
    assert done_by(tmp_path, [first], done=done) == {}
    assert set(done_by(tmp_path, [first, second], done=done)) == {"first", "second"}  # its run was removed
    assert not list((tmp_path / "runs").iterdir())
    assert missing([first, second], {"first": {}, "second": {}}, tmp_path) == []


def test_expected_seconds_are_those_of_the_kind(tmp_path):
    done = {"a": {"kind": "x", "wall_seconds": 8.0}}
    pool = Pool(fakes.do, 1, tmp_path, tmp_path, print, 0.0, done)
    assert pool.expected(Cell("b", [], kind="x", seconds=1)) == 10 and pool.expected(Cell("c", [], seconds=4)) == 5


def test_plans_are_checked_and_selected():
    cells = [Cell("sft", ["a"]), Cell("more", ["--model", "cell:sft"]), Cell("other", ["a"])]
    assert [cell.name for cell in selected(cells, ["more"])] == ["sft", "more"]
    assert checked(cells) == cells
    with pytest.raises(ValueError, match="--only mor2: no cell of these plans has that in its name"):
        selected(cells, ["more", "mor2"])
    with pytest.raises(ValueError, match="two cells are called sft"):
        checked([*cells, cells[0]])
    with pytest.raises(ValueError, match="cell more needs sft, which is no cell before it"):
        checked(cells[1:])


def rate(name, loss):
    return {"argv": ["--lr", name, "--bits", "2"], "training": {"best_validation_loss": loss}}


def test_a_cell_takes_the_value_of_the_best_of_others():
    """Of those with a loss: a training that diverged has none."""
    cell = Cell("seed1", ["--seed", "1", "--lr", "best:a,b,c"])
    done = {"a": rate("0.1", 2.0), "b": rate("0.2", 1.5), "c": rate("0.3", None), "d": rate("0.4", 0.1)}
    assert cell.needs == ["a", "b", "c"] and cell.runs == []
    assert cell.settled(done).argv == ["--seed", "1", "--lr", "0.2"] and cell.argv[-1] == "best:a,b,c"
    with pytest.raises(ValueError, match="seed1: training diverged in all of a, b, c"):
        cell.settled({name: rate("0.1", None) for name in "abc"})


def test_a_choice_without_a_loss_fails_its_cell_only(tmp_path):
    cells = [Cell("seed1", ["ok", "best:a"]), Cell("good", ["ok"])]
    kept = done_by(tmp_path, [Cell("a", ["ok"]), *cells], done={"a": rate("0.1", None)})
    assert kept["seed1"]["error"] == "cell seed1: training diverged in all of a" and "error" not in kept["good"]


def test_a_cell_that_chose_before_a_better_one_was_done_is_done_again(tmp_path):
    """And not if the choice stays."""
    rates = [Cell(name, ["ok", "--lr", name]) for name in ("0.1", "0.2", "0.3")]
    chooser = Cell("seed", ["ok", "--lr", "best:0.1,0.2,0.3"])
    before = {"argv": ["ok", "--lr", "0.2"], "ended": 0}
    for loss, again in ((2.0, False), (1.0, True)):
        done = {"0.1": rate("0.1", 3.0), "0.2": rate("0.2", 1.5), "seed": dict(before), "0.3": rate("0.3", loss)}
        kept = done_by(tmp_path, [*rates, chooser], done=done)
        assert ("seed" in kept) == again
    done |= {"0.3": rate("0.3", 2.0), "seed": dict(before)}
    assert done_by(tmp_path, [*rates, chooser], done=done) == {}
    del done["0.1"]
    kept = done_by(tmp_path, [*rates, chooser], done={**done, "0.2": rate("0.2", 0.5)})
    assert kept["seed"] == {"tags": {}, **before}  # 0.1 was missing, and did not change the choice


def test_results_do_not_name_places_of_the_machine():
    places = {"/x/runs": "CELLS", "/x/smollm2": "smollm2"}
    words = ["--data", "/x/runs/rows/train.jsonl", "/x/smollm2", "/x/runs2/a"]
    assert [run_script.named(word, places) for word in words] == ["--data", "CELLS/rows/train.jsonl", "smollm2",
                                                                  "/x/runs2/a"]


def test_marks_are_packed():
    assert packed([1.0, 0.0, 1.0]) == "101" and unpacked("101") == [1, 0, 1]
    assert unpacked(packed([0.25, 1.0])) == [0.25, 1.0]


def test_a_real_cell_is_trained_scored_restored_and_resumed(tmp_path, monkeypatch, capsys):
    """Through the command, but in this process: QLoRA at 2 bits with min-max, restored to 16."""
    class Here(Pool):
        def run(self, cells):
            for cell in missing(cells, self.done, self.folder):
                self.left, facts = [], self.do(cell, self.folder)
                self._finish(cell, facts)
    shared = ["--limit", "12", "--test-limit", "3", "--batch-size", "4", "--steps", "2", "--targets", "attention"]

    def plan(settings: Settings) -> Plan:
        argv = ["--method", "qlora", "--quantizer", "minmax", "--bits", "2", *settings.flags, *shared]
        return Plan("plr", "what is tested", [Cell("q2", argv, ("quantized", "trained", "restored-16bit"))])
    monkeypatch.setattr("experiments.plans.plr.plan", plan)
    monkeypatch.setattr(run_script, "Pool", Here)
    command = ["run", "plr", "--out", str(tmp_path / "out"), "--jobs", "1", "--device", "cpu"]
    for says in ("1 of 1 cells done, 0 failed", "1 of 1 cells done, 0 failed"):
        monkeypatch.setattr("sys.argv", command)
        run_script.main()
        assert says in capsys.readouterr().out
    kept = json.loads((tmp_path / "out" / "cells.json").read_text())
    facts = kept["cells"]["q2"]
    assert kept["plans"] == {"plr": "what is tested"} and facts["plan"] == "plr" and len(kept["sessions"]) == 2
    assert list(facts["states"]) == ["quantized", "trained", "restored-16bit"]
    restored = facts["states"]["restored-16bit"]
    assert len(restored["marks"]) == 3 and len(facts["training"]["losses"]) == 2
    norm = facts["training"]["validations"][-1]["delta_norm"]
    assert restored["restoration_ratio"] == pytest.approx(facts["base_changes"]["restored-16bit"] / norm, rel=1e-4)
    assert not (tmp_path / "out" / "runs" / "q2").exists()
