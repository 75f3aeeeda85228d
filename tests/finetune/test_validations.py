"""--eval-every, --patience and --lr-schedule in the loop; the progress bar."""
import io
import json
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.progress import in_words
from finetune.schedule import evaluations_left, is_evaluated, learning_rate
from finetune.values import SaveEvery
from tests.finetune.test_loop import SETTINGS, Interrupted, adapted_model, trainer

EVERY_2 = replace(SETTINGS, eval_every=2, save_every=SaveEvery(100))  # 5 steps an epoch, 15 in all
IMPATIENT = replace(EVERY_2, patience=2)


def with_losses(run, losses):
    """The validation loss of the run, as written here; the model trains as it does."""
    left = iter(losses)
    validate = run._validate

    def validated():
        import finetune.loop as loop
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "mean_loss", lambda *rest: next(left))
            validate()
    run._validate = validated
    return run


def rows_with(records, key):
    return [r for r in records if key in r]


def test_eval_every_validates_between_the_ends_of_epochs_and_its_rows_say_so(tmp_path):
    records, plain = [], []
    trainer(tmp_path / "a", adapted_model(), EVERY_2, records.append).run()
    trainer(tmp_path / "b", adapted_model(), replace(EVERY_2, eval_every=None), plain.append).run()
    rows = rows_with(records, "validation_loss")
    assert [r["step"] for r in rows] == [2, 4, 5, 6, 8, 10, 12, 14, 15]  # 10 is both, and evaluated once
    assert [(r["step"], r["epoch"]) for r in rows if "epoch" in r] == [(5, 1), (10, 2), (15, 3)]
    assert {r["eval_every"] for r in rows if "epoch" not in r} == {2}
    assert without_seconds(r for r in records if "eval_every" not in r) == without_seconds(plain)


def without_seconds(records):
    return [{key: value for key, value in r.items() if key != "seconds"} for r in records]


def test_the_best_of_all_validations_is_kept(tmp_path):
    kept = []
    run = trainer(tmp_path, adapted_model(), EVERY_2, keep=lambda: kept.append(run.step))
    with_losses(run, [5, 3, 4, 4, 2, 6, 6, 6, 6]).run()
    assert kept == [2, 4, 8] and run.best == 2


@pytest.mark.parametrize("stop_at,every", [(3, 1), (7, 3), (8, 4)])
def test_a_run_resumed_between_validations_ends_in_the_same_bytes(tmp_path, stop_at, every):
    settings = replace(EVERY_2, patience=100, save_every=SaveEvery(every))
    whole = trainer(tmp_path / "a", adapted_model(dropout=0.2), settings)
    torch.manual_seed(3)
    whole.run()

    def log(record):
        if record["step"] == stop_at and "loss" in record:
            raise Interrupted
    cut = trainer(tmp_path / "b", adapted_model(dropout=0.2), settings, log)
    torch.manual_seed(3)
    with pytest.raises(Interrupted):
        cut.run()
    again = trainer(tmp_path / "b", adapted_model(dropout=0.2), settings)
    again.load_state()
    again.run()
    assert (again.best, again.since_best) == (whole.best, whole.since_best)
    for name, p in whole.parameters.items():
        assert torch.equal(p, again.parameters[name]), name


# ---- patience -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("settings,losses,step", [
    (IMPATIENT, [5, 4, 4, 3, 3, 3.5], 10),                         # equal is not lower
    (replace(SETTINGS, patience=1), [5, 6], 10),                   # of epochs
    (replace(SETTINGS, epochs=9, patience=3), [5, 6, 4, 6, 6, 6], 30)])
def test_patience_ends_training_after_so_many_validations(tmp_path, capsys, settings, losses, step):
    records, kept = [], []
    run = trainer(tmp_path, adapted_model(), settings, records.append, lambda: kept.append(run.step))
    with_losses(run, losses).run()
    assert run.step == step and run.stopped_early and run.best == min(losses)
    assert records[-1] == {"step": step, "stopped_by": "patience", "validations_since_best": settings.patience,
                           "best_validation_loss": min(losses)}
    said = [line for line in capsys.readouterr().out.splitlines() if "--patience" in line]
    assert said == [f"no lower validation loss in {settings.patience} validations: --patience {settings.patience} ends "
                    f"training at step {step} of {run.total_steps}; the lowest, {min(losses):.4f}, is kept"]


