"""Token ids of GGUF files equal llama.cpp's own. Skipped if llama-cpp-python is not installed
(tests/interop/requirements.txt).

    SMOLLM2_GGUF=smollm2/SmolLM2-135M-Instruct.Q4_1.gguf python -m pytest tests/interop/test_gguf_tokenizers.py
"""
import os
import random
from itertools import cycle
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from model.gguf_tokenizer_reader import SPLITTINGS
from model.tokenizer import load_tokenizer
from tests.export_runs import export
from tests.interop.test_export_tokenizer import CHAT, chat_model, model_of
from tests.model.test_gguf_tokenizer_reader import TEXTS, bytewise, gguf_with, trained_bpe

llama_cpp = pytest.importorskip("llama_cpp", reason="pip install -r tests/interop/requirements.txt")
SEQUENCES = 400


def random_texts(n: int = SEQUENCES) -> list[str]:
    """Letters, digits, marks, spaces, line breaks, apostrophes, accents, other scripts and emoji in any order."""
    rng = random.Random(0)
    alphabet = "aBst dLl 019 .,;!?-_'’\"()\n\r\t\u00a0äßЖñ中文日本ぁ한🙂👍🏽½²٣ᵃ"
    return ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 40))) for _ in range(n)]


def differing(path: Path, texts: list[str]) -> list[str]:
    """The texts for which llama.cpp gives other ids."""
    ours, theirs = load_tokenizer(path), llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    # add_bos adds the begin token only if the file says so
    return [text for text in texts if ours.encode(text) != theirs.tokenize(text.encode(), add_bos=True, special=True)]


@pytest.mark.parametrize("pre", SPLITTINGS)
def test_ids_are_llama_cpps(tmp_path, pre):
    tokenizer = trained_bpe([pre_tokenizers.Digits(individual_digits=True), bytewise()] if pre == "smollm"
                            else [bytewise()])
    assert differing(gguf_with(tmp_path, tokenizer, pre), [*TEXTS, *random_texts()]) == []


def test_another_splitting_gives_other_ids(tmp_path):
    """Control: a file with the splitting smollm is read as if it had llama-bpe."""
    from model import gguf_tokenizer_reader as gguf_tokenizer
    path = gguf_with(tmp_path, trained_bpe([bytewise()]), "smollm")
    kept = gguf_tokenizer.SPLITTINGS["smollm"]
    try:
        gguf_tokenizer.SPLITTINGS["smollm"] = gguf_tokenizer.SPLITTINGS["llama-bpe"]
        assert differing(path, ["1234567", "I'M here"]) != []
    finally:
        gguf_tokenizer.SPLITTINGS["smollm"] = kept


@pytest.mark.parametrize("special", [True, False])
def test_ids_of_added_tokens_are_llama_cpps(tmp_path, special):
    """<|im_start|> and <|im_end|> behind the pieces of a tokenizer.model, exported, read here and there."""
    flags = {str(i): {"content": text, "special": special} for text, i in CHAT.items()}
    base = model_of(chat_model(tmp_path / "base", stated={"added_tokens_decoder": flags}))
    export(base, "gguf", tmp_path / "x.gguf")
    texts = ["<|im_start|>user a lost card<|im_end|>", "a <|im_start|> b<|im_end|> ", "<|im_end|><|im_end|>a",
             *("".join(parts) for parts in zip(random_texts(), cycle(CHAT), reversed(random_texts())))]
    assert differing(tmp_path / "x.gguf", texts) == []
    theirs = llama_cpp.Llama(str(tmp_path / "x.gguf"), vocab_only=True, verbose=False)
    assert theirs.tokenize(b"<|im_start|>", add_bos=False, special=True) == [4096] and theirs.token_eos() == 4097
    assert theirs.metadata["tokenizer.chat_template"] == "{{ messages }}"


@pytest.mark.skipif("SMOLLM2_GGUF" not in os.environ, reason="SMOLLM2_GGUF names no file")
def test_ids_of_a_real_model_are_llama_cpps():
    assert differing(Path(os.environ["SMOLLM2_GGUF"]), [*TEXTS, *random_texts()]) == []
