"""What keeps less for backward: the values and the gradients of the plain forms, and no tensor more than it says."""
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.adapted import adapter_parameters
from finetune.adapted_model import attach_adapters
from finetune.command_line import train_parser
from finetune.resolve import resolve_run
from model.checkpoint import random_model
from model.config import LlamaConfig
from model.fused import FrozenLinear, FrozenNorm, GatedSiLU, Rotation, ShortAttention, grouped_attention, in_groups, run
from model.llama import Linear, RMSNorm, fused_attention, softcapped_attention
from tests.strategies import random

CONFIG = LlamaConfig(vocab_size=48, hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
                     num_key_value_heads=2, head_dim=8, max_position_embeddings=96, tie_word_embeddings=True,
                     bos_token_id=1, eos_token_ids=(2,))
ANGLES = random(1, 1, 9, 4, seed=3, dtype=torch.float64).repeat(1, 1, 1, 2)


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return weight.to(x.dtype) * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


def plain_rotation(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    times = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1)
    later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)
    return (q @ k.transpose(-2, -1) * 0.3).masked_fill(later, -torch.inf).softmax(-1) @ v


# name: the fused step, its plain form, the shapes that have gradients, what has none
STEPS = {
    "norm": (lambda x, w: FrozenNorm.apply(x, w, 1e-5), plain_norm, [(2, 5, 16)], [random(16, seed=2)]),
    "rotation": (Rotation.apply, plain_rotation, [(2, 3, 9, 8)], [ANGLES.cos(), ANGLES.sin()]),
    "silu": (GatedSiLU.apply, lambda gate, up: F.silu(gate) * up, [(2, 5, 16), (2, 5, 16)], []),
    "linear": (lambda x, w, b: FrozenLinear.apply(x, w, b), F.linear, [(2, 5, 16)], [random(7, 16), random(7)]),
    "attention": (lambda q, k, v: ShortAttention.apply(q, k, v, 0.3), plain_attention,
                  [(2, 6, 9, 8), (2, 2, 9, 8), (2, 2, 9, 8)], []),
}


def results(step, shapes, constants, dtype: torch.dtype) -> list[Tensor]:
    """The value, and the gradients of what has one."""
    x = [random(*shape, seed=i, dtype=dtype).requires_grad_() for i, shape in enumerate(shapes)]
    y = step(*x, *(t.to(dtype) for t in constants))
    return [y.detach(), *torch.autograd.grad(y, x, random(*y.shape, seed=9, dtype=dtype))]


@pytest.mark.parametrize("name", STEPS)
def test_values_and_gradients_are_those_of_the_plain_form(name):
    fused, plain, shapes, constants = STEPS[name]
    found, expected = (results(step, shapes, constants, torch.float64) for step in (fused, plain))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert all(t.abs().max() > 0.01 for t in expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["norm", "rotation", "silu", "linear"])
def test_values_are_those_of_the_plain_form_to_the_last_bit(name, dtype):
    fused, plain, shapes, constants = STEPS[name]
    assert torch.equal(results(fused, shapes, constants, dtype)[0], results(plain, shapes, constants, dtype)[0])


@pytest.mark.parametrize("name", STEPS)
def test_bfloat16_is_as_near_to_the_truth_as_the_plain_form(name):
    fused, plain, shapes, constants = STEPS[name]
    truth = results(plain, shapes, [t.bfloat16().double() for t in constants], torch.float64)
    ours, theirs = (results(step, shapes, constants, torch.bfloat16) for step in (fused, plain))
    for a, b, exact in zip(ours, theirs, truth, strict=True):
        assert (a.double() - exact).norm() <= 1.5 * (b.double() - exact).norm()


KEPT = {"norm": [(2, 5, 16), (2, 5, 1)], "rotation": [(1, 1, 9, 8)] * 2, "silu": [(2, 5, 16)] * 2, "linear": [],
        "attention": [(4, 27, 8), (4, 9, 8), (4, 9, 8), (4, 27, 9)]}


