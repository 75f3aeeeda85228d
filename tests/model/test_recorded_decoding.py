"""Generation on a recording writes what generation without one writes. Here the recorded step is computed anew each
time; the tests marked cuda launch it."""
import pytest
import torch
from safetensors.torch import load_file

import model.recorded_decoding
from model.checkpoint import load_model
from model.directory import load_config, weight_files
from model.generate import Sampling, generate
from tests.model.test_model import CASES, FIXTURES

RECORDED = [case for case in CASES if "longrope" not in case]  # its angles change with the length of the text

PROMPTS = [[5, 6, 7, 8, 9], [3], [10, 11, 12, 13, 14, 15, 16, 17, 18], [20, 21]]


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr(model.recorded_decoding, "records", lambda *rest: True)


@pytest.mark.parametrize("case", RECORDED)
def test_greedy_continuations_are_those_of_the_published_implementation(case, recorded):
    golden, llama = load_file(FIXTURES / case / "golden.safetensors"), model_of(case)
    prompt, expected = golden["tokens"][0, :8].tolist(), golden["generated"][0, 8:].tolist()
    assert generate(llama, [prompt], 24, (), batch_size=1) == [expected]


def model_of(case):
    return load_model(weight_files(FIXTURES / case), load_config(FIXTURES / case), torch.float32)


@pytest.mark.parametrize("case", RECORDED)
@pytest.mark.parametrize("sampling", [None, Sampling(seed=3)])
def test_padded_batches_whose_rows_end_at_different_times(case, sampling, monkeypatch):
    llama = model_of(case)
    stops = range(0, llama.config.vocab_size, 9)
    plain = generate(llama, PROMPTS, 20, stops, 3, sampling=sampling)
    monkeypatch.setattr(model.recorded_decoding, "records", lambda *rest: True)
    assert generate(llama, PROMPTS, 20, stops, 3, sampling=sampling) == plain
    assert sampling is None or len({len(answer) for answer in plain}) > 1  # control: rows leave


def test_only_a_gpu_and_long_answers_are_recorded():
    llama = model_of(CASES[0])
    assert not model.recorded_decoding.records(llama, 1000)
    llama.model.embed_tokens.weight = torch.nn.Parameter(torch.empty(1))
    caches = model.recorded_decoding.Caches(llama, 1000)
    assert caches.recorded is None and type(caches.new(1, 8)).__name__ == "KVCache"


def test_a_recording_that_fails_is_said_and_done_without(monkeypatch, capsys):
    llama, expected = model_of(CASES[0]), generate(model_of(CASES[0]), PROMPTS, 4, (), 4)

    def refused(*rest):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")
    monkeypatch.setattr(model.recorded_decoding, "records", lambda *rest: True)
    monkeypatch.setattr(model.recorded_decoding, "Recorded", refused)
    assert generate(llama, PROMPTS, 4, (), 2) == generate(llama, PROMPTS, 4, (), 2)
    assert capsys.readouterr().err.count("generation is not recorded, and launches every kernel: operation not") == 2
    assert generate(llama, PROMPTS, 4, (), 4) == expected
