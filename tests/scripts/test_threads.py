"""Threads spin briefly, then sleep, unless the user has said otherwise."""
import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = ("train", "eval", "sample", "export", "judge")
GIVEN = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_imports_it_before_all_else(script):
    """OpenMP reads the environment once, when torch is loaded."""
    body = ast.parse((ROOT / f"{script}.py").read_text(encoding="utf-8")).body
    first = next(node for node in body if isinstance(node, ast.Import | ast.ImportFrom))
    assert isinstance(first, ast.Import) and [alias.name for alias in first.names] == ["threads"]


def what_openmp_says(program: str, **environment: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True,
                          env={**GIVEN, **environment, "OMP_DISPLAY_ENV": "VERBOSE"})
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("environment,expected", [
    ({}, "GOMP_SPINCOUNT = '1000'"), ({"GOMP_SPINCOUNT": "77"}, "GOMP_SPINCOUNT = '77'"),
    ({"OMP_WAIT_POLICY": "passive"}, "OMP_WAIT_POLICY = 'PASSIVE'")])
def test_openmp_takes_it_unless_the_user_has_said_otherwise(environment, expected):
    said = what_openmp_says("import threads, torch", **environment)
    if "GOMP_SPINCOUNT" not in said:
        pytest.skip("torch is not built with GNU OpenMP here")
    assert expected in said
    assert ("GOMP_SPINCOUNT = '1000'" in said) == (not environment)
