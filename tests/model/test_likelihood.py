"""Log-likelihoods of choices: shared text is computed once, and no value changes."""
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.config import EMBEDDED_BASE
from model import likelihood
from model.checkpoint import random_model
from model.config import LlamaConfig
from model.likelihood import Pair, common_start, encode_pairs, fitted, log_likelihoods, passes
from model.llama import Llama
from model.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer(EMBEDDED_BASE)
CONFIG = LlamaConfig(vocab_size=48, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, head_dim=8, max_position_embeddings=96, tie_word_embeddings=True,
                     bos_token_id=1, eos_token_ids=(2,))


def lively(config: LlamaConfig):
    """A random model with large weights. With the usual ones, attention and predictions would be nearly uniform."""
    model = random_model(config, torch.float32, seed=3)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10 if p.ndim > 1 else 1)
    return model


MODELS = {"all that came before": lively(CONFIG),
          "a window": lively(replace(CONFIG, sliding_window=7, windowed_layers=(0,))),
          "softcaps": lively(replace(CONFIG, attention_softcap=2.0, final_softcap=3.0))}


@torch.no_grad()
def naive(model, pair: Pair) -> float:
    """The whole sequence by itself, without a cache."""
    tokens = pair.context + pair.continuation
    logits = model(torch.tensor([tokens[:-1]]))[0].log_softmax(-1)
    return sum(logits[i - 1, tokens[i]].item() for i in range(len(pair.context), len(tokens)))


def scored(model, questions, batch_size=64) -> list[list[float]]:
    found = dict(log_likelihoods(model, questions, batch_size))
    assert sorted(found) == list(range(len(questions)))
    return [found[i] for i in range(len(questions))]


def tokens(least: int, most: int):
    return st.lists(st.integers(3, 47), min_size=least, max_size=most)


@st.composite
def question_lists(draw):
    """Questions like those of benchmarks: shared shots, one context per question or per choice, choices of one token or
    several. Some choices are equal, or the beginning of another."""
    every = draw(tokens(0, 30))
    others = draw(st.sampled_from([every, every[:20], [4] + every]))  # other shots, so that batches differ in prefix

    def question():
        shots = draw(st.sampled_from([every, others]))
        start, kind = draw(tokens(1, 12)), draw(st.sampled_from(["letters", "texts", "a context a choice"]))
        n = draw(st.integers(2, 4))
        if kind == "a context a choice":
            end = draw(tokens(1, 5))
            return [Pair(shots + start + draw(tokens(0, 3)), end) for _ in range(n)]
        return [Pair(shots + start, draw(tokens(1, 1 if kind == "letters" else 5))) for _ in range(n)]
    return [question() for _ in range(draw(st.integers(1, 6)))]


@pytest.mark.parametrize("attention", MODELS)
@settings(max_examples=25)
@given(questions=question_lists(), batch_size=st.sampled_from([1, 2, 64]), at_once=st.sampled_from([1, 20, 512]))
def test_sharing_changes_nothing(attention, questions, batch_size, at_once):
    """`at_once`: tokens of ends in a pass, and logits in a softmax."""
    model = MODELS[attention]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihood, "TOKENS_AT_ONCE", at_once)
        patch.setattr(likelihood, "LOGITS_AT_ONCE", 48 * at_once)
        found = scored(model, questions, batch_size)
    for pairs, values in zip(questions, found, strict=True):
        assert values == pytest.approx([naive(model, pair) for pair in pairs], abs=1e-4)


SHOTS = [5, 9, 17, 30, 8, 41] * 5
QUESTIONS = [[Pair(SHOTS + [20 + i, 7], [c, 3 + c, 11][:1 + c % 3]) for c in range(3, 7)] for i in range(6)]


@pytest.fixture
def read(monkeypatch):
    """The shapes of the tokens that go through the layers, pass by pass."""
    shapes, hidden = [], Llama.hidden

    def recorded(self, tokens, *rest, **more):
        shapes.append(tuple(tokens.shape))
        return hidden(self, tokens, *rest, **more)
    monkeypatch.setattr(Llama, "hidden", recorded)
    return shapes


