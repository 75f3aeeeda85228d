"""A run whose metrics.jsonl is gone goes on, and says what its log lacks."""
import pytest

from finetune.pictures import plot_losses
from finetune.run import Run
from model import files


@pytest.fixture
def run(tmp_path):
    files.say_once.cache_clear()
    return Run(tmp_path)


def logged(run, *steps):
    for step in steps:
        run.metrics.append({"step": step, "loss": 1.0})


def test_a_log_that_ends_before_the_state_is_said(run, capsys):
    logged(run, 1, 2)
    run.forget_after(5)
    assert "the log ends at step 2, but the state is of step 5" in capsys.readouterr().err
    run.metrics_file.unlink()
    run.forget_after(5)
    assert "the log ends at step 0" in capsys.readouterr().err


def test_a_whole_log_is_not_spoken_of(run, capsys):
    logged(run, 1, 2, 3)
    run.forget_after(2)
    assert capsys.readouterr().err == "" and [record["step"] for record in run.metrics] == [1, 2]
    Run(run.path / "new").forget_after(0)
    assert capsys.readouterr().err == ""


def test_a_loss_curve_without_steps_or_without_validation(run, capsys):
    plot_losses(run)
    assert "no loss curve: " in capsys.readouterr().out and not (run.path / "loss.png").exists()
    pytest.importorskip("matplotlib")
    logged(run, 1, 2)
    plot_losses(run)
    assert (run.path / "loss.png").stat().st_size > 0