@pytest.mark.parametrize("name", STEPS)
def test_backward_keeps_no_more_than_it_needs(name):
    fused, _, shapes, constants = STEPS[name]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append((tuple(t.shape), t.dtype)) or t, lambda t: t):
        results(fused, shapes, constants, torch.bfloat16)
    assert [shape for shape, _ in kept] == KEPT[name]
    assert {dtype for shape, dtype in kept if shape[-1] > 1} <= {torch.bfloat16}


def test_in_groups_puts_the_queries_of_a_key_side_by_side():
    q = torch.arange(8).view(1, 4, 2, 1)
    assert in_groups(q, 2).flatten(1).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("attend", [fused_attention, lambda *a: softcapped_attention(*a, cap=1e9)], ids=["sdpa", "own"])
@pytest.mark.parametrize("grad", [False, True])
def test_one_new_token_may_attend_to_all_that_are_known(attend, grad):
    """It needs no mask, and no `is_causal`, which would show it the first key only."""
    q, k, v = random(2, 6, 1, 8), random(2, 2, 5, 8, seed=1), random(2, 2, 5, 8, seed=2)
    with torch.set_grad_enabled(grad):
        found = attend(q, k, v, None, 0.3)
    expected = attend(q, k, v, torch.ones(1, 1, 1, 5, dtype=torch.bool), 0.3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("new", [1, 3])
def test_few_new_tokens_attend_as_in_the_fused_kernel(new, dtype):
    """Without autograd. The keys are part of a longer buffer, as those of a cache are."""
    q, buffer = random(2, 6, new, 8, dtype=dtype), random(2, 2, 2, 9, 8, seed=1, dtype=dtype)
    (k, v), allowed = buffer[:, :, :, :7], random(2, 1, new, 7, seed=2) > -0.5
    with torch.no_grad():
        found = fused_attention(q, k, v, allowed, 0.3)
        assert torch.equal(found, grouped_attention(q, k, v, allowed, 0.3))
    expected = fused_attention(*(x.double().requires_grad_() for x in (q, k, v)), allowed, 0.3)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 0.02)


@pytest.mark.parametrize("name", STEPS)
def test_without_autograd_a_step_is_its_forward_alone(name):
    _, _, shapes, constants = STEPS[name]
    step = {"norm": FrozenNorm, "rotation": Rotation, "silu": GatedSiLU, "linear": FrozenLinear,
            "attention": ShortAttention}[name]
    more = {"norm": [1e-5], "attention": [0.3]}.get(name, [])
    inputs = [random(*shape, seed=i).float() for i, shape in enumerate(shapes)] + [t.float() for t in constants] + more
    with torch.no_grad():
        assert torch.equal(run(step, *inputs), step.apply(*inputs))


def test_what_trains_takes_the_plain_path():
    norm, linear, x = RMSNorm(16, 1e-5), Linear(16, 7), random(2, 5, 16, dtype=torch.bfloat16)
    for layer in (norm, linear):
        layer(x).sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in layer.parameters())


@pytest.mark.parametrize("trains", ["all", "adapters"])
def test_gradient_checkpointing_changes_no_bit_and_keeps_less(trains):
    """Each decoder layer keeps its input, and is computed again in backward."""
    model = random_model(CONFIG, torch.float32, seed=1).train().requires_grad_(trains == "all")
    if trains == "adapters":
        flags = ["--method", "lora", "--rank", "4", "--dropout", "0.1"]
        attach_adapters(model, resolve_run(train_parser().given(flags)))
        for p in adapter_parameters(model).values():
            torch.nn.init.normal_(p, std=0.1)
    tokens, found, kept = torch.randint(3, 48, (3, 11)), [], []
    for model.checkpointing in (False, True):
        torch.manual_seed(3)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, n=sizes: n.append(t.numel()) or t, lambda t: t):
            loss = model(tokens).square().sum()
        trained = [p for p in model.parameters() if p.requires_grad]
        found.append([loss, *torch.autograd.grad(loss, trained)])
        kept.append(sum(sizes))
    assert all(map(torch.equal, *found)) and len(found[0]) > 10
    assert kept[1] < 0.6 * kept[0]
