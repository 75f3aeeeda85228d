"""Several processes on one global batch come to what one process comes to."""
import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.several import ROOT

SMALL = ("--limit", "40", "--test-limit", "5", "--max-new-tokens", "3", "--batch-size", "9", "--micro-batch", "4",
         "--steps", "6", "--save-every", "2", "--dtype", "float32", "--device", "cpu", "--eval-batch-size", "2")
ROUNDED = ("--quantizer", "minmax", "--block", "16x1")
METHODS = {
    "full": ("--method", "full", "--save-dtype", "float32"), "lora": ("--method", "lora"),
    "blora": ("--method", "blora"), "qlora": ("--method", "qlora", "--block", "16x1"),
    "qblora": ("--method", "qblora", "--block", "16x1"), "qalora": ("--method", "qalora", *ROUNDED),
    "qablora": ("--method", "qablora", "--block", "16x1"),
    "irqlora": ("--method", "irqlora", "--block", "16x1", "--rank", "4"),
    "peqa": ("--method", "peqa", "--block", "16x1"), "lota": ("--method", "lota", *ROUNDED),
    "scaleoffset": ("--method", "scaleoffset", *ROUNDED),
    "distilled": ("--method", "qlora", *ROUNDED, "--distill", "0.5"),
    "merge-into": ("--method", "qlora", *ROUNDED, "--merge-into", "codes"),
    "gptq": ("--method", "qlora", "--quantizer", "gptq", "--block", "16x1", "--calibration-rows", "36")}
FIRST, ALL = ("qablora", "full"), tuple(METHODS)


