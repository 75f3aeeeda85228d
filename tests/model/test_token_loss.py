"""The loss in parts is the loss of all logits at once, gradients included."""
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import token_loss
from model.checkpoint import random_model
from model.config import LlamaConfig
from model.llama import Llama
from model.token_loss import summed_loss_of

TIED = LlamaConfig(vocab_size=48, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
                   num_key_value_heads=2, head_dim=8, max_position_embeddings=96, tie_word_embeddings=True,
                   bos_token_id=1, eos_token_ids=(2,))
CONFIGS = {"tied": TIED, "untied": replace(TIED, tie_word_embeddings=False),
           "softcap": replace(TIED, final_softcap=2.0)}


def plain(model: Llama, x: Tensor, targets: Tensor) -> Tensor:
    logits = model.logits(x)
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="sum")


def inputs(dtype: torch.dtype, n: int = 50) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return (torch.randn(n, 32, generator=g).to(dtype).requires_grad_(),
            torch.randint(48, (n,), generator=g))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("trains", [False, True], ids=["frozen", "trains"])
@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_value_and_gradients_are_those_of_all_logits_at_once(config, trains, at_once, monkeypatch):
    monkeypatch.setattr(token_loss, "LOGITS_AT_ONCE", at_once * 48)
    model = random_model(config, torch.float64, seed=1).double()
    model.requires_grad_(trains)
    x, targets = inputs(torch.float64)
    trained = [model.lm_head.weight, model.model.norm.weight] if trains else []
    found = [f(model, x, targets) for f in (summed_loss_of, plain)]
    torch.testing.assert_close(*found, rtol=0, atol=1e-10)
    grads = [torch.autograd.grad(loss / 3, [x, *trained]) for loss in found]
    assert all(g.abs().max() > 0.001 for g in grads[1])
    torch.testing.assert_close(*grads, rtol=0, atol=1e-10)


def test_in_float32_it_is_equal_to_rounding():
    model, (x, targets) = random_model(TIED, torch.float32, seed=1).requires_grad_(False), inputs(torch.float32)
    found = [f(model, x, targets) for f in (summed_loss_of, plain)]
    torch.testing.assert_close(*found, rtol=1e-6, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss in found), rtol=1e-5, atol=1e-6)


def test_logits_of_a_whole_batch_never_exist(monkeypatch):
    """Nor are any kept for backward."""
    monkeypatch.setattr(token_loss, "LOGITS_AT_ONCE", 7 * 48)
    model, (x, targets) = random_model(TIED, torch.float32, seed=1).requires_grad_(False), inputs(torch.float32)
    rows, of_model = [], model.logits
    monkeypatch.setattr(model, "logits", lambda part: rows.append(len(part)) or of_model(part))
    loss = summed_loss_of(model, x, targets)
    assert max(rows) == 7 and sum(rows) == 50
    assert {tuple(t.shape) for t in loss.grad_fn.saved_tensors} == {(50, 32)}


def test_without_gradients_none_are_computed(monkeypatch):
    model, (x, targets) = random_model(TIED, torch.float32, seed=1), inputs(torch.float32)
    monkeypatch.setattr(torch.autograd, "grad", None)
    with torch.no_grad():
        torch.testing.assert_close(summed_loss_of(model, x, targets), plain(model, x, targets))
