"""The other commands on a run that was trained on a GPU, and --resume."""
import json
import shutil

import pytest
import torch

import eval as eval_script
import export as export_script
import sample as sample_script
import train as train_script
from tests.cli import call, few, interrupted_after, rows_of
from tests.cuda.device import DEVICE, ON
from tests.tasks.test_benchmarks import HARNESS

pytestmark = pytest.mark.usefixtures("elsewhere")


def trained(base, method, *flags, out="x"):
    message = call(train_script, "--method", method, "--model", base, *few(method), "--lr", "0.05", *ON, *flags,
                   "--out", out)
    assert message is None, message


def evaluated(*arguments):
    message = call(eval_script, *arguments, *ON)
    assert message is None, message


MINMAX = ("--restore-quantizer", "minmax")


@pytest.mark.parametrize("method,flags", [
    ("qlora", ("--restore", "2", "8", "16", *MINMAX)), ("qlora", ("--restore", "16", "--merge")),
    ("qlora", ("--restore", "3", "--restore-quantizer", "gptq:nf@4x8")), ("qlora", ("--requantize", "nf@32x1-3bit")),
    ("qablora", ("--restore", "2", "8", "16")), ("qablora", ("--restore", "8", "--merge")),
    ("qablora", ("--restore", "3", "--restore-quantizer", "gptq:minmax@4x8"))])
def test_restoration_and_requantization(small_base, tmp_path, method, flags):
    trained(small_base, method, "--block", "4x8")
    evaluated("x", *flags)
    rows = rows_of(tmp_path / "x", "eval.json")
    made = [row for state, row in rows.items() if "restored" in state or "requantized" in state]
    assert made and all(row["validation_loss"] > 0 for row in made)


def test_restored_to_16_bits_a_run_is_the_cpus(small_base, tmp_path):
    trained(small_base, "qlora")
    losses = []
    for device in (DEVICE, "cpu"):
        assert call(eval_script, "x", "--restore", "16", "--device", device) is None
        losses.append({state: row["validation_loss"] for state, row in rows_of(tmp_path / "x", "eval.json").items()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_run_trained_on_a_gpu_is_scored_on_the_cpu_and_the_other_way_round(small_base, tmp_path):
    for device, other in ((DEVICE, "cpu"), ("cpu", DEVICE)):
        trained(small_base, "qablora", "--device", device, out=device)
        assert call(eval_script, device, "--device", other) is None
        first, again = rows_of(tmp_path / device), rows_of(tmp_path / device, "eval.json")
        assert all(again[s]["validation_loss"] == pytest.approx(first[s]["validation_loss"], rel=1e-4) for s in first)
        shutil.rmtree(tmp_path / device)


@pytest.mark.parametrize("task", ["mmlu", "hellaswag", "boolq"])
def test_benchmarks_of_choices(wide_base, tmp_path, task):
    name = "mmlu_test" if task == "mmlu" else task
    flags = ("--data", HARNESS / "mmlu_dev.jsonl") if task == "mmlu" else ()
    scores = []
    for device in (DEVICE, "cpu"):
        assert call(eval_script, "--model", wide_base, "--task", task, *flags, "--test-data", HARNESS / f"{name}.jsonl",
                    "--test-limit", "4", "--dtype", "float32", "--device", device, "--out", device) is None
        found = list((tmp_path / device).rglob("predictions.jsonl"))
        scores.append([json.loads(line) for line in found[0].read_text().splitlines()])
    assert len(scores[0]) == len(scores[1]) > 0


def test_a_model_quantized_by_gptq_is_scored(small_base):
    evaluated("--model", small_base, "--quantizer", "gptq", "--block", "16x1", "--bits", "3", "--limit", "40",
              "--test-limit", "4", "--max-new-tokens", "2", "--dtype", "float32")


def test_a_run_completes_prompts(small_base, capsys):
    trained(small_base, "qlora")
    texts = []
    for device in (DEVICE, "cpu"):
        capsys.readouterr()
        assert call(sample_script, "x", "--prompt", "Where is my card", "--prompt", "Why", "--max-new-tokens", "6",
                    "--dtype", "float32", "--device", device) is None
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert call(sample_script, "x", "--prompt", "Why", "--temperature", "0.7", "--top-p", "0.9", *ON) is None


@pytest.mark.parametrize("kind", ["safetensors", "peft", "gguf"])
def test_a_run_is_exported(small_base, tmp_path, kind):
    if kind == "gguf":
        pytest.importorskip("gguf")
    trained(small_base, "qalora", "--block", "32x1")
    message = call(export_script, "x", "--format", kind, "--to", "out.gguf" if kind == "gguf" else "out")
    assert message is None, message


# ---- going on after an interruption ---------------------------------------------------------------------------------

@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("method,flags", [("full", ()), ("qablora", ()), ("qlora", ("--dropout", "0.2")),
                                          ("peqa", ()), ("lora", ("--dtype", "bfloat16"))])
def test_a_resumed_run_ends_with_the_same_bytes(small_base, tmp_path, monkeypatch, method, flags, deterministic):
    arguments = ["--method", method, "--model", small_base, *few(method), *ON, *flags, "--steps", "5", "--save-every",
                 "2"]
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        assert call(train_script, *arguments, "--out", "whole") is None
        with interrupted_after(3, monkeypatch):
            assert "train.py --resume cut" in call(train_script, *arguments, "--out", "cut")
        assert call(train_script, "--resume", "cut") is None
    finally:
        torch.use_deterministic_algorithms(False)
    name = "model.safetensors" if method == "full" else "adapter.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
