"""Distillation: the loss, its gradient, its teacher, and what is refused."""
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import train as train_script
from finetune.command_line import train_parser
from finetune.distillation import Distillation, distilled_loss, objective_of, teacher_source
from finetune.loop import mean_loss, summed_loss
from finetune.resolve import check_distillation, resolve_run
from finetune.source import Source
from model import token_loss
from model.checkpoint import random_model, save_model
from model.config_json import config_to_json
from model.files import read_json, write_json
from tasks.task import Encoded
from tests.cli import SMALL, call, interrupted_after
from tests.model.test_model import tiny, tokens
from tests.strategies import random

DATA = [Encoded(tokens(1, 4 + i % 5, seed=i)[0].tolist(), 2) for i in range(12)]
FEW = ("--limit", "30", "--test-limit", "1", "--max-new-tokens", "1", "--batch-size", "30", "--steps", "3", "--dtype",
       "float32")


def of_models():
    """A teacher, and a model that is a little another."""
    teacher, model = tiny(), tiny()
    for name, p in model.named_parameters():
        p.mul_(1 + 0.1 * random(*p.shape, seed=len(name)))
    return teacher, model


def plain(logits, taught, targets, share):
    """The sum written out, for autograd."""
    q, p = logits.softmax(-1), taught.softmax(-1)
    divergence = (p * (p / q).log()).sum()
    return share * divergence - (1 - share) * q[range(len(targets)), targets].log().sum()


@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("wrong", [None, "teacher and model exchanged", "another share"])
def test_loss_and_gradient_are_those_of_the_plain_formula(share, wrong):
    logits, taught = random(9, 20, seed=1).requires_grad_(), 2 * random(9, 20, seed=2)
    targets = torch.arange(9)
    expected = plain(logits, taught, targets, share)
    expected_gradient, = torch.autograd.grad(expected, logits)
    given = (taught, logits.detach()) if wrong == "teacher and model exchanged" else (logits.detach(), taught)
    loss, gradient = distilled_loss(*given, targets, share / 2 if wrong == "another share" else share, True)
    same = torch.allclose(loss, expected.detach(), rtol=0, atol=1e-10) and torch.allclose(
        gradient, expected_gradient, rtol=0, atol=1e-10)
    assert same == (wrong is None)
    assert torch.equal(distilled_loss(*given, targets, 1.0, False)[0], distilled_loss(*given, targets, 1.0, True)[0])


