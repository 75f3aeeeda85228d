"""--dry-run refuses what the command itself would refuse, without weights; --nproc predicts for each process."""
import json
import shutil
from pathlib import Path

import pytest
import torch

import train as train_script
from finetune.by_process import ALONE, Processes
from finetune.checks import put_adapters, put_codes
from finetune.memory import freeze, kept_by_layers, kept_for_backward, moved, predicted
from finetune.resolve import resolve_run
from model.checkpoint import empty_model
from model.config import LlamaConfig
from tasks.task import Encoded
from tests.cli import call

pytestmark = pytest.mark.usefixtures("elsewhere")
ROWS = [{"instruction": f"a{i} b c", "intent": f"intent_{i % 3}"} for i in range(40)]
USUAL = ("--task", "bitext", "--data", "rows.jsonl", "--steps", "3", "--dry-run")


@pytest.fixture
def described(small_base):
    """A directory with a config.json alone, and rows."""
    Path("described").mkdir()
    shutil.copy(small_base / "config.json", "described")
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return Path("described")


def test_a_config_alone_is_enough_and_nothing_is_written(described, capsys):
    before = set(Path().rglob("*"))
    assert call(train_script, "--model", described, "--method", "qlora", "--block", "16x1", *USUAL) is None
    printed = capsys.readouterr().out
    assert "no weights are here" in printed and "no tokenizer is here" in printed
    assert "7 quantized layers, adapters in 7, 8,192 parameters train" in printed and "3 of 64 rows" in printed
    assert set(Path().rglob("*")) == before


def test_tensors_and_rows_are_checked_where_they_are_here(small_base, described, capsys):
    assert call(train_script, "--model", small_base, "--method", "qlora", "--block", "16x1", *USUAL) is None
    printed = capsys.readouterr().out
    assert "the names and shapes of its tensors" in printed and "not checked" not in printed
    shutil.copy(small_base / "model.safetensors", "described")
    wider = json.loads((described / "config.json").read_text()) | {"intermediate_size": 128}
    (described / "config.json").write_text(json.dumps(wider))
    assert "wrong shape" in call(train_script, "--model", described, "--method", "qlora", "--block", "16x1", *USUAL)


def test_an_optimizer_without_a_rate_is_named(described, capsys):
    assert call(train_script, "--model", described, "--method", "lota", "--block", "16x1", *USUAL) is None
    assert "3 of 64 rows, t-signsgd" in capsys.readouterr().out


def test_the_tokens_of_a_teacher_are_checked_where_they_are_here(small_base, described):
    """Control: with the same tokens it is not refused."""
    asked = ("--model", small_base, "--method", "qlora", "--block", "16x1", "--distill", "--distill-from", "described")
    stated = json.loads((described / "config.json").read_text())
    shutil.copy(small_base / "tokenizer.model", described)
    shutil.copy(small_base / "model.safetensors", described)
    assert call(train_script, *asked, *USUAL) is None
    (described / "config.json").write_text(json.dumps(stated | {"vocab_size": stated["vocab_size"] + 8}))
    assert "a teacher has the same tokens" in call(train_script, *asked, *USUAL)


@pytest.mark.parametrize("more, message", [
    (("--method", "qlora", "--block", "24x1"), "24"),                  # does not divide a layer
    (("--method", "irqlora", "--block", "16x1", "--rank", "48"), "48"),  # nor does the rank
    (("--method", "lora", "--bits", "4"), "trains on the base as it is"),
    (("--method", "lora", "--task", "gsm8k"), "needs --test-data"),
    (("--method", "lora", "--data", "missing.jsonl"), "missing.jsonl"),
    (("--method", "lora", "--task", "alpaca"), "instruction"),         # the rows have other fields
], ids=str)
def test_what_the_command_would_refuse_is_refused(described, more, message):
    line = call(train_script, "--model", described, *USUAL, *more)
    assert line and line.startswith("error: ") and message in line


def test_a_base_that_cannot_be_shared_is_refused(described):
    usual = ("--model", described, "--method", "qlora", "--block", "16x1", "--nproc", "2", *USUAL)
    assert call(train_script, *usual, "--shard-base") is None
    for alone in ([], ["--nproc", "1"]):  # as the command itself would refuse it
        assert "there is one: give their number by --nproc N" in call(
            train_script, *[word for word in usual if word not in ("--nproc", "2")], *alone, "--shard-base")
    assert "--find-lr does not go with --shard-base" in call(train_script, *usual, "--shard-base", "--find-lr")


