"""What starts quickly: torch's compiler takes 1.5 s to import, and the hub's client 0.3 s."""
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import train_once

ROOT = Path(__file__).parents[2]
COMMANDS = """
import contextlib, io, sys
import eval, export, sample, train
def call(script, *words):
    sys.argv = [script.__name__, *words]
    with contextlib.redirect_stdout(io.StringIO()):
        script.main()
    print(script.__name__, *[name for name in ("torch._dynamo", "huggingface_hub.hf_api") if name in sys.modules])
base = sys.argv[1]
call(train, "--model", base, "--limit", "40", "--test-limit", "1", "--block", "16x1", "--show-example")
call(eval, "x", "--restore", "8", "--merge", "--test-limit", "1")
call(eval, "--model", base, "--bits", "4", "--block", "16x1", "--test-limit", "1", "--max-new-tokens", "1")
call(sample, "x", "--prompt", "a", "--max-new-tokens", "1")
call(export, "x", "--format", "safetensors", "--to", "y")
"""


@pytest.mark.slow
def test_no_command_but_training_imports_the_compiler_or_the_client_of_the_hub(small_base, tmp_path, monkeypatch):
    """torch.optim imports the compiler when it makes AdamW; before that, train.py does without it too."""
    monkeypatch.chdir(tmp_path)
    train_once(small_base, "--limit", "40", "--test-limit", "1", "--steps", "1", "--block", "16x1", "--max-new-tokens",
               "1")
    process = subprocess.run([sys.executable, "-c", COMMANDS, str(small_base)], capture_output=True, text=True,
                             env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["train", "eval", "eval", "sample", "export"]


@pytest.mark.parametrize("script", ["train", "eval", "sample", "export", "judge"])
def test_what_goes_wrong_in_the_imports_takes_one_line(tmp_path, script):
    """A torch that cannot be imported stands before the real one."""
    def run(raised: str, *flags: str) -> tuple[int, str]:
        (tmp_path / "torch.py").write_text(f"raise {raised}")
        process = subprocess.run([sys.executable, str(ROOT / f"{script}.py"), *flags], capture_output=True, text=True,
                                 env={**os.environ, "PYTHONPATH": str(tmp_path)})
        return process.returncode, process.stderr
    assert run("KeyboardInterrupt") == (
        -signal.SIGINT, "SIGINT while starting: nothing was written; give the same command again\n")
    assert run("ModuleNotFoundError('no', name='torch')") == (
        1, "error: torch is not installed: pip install -r requirements.txt\n")
    assert run("OSError('libtorch.so')") == (1, "error: OSError: libtorch.so (--debug shows the traceback)\n")
    assert "Traceback" in run("KeyboardInterrupt", "--debug")[1]
