"""Sampling: temperature and top-p by their definitions, and draws that a seed reproduces; masks while decoding."""
import pytest
import torch

from model.generate import Sampler, Sampling, generate, nucleus, prompt_generator, tempered
from model.llama import Llama
from model.recorded_decoding import next_logits
from tests.model.test_model import tiny, tokens

DRAWS = 20_000
LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0, 2.5, 0.0])


def frequencies(sampling: Sampling, logits=LOGITS):
    """Frequencies of DRAWS tokens, drawn for as many prompts, one each."""
    drawn = Sampler(sampling, DRAWS)(logits.expand(DRAWS, -1), list(range(DRAWS)))
    return torch.bincount(drawn, minlength=len(logits)) / DRAWS


def chi_square(observed, expected):
    return DRAWS * ((observed - expected).square() / expected).sum().item()


def prompts_of(*lengths):
    return [tokens(1, n, seed=n)[0].tolist() for n in lengths]


@pytest.mark.parametrize("lengths,needs_mask", [((5, 5), False), ((5, 3), True)], ids=["same length", "padded"])
def test_only_padding_needs_a_mask_for_one_token(lengths, needs_mask, monkeypatch):
    masks, hidden = [], Llama.hidden
    monkeypatch.setattr(Llama, "hidden", lambda self, tokens, mask, cache: masks.append(mask) or hidden(
        self, tokens, mask, cache))
    generate(tiny(), prompts_of(*lengths), 4, (), 2)
    assert [mask is not None for mask in masks] == [True, *3 * [needs_mask]]


def test_without_a_mask_one_token_has_the_same_bits():
    model, t, new = tiny(), tokens(2, 5), tokens(2, 1, seed=9)
    caches, mask = [model.new_cache(2, 6) for _ in range(2)], torch.ones(2, 6, dtype=torch.bool)
    for cache in caches:
        next_logits(model, t, mask[:, :5], cache)
    expected = model.logits(model.hidden(new, mask, caches[0])[:, -1])
    assert torch.equal(next_logits(model, new, mask, caches[1]), expected)


def test_drawing_without_temperature_or_top_p_has_the_frequencies_of_the_softmax():
    """99.9 % of chi-square values with 5 degrees of freedom lie below 20.5."""
    assert chi_square(frequencies(Sampling()), LOGITS.double().softmax(-1)) < 20.5
    other = frequencies(Sampling(temperature=1.1))
    assert chi_square(other, LOGITS.double().softmax(-1)) > 20.5  # control: another temperature is noticed


def test_temperature_divides_the_logits():
    assert chi_square(frequencies(Sampling(temperature=2.0)), (LOGITS.double() / 2).softmax(-1)) < 20.5


@pytest.mark.slow
def test_one_prompts_many_draws_have_the_frequencies_of_the_softmax_too():
    """The same generator again and again, as in a long completion."""
    sampler = Sampler(Sampling(seed=3), 1)
    drawn = torch.cat([sampler(LOGITS[None], [0]) for _ in range(DRAWS)])
    assert chi_square(torch.bincount(drawn, minlength=6) / DRAWS, LOGITS.double().softmax(-1)) < 20.5


def test_tempered_is_the_softmax_and_goes_to_one_hot_without_overflow():
    torch.testing.assert_close(tempered(LOGITS, 1.0), LOGITS.double().softmax(-1), rtol=0, atol=1e-12)
    for temperature in (1e-3, 1e-30, 1e-320):
        assert tempered(LOGITS * 100, temperature).tolist() == [0, 1, 0, 0, 0, 0]
    assert torch.tensor([1e3]).div(1e-320).isinf()  # control: what dividing first would give


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p():
    p = torch.tensor([0.125, 0.5, 0.0625, 0.25, 0.0625], dtype=torch.float64)
    for top_p, kept in ((0.01, [1]), (0.5, [1]), (0.50001, [1, 3]), (0.75, [1, 3]), (0.8, [0, 1, 3]),
                        (0.9, [0, 1, 2, 3]), (1, [0, 1, 2, 3, 4])):
        cut = nucleus(p, top_p)
        assert cut.nonzero().flatten().tolist() == kept
        torch.testing.assert_close(cut[kept], p[kept] / p[kept].sum(), rtol=0, atol=1e-12)


