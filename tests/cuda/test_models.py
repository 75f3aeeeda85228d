"""Forward pass, training step, generation and log-likelihoods of every family on a GPU."""
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from finetune.config import EMBEDDED_BASE
from finetune.loop import mean_loss, summed_loss
from model.checkpoint import load_model
from model.directory import load_config, weight_files
from model.finite import NotFinite
from model.generate import Sampling, generate
from model.likelihood import Pair, log_likelihoods
from model.tokenizer import load_tokenizer
from tasks.task import Encoded
from tests.cuda.device import DEVICE, same
from tests.model.test_model import CASES, FIXTURES

BOTH = ("cpu", DEVICE)
TOKENIZER = load_tokenizer(EMBEDDED_BASE)
TEXTS = ("Where is my card?", "I", "The transfer that I made yesterday to a friend abroad has not arrived",
         "Why was I charged twice for one payment, and how do I get it back?")
PROMPTS = [TOKENIZER.encode(text) for text in TEXTS]


def model_of(place, device, dtype=torch.float32):
    return load_model(weight_files(place), load_config(place), dtype, device)


@pytest.fixture(scope="module")
def embedded():
    return {device: model_of(EMBEDDED_BASE, device) for device in BOTH}


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_published_implementation(case):
    golden, model = load_file(FIXTURES / case / "golden.safetensors"), model_of(FIXTURES / case, DEVICE)
    tokens = golden["tokens"].to(DEVICE)
    torch.testing.assert_close(model(tokens).cpu(), golden["logits"], rtol=0, atol=1e-3)
    for side in ("left", "right"):
        mask = golden[side].bool()
        logits = model(tokens, mask.to(DEVICE)).cpu()
        torch.testing.assert_close(logits[mask], golden[f"logits_{side}"][mask], rtol=0, atol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_greedy_continuations_are_those_of_the_published_implementation(case):
    golden, model = load_file(FIXTURES / case / "golden.safetensors"), model_of(FIXTURES / case, DEVICE)
    prompt, expected = golden["tokens"][0, :8].tolist(), golden["generated"][0, 8:].tolist()
    assert generate(model, [prompt], 24, (), batch_size=1) == [expected]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_those_of_the_cpu(case, dtype):
    """In bfloat16, which some of these small models suffer from (gemma3: 40 % of a gradient), the device may be off by
    twice what the CPU itself is off in this type."""
    tokens = load_file(FIXTURES / case / "golden.safetensors")["tokens"].tolist()
    examples = [Encoded(row[:9 + i], 2 + i) for i, row in enumerate(tokens)]
    exact, ours = (loss_and_gradients(case, examples, *at) for at in (("cpu", torch.float32), (DEVICE, dtype)))
    rounded = exact if dtype == torch.float32 else loss_and_gradients(case, examples, "cpu", dtype)
    for value, cpu, cpu_rounded in zip(ours, exact, rounded, strict=True):
        own_error = ((cpu_rounded - cpu).norm() / cpu.norm()).item()
        same(value, cpu, 2e-4 if dtype == torch.float32 else max(0.15, 2 * own_error))


def loss_and_gradients(case, examples, device, dtype):
    model = model_of(FIXTURES / case, device, dtype).float().requires_grad_(True)
    loss, n = summed_loss(model, examples)
    loss.backward()
    layer = model.model.layers[0]
    return (loss.detach() / n, layer.self_attn.q_proj.weight.grad, layer.mlp.down_proj.weight.grad,
            model.model.embed_tokens.weight.grad)


def test_validation_loss(embedded):
    examples = [Encoded(p, 1) for p in PROMPTS if len(p) > 1]
    ours, cpu = (mean_loss(embedded[device], examples, 2) for device in (DEVICE, "cpu"))
    assert ours == pytest.approx(cpu, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_cached_padded_generation_is_that_of_the_cpu(embedded, batch_size):
    expected = generate(embedded["cpu"], PROMPTS, 24, (2,), batch_size=1)
    assert generate(embedded[DEVICE], PROMPTS, 24, (2,), batch_size) == expected
    assert len({tuple(answer) for answer in expected}) > 1  # control: prompts matter


def test_sampling_draws_the_tokens_of_the_cpu(embedded):
    ours, cpu = (generate(embedded[device], PROMPTS, 12, (2,), 4, sampling=Sampling(0.8, 0.9, seed=3))
                 for device in (DEVICE, "cpu"))
    assert sum(a == b for a, b in zip(ours, cpu, strict=True)) >= len(PROMPTS) - 1  # rounding may turn one draw


def test_generation_in_bfloat16(embedded):
    model = model_of(EMBEDDED_BASE, DEVICE, torch.bfloat16)
    answers = generate(model, PROMPTS, 12, (), batch_size=4)
    assert [len(answer) for answer in answers] == [12] * 4
    expected = generate(embedded["cpu"], PROMPTS, 12, (), batch_size=4)
    assert sum(a[0] == b[0] for a, b in zip(answers, expected, strict=True)) >= 3


@pytest.mark.parametrize("dtype,within", [(torch.float32, 1e-3), (torch.bfloat16, 0.5)])
def test_log_likelihoods_of_choices_are_those_of_the_cpu(embedded, dtype, within):
    shots = TOKENIZER.encode("Question: what is money? Answer: a means of payment. ") * 3
    questions = [[Pair(shots + prompt, list(TOKENIZER.encode(choice)))
                  for choice in ("yes", "no, it is not", "card")] for prompt in PROMPTS]
    ours = dict(log_likelihoods(model_of(EMBEDDED_BASE, DEVICE, dtype), questions, 2))
    cpu = dict(log_likelihoods(embedded["cpu"], questions, 4))
    for row, values in cpu.items():
        assert ours[row] == pytest.approx(values, abs=within * max(1.0, max(map(abs, values)) / 10))


def test_logits_that_are_not_finite_are_named():
    model = model_of(EMBEDDED_BASE, DEVICE)
    model.model.layers[2].mlp.down_proj.weight.data[0, 0] = torch.inf
    with pytest.raises(NotFinite, match=r"layers\.2"):
        generate(model, PROMPTS, 4, (), batch_size=2)


def test_a_window_and_long_rows(embedded):
    """Longer than the 128 tokens up to which the CPU trains by plain products; a cache, padding and a window."""
    rows = [(PROMPTS[2] * 40)[:n] for n in (300, 211)]
    for changes in ({}, {"sliding_window": 50, "windowed_layers": (0, 2)}):
        answers = []
        for device in BOTH:
            model = embedded[device]
            kept = model.config
            for layer in model.model.layers:
                layer.self_attn.window = replace(kept, **changes).window(layer.self_attn.layer)
            model.config = replace(kept, **changes)
            answers.append((summed_loss(model, [Encoded(row, 1) for row in rows])[0],
                            generate(model, rows, 8, (), batch_size=2)))
            model.config = kept
        same(answers[1][0], answers[0][0], 1e-5)
        assert answers[1][1] == answers[0][1]
    for device in BOTH:
        for layer in embedded[device].model.layers:
            layer.self_attn.window = None
