import os
import signal

import threads  # noqa: F401  before torch

# isort: split
os.environ.setdefault("OMP_NUM_THREADS", "2")

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from finetune.config import EMBEDDED_BASE
from model.checkpoint import random_model, save_model
from model.config_json import config_to_json
from model.files import write_json
from tests.cli import SMALL
from tests.cuda.device import DEVICE

torch.manual_seed(0)
# derandomize: the same examples on every machine and in every run. No deadline: CI machines are noisy.
settings.register_profile("project", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("project")


@pytest.fixture(scope="session", autouse=True)
def signals_as_in_a_terminal():
    """`pytest &` in a script, and nohup, ignore SIGINT and SIGHUP. The commands then leave them ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def float32_on_every_machine():
    """The scripts' default is bfloat16 where the machine multiplies it; tests that want it say so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune.config.default_dtype", lambda: "float32")
        yield


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """A run flushes 50 times, and no file of a test has to survive a power loss. tests/model/test_durable.py does
    wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def small_base(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write_json(path / "config.json", config_to_json(SMALL))
    save_model(random_model(SMALL, torch.float32, seed=1), path / "model.safetensors", torch.float16)
    shutil.copy(EMBEDDED_BASE / "tokenizer.model", path / "tokenizer.model")
    return path


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Scripts write runs/ into the directory they are called in."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def wide_base(small_base, tmp_path_factory) -> Path:
    """`small_base` with room for long prompts."""
    path = tmp_path_factory.mktemp("wide")
    write_json(path / "config.json", {**config_to_json(SMALL), "max_position_embeddings": 1024})
    for name in ("model.safetensors", "tokenizer.model"):
        shutil.copy(small_base / name, path / name)
    return path


# Modules that take many seconds as a whole. What they hold beside the fast suite is not a merge.
SLOW = (
    "faults/test_faults.py",
    "model/test_hub.py",
    "scripts/test_cli_restore.py",
    "scripts/test_a_run_stands_alone.py",
    "scripts/test_one_writer.py",
    "scripts/test_several_processes.py",
    "finetune/test_flags.py",
    "finetune/test_sharded.py",
    "experiments/test_scale.py",
    "tasks/test_texts.py",
    "tasks/test_own_commands.py",
    "tasks/test_benchmarks.py",
    "quant/test_gptq.py",
    "experiments/test_cells.py",
    "experiments/test_method_pictures.py",
    "experiments/test_overview.py",
    "interop/test_export_gguf.py",
    "interop/test_export_integers.py",
    "interop/test_what_formats_hold.py",
    "interop/test_export_loss.py",
    "interop/test_lost.py",
    "interop/test_prebuilt.py",
    "model/test_agreement.py")


def pytest_collection_modifyitems(items):
    missing = None if DEVICE != "cuda" or torch.cuda.is_available() else "no CUDA device on this machine"
    for item in items:
        if item.path.as_posix().endswith(SLOW):
            item.add_marker(pytest.mark.slow)
        if item.path.parent.name == "cuda":
            item.add_marker(pytest.mark.cuda)
            if missing:
                item.add_marker(pytest.mark.skip(reason=missing))
