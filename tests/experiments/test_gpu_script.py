"""experiments/gpu.sh, with a python3 that writes its arguments down in place of the one that does cells."""
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path("experiments/gpu.sh").resolve()
PLANS = {path.stem for path in Path("experiments/plans").glob("*.py")}
FAKE = """#!/bin/sh
echo "$@" > "$ARGUMENTS"
mkdir "$CELLS/logs"
echo done > "$CELLS/logs/worker-0.log"
exit ${FAILS:-0}
"""


def run(tmp_path, *flags, **environment):
    """(the script's process, the arguments of experiments.run)"""
    fake, out = tmp_path / "bin/python3", tmp_path / "out"
    fake.parent.mkdir(exist_ok=True)
    fake.write_text(FAKE)
    fake.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name not in ("SMOLLM2", "OUT")}
    done = subprocess.run(["bash", SCRIPT, "--out", out, *flags], capture_output=True, text=True, timeout=60,
                          env={**kept, "PATH": f"{fake.parent}:{os.environ['PATH']}", "CELLS": str(out),
                               "ARGUMENTS": str(tmp_path / "arguments"), **environment})
    arguments = tmp_path / "arguments"
    return done, arguments.read_text().split() if arguments.exists() else []


@pytest.mark.parametrize(("stage", "model", "plans"), [
    ("ptq", "m", ["ptq_qlora"]), ("papers", "m", ["plr", "ptq_qlora", "scale", "plr_recipe"]),
    ("methods", "", ["methods"]), ("methods", "m", ["methods", "methods_real"]), ("scale", "", ["scale"]),
    ("all", "m", ["plr", "ptq_qlora", "scale", "plr_recipe", "methods", "methods_real"])])
def test_a_stage_names_plans_that_exist(tmp_path, stage, model, plans):
    _, arguments = run(tmp_path, "--stage", stage, *(["--model", model] if model else []))
    assert arguments[:2] == ["-m", "experiments.run"]
    assert arguments[2:2 + len(plans)] == plans and arguments[2 + len(plans)].startswith("--")
    assert set(plans) <= PLANS and ("--model" in arguments) == bool(model)


def test_earlier_cells_go_on_and_logs_are_packed(tmp_path):
    earlier = tmp_path / "earlier.json"
    earlier.write_text('{"cells": {}}')
    done, arguments = run(tmp_path, "--from", str(earlier), "--jobs", "3", "--seconds", "40", SMOLLM2="a-model")
    assert (tmp_path / "out/cells.json").read_text() == earlier.read_text()
    after = dict(zip(arguments, arguments[1:], strict=False))
    assert (after["--jobs"], after["--model"]) == ("3", "a-model") and 0 < int(after["--seconds"]) <= 40
    with tarfile.open(tmp_path / "out/logs.tgz") as packed:
        assert {"logs/worker-0.log", "run.log"} <= set(packed.getnames())
    assert not Path(after["--scratch"]).parent.exists() and "exit code 0" in done.stdout


def test_a_failure_and_a_wrong_argument_are_told(tmp_path):
    done, _ = run(tmp_path, FAILS="3")
    assert "exit code 3" in done.stdout
    (tmp_path / "wrong").mkdir()
    done, arguments = run(tmp_path / "wrong", "--stag", "ptq")
    assert done.returncode == 2 and "unknown argument: --stag" in done.stderr and not arguments