def commands(*asked: tuple) -> list[dict]:
    """(processes, cwd, script, arguments[, signal]) -> how each ended."""
    given = [{"processes": n, "cwd": str(cwd), "script": script, "arguments": list(map(str, arguments)),
              "signal": more[0] if more else [0, 0, 0]} for n, cwd, script, arguments, *more in asked]
    ended = subprocess.run([sys.executable, "-m", "tests.several"], input=json.dumps(given), capture_output=True,
                           text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    return list(map(json.loads, ended.stdout.splitlines()))


@pytest.fixture(scope="module")
def trained(small_base, tmp_path_factory):
    """`trained(method, processes)` is a run's directory."""
    place = tmp_path_factory.mktemp("several")

    @cache
    def all_of(methods: tuple[str, ...]) -> None:
        asked = [(n, place, "train.py", ("--model", small_base, *METHODS[m], *SMALL, "--out", f"{m}-{n}"))
                 for m in methods for n in ((1, 2, 3) if m == "qablora" else (1, 2))]
        for ended in commands(*asked):
            assert ended["status"] == 0, ended["out"]

    def one(method: str, processes: int) -> Path:
        all_of(FIRST if method in FIRST else tuple(m for m in ALL if m not in FIRST))
        return place / f"{method}-{processes}"
    return one


def steps(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def rows(run: Path) -> list[dict]:
    return json.loads((run / "results.json").read_text())["rows"]


def trained_in(run: Path) -> torch.Tensor:
    file = next(f for f in (run / "adapter.safetensors", run / "model.safetensors") if f.is_file())
    return torch.cat([t.double().flatten() for _, t in sorted(load_file(file).items())])


@pytest.mark.parametrize("method,processes", [(m, n) for m in ALL for n in ((2, 3) if m == "qablora" else (2,))])
def test_losses_adapter_and_scores_are_those_of_one_process(trained, method, processes):
    """To rounding. Adam divides by the size of a gradient, so that the rounding of a small one shows in its number;
    three orders of magnitude more would be another batch."""
    one, more = trained(method, 1), trained(method, processes)
    for a, b in zip(steps(one), steps(more), strict=True):
        for name in ("step", "tokens", "lr", "sigma", "epoch"):
            assert a.get(name) == b.get(name)
        for name in {"loss", "gradient_norm", "validation_loss"} & set(a):
            assert b.get(name) == pytest.approx(a.get(name), rel=1e-5)
    a, b = trained_in(one), trained_in(more)
    assert (a - b).norm() < 2e-3 * a.norm()
    for x, y in zip(rows(one), rows(more), strict=True):
        assert (x["state"], x["counts"], x["scores"]) == (y["state"], y["counts"], y["scores"])
        assert y["validation_loss"] == pytest.approx(x["validation_loss"], rel=1e-4)


@pytest.mark.parametrize("method", ["gptq", "qablora", "irqlora"])
def test_the_base_is_that_of_one_process_to_the_last_bit(trained, method):
    one, two = (load_file(trained(method, n) / "base.safetensors") for n in (1, 2))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_same_files_are_there_and_the_number_of_processes_is_recorded(trained):
    names = [{str(f.relative_to(run)) for f in run.rglob("*") if f.is_file()}
             for run in (trained("qablora", n) for n in (1, 2, 3))]
    assert names[0] == names[1] == names[2]
    said = [json.loads((trained("qablora", n) / "sessions.jsonl").read_text())["processes"] for n in (1, 2, 3)]
    assert said == [1, 2, 3]


def test_a_run_goes_on_with_another_number_of_processes(trained, small_base, tmp_path):
    """SIGTERM comes to the second process alone, in step 3: all save after it, and one line is said."""
    asked = (2, tmp_path, "train.py", ("--model", small_base, *METHODS["qablora"], *SMALL, "--out", "x"),
             [1, signal.SIGTERM, 3])
    stopped, resumed, scored = commands(asked, (3, tmp_path, "train.py", ("--resume", "x")),
                                        (2, tmp_path, "eval.py", ("x",)))
    assert stopped["statuses"] == [143, 143] and len(stopped["sentences"]) == 1
    assert "saved at step 3; go on with: torchrun --nproc-per-node 2 train.py --resume x" in stopped["sentences"][0]
    assert resumed["status"] == 0 and "goes on at step 4 of 6" in resumed["out"]
    assert "the number of processes (3, at its start 2)" in resumed["out"]
    whole, run = trained("qablora", 1), tmp_path / "x"
    a, b = trained_in(whole), trained_in(run)
    assert (a - b).norm() < 2e-3 * a.norm()
    losses = [[s["loss"] for s in steps(of) if "loss" in s] for of in (run, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert scored["status"] == 0, scored["out"]
    evaluated = json.loads((run / "eval.json").read_text())["rows"]
    assert [r["scores"] for r in evaluated] == [r["scores"] for r in rows(whole)]
    assert not list(run.glob("answers-*"))


def test_what_several_processes_cannot_do_is_refused_in_one_line(tmp_path, small_base):
    cases = {("sample.py", "x", "--prompt", "a"): "error: WORLD_SIZE=2: sample.py works in one process",
             ("export.py", "x", "--format", "peft", "--to", "y"): "error: WORLD_SIZE=2: export.py works in one process",
             ("judge.py", "x", "y"): "error: WORLD_SIZE=2: judge.py works in one process",
             ("eval.py", "--compare", "x", "y"): "error: --compare reads what was scored before, and there are 2",
             ("train.py", "--model", str(small_base), "--block", "16x1", "--mem-report"):
                 "error: --mem-report runs in one process, and there are 2:",
             ("train.py", "--bits", "77"): "error: bits=77 is not possible",
             ("train.py", "--nonsense"): "error: unrecognized arguments: --nonsense",
             ("train.py", "--resume", "nowhere"): "error: nowhere: no run there"}
    found = commands(*((2, tmp_path, script, rest) for script, *rest in cases))
    for ended, said in zip(found, cases.values(), strict=True):
        assert ended["status"] == 1 and len(ended["sentences"]) == 1, ended
        assert ended["sentences"][0].startswith(said)
    assert list(tmp_path.iterdir()) == []