def test_a_run_that_patience_has_ended_goes_no_further(tmp_path, capsys):
    with_losses(trainer(tmp_path, adapted_model(), IMPATIENT), [5, 6, 6]).run()
    capsys.readouterr()
    again = trainer(tmp_path, adapted_model(), IMPATIENT, lambda record: pytest.fail("it went on"))
    again.load_state()
    assert again.goes_on_at() == "behind step 5, where --patience 2 ended its training"
    again.run()
    assert again.step == 5 and "--patience 2 ends training at step 5 of 15" in capsys.readouterr().out


def test_patience_counts_on_where_a_run_was_cut(tmp_path):
    """One validation without a lower loss before the cut, one after it."""
    first = with_losses(trainer(tmp_path, adapted_model(), replace(IMPATIENT, save_every=SaveEvery(4))), [5, 6])
    first.log = lambda record: stop_at(record, 5)
    with pytest.raises(Interrupted):
        first.run()
    again = with_losses(trainer(tmp_path, adapted_model(), IMPATIENT), [6])
    again.load_state()
    assert (again.step, again.since_best) == (4, 1)
    again.run()
    assert again.step == 5 and again.stopped_early


def stop_at(record, step):
    if record["step"] == step:
        raise Interrupted


def test_running_out_of_patience_at_the_last_step_is_no_early_end(tmp_path, capsys):
    records, run = [], trainer(tmp_path, adapted_model(), replace(SETTINGS, patience=1, epochs=2))
    run.log = records.append
    with_losses(run, [5, 6]).run()
    assert run.step == 10 and not run.stopped_early and "--patience" not in capsys.readouterr().out
    assert rows_with(records, "stopped_by") == []


def test_a_state_without_patience_has_the_header_that_it_always_had(tmp_path):
    from model.tensor_files import open_safetensors
    found = []
    for name, settings in (("a", SETTINGS), ("b", replace(SETTINGS, patience=9))):
        trainer(tmp_path / name, adapted_model(), settings).run()
        with open_safetensors(tmp_path / name / "state.safetensors") as file:
            found.append(set(json.loads(file.metadata()["place"])))
    assert found[0] == {"step", "best", "tokens", "seconds", "to_validate"} == found[1] - {"since_best"}


# ---- schedules ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name,at_half", [("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)])
def test_a_schedule_rises_and_then_falls_as_it_says(name, at_half):
    settings = replace(SETTINGS, lr=2.0, warmup=0.1, lr_schedule=name)
    rates = [learning_rate(i, 110, settings) for i in range(110)]
    assert rates[:11] == pytest.approx([2.0 * (i + 1) / 11 for i in range(11)])
    assert all(a >= b for a, b in pairwise(rates[11:])) and rates[11] == 2.0
    assert learning_rate(11 + 33, 11 + 66, replace(settings, warmup=1 / 7)) == pytest.approx(2.0 * at_half)
    assert (rates[-1] == 2.0) == (name == "constant")
    if name == "linear":
        falls = {round(a - b, 9) for a, b in pairwise(rates[11:])}
        assert len(falls) == 1


@given(total=st.integers(1, 60), per_epoch=st.integers(1, 25), every=st.none() | st.integers(1, 25),
       step=st.integers(0, 60))
def test_the_validations_that_are_left_are_counted(total, per_epoch, every, step):
    left = [s for s in range(step + 1, total + 1) if is_evaluated(s, total, per_epoch, every)]
    assert evaluations_left(step, total, per_epoch, every) == len(left)


# ---- the bar --------------------------------------------------------------------------------------------------------

class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_says_what_matters_and_how_long_it_takes(tmp_path, monkeypatch):
    run, times = trainer(tmp_path, adapted_model(), EVERY_2), iter(range(10000))
    monkeypatch.setattr("finetune.loop.time.perf_counter", lambda: float(next(times)))  # each look, a second later
    monkeypatch.setattr(sys, "stderr", Terminal())
    with_losses(run, [5] * 9).run()
    shown = [part for part in sys.stderr.getvalue().split("\r") if "step 5/15" in part and "left" in part]
    assert "step 5/15, 16 s left, loss " in shown[-1]  # 10 steps and 6 validations; the one at step 5 is still to come
    assert "lr 9.4e-03, " in shown[-1] and "tokens/s" in shown[-1]


def test_nothing_is_shown_where_there_is_no_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    trainer(tmp_path, adapted_model(), EVERY_2).run()
    assert sys.stderr.getvalue() == ""


@pytest.mark.parametrize("seconds,words", [(0.2, "0 s"), (45, "45 s"), (200.4, "3 min 20 s"), (7500, "2 h 05 min"),
                                           (273600, "3 d 04 h")])
def test_a_time_in_words(seconds, words):
    assert in_words(seconds) == words
