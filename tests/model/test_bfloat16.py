"""bfloat16 is the default on GPUs and new processors. Angles, softmax, losses, calibration and compared logits are
computed in float32 there, at 1,000 positions as at ten."""
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adapters.adapted import adapter_parameters
from finetune.adapted_model import attach_adapters
from finetune.command_line import train_parser
from finetune.gptq_model import gptq_model
from finetune.loop import mean_loss, summed_loss
from finetune.quantize import quantized_layer
from finetune.resolve import resolve_run
from model.checkpoint import random_model
from model.config import LlamaConfig
from model.likelihood import Pair, log_likelihoods, token_log_probabilities
from model.llama import Llama
from model.rotary import rotary_angles, rotary_frequencies
from quant.gptq import Hessian
from quant.grid import Block
from quant.minmax import MinMax
from scoring.scores import float32_logits
from tasks.perplexity import log_likelihood
from tasks.task import Encoded

POSITIONS = 1000
CONFIG = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, head_dim=16, max_position_embeddings=1024, eos_token_ids=(2,))
CAPPED = replace(CONFIG, model_type="gemma2", attention_softcap=20.0, final_softcap=10.0)
both = pytest.mark.parametrize("config", [CONFIG, CAPPED], ids=["fused", "softcapped"])
BFLOAT16_WIDTH = 2 ** -8  # the largest relative error of rounding to bfloat16 is half of it


def model_of(config: LlamaConfig, dtype=torch.bfloat16) -> Llama:
    """bfloat16 weights so large that attention is far from uniform."""
    model = random_model(config, torch.float32, seed=0).eval().requires_grad_(False)
    for p in model.parameters():
        p.data = (p * (12 if p.ndim == 2 else 1)).bfloat16()
    model.dtype = dtype
    return model


def rows(n: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 64, (n, length), generator=torch.Generator().manual_seed(seed))


EXAMPLES = [Encoded(row, 4) for row in rows(6, 40, seed=3).tolist()]


class Types(TorchDispatchMode):
    """The floating-point types of what each operation reads."""

    def __init__(self):
        super().__init__()
        self.read: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        read = {a.dtype for a in args if isinstance(a, Tensor) and a.is_floating_point()}
        self.read.setdefault(operation.overloadpacket.__name__, set()).update(read)
        return operation(*args, **(kwargs or {}))


WIDE = ("cos", "sin", "rsqrt", "_softmax", "_log_softmax", "nll_loss_forward")


def wide_only(types: Types, *needed: str) -> None:
    """Every operation that needs range or precision has read float32 or wider; and the `needed` ones were seen."""
    for name in needed:
        assert types.read.get(name), f"{name} was not called"
    for name in WIDE:
        assert torch.bfloat16 not in types.read.get(name, ()), f"{name} in bfloat16"


# ---- positions ------------------------------------------------------------------------------------------------------

def test_angles_of_1000_positions_err_by_the_rounding_of_their_result_alone():
    model, t = model_of(CONFIG), rows(1, POSITIONS)
    _, angles, _ = model.embed(t)
    cos, sin = angles["all"]
    exact = torch.arange(POSITIONS).double()[:, None] * rotary_frequencies(CONFIG).double()
    for got, expected in ((cos, exact.cos()), (sin, exact.sin())):
        assert got.dtype == torch.bfloat16
        assert (got[0, 0, :, :8].double() - expected).abs().max() <= BFLOAT16_WIDTH / 2 + 1e-4
    coarse = (torch.arange(POSITIONS).bfloat16()[:, None] * rotary_frequencies(CONFIG).bfloat16()).float().cos()
    assert (coarse - exact.cos()).abs().max() > 1  # control: angles in bfloat16 are any angles


def test_angles_of_a_float64_model_are_float64():
    cos, _ = rotary_angles(torch.ones(2), torch.tensor([[100001]]), torch.float64)
    assert cos[0, 0, 0, 0].item() == pytest.approx(torch.tensor(100001.0, dtype=torch.float64).cos().item(), abs=1e-12)


