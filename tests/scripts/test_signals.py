"""Real signals at chosen places. A run that was stopped and resumed ends in the bytes of a run that was not."""
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import eval as eval_script
import export as export_script
import sample as sample_script
import train as train_script
from finetune.loop import Trainer
from finetune.stop import SIGNALS, STOP, Stop, Stopped
from model.checkpoint import open_safetensors
from tests.cli import call, train_once

pytestmark = pytest.mark.usefixtures("elsewhere")
ROOT = Path(__file__).parents[2]
# 36 training rows: 3 steps an epoch
FLAGS = ("--limit", "40", "--test-limit", "4", "--batch-size", "12", "--epochs", "2", "--block", "16x1", "--dropout",
         "0.2", "--max-new-tokens", "2", "--save-every", "2")


@contextmanager
def signal_at(number: int, place: str, nth: int = 1, after: bool = False):
    """Sends this process the signal when the function at `place` is called for the nth time, or has returned."""
    calls = 0
    module, _, name = place.rpartition(":")
    owner = Trainer if module == "Trainer" else sys.modules[module]
    original = getattr(owner, name)

    def aimed(*rest, **more):
        nonlocal calls
        calls += 1
        if calls == nth and not after:
            os.kill(os.getpid(), number)
        result = original(*rest, **more)
        if calls == nth and after:
            os.kill(os.getpid(), number)
        return result
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, aimed)
        yield


def ended(script, *arguments) -> tuple[int, str]:
    """Exit status and last line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
        with pytest.raises(SystemExit) as error:
            script.main()
    return error.value.code, str(error.value)


def what_counts(run: Path) -> dict:
    """All files of a run that a stop must not change, without times."""
    kept = {name: (run / name).read_bytes() for name in ("adapter.safetensors", "base.safetensors",
                                                         "predictions.jsonl", "merged/model.safetensors")}
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = json.loads((run / "results.json").read_text())["rows"]
    with open_safetensors(run / "state" / "state.safetensors") as file:
        state = {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}
    for record in (*metrics, *rows):
        record.pop("seconds", None), record.pop("counts", None), record.pop("check", None)
    return {**kept, "metrics": metrics, "rows": rows, "state": state}


@pytest.fixture
def whole(small_base) -> dict:
    train_once(small_base, *FLAGS, out="whole")
    return what_counts(Path("whole"))


@pytest.mark.parametrize("place,nth,number,said", [
    ("Trainer:_one_step", 1, signal.SIGTERM, "SIGTERM: saved at step 1"),
    ("finetune.loop:collate", 4, signal.SIGINT, "SIGINT: saved at step 3"),  # the validation after it
    *(pytest.param(*values, marks=pytest.mark.slow) for values in (
        ("train:load_base", 1, signal.SIGHUP, "SIGHUP while preparing the base: no step is saved yet"),
        ("Trainer:_one_step", 3, signal.SIGUSR1, "SIGUSR1: saved at step 3"),  # the last of its epoch
        ("Trainer:save_state", 1, signal.SIGTERM, "SIGTERM: saved at step 2"),
        ("Trainer:save_state", 2, signal.SIGTERM, "SIGTERM: saved at step 3"),
        ("finetune.loop:collate", 8, signal.SIGTERM, "SIGTERM: saved at step 6"),  # the last validation
        ("scoring.scores:answers_to_all", 2, signal.SIGINT, "SIGINT while scoring: training is done")))])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(small_base, whole, capsys, place, nth, number, said):
    with signal_at(number, place, nth):
        status, line = ended(train_script, "--model", small_base, *FLAGS, "--out", "x")
    assert status == 128 + number and line.startswith(said)
    assert line.endswith("; go on with: python train.py --resume x")
    assert line in capsys.readouterr().err
    assert call(train_script, "--resume", "x") is None
    shown = capsys.readouterr().out
    assert place.startswith("train:") or "x goes on " in shown
    assert what_counts(Path("x")) == whole


@pytest.mark.slow
@pytest.mark.parametrize("place,words", [
    ("Trainer:_one_step", "goes on at step 2 of 6"), ("finetune.loop:collate", "with the validation after step 3 of 6"),
    ("scoring.scores:answers_to_all", "goes on behind the last of 6 steps")])
def test_resume_says_where_it_goes_on(small_base, capsys, place, words):
    with signal_at(signal.SIGTERM, place, 4 if "collate" in place else 1):
        ended(train_script, "--model", small_base, *FLAGS, "--out", "x")
    with signal_at(signal.SIGTERM, "train:print_plan", after=True):
        status, line = ended(train_script, "--resume", "x")
    assert status == 143 and "saved at step" in line  # what the first stop has saved still stands
    assert call(train_script, "--resume", "x") is None
    assert words in capsys.readouterr().out


def test_a_stop_before_there_is_a_run_leaves_nothing(small_base, tmp_path):
    with signal_at(signal.SIGTERM, "train:prepare_data"):
        status, line = ended(train_script, "--model", small_base, *FLAGS, "--out", "x")
    assert (status, line) == (143, "SIGTERM while preparing the data: nothing was written; give the same command again")
    with signal_at(signal.SIGTERM, "train:copy_tokenizer", after=True):  # the directory, but no config.json
        line = ended(train_script, "--model", small_base, *FLAGS, "--out", "x")[1]
    assert line == "SIGTERM while preparing the data: nothing was kept; give the same command again"
    assert not (tmp_path / "x").exists()


def test_eval_sample_and_export_say_what_is_safe(small_base, whole):
    with signal_at(signal.SIGUSR1, "scoring.scores:answers_to_all", 2, after=True):
        status, line = ended(eval_script, "whole")
    assert status == 128 + signal.SIGUSR1
    assert line == "SIGUSR1 while scoring: the answers so far are kept; the same command goes on"
    assert call(eval_script, "whole") is None and what_counts(Path("whole")) == whole
    with signal_at(signal.SIGINT, "sample:generate"):
        assert ended(sample_script, "whole", "--prompt", "a") == (
            130, "SIGINT while completing: nothing was written; give the same command again")
    with signal_at(signal.SIGHUP, "interop.hand_over:compare"):
        assert ended(export_script, "whole", "--format", "safetensors", "--to", "y") == (
            129, "SIGHUP while exporting: nothing was exported; give the same command again")
    assert not [path for path in Path().iterdir() if path.name.endswith(("y", ".part"))]


def test_a_stop_that_sqlite_swallows_does_not_keep_a_wrong_answer(small_base, whole):
    """An exception in a callback of sqlite3 is lost: the query fails, which would be scored as a wrong answer."""
    import tasks.banking77
    with pytest.MonkeyPatch.context() as patch:
        right = tasks.banking77.Banking77.answers

        def swallowing(self, *rest):
            for place, line in right(self, *rest):
                try:
                    os.kill(os.getpid(), signal.SIGTERM)
                except Stopped:
                    line = {**line, "text": "wrong"}
                yield place, line
        patch.setattr(tasks.banking77.Banking77, "answers", swallowing)
        assert ended(eval_script, "whole")[0] == 143
    assert call(eval_script, "whole") is None and what_counts(Path("whole")) == whole


# ---- the handlers ---------------------------------------------------------------------------------------------------

def test_handlers_are_as_before_afterwards_and_an_ignored_signal_stays_ignored():
    before = [signal.getsignal(number) for number in SIGNALS]
    kept = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with STOP.watching(str):
            assert signal.getsignal(signal.SIGTERM) == STOP._handle
            os.kill(os.getpid(), signal.SIGHUP)
            assert STOP.asked is None and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, kept)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_second_signal_within_a_second_is_the_same_stop(monkeypatch):
    now, gone = [0.0], []
    stop = Stop(lambda: now[0])
    monkeypatch.setattr(os, "_exit", gone.append)
    with stop.watching(str):
        with pytest.raises(Stopped), stop.held():
            os.kill(os.getpid(), signal.SIGTERM)
            now[0] = 0.9
            os.kill(os.getpid(), signal.SIGTERM)
            assert gone == []
            now[0] = 1.0
            os.kill(os.getpid(), signal.SIGINT)
            assert gone == [130]


# ---- other processes ------------------------------------------------------------------------------------------------

# Steps take long, so that signals meet them.
SLOW_STEPS = """
import sys, time
sys.argv = ["train.py", *sys.argv[1:]]
import train
from finetune.loop import Trainer
one_step = Trainer._one_step
def slow(self, *rest):
    print("STEP", flush=True)
    one_step(self, *rest)
    until = time.monotonic() + ({seconds} if self.step >= {from_step} else 0)
    while time.monotonic() < until:
        time.sleep(0.01)