def test_share_1_needs_no_targets_and_a_tiny_share_is_cross_entropy():
    logits, taught = random(9, 20, seed=1), random(9, 20, seed=2)
    a, b = (distilled_loss(logits, taught, targets, 1.0, True) for targets in (torch.arange(9), torch.zeros(9).long()))
    assert torch.equal(a[0], b[0]) and torch.allclose(a[1], b[1], atol=1e-12)
    rows, _ = token_loss.cross_entropy(logits, torch.arange(9), False)
    assert distilled_loss(logits, taught, torch.arange(9), 1e-12, False)[0] == pytest.approx(rows.item(), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_teacher_that_is_the_model_leaves_loss_and_gradient_0(dtype):
    """Control: another teacher does not."""
    logits, targets = random(9, 20, seed=1).to(dtype), torch.arange(9)
    loss, gradient = distilled_loss(logits, logits.clone(), targets, 1.0, True)
    assert loss == 0 and not gradient.any() and gradient.dtype == dtype
    loss, gradient = distilled_loss(logits, 1.1 * logits, targets, 1.0, True)
    assert loss > 1e-4 and gradient.abs().max() > 1e-3


def test_of_models_it_is_the_mean_over_target_tokens_with_gradients_of_the_student_alone(monkeypatch):
    """Logits of a few tokens at a time give what all at once give."""
    teacher, model = of_models()
    objective = Distillation(teacher, 0.6)
    trained = [model.model.layers[0].mlp.up_proj.weight, model.model.norm.weight, model.lm_head.weight]
    assert all(p.requires_grad_().grad is None for p in trained)
    expected, n = 0.0, 0
    for e in DATA:
        rows = slice(e.prompt_length - 1, None)
        logits, taught = (m(torch.tensor([e.tokens[:-1]]))[0, rows] for m in (model, teacher))
        expected, n = expected + plain(logits, taught, torch.tensor(e.tokens[e.prompt_length:]), 0.6), n + len(logits)
    expected_gradients = torch.autograd.grad(expected, trained)
    for at_once in (1, 1000):
        monkeypatch.setattr(token_loss, "LOGITS_AT_ONCE", at_once * model.config.vocab_size)
        loss, count = objective(model, DATA)
        gradients = torch.autograd.grad(loss, trained)
        assert count == n and loss.item() == pytest.approx(expected.item(), abs=1e-8)
        torch.testing.assert_close(gradients, expected_gradients, rtol=0, atol=1e-8)
        assert min(g.abs().max() for g in gradients) > 1e-4
        assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert mean_loss(model, DATA, 5, objective) == pytest.approx(expected.item() / n, abs=1e-8)
    assert mean_loss(model, DATA, 5) == pytest.approx(summed_loss(model, DATA)[0].item() / n, abs=1e-8)


def test_whole_logits_of_the_teacher_never_exist(monkeypatch):
    teacher, model = of_models()
    monkeypatch.setattr(token_loss, "LOGITS_AT_ONCE", 3 * model.config.vocab_size)
    rows, of_teacher = [], teacher.logits
    monkeypatch.setattr(teacher, "logits", lambda part: rows.append(len(part)) or of_teacher(part))
    _, n = Distillation(teacher, 1.0)(model, DATA)
    assert max(rows) == 3 and sum(rows) == n > 3


# ---- train.py -------------------------------------------------------------------------------------------------------

def distilled(base, *more, method="scaleoffset"):
    return "--model", base, "--method", method, "--bits", "2", *FEW, "--lr", "1e-3", "--distill", *more


def log_of(run: str) -> list[dict]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.usefixtures("elsewhere")
def test_the_original_models_answers_are_learned_and_a_resumed_run_gives_the_same_numbers(small_base, monkeypatch,
                                                                                          capsys):
    """The loss of the first step is that of the quantized base beside its original; the last is lower."""
    assert call(train_script, *distilled(small_base), "--out", "whole") is None
    assert f"learns 100% of the loss from the probabilities of {small_base}, before" in capsys.readouterr().out
    losses = [line["loss"] for line in log_of("whole") if "loss" in line]
    assert 0 < losses[-1] < losses[0]
    with interrupted_after(2, monkeypatch):
        assert "--resume cut" in call(train_script, *distilled(small_base, "--save-every", "1"), "--out", "cut")
    assert call(train_script, "--resume", "cut") is None
    assert [line.get("loss") for line in log_of("cut")] == [line.get("loss") for line in log_of("whole")]
    whole, cut = (load_file(f"{run}/adapter.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.usefixtures("elsewhere")
def test_a_run_teaches_and_must_be_the_same_when_training_goes_on(small_base, tmp_path, monkeypatch):
    usual = ("--model", small_base, *FEW)
    assert call(train_script, *usual, "--method", "full", "--lr", "1e-2", "--out", "taught") is None
    with interrupted_after(2, monkeypatch):
        call(train_script, *distilled(small_base), "--distill-from", "taught", "--save-every", "1", "--out", "x")
    stored = read_json(tmp_path / "x" / "config.json")
    assert stored["config"]["training"]["distill_from"] == str(tmp_path / "taught")
    assert len(stored["fingerprints"]["teacher"]) == 64
    (tmp_path / "taught").rename(tmp_path / "moved")
    assert "moved" not in (said := call(train_script, "--resume", "x")) and "taught: no such" in said
    assert "the run learns from it (--distill-from), so it must be there again" in said
    (tmp_path / "moved").rename(tmp_path / "taught")
    weights = load_file("taught/model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, "taught/model.safetensors")
    assert "taught" in (said := call(train_script, "--resume", "x")) and "sha256" in said


@pytest.mark.slow
def test_a_resumed_run_needs_its_original(small_base, tmp_path, monkeypatch):
    """A run of codes holds its base itself, and goes on without the original; a run that learns from it does not."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_base, tmp_path / "base")
    for out, flags in (("taught", []), ("plain", None)):
        asked = distilled("base")[:-1] if flags is None else distilled("base")
        with interrupted_after(2, monkeypatch):
            call(train_script, *asked, "--save-every", "1", "--out", out)
    (tmp_path / "base").rename(tmp_path / "moved")
    assert call(train_script, "--resume", "plain") is None
    said = call(train_script, "--resume", "taught")
    assert f"{tmp_path / 'base'}" in said and "must be there again" in said


def test_a_teacher_with_other_tokens_is_refused_before_any_weight_is_read(small_base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    other = replace(SMALL, vocab_size=SMALL.vocab_size + 8)
    write_json(tmp_path / "other" / "config.json", config_to_json(other))
    save_model(random_model(other, torch.float32, seed=1), tmp_path / "other" / "model.safetensors", torch.float16)
    (tmp_path / "other" / "tokenizer.model").write_bytes((small_base / "tokenizer.model").read_bytes())
    said = call(train_script, *distilled(small_base), "--distill-from", "other")
    assert "has a vocabulary of 4104 tokens" in said and "one of 4096: a teacher has the same tokens" in said
    write_json(tmp_path / "other" / "config.json", config_to_json(SMALL))
    tokenizer, tokens = Source(small_base).tokenizer, type("Tokens", (), {"token": lambda self, i: "x"})()
    monkeypatch.setattr(Source, "tokenizer", property(lambda source: tokens if source.path.name == "other" else
                                                      tokenizer))
    said = call(train_script, *distilled(small_base), "--distill-from", "other")
    assert "other: token 0 is 'x'" in said


@pytest.mark.parametrize("flags,message", [
    (["--method", "lora", "--distill"], "this run quantizes nothing: its base would be its own teacher, or holds codes "
                                        "whose original is not there. Name a teacher with --distill-from"),
    (["--method", "full", "--distill", "0.5"], "this run quantizes nothing"),
    (["--quantizer", "none", "--lam", "32x8", "--distill"], "this run quantizes nothing"),
    (["--distill-from", "model/base"], "--distill-from .*model/base goes with --distill only: give both"),
    (["--distill", "1.5"], r"1.5 is not in \(0, 1\]"), (["--distill", "0"], r"0 is not in \(0, 1\]")])
def test_what_has_no_teacher_is_refused(flags, message):
    with pytest.raises((ValueError, SystemExit), match=message):
        resolve_run(train_parser().given(flags))


def test_recorded_steps_are_refused():
    config = resolve_run(train_parser().given(["--distill", "--device", "cpu"]))
    with pytest.raises(ValueError, match="--cuda-graphs does not go with --distill yet"):
        check_distillation(config.base, replace(config.training, cuda_graphs=True))


def test_without_the_flag_there_is_no_teacher():
    assert teacher_source(resolve_run({})) is None and objective_of(resolve_run({})) is None