def test_each_row_has_a_nucleus_of_its_own():
    p = torch.tensor([[0.25, 0.75], [0.75, 0.25]])
    assert nucleus(p, 0.5).tolist() == [[0, 1], [1, 0]]


@pytest.mark.slow
def test_tokens_outside_the_nucleus_never_appear():
    """The three most likely of these tokens hold 0.907, the first two 0.738."""
    seen = frequencies(Sampling(top_p=0.9))
    assert (seen > 0).tolist() == [False, True, True, False, True, False]
    assert (frequencies(Sampling()) > 0).all()  # control: without it they do


@pytest.mark.parametrize("sampling", [Sampling(top_p=1e-6), Sampling(temperature=1e-6),
                                      Sampling(temperature=50, top_p=1e-6)])
def test_a_small_top_p_or_temperature_is_greedy(sampling):
    model, prompts = tiny(), prompts_of(3, 9, 5)
    greedy = generate(model, prompts, 10, (7, 8), 2)
    assert generate(model, prompts, 10, (7, 8), 2, sampling=sampling) == greedy
    assert generate(model, prompts, 10, (7, 8), 2, sampling=Sampling(temperature=2.0)) != greedy  # control


def test_sampling_is_reproducible_and_another_seed_is_another_text():
    model, prompts = tiny(), prompts_of(4, 6)
    first, again, other = (generate(model, prompts, 12, (), 2, sampling=Sampling(2.0, 0.95, seed))
                           for seed in (1, 1, 2))
    assert first == again and first != other


def test_sampling_depends_neither_on_the_batch_size_nor_on_the_company():
    model, prompts, sampling = tiny(), prompts_of(3, 9, 5, 5, 12, 1), Sampling(temperature=2.0, top_p=0.95, seed=5)
    alone = generate(model, prompts, 10, (7, 8), 1, sampling=sampling)
    for batch_size in (2, 4, 6):
        assert generate(model, prompts, 10, (7, 8), batch_size, sampling=sampling) == alone
    changed = [*prompts[:3], *prompts_of(20, 2, 7)]
    assert generate(model, changed, 10, (7, 8), 4, sampling=sampling)[:3] == alone[:3]
    assert len({len(a) for a in alone}) > 1  # some stopped early, so the batch really shrank


def test_the_same_prompt_twice_is_drawn_twice():
    model, (prompt,) = tiny(), prompts_of(5)
    first, second = generate(model, [prompt, prompt], 12, (), 2, sampling=Sampling(temperature=2.0))
    assert first != second


def test_prompt_1_of_seed_0_is_not_prompt_0_of_seed_1():
    seeds = {prompt_generator(seed, prompt).initial_seed() for seed in range(20) for prompt in range(20)}
    assert len(seeds) == 400


def test_sampling_stops_at_end_tokens_and_does_not_return_them():
    model, prompts = tiny(), prompts_of(3, 9, 5, 5)
    free = generate(model, prompts, 20, (), 4, sampling=Sampling(temperature=3.0))
    stopped = generate(model, prompts, 20, (7, 8), 4, sampling=Sampling(temperature=3.0))
    until = [next((i for i, token in enumerate(row) if token in (7, 8)), 20) for row in free]
    assert stopped == [row[:n] for row, n in zip(free, until, strict=True)] and min(until) < 20


@pytest.mark.parametrize("wrong,message", [
    ({"temperature": 0.0}, "temperature=0.0 is not above 0"), ({"temperature": float("nan")}, "temperature=nan"),
    ({"top_p": 0.0}, r"top_p=0.0 is not in \(0, 1\]"), ({"top_p": 1.5}, "top_p=1.5")])
def test_a_temperature_or_top_p_without_meaning_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**wrong)