def plain_forward(model: Llama, t: Tensor) -> Tensor:
    """Llama's forward pass, bfloat16 step by step, with float32 angles, statistics and softmax."""
    c, T = model.config, t.shape[1]
    w = {name: p.bfloat16() for name, p in model.named_parameters()}
    angles = torch.arange(T).float()[:, None] * rotary_frequencies(c)
    cos, sin = (torch.cat((f, f), -1).bfloat16() for f in (angles.cos(), angles.sin()))

    def norm(x, name):
        return w[name] * (x.float() * (x.float().square().mean(-1, keepdim=True) + c.rms_norm_eps).rsqrt()).bfloat16()

    def rotated(x):
        return x * cos + torch.cat((-x[..., 8:], x[..., :8]), -1) * sin
    x, hidden = w["model.embed_tokens.weight"][t], torch.full((T, T), -torch.inf).triu(1)
    for i in range(c.num_hidden_layers):
        at = f"model.layers.{i}."
        h = norm(x, at + "input_layernorm.weight")
        q, k, v = ((h @ w[f"{at}self_attn.{n}_proj.weight"].T).unflatten(-1, (-1, c.head_dim)).transpose(1, 2)
                   for n in "qkv")
        q, k, v = rotated(q), rotated(k).repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        scores = q @ k.transpose(-2, -1) * c.attention_scale
        if c.attention_softcap:
            scores = c.attention_softcap * torch.tanh(scores / c.attention_softcap)
        p = (scores.float() + hidden).softmax(-1).bfloat16()
        x = x + (p @ v).transpose(1, 2).flatten(2) @ w[at + "self_attn.o_proj.weight"].T
        h = norm(x, at + "post_attention_layernorm.weight")
        gate, up = (h @ w[f"{at}mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + (F.silu(gate) * up) @ w[at + "mlp.down_proj.weight"].T
    logits = norm(x, "model.norm.weight") @ w["lm_head.weight"].T
    return c.final_softcap * torch.tanh(logits / c.final_softcap) if c.final_softcap else logits


def angles_in_bfloat16(frequencies: Tensor, positions: Tensor, dtype: torch.dtype, *rest) -> tuple[Tensor, Tensor]:
    angles = positions[:, None, :, None].to(dtype) * frequencies.to(dtype)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


@both
def test_1000_positions_err_no_more_than_twice_as_much_as_a_plain_bfloat16_forward(config, monkeypatch):
    t = rows(1, POSITIONS)
    exact = model_of(config, torch.float32)(t)
    ours, plain = ((logits.float() - exact).square().mean(-1).sqrt()[0]
                   for logits in (model_of(config)(t), plain_forward(model_of(config), t)))
    assert exact.std() > 0.5 and plain.mean() > 1e-3
    for part in (slice(0, 100), slice(900, None), slice(None)):
        assert ours[part].mean() <= 2 * plain[part].mean()
    monkeypatch.setattr("model.rotary.rotary_angles", angles_in_bfloat16)  # control: far beyond that
    coarse = (model_of(config)(t).float() - exact).square().mean(-1).sqrt()[0]
    assert coarse[900:].mean() > 4 * plain[900:].mean()


@both
@pytest.mark.parametrize("grad", [False, True])
def test_softmax_angles_and_statistics_are_float32(config, grad):
    """With gradients and few tokens, attention is plain products: there the softmax can be seen."""
    model = model_of(config)
    with Types() as types, torch.set_grad_enabled(grad):
        logits = model(rows(2, 20))
    wide_only(types, "cos", "rsqrt", *(["_softmax"] if config is CAPPED else []))
    assert logits.dtype == torch.bfloat16 and types.read["mm"] == {torch.bfloat16}  # it really computed in bfloat16


# ---- losses ---------------------------------------------------------------------------------------------------------

def loss_by_hand(model: Llama) -> float:
    logits = [model(torch.tensor([e.tokens[:-1]]))[0, 3:].double() for e in EXAMPLES]
    return sum(F.cross_entropy(x, torch.tensor(e.tokens[4:]), reduction="sum").item()
               for x, e in zip(logits, EXAMPLES, strict=True))


@both
def test_the_training_loss_is_float32(config):
    model = model_of(config)
    with Types() as types:
        loss, n = summed_loss(model, EXAMPLES)
    wide_only(types, "_log_softmax", "nll_loss_forward")
    assert loss.dtype == torch.float32 and n == 6 * 36
    assert loss.item() == pytest.approx(loss_by_hand(model), rel=1e-5)
    with torch.no_grad():  # attention takes another path there, whose bfloat16 numbers are others
        assert mean_loss(model, EXAMPLES, 2) == pytest.approx(loss_by_hand(model) / n, rel=1e-5)


def test_log_likelihoods_are_float32_and_their_sums_wider():
    model, row = model_of(CONFIG), rows(1, 400)[0].tolist()
    with torch.no_grad(), Types() as types:
        (_, (choice,)), = log_likelihoods(model, [[Pair(row[:200], row[200:])]], 1)
        text = log_likelihood(model, row)
    wide_only(types, "_log_softmax")
    log_p = model(torch.tensor([row[:-1]]))[0].double().log_softmax(-1).gather(1, torch.tensor(row[1:])[:, None])[:, 0]
    assert text == pytest.approx(log_p.sum().item(), rel=1e-6)
    assert choice == pytest.approx(log_p[199:].sum().item(), rel=1e-6)
    x = model.hidden(torch.tensor([row[:9]]))[0]
    assert token_log_probabilities(model, x, row[1:10]).dtype == torch.float32


# ---- what is computed in float32 throughout -------------------------------------------------------------------------

def test_logits_are_compared_in_float32_and_the_model_stays_in_its_type():
    model = model_of(CONFIG)
    with Types() as types, torch.no_grad():
        ours = float32_logits(model, EXAMPLES)
    assert model.dtype == torch.bfloat16
    assert types.read["mm"] == {torch.float32}
    expected = float32_logits(model_of(CONFIG, torch.float32), EXAMPLES)
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(ours, expected, strict=True))


def quantized_by_gptq(dtype: torch.dtype) -> tuple[list[Tensor], set[torch.dtype]]:
    """Codes of the layers, and the types of what the layers have read on the way."""
    model, seen = model_of(CONFIG, dtype), set()
    names = [n for n, _ in model.named_modules() if n.endswith("_proj")]
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(lambda layer, inputs: seen.add(inputs[0].dtype))
    gptq_model(model, lambda prefix: None, names, MinMax(4, Block(16, 1)), False, rows(20, 30).tolist(),
               lambda name, layer, weight: quantized_layer(layer, weight))
    assert model.dtype == dtype
    return [model.get_submodule(name).codes for name in names], seen


def test_calibration_is_float32_whatever_the_model_computes_in():
    half, seen = quantized_by_gptq(torch.bfloat16)
    full, _ = quantized_by_gptq(torch.float32)
    assert seen == {torch.float32}
    assert all(map(torch.equal, half, full))


def test_the_hessian_sums_what_it_gets():
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    hessian = Hessian(8)
    hessian.add(x)
    assert hessian.sum.dtype == torch.float32
    torch.testing.assert_close(hessian.sum.double(), x.double().T @ x.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "blora"])
def test_adapters_beside_a_bfloat16_model_train_in_float32(method):
    model = model_of(CONFIG)
    attach_adapters(model, resolve_run(train_parser().given(["--method", method, "--rank", "4"])))
    parameters = adapter_parameters(model)
    summed_loss(model, EXAMPLES)[0].backward()
    assert {p.dtype for p in parameters.values()} == {p.grad.dtype for p in parameters.values()} == {torch.float32}