def test_the_prefix_is_read_once_a_batch_stems_once_a_question_and_letters_not_at_all(read):
    model = MODELS["all that came before"]
    scored(model, QUESTIONS)
    # The shots; the rest of each context without its last token; each distinct choice.
    assert read == [(1, 30), (6, 1), (18, 3)]
    read.clear()
    scored(model, [[Pair(SHOTS + [20 + i, 7], [c]) for c in range(4)] for i in range(6)])
    assert read == [(1, 30), (6, 2)]


def test_the_prefix_of_the_batch_before_serves_as_far_as_it_is_this_ones(read):
    """Batches of two. The first two questions share one token more than the first four. Two others begin otherwise."""
    model = MODELS["all that came before"]
    questions = [[Pair(SHOTS + start + [20 + i] * i, [c]) for c in range(3)]
                 for i, start in enumerate([[3, 4], [3, 4], [5, 6], [6, 7]])]
    questions += [[Pair([40] + SHOTS + [20 + i] * i, [c]) for c in range(3)] for i in (7, 8)]
    values = scored(model, questions, batch_size=2)
    assert read == [(1, 31), (2, 2), (2, 5), (1, 31), (2, 8)]
    assert values == [pytest.approx([naive(model, pair) for pair in pairs], abs=1e-4) for pairs in questions]
    read.clear()
    scored(model, questions[:3], batch_size=1)
    assert read == [(1, 31), (1, 1), (1, 2), (1, 4)]  # single questions: each extends the one before


@pytest.mark.parametrize("shared,more,reads", [
    (13, 0, [(2, 15), (2, 16)]), (15, 0, [(1, 16), (2, 1), (2, 3)]),  # 16 tokens are worth a pass, fewer are not
    (16, 30, [(1, 47), (2, 1), (1, 32), (2, 1)])])
def test_a_prefix_goes_on_from_what_it_shares_with_the_one_before(shared, more, reads, read):
    """Two batches share their first tokens. Then the questions of a batch share `more` tokens and one or two others."""
    model = MODELS["a window"]
    start = [3 + i % 40 for i in range(shared)]
    questions = [[Pair(start + [7 + b] * more + [20 + b] * (b + 1) + [30 + q], [c]) for c in range(3)]
                 for b in (0, 1) for q in (0, 1)]
    values = scored(model, questions, batch_size=2)
    assert read == reads
    assert values == [pytest.approx([naive(model, pair) for pair in pairs], abs=1e-4) for pairs in questions]


def test_ends_of_near_equal_length_share_a_pass(read, monkeypatch):
    model = MODELS["a window"]
    assert passes([9, 2, 1, 3], 9) == [[2, 1, 3], [0]] and passes([9, 2, 1, 3], None) == [[2, 1, 3, 0]]
    monkeypatch.setattr(likelihood, "TOKENS_AT_ONCE", 12)
    questions = [[Pair([20 + i, 7, 9], [c] * c) for c in (3, 8)] for i in range(3)]
    values = scored(model, questions)
    assert read == [(3, 2), (3, 3), (1, 8), (1, 8), (1, 8)]
    assert values == [pytest.approx([naive(model, pair) for pair in pairs], abs=1e-4) for pairs in questions]


def test_only_the_places_that_are_read_go_through_the_vocabulary(monkeypatch):
    read, model = [], MODELS["all that came before"]
    logits = type(model).logits
    monkeypatch.setattr(type(model), "logits", lambda self, x: read.append(len(x)) or logits(self, x))
    monkeypatch.setattr(likelihood, "PLACES_AT_ONCE", 7)
    expected = [[naive(model, pair) for pair in pairs] for pairs in QUESTIONS]
    read.clear()
    values = scored(model, QUESTIONS)
    assert max(read) == 7 and sum(read) == sum(len(p.continuation) for pairs in QUESTIONS for p in pairs)
    assert values == [pytest.approx(row, abs=1e-4) for row in expected]


