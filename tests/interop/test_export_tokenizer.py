"""A tokenizer as GGUF metadata: read again, it gives the same ids, or the export is refused."""
import io
import json
from dataclasses import replace

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from finetune.config import EMBEDDED_BASE
from interop.gguf_tokenizer_writer import tokenizer_keys
from model.files import write_json
from model.gguf_tokenizer_reader import SPLITTINGS
from model.tokenizer import load_tokenizer
from tests.cli import SMALL
from tests.model.test_gguf_tokenizer_reader import SPECIAL, TEXTS, bytewise, trained_bpe

GGML = "tokenizer.ggml."


def keys_of(directory, vocab_size=4096, eos=(2,), **config):
    found = tokenizer_keys(directory, replace(SMALL, vocab_size=vocab_size, **config), eos)
    return {key.removeprefix(GGML): value for key, value in found.items()}


def saved(tokenizer, path, **config):
    tokenizer.save(str(path / "tokenizer.json"))
    write_json(path / "tokenizer_config.json", {"eos_token": SPECIAL[1], **config})
    return path


def test_a_sentencepiece_model_is_complete(tmp_path):
    keys, p = keys_of(EMBEDDED_BASE), sentencepiece.SentencePieceProcessor(
        model_file=str(EMBEDDED_BASE / "tokenizer.model"))
    assert (keys["model"], keys["pre"], keys["add_bos_token"],
            keys["add_space_prefix"]) == ("llama", "default", True, True)
    assert (keys["bos_token_id"], keys["eos_token_id"], keys["unknown_token_id"]) == (p.bos_id(), p.eos_id(),
                                                                                      p.unk_id())
    assert keys["tokens"] == [p.id_to_piece(i) for i in range(4096)] and keys["scores"][100] == p.get_score(100)
    assert keys["token_type"][:3] == [2, 3, 3] and set(keys["token_type"]) == {1, 2, 3, 6}


@pytest.mark.parametrize("pre", SPLITTINGS)
def test_the_splitting_is_told_by_what_it_does(tmp_path, pre):
    splitting = SPLITTINGS[pre]
    tokenizer = trained_bpe(splitting.steps())
    if splitting.whole_words:
        tokenizer.model.ignore_merges = True
    keys = keys_of(saved(tokenizer, tmp_path), tokenizer.get_vocab_size(), bos_token_id=0)
    assert keys["pre"] == pre and keys["model"] == "gpt2" and keys["add_bos_token"] is False
    assert keys["token_type"][:3] == [3, 3, 3] and set(keys["token_type"][3:]) == {1}
    assert all(len(merge.split(" ")) == 2 for merge in keys["merges"])


def test_begin_token_ends_and_chat_template_go_along(tmp_path):
    tokenizer = trained_bpe(SPLITTINGS["smollm"].steps())
    tokenizer.post_processor = processors.TemplateProcessing(single=[SPECIAL[0], "$A"],
                                                             special_tokens=[(SPECIAL[0], 0)])
    keys = keys_of(saved(tokenizer, tmp_path, chat_template="{{ x }}"), tokenizer.get_vocab_size(), eos=(1, 2, 5))
    assert (keys["add_bos_token"], keys["bos_token_id"], keys["eos_token_id"], keys["eot_token_id"]) == (True, 0, 1, 2)
    assert keys["tokenizer.chat_template"] == "{{ x }}"


def test_a_vocabulary_that_the_model_has_more_rows_for_is_filled_up(tmp_path):
    tokenizer = trained_bpe(SPLITTINGS["smollm"].steps())
    size = tokenizer.get_vocab_size()
    keys = keys_of(saved(tokenizer, tmp_path), size + 3)
    assert keys["tokens"][size:] == [f"[PAD{size + i}]" for i in range(3)] and keys["token_type"][size:] == [5, 5, 5]
    with pytest.raises(ValueError, match="has 4 tokens more than the model.s vocab_size"):
        keys_of(tmp_path, size - 4)


def test_a_sentencepiece_bpe_that_was_converted_into_json_gets_its_scores_back(tmp_path):
    """The merges are in the order of the scores, as in Hugging Face's conversion of LLaMA-1 and LLaMA-2."""
    p = sentencepiece.SentencePieceProcessor(model_file=str(EMBEDDED_BASE / "tokenizer.model"))
    vocabulary = {p.id_to_piece(i): i for i in range(p.vocab_size())}
    merges = [(-p.get_score(i), token[:at], token[at:]) for token, i in vocabulary.items() if not p.is_byte(i)
              for at in range(1, len(token))
              if token[:at] in vocabulary and token[at:] in vocabulary]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, [tuple(m[1:]) for m in sorted(merges)], byte_fallback=True,
                                                unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single=["<s>", "$A"], special_tokens=[("<s>", 1)])
    keys, original = keys_of(saved(tokenizer, tmp_path)), keys_of(EMBEDDED_BASE)
    assert {key: keys[key] for key in keys if key != "scores"} == {key: original[key] for key in original
                                                                   if key != "scores"}
    rank = dict(zip(keys["tokens"], keys["scores"], strict=True))
    assert rank["\u2581t"] > rank["\u2581the"] > rank["\u2581there"]


@pytest.mark.parametrize("change,message", [
    (lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Sequence([bytewise()])),
     "splits text in none of the ways that are known here"),
    (lambda t: setattr(t, "normalizer", normalizers.Lowercase()), "a GGUF file would give other tokens for"),
    (lambda t: setattr(t, "post_processor", processors.TemplateProcessing(
        single=[SPECIAL[0], SPECIAL[1], "$A"], special_tokens=[(SPECIAL[0], 0), (SPECIAL[1], 1)])),
        "puts 2 tokens around every prompt")])
def test_what_llama_cpp_would_read_otherwise_is_refused(tmp_path, change, message):
    tokenizer = trained_bpe(SPLITTINGS["smollm"].steps())
    change(tokenizer)
    with pytest.raises(ValueError, match=message) as error:
        keys_of(saved(tokenizer, tmp_path), tokenizer.get_vocab_size())
    assert str(tmp_path) in str(error.value)


def test_a_user_defined_token_of_several_characters_is_refused(tmp_path):
    """A user-defined token of a single character is accepted: the small base has one, its line break."""
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS * 20), model_writer=stream, model_type="bpe",
                                             vocab_size=380, byte_fallback=True,
                                             normalization_rule_name="identity", remove_extra_whitespaces=False,
                                             user_defined_symbols=["<sep>"],
                                             hard_vocab_limit=False, minloglevel=2)
    (tmp_path / "tokenizer.model").write_bytes(stream.getvalue())
    with pytest.raises(ValueError, match="a GGUF file would give other tokens for 'a<sep>b <sep>'"):
        keys_of(tmp_path)


def test_letters_and_accents_composed_first_are_let_through(tmp_path):
    """Qwen2's tokenizer composes. llama.cpp gives the same ids for all text that is composed already."""
    tokenizer = trained_bpe(SPLITTINGS["qwen2"].steps())
    tokenizer.normalizer = normalizers.NFC()
    assert keys_of(saved(tokenizer, tmp_path), tokenizer.get_vocab_size())["pre"] == "qwen2"


def test_other_kinds_of_tokenizer_are_refused(tmp_path):
    tokenizers.Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1},
                                          unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="a tokenizer of kind 'WordLevel' is not written as GGUF"):
        keys_of(tmp_path)
    assert load_tokenizer(tmp_path).encode("a") == [0] and json.loads((tmp_path / "tokenizer.json").read_text())
    assert TEXTS
