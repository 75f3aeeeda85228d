"""An interrupted run goes on with what it began with, or not at all; and a run that is a base is rounded as it says."""
import json
import shutil
from pathlib import Path

import pytest
import torch

import train as train_script
from finetune.source import Source
from model.checkpoint import random_model, save_model
from model.files import read_json, write_json
from tests.cli import SMALL, call, interrupted_after
from tests.export_runs import made_run

pytestmark = pytest.mark.usefixtures("elsewhere")
ROWS = [{"instruction": f"card number {i}", "intent": f"intent_{i % 7}"} for i in range(40)]
USUAL = ("--task", "bitext", "--data", "rows.jsonl", "--test-data", "test.jsonl", "--steps", "4", "--batch-size", "4",
         "--test-limit", "1", "--max-new-tokens", "1", "--save-every", "1")


def write_rows(file: str, rows: list[dict]) -> None:
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def base(small_base, tmp_path, elsewhere) -> Path:
    """A copy of the model, which a test may change; and rows."""
    write_rows("rows.jsonl", ROWS)
    write_rows("test.jsonl", ROWS[:3])
    return Path(shutil.copytree(small_base, tmp_path / "base"))


def interrupted(monkeypatch, base: Path, *flags: str) -> None:
    with interrupted_after(2, monkeypatch):
        assert "train.py --resume x" in call(train_script, "--model", base, *USUAL, *flags, "--out", "x")


@pytest.mark.parametrize("part,changed", [("validation", 0), ("train", 20)])
def test_other_rows_are_refused(monkeypatch, base, part, changed):
    """The first tenth of the shuffled rows validates. Only one answer of that part is another."""
    from tasks.task import shuffled
    interrupted(monkeypatch, base, "--method", "lora")
    row = shuffled(ROWS, 0)[changed]
    write_rows("rows.jsonl", [{**r, "intent": "another"} if r == row else r for r in ROWS])
    assert f"the {part} rows are no longer those of the run" in call(train_script, "--resume", "x")
    write_rows("rows.jsonl", ROWS)
    assert call(train_script, "--resume", "x") is None


def test_another_base_is_refused(monkeypatch, base):
    interrupted(monkeypatch, base, "--method", "lora")
    kept = (base / "model.safetensors").read_bytes()
    save_model(random_model(SMALL, torch.float32, seed=2), base / "model.safetensors", torch.float16)
    assert "is not what the run was trained from: its sha256 is" in call(train_script, "--resume", "x")
    (base / "model.safetensors").write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))  # of the last tensor
    assert call(train_script, "--resume", "x").endswith("The first difference is in tensor model.norm.weight of "
                                                        "model.safetensors")
    Path("x/base_sums.json").unlink()  # as in a run of an earlier version
    assert " the run's base had " in (said := call(train_script, "--resume", "x")) and "difference" not in said
    (base / "model.safetensors").write_bytes(kept)
    assert call(train_script, "--resume", "x") is None


@pytest.mark.parametrize("flags", [("--method", "full"), ("--method", "qlora", "--block", "16x1")])
def test_another_base_is_refused_before_its_first_state(base, monkeypatch, flags):
    """Interrupted while the weights are read: nothing of the run holds them yet."""
    def interrupt(*rest):
        raise KeyboardInterrupt
    with monkeypatch.context() as inside:
        inside.setattr(train_script, "check_weights", interrupt)
        inside.setattr(train_script, "load_base", interrupt)
        assert "train.py --resume x" in call(train_script, "--model", base, *USUAL, *flags, "--out", "x")
    save_model(random_model(SMALL, torch.float32, seed=2), base / "model.safetensors", torch.float16)
    assert "is not what the run was trained from: its sha256 is" in call(train_script, "--resume", "x")


def test_another_calibration_is_refused_until_the_codes_are_saved(base, monkeypatch):
    def interrupt(*rest):
        raise KeyboardInterrupt
    Path("text.txt").write_text("one text " * 50)
    flags = ("--method", "qlora", "--quantizer", "gptq", "--block", "16x1", "--calibration", "text.txt")
    with monkeypatch.context() as inside:
        inside.setattr(train_script, "load_base", interrupt)
        assert "train.py --resume x" in call(train_script, "--model", base, *USUAL, *flags, "--out", "x")
    Path("text.txt").write_text("another text " * 50)
    assert "is no longer what the run was calibrated on" in call(train_script, "--resume", "x")
    Path("text.txt").write_text("one text " * 50)
    with interrupted_after(2, monkeypatch):
        call(train_script, "--resume", "x")
    Path("text.txt").write_text("another text " * 50)  # of no meaning any more
    before = Path("x/base.safetensors").stat().st_mtime_ns
    assert call(train_script, "--resume", "x") is None
    assert Path("x/base.safetensors").stat().st_mtime_ns == before  # and nothing was quantized again


@pytest.mark.parametrize("stored,merged", [(torch.float16, torch.float16), (torch.float32, torch.bfloat16)])
def test_a_run_with_an_adapter_is_a_base_of_16_bits(base, tmp_path, stored, merged):
    save_model(random_model(SMALL, torch.float32, seed=1), base / "model.safetensors", stored)
    run = made_run(tmp_path / "run", base, "--method", "lora")
    model = Source(run).load(torch.float32, "cpu")
    assert {layer.weight.dtype for name, layer in model.named_modules() if name.endswith("_proj")} == {merged}


def test_a_base_whose_fingerprint_was_changed_in_the_run_is_noticed(monkeypatch, base):
    interrupted(monkeypatch, base, "--method", "lora")
    saved = read_json(Path("x/config.json"))
    saved["fingerprints"]["base"] = "0" * 64
    write_json(Path("x/config.json"), saved)
    assert "the run's base had 000" in call(train_script, "--resume", "x")