@pytest.mark.parametrize("damage", ["parents", "mask", "window in places"])
def test_the_comparison_notices(damage, monkeypatch):
    """Negative controls: stems of other questions, visible padding, and a window that counts padding."""
    model = MODELS["a window" if damage == "window in places" else "all that came before"]
    questions = [[Pair([9 + i, 4] * (1 + 4 * i) + [c], [5, c, 8]) for c in (6, 7)] for i in range(3)]
    if damage == "parents":
        monkeypatch.setattr(likelihood, "read_stems", lambda m, batch, prefix, real=likelihood.read_stems:
                            real(m, replace(batch, parents=[0] * len(batch.rows)), prefix))
    elif damage == "mask":
        hidden = type(model).hidden
        monkeypatch.setattr(type(model), "hidden",
                            lambda self, tokens, mask=None, cache=None, *rest:
                            hidden(self, tokens, None, cache, *rest))
    else:
        import model.llama as llama
        real = llama.token_positions
        monkeypatch.setattr(llama, "token_positions", lambda mask, cached, T, device:
                            real(None if cached == 0 else mask, cached, T, device))
    worst = max(abs(a - naive(model, pair)) for pairs, row in zip(questions, scored(model, questions), strict=True)
                for a, pair in zip(row, pairs, strict=True))
    assert worst > 1e-2


def test_questions_of_near_equal_length_go_together():
    order = [i for i, _ in log_likelihoods(MODELS["softcaps"], [[Pair([3] * n, [4])] for n in (9, 2, 8, 1)], 2)]
    assert order == [3, 1, 2, 0]


def test_common_start_is_that_of_all():
    assert common_start([[1, 2, 3], [1, 2, 4], [1, 2]]) == [1, 2] and common_start([[5], [6]]) == []


def encode_pair(tokenizer, context, continuation, empty):
    return encode_pairs(tokenizer, [context], [continuation], empty)[0]


# ---- where context and continuation are cut --------------------------------------------------------------------------

@given(st.text(max_size=20), st.text(min_size=1, max_size=10))
def test_a_pair_is_the_whole_texts_tokens_cut_after_the_contexts(context, choice):
    try:
        pair = encode_pair(TOKENIZER, context, f" {choice}", empty=1)
    except ValueError:
        return
    assert pair.context == TOKENIZER.encode(context.rstrip())
    whole = TOKENIZER.encode(f"{context} {choice}")
    assert (pair.context + pair.continuation)[len(pair.context):] == whole[len(pair.context):]


def test_white_space_that_ends_the_context_goes_to_the_continuation():
    assert encode_pair(TOKENIZER, "Sunlight  ", " makes", 1) == encode_pair(TOKENIZER, "Sunlight", "   makes", 1)


class NoBegin:
    """A tokenizer without a begin token."""
    def encode(self, text):
        return [ord(c) for c in text]


def test_an_empty_context_is_the_token_that_stands_for_it():
    assert encode_pair(NoBegin(), "", "ab", 7) == Pair([7], [97, 98])
    assert encode_pair(NoBegin(), " ", "ab", 7) == Pair([7], [32, 97, 98])
    pair = encode_pair(TOKENIZER, "", "ab", 1)
    assert pair.context == [1] and pair.continuation[0] != 1
    with pytest.raises(ValueError, match="continuation '' adds no token after 'ab'"):
        encode_pair(NoBegin(), "ab", "", 7)


def test_what_is_too_long_loses_its_left_end_and_never_its_choice():
    assert fitted(Pair([1, 2, 3], [4, 5]), 4) == Pair([1, 2, 3], [4, 5])  # the model reads all four but the last
    assert fitted(Pair([1, 2, 3], [4, 5]), 3) == Pair([2, 3], [4, 5])
    assert fitted(Pair([1, 2, 3], [4, 5]), 2) == Pair([3], [4, 5])
    with pytest.raises(ValueError, match="a continuation of 2 tokens is longer than the model's 1 positions"):
        fitted(Pair([1, 2, 3], [4, 5]), 1)
