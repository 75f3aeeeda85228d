"""Damaged files for every reader, in a process of its own: a crash, a hang or too much memory then fails one test.

    FUZZ_CASES=30000 python -m pytest tests/model/test_fuzz.py

By default about 1,000 cases in all, and about 100 in the fast suite.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="pip install -r requirements-extra.txt")
READERS = ("config.json", "safetensors", "index", "gguf", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
           "added_tokens.json", "special_tokens_map.json", "generation_config.json", "adapter_config.json",
           "quantization_config", "gptq", "awq", "compressed-tensors asymmetric", "bitsandbytes", "hqq")
ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
@pytest.mark.parametrize("total", [100, pytest.param(int(os.environ.get("FUZZ_CASES", 1000)), marks=pytest.mark.slow)])
def test_nothing_but_a_refusal_leaves_a_reader(tmp_path, total):
    cases = total // len(READERS)
    done = subprocess.run([sys.executable, "-m", "tests.model.fuzz", str(cases), *READERS],
                          capture_output=True, text=True, cwd=tmp_path, timeout=60 + total // 10,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                               "HYPOTHESIS_STORAGE_DIRECTORY": str(ROOT / ".hypothesis")})  # its tables of characters
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    found = {name: json.loads(counts) for name, counts in (line.split(": ", 1) for line in done.stdout.splitlines())}
    assert set(found) == set(READERS)
    for name, counts in found.items():
        assert counts.get("ValueError", 0) + counts.get("Damaged", 0) > min(5, cases // 4), name
        assert set(counts) <= {"ValueError", "Damaged", "OSError", "FileNotFoundError", "loaded"}, name
    print(json.dumps(found, indent=1))
