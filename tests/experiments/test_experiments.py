"""The experiments' commands and tables, without runs: every --help, and the functions that format a cell or a row."""
import argparse
import importlib
import pkgutil
import subprocess
import sys

import pytest

import experiments
from experiments import benchmarks, real_model, results_page, shared
from scoring.scores import TAKEN_UP
from tasks.mmlu import CATEGORY_OF, pooled_error
from tests.cli import call

COMMANDS = sorted(module.name for module in pkgutil.iter_modules(experiments.__path__)
                  if module.name != "shared" and not module.ispkg)
WITH_OPTIONS = [benchmarks, real_model]

@pytest.mark.parametrize("name", COMMANDS)
def test_every_experiment_has_a_help_text_with_its_command(name, capsys):
    module = importlib.import_module(f"experiments.{name}")
    assert call(module, "--help") == "0"
    assert f"python -m experiments.{name}" in capsys.readouterr().out


@pytest.mark.parametrize("module", WITH_OPTIONS, ids=lambda module: module.__name__)
def test_help_texts_state_the_defaults(module):
    """A list as it is typed. --json is in --out, which is told in words."""
    for action in module.options_parser()._actions:
        default = action.default
        if default in (None, argparse.SUPPRESS) or default is False:  # not given
            continue
        words = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        text = action.help.replace("%(default)s", str(default))
        assert text.endswith(f"(default: {words})") and text.count("default") == 1, action.dest


@pytest.mark.parametrize(("arguments", "said"), [
    (["run", "metods"], "invalid choice: 'metods' (choose from"),
    (["run", "methods_real", "--list"], "error: the plan methods_real needs a model: give --model"),
    (["run", "methods", "--only", "nothing", "--list"], "error: --only nothing: no cell of these plans"),
    (["findings", "nowhere.json"], "nowhere.json: no such file or directory: check the path"),
    (["findings", "experiments/results/scale.json"], "scale.json: holds no cells: give a cells.json of"),
    (["copy_cells", "experiments/results/scale.json"], "scale.json: holds no cells: give a cells.json of")])
def test_a_wrong_input_is_one_line(arguments, said):
    done = subprocess.run([sys.executable, "-m", f"experiments.{arguments[0]}", *arguments[1:]], capture_output=True,
                          text=True, timeout=120)
    assert done.returncode and "Traceback" not in done.stderr and said in done.stderr.splitlines()[-1]


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    def fails():
        raise KeyError("a")

    def wrong():
        raise ValueError("b")
    with pytest.raises(KeyError):
        shared.run_experiment(fails)
    with pytest.raises(SystemExit, match="error: b"):
        shared.run_experiment(wrong)
    monkeypatch.setattr("sys.argv", ["x", "--debug"])
    with pytest.raises(ValueError, match="b"):
        shared.run_experiment(wrong)


# ---- cells --------------------------------------------------------------------------------------------------------

def test_spread_is_mean_and_sample_deviation():
    assert shared.spread([1, 2, 3], 1) == "2.0 ± 1.0" and shared.spread([2], 3) == "2.000"
    assert shared.spread([1, 2, 3], 1, "+", 100) == "+200.0 ± 100.0" and shared.spread([-0.5], 4, "+") == "-0.5000"


def test_a_table_in_markdown():
    assert shared.markdown(["", "n"], [["a", 1]]) == "|  | n |\n| --- | --- |\n| a | 1 |"


def test_a_share_has_its_standard_error_if_there_is_one():
    row = {"scores": {"acc": 0.364, "STEM": 0.5}, "standard_errors": {"acc": 0.0215}}
    assert (benchmarks.share(row, "acc"), benchmarks.share(row, "STEM")) == ("36.40 ± 2.15", "50.00")


def test_seconds_name_the_rows_that_they_are_of():
    whole, part = ({"seconds": 9.4, "counts": counts} for counts in ({"rows": 5}, {"rows": 5, TAKEN_UP: 2}))
    assert (benchmarks.seconds(whole), benchmarks.seconds(part)) == ("9", "9 (3 rows)")


def test_lines_of_the_real_model():
    row = {"scores": {"perplexity": 20.5, "nats_per_token": 3.02}, "standard_errors": {"nats_per_token": 0.05},
           "bits_per_weight": 4.5}
    assert real_model.perplexity_row("NF", row) == ["NF", "20.500", "3.0200 ± 0.0500", "4.500"]
    one_window = {**row, "standard_errors": {}}
    assert real_model.perplexity_row("NF", one_window) == ["NF", "20.500", "3.0200", "4.500"]
    trained = {"title": "as trained", "scores": {"exact_match": 0.5}, "standard_errors": {"exact_match": 0.1},
               "validation_loss": 1.0, "logit_difference": None}
    assert real_model.fine_tuned_row(trained) == ["as trained", "50.0 ± 10.0 %", "1.0000", "-"]
    merged = {**trained, "title": "merged, 4 bits", "logit_difference": 2e-5}
    assert real_model.fine_tuned_row(merged) == ["merged, 4 bits", "50.0 ± 10.0 %", "1.0000", "2.0e-05"]


# ---- rows and commands --------------------------------------------------------------------------------------------

def test_a_finished_run_is_not_repeated_and_an_interrupted_one_starts_again(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(shared, "python", lambda arguments, log: asked.append((arguments, log)))
    done, cut_off = tmp_path / "done", tmp_path / "cut-off"
    for folder, file in ((done, "results.json"), (cut_off, "half.json")):
        folder.mkdir()
        (folder / file).touch()
    for folder in (done, cut_off):
        shared.make_run(["train.py"], folder, "results.json")
    assert asked == [(["train.py", "--out", str(cut_off)], tmp_path / "cut-off.log")]
    assert done.is_dir() and not cut_off.exists()


def test_the_recorded_errors_of_mmlu_are_pooled_within_subjects():
    mmlu = results_page.read("benchmarks")["tasks"]["mmlu"]
    rows = mmlu["part_rows"]
    assert sum(rows.values()) == mmlu["test_rows"]
    for state in mmlu["rows"]:
        right = {subject: round(share * rows[subject]) for subject, share in state["parts"].items()}
        for name, error in state["standard_errors"].items():
            some = [s for s in rows if name in ("acc", "acc_norm", CATEGORY_OF[s])]
            marks = [float(i < right[s]) for s in some for i in range(rows[s])]
            assert error == pytest.approx(pooled_error(marks, [s for s in some for _ in range(rows[s])]), rel=1e-12)
            assert state["scores"][name] == pytest.approx(sum(right[s] for s in some) / len(marks), rel=1e-12)