Trainer._one_step = slow
train.main()
"""


def started(small_base, seconds: float, from_step: int, *before: str) -> subprocess.Popen:
    command = [*before, sys.executable, "-c", SLOW_STEPS.format(seconds=seconds, from_step=from_step), "--model",
               str(small_base), *FLAGS, "--dtype", "float32", "--out", "x"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})


def wait_for_step(process: subprocess.Popen, nth: int) -> None:
    for line in process.stdout:
        nth -= line == "STEP\n"
        if not nth:
            return
    raise AssertionError(process.stderr.read())


@pytest.mark.slow
def test_a_process_that_is_terminated_saves_and_says_so(small_base, whole):
    """A hang-up does nothing under nohup."""
    process = started(small_base, 0.5, 1, "nohup")
    wait_for_step(process, 1)
    process.send_signal(signal.SIGHUP)
    wait_for_step(process, 1)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 143 and "Traceback" not in error
    assert "SIGTERM: stopping after this step; a second signal stops at once" in error
    assert error.endswith("SIGTERM: saved at step 2; go on with: python train.py --resume x\n")
    assert call(train_script, "--resume", "x") is None and what_counts(Path("x")) == whole


@pytest.mark.slow
def test_a_second_signal_stops_at_once_and_the_state_on_disk_is_whole(small_base, whole):
    process = started(small_base, 20.0, 3)
    wait_for_step(process, 3)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.1)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and time.monotonic() - start < 10
    assert "a second SIGINT while training: saved at step 2; go on with: python train.py --resume x" in error
    assert call(train_script, "--resume", "x") is None and what_counts(Path("x")) == whole
