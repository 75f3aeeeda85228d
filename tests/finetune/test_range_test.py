"""train.py --find-lr: the trials, the rule, and what is written."""
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import train as train_script
from finetune.loop import TrainingDiverged
from finetune.methods import METHODS
from finetune.range_test import FACTOR, FromOneStart, Trial, growing, recommended, try_rates
from tests.cli import call, few
from tests.finetune.test_loop import adapted_model, trainer

pytestmark = pytest.mark.usefixtures("elsewhere")


def outcome(rates, start, loss_at):
    trials = list(try_rates(rates, start, loss_at))
    return trials, recommended(trials, start)


# ---- the rule, where the right rate is known -----------------------------------------------------------------------

@given(curvature=st.floats(1e-3, 1e3), place=st.floats(-0.5, 0.5), steps=st.integers(1, 30))
def test_on_a_quadratic_the_rate_is_that_of_one_newton_step(curvature, place, steps):
    """f(w) = h w^2 / 2 falls by (1 - rate h)^2 a step: gradient descent is fastest at 1/h, and grows beyond 2/h. The
    grid is wherever it may be beside 1/h."""
    rates = [rate * FACTOR ** place / curvature for rate in growing(1.0)]
    _, rate = outcome(rates, 1.0, lambda rate: (1 - rate * curvature) ** (2 * steps))
    assert 1 / FACTOR < rate * curvature < FACTOR


@given(lowest=st.floats(-2.4, 2.4), height=st.floats(0.1, 5))
def test_the_lowest_point_of_a_parabola_is_found_between_the_rates(lowest, height):
    """Losses that are a parabola of ln(rate): the recommendation is its vertex, to two digits."""
    def loss_at(rate):
        return 10 + height * (math.log(rate / 1e-2) / math.log(FACTOR) - lowest) ** 2
    _, rate = outcome(growing(1e-2), 1e3, loss_at)
    assert rate == pytest.approx(1e-2 * FACTOR ** lowest, rel=0.06)


# ---- trials --------------------------------------------------------------------------------------------------------

def test_rates_grow_until_two_in_a_row_are_above_the_lowest():
    losses = iter([9, 8, 8.5, 7, 8, 6, 6.5, math.nan, 1])
    trials, rate = outcome(growing(1.0), 9.0, lambda rate: next(losses))
    assert [t.loss for t in trials] == [9, 8, 8.5, 7, 8, 6, 6.5, None]
    assert [round(b.rate / a.rate, 6) for a, b in zip(trials, trials[1:], strict=False)] == [round(FACTOR, 6)] * 7
    assert trials[0].rate == 0.01 and trials[5].rate * 0.5 < rate < trials[6].rate


def test_no_rate_is_recommended_if_none_lowers_the_loss():
    trials, rate = outcome(growing(1.0), 5.0, lambda rate: math.nan if rate > 1 else 5.0)
    assert len(trials) == 13 and rate is None


def test_how_far_a_model_goes_astray_does_not_matter():
    found = [recommended([Trial(1, 4.0), Trial(2, 3.0), Trial(4, loss)], 5.0) for loss in (5.0, 1e9, None)]
    assert len(set(found)) == 1 and 1 < found[0] < 2


def test_every_trial_begins_from_the_same_start(tmp_path):
    """The loss at a rate is the same before and after others, dropout included."""
    run = trainer(tmp_path, adapted_model(dropout=0.3))
    before, trials = {n: p.detach().clone() for n, p in run.parameters.items()}, FromOneStart(run, 6)
    assert len(trials.batches) == 6  # more than an epoch
    start, losses = trials.loss(), [trials.loss_at(rate) for rate in (1e-2, 1e3, 1e-2)]
    assert losses[0] == losses[2] != losses[1]
    trials.go_back()
    assert all(torch.equal(before[n], p) for n, p in run.parameters.items()) and trials.loss() == start


def test_a_trial_takes_the_steps_of_training(tmp_path):
    """Without warm-up and fall, the loss after a trial is the validation loss of a run of so many steps."""
    from dataclasses import replace

    from tests.finetune.test_loop import SETTINGS
    settings = replace(SETTINGS, steps=4, warmup=0.0, lr_schedule="constant")
    logged = []
    trainer(tmp_path, adapted_model(), settings, logged.append).run()
    assert FromOneStart(trainer(tmp_path, adapted_model(), settings), 4).loss_at(settings.lr) == logged[-1][
        "validation_loss"]


# ---- the command ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", [m if m == "qablora" else pytest.param(m, marks=pytest.mark.slow)
                                    for m, row in METHODS.items() if row.lr])
def test_a_table_is_printed_and_nothing_else_is_written(small_base, capsys, method):
    flags = ["--calibration-rows", "4"] if method == "qalora" else []
    files = {path: path.read_bytes() for path in small_base.rglob("*") if path.is_file()}
    assert call(train_script, "--model", small_base, "--method", method, *few(method), *flags, "--find-lr", "2",
                "--out", "rates") is None
    shown = capsys.readouterr().out
    record = json.loads(Path("rates/rates.json").read_text())
    assert record["steps"] == 2 and record["config"]["method"] == method
    assert f"recommended: --lr {record['recommended']:g}" in shown
    for trial in record["trials"]:
        assert trial["loss"] is None or f"{trial['rate']:8.1e}  {trial['loss']:.4f}" in shown
    assert {path.name for path in Path().rglob("*") if path.is_file()} <= {"rates.json", "rates.png", ".lock"}
    assert files == {path: path.read_bytes() for path in small_base.rglob("*") if path.is_file()}


def test_a_range_test_that_fails_leaves_nothing(small_base, monkeypatch):
    def fail(*rest):
        raise OSError("no rates today")
    monkeypatch.setattr("finetune.range_test.FromOneStart.loss", fail)
    line = call(train_script, "--model", small_base, "--method", "lora", *few("lora"), "--find-lr", "--out", "rates")
    assert line == "error: no rates today" and not Path("rates").exists()


def test_divergence_is_no_number(tmp_path, monkeypatch):
    run = trainer(tmp_path, adapted_model())

    def diverge(*rest):
        raise TrainingDiverged
    monkeypatch.setattr(run, "take_step", diverge)
    assert math.isnan(FromOneStart(run, 1).loss_at(1.0))
