"""Every method, run by train.py on a GPU: its losses are the CPU's, and what is merged answers as what was trained."""
import json

import pytest

import eval as eval_script
import train as train_script
from finetune.methods import METHODS
from tests.cli import FEW, call, few, rows_of
from tests.cuda.device import DEVICE, ON

pytestmark = pytest.mark.usefixtures("elsewhere")
CODES = ("qalora", "qablora", "peqa", "lota", "scaleoffset")  # merge into k bits
GPTQ_MAY_DIFFER = 2e-2  # of a loss; a near tie takes another code, and all later columns follow


def run(base, method, out, *flags):
    rate = ("--lr", "0.01") if METHODS[method].lr else ()
    message = call(train_script, "--method", method, "--model", base, *rate, *few(method), *flags, "--out", out)
    assert message is None, message
    lines = [json.loads(line) for line in open(f"{out}/metrics.jsonl", encoding="utf-8")]
    return [line for line in lines if "gradient_norm" in line], [line for line in lines if "validation_loss" in line]


@pytest.mark.parametrize("method", METHODS)
def test_the_losses_of_training_are_those_of_the_cpu(small_base, tmp_path, method):
    steps, ends = run(small_base, method, "gpu", *ON)
    cpu_steps, cpu_ends = run(small_base, method, "cpu", "--device", "cpu")
    within = GPTQ_MAY_DIFFER if METHODS[method].quantizer == "gptq" else 1e-4
    for ours, cpu in zip(steps + ends, cpu_steps + cpu_ends, strict=True):
        for name in {"loss", "validation_loss"} & set(cpu):
            assert ours[name] == pytest.approx(cpu[name], rel=within)
    assert steps[0]["gradient_norm"] == pytest.approx(cpu_steps[0]["gradient_norm"], rel=max(within, 1e-3))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_ends_with_its_table_and_the_merged_model_answers_as_trained(small_base, tmp_path, method, dtype):
    run(small_base, method, "x", *ON, "--dtype", dtype)
    saved = json.loads((tmp_path / "x" / "config.json").read_text())
    assert saved["config"]["compute"] == {"dtype": dtype, "device": DEVICE}
    rows = rows_of(tmp_path / "x")
    if method in CODES:
        assert rows["merged-4bit"]["logit_difference"] < 1e-4
    if method in CODES and dtype == "float32":
        assert rows["merged-4bit"]["validation_loss"] == pytest.approx(rows["trained"]["validation_loss"], rel=1e-5)
    assert rows["trained"]["validation_loss"] != rows["base"]["validation_loss"]
    facts = json.loads((tmp_path / "x" / "training.json").read_text())
    assert (facts.get("peak_gpu_memory_mb", 0) > 0) == (DEVICE == "cuda")
    assert call(eval_script, "x", *ON) is None
    for state, row in rows_of(tmp_path / "x", "eval.json").items():
        assert row["validation_loss"] == pytest.approx(rows[state]["validation_loss"], rel=1e-4), state


@pytest.mark.parametrize("flags", [("--double-quant",), ("--quantizer", "gptq", "--act-order"), ("--dropout", "0.1"),
                                   ("--quantizer", "gptq", "--grid", "nf", "--bits", "3"), ("--micro-batch", "3"),
                                   ("--targets", "attention", "--quantized-layers", "attention"), ("--bits", "2"),
                                   ("--distill",), ("--distill", "0.5")])
def test_flags_of_the_base_and_of_training(small_base, flags):
    steps, _ = run(small_base, "qlora", "x", *ON, *flags)
    assert len(steps) == int(FEW[FEW.index("--steps") + 1])


def test_a_run_from_scratch(small_base):
    run(small_base, "full", "x", *ON, "--from-scratch")