def test_nproc_alone_is_refused(described):
    assert "--mem-report or --dry-run" in call(train_script, "--model", described, *USUAL[:-1], "--nproc", "2")


def test_nproc_divides_the_rows(described, capsys):
    usual = ("--model", described, "--method", "qlora", "--block", "16x1", *USUAL)
    assert call(train_script, *usual) is None and "64 rows of up to" in capsys.readouterr().out
    assert call(train_script, *usual, "--nproc", "4") is None
    printed = capsys.readouterr().out
    # each of 4 processes sends 3/4 of the gradients of 8,192 numbers twice
    assert "16 rows of up to" in printed and f"{2 * 0.75 * 4 * 8192 / 1e6:.1f} MB in a step" in printed


# ---- the prediction -------------------------------------------------------------------------------------------------

DEEP = LlamaConfig(512, 64, 128, 6, 4, 2, 16)
WINDOWED = LlamaConfig(512, 64, 128, 6, 4, 2, 16, sliding_window=8, windowed_layers=(1, 3))


def planned(config, method="qlora", **more):
    run = resolve_run({"method": method, "batch_size": 8, "dtype": "bfloat16", "device": "cpu", **more})
    model = empty_model(config, torch.bfloat16)
    if run.base.quantization:
        put_codes(model, [n for n, m in model.named_modules() if n.endswith("_proj")], run.base.quantization)
    put_adapters(model, run)
    freeze(model, run)
    return model.train(), run


@pytest.mark.parametrize("config", [DEEP, WINDOWED], ids=["alike", "windowed"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["qlora", "qablora"])
def test_a_layer_that_is_like_another_need_not_be_run(config, checkpointing, method):
    model, _ = planned(config, method)
    model.checkpointing = checkpointing
    tokens = torch.zeros(3, 20, dtype=torch.long, device="meta")
    assert kept_by_layers(model, tokens) == kept_for_backward(model, tokens)
    assert len(model.model.layers) == 6  # all are there again


def test_a_shared_base_takes_its_part_of_each_process_and_two_layers():
    rows = [Encoded([0] * 33, 1)] * 2
    model, run = planned(DEEP)
    whole, part = (predicted(model, run, rows, p) for p in (ALONE, Processes(4, True)))
    outside = 2 * (2 * 512 * 64 + 64)  # embeddings, head, last norm
    assert part["weights"] == outside + (whole["weights"] - outside) / 4
    assert (part["codes"], part["factors"]) == (whole["codes"] / 4, whole["factors"] / 4)
    same = ("adapters", "gradients", "optimizer", "activations", "logits", "working")
    assert [part[name] for name in same] == [whole[name] for name in same] and "gathered" not in whole
    layer = (sum(whole[n] for n in ("weights", "codes", "factors")) - outside) / 6
    assert part["gathered"] == 2 * layer


def test_a_shared_base_is_received_twice_for_each_micro_batch():
    model, run = planned(DEEP, micro_batch=2)
    base = sum(predicted(model, run, [Encoded([0] * 9, 1)])[name] for name in ("weights", "codes", "factors"))
    base -= 2 * (2 * 512 * 64 + 64)  # what is in no layer is not shared
    gradients = 2 * 0.5 * 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert moved(model, run, Processes(2)) == {"gradients": gradients}
    assert moved(model, run, Processes(2, True)) == {"gradients": gradients, "base": 2 * 2 * 0.5 * base}
    assert moved(model, run, ALONE) == {"gradients": 0.0}


def test_logits_of_a_gpu_are_more_at_a_time():
    """The larger parts of the loss that a GPU computes at a time (model/token_loss.py)."""
    model, run = planned(LlamaConfig(128256, 64, 128, 3, 4, 2, 16))
    rows = [Encoded([0] * 129, 1)] * 16
    on_gpu = resolve_run({"method": "qlora", "device": "cuda:0", "dtype": "bfloat16"})
    assert predicted(model, on_gpu, rows)["logits"] > 10 * predicted(model, run, rows)["logits"]
