"""The tokenizer of a GGUF file gives the same ids as the tokenizer from which the file was made."""
import re

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from finetune.config import EMBEDDED_BASE
from model.gguf_tokenizer_reader import SPLITTINGS, protobuf_field, varint
from model.tokenizer import load_tokenizer
from model.tokenizer_files import copy_tokenizer
from tests.gguf_files import byte_level_tokens, sentencepiece_tokens, strong_model, write_gguf

SPECIAL = ("<|begin|>", "<|end|>", "<|im_start|>")
TEXTS = ["Hello world", "I'd say it's what they've won, isn't it?", "1234567 + 89 = 1234656", "x²  ٣٤  Ⅷ",
         "naïve café Ünïcödé 漢字 😀👍🏽", "  two  spaces\tand\ttabs \n\n lines\r\n",
         "for i in range(10):\n    print(f\"{i:>3}\")  # 100%", "", " ", "\n", "...!?--", "e\u0301",
         "<|im_start|>user\nhi<|end|>", "a<|begin|>1", "ALL CAPS'S DON'T", "\u00a0nbsp\u2003em", "0.5e-10",
         "SELECT * FROM t WHERE a1 = '2024-05-06';"]


def trained_bpe(steps: list) -> tokenizers.Tokenizer:
    """A small byte-level BPE trained on TEXTS, which hold long runs of digits."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=list(SPECIAL), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def bytewise() -> pre_tokenizers.ByteLevel:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def gguf_with(tmp_path, tokenizer, pre: str, **options):
    return write_gguf(tmp_path / "x.gguf", strong_model(), tokenizer=lambda writer: byte_level_tokens(
        writer, tokenizer, pre, special=SPECIAL, **options))


def test_smollm_ids_are_those_of_the_original_tokenizer(tmp_path):
    original = trained_bpe([pre_tokenizers.Digits(individual_digits=True), bytewise()])
    loaded = load_tokenizer(gguf_with(tmp_path, original, "smollm"))
    for text in TEXTS:
        assert loaded.encode(text) == original.encode(text).ids, text
        assert loaded.decode(loaded.encode(text)) == re.sub("<[|].*?[|]>", "", text), text
    assert loaded.eos_id == 1


def test_a_splitting_that_ignores_single_digits_gives_other_ids(tmp_path):
    original = trained_bpe([bytewise()])
    loaded = load_tokenizer(gguf_with(tmp_path, original, "smollm"))
    assert loaded.encode("1234567") != original.encode("1234567").ids
    assert loaded.encode("won't") == original.encode("won't").ids


@pytest.mark.parametrize("pre,text,pieces", [
    ("smollm", "don't 1234 ab", ["don", "'t", "Ġ", "1", "2", "3", "4", "Ġab"]),
    ("llama-bpe", "don't 1234567 ab", ["don", "'t", "Ġ", "123", "456", "7", "Ġab"]),
    ("qwen2", "don't 1234 ab", ["don", "'t", "Ġ", "1", "2", "3", "4", "Ġab"]),
    ("llama-bpe", "I'M (x)\n\n  y", ["I", "'M", "Ġ(", "x", ")ĊĊ", "Ġ", "Ġy"]),
    ("qwen2", "I'M (x)\n\n  y", ["I", "'M", "Ġ(", "x", ")ĊĊ", "Ġ", "Ġy"]),
    ("smollm", "I'M (x)\n\n  y", ["I", "'", "M", "Ġ(", "x", ")", "ĊĊĠ", "Ġy"])])
def test_text_is_split_as_the_published_patterns_say(pre, text, pieces):
    """Worked out by hand. Llama 3 and Qwen2 split capital contractions and join line breaks to punctuation."""
    steps = pre_tokenizers.Sequence(SPLITTINGS[pre].steps())
    assert [piece for piece, _ in steps.pre_tokenize_str(text)] == pieces


def test_llama_3_takes_a_word_that_is_a_token_whole(tmp_path):
    """The merges alone would never make this token. tiktoken first looks for the whole piece."""
    vocabulary = {"<|begin|>": 0, "<|end|>": 1, "a": 2, "b": 3, "ab": 4, "c": 5, "abc": 6}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    for pre, ids in (("llama-bpe", [0, 6]), ("qwen2", [4, 5])):
        assert load_tokenizer(gguf_with(tmp_path, tokenizer, pre)).encode("abc") == ids


@pytest.mark.parametrize("pre,stated,begins", [("smollm", None, False), ("smollm", True, True), ("qwen2", None, False),
                                               ("llama-bpe", None, True), ("llama-bpe", False, False)])
def test_the_begin_token_stands_where_the_file_or_llama_cpp_puts_it(tmp_path, pre, stated, begins):
    tokenizer = load_tokenizer(gguf_with(tmp_path, trained_bpe([bytewise()]), pre, begin=stated))
    assert (tokenizer.encode("Hello")[0] == 0) == begins
    assert tokenizer.encode("Hello").count(0) == begins and tokenizer.decode(tokenizer.encode("Hello")) == "Hello"


def test_what_is_copied_into_a_run_gives_the_same_ids(tmp_path):
    path = gguf_with(tmp_path, trained_bpe([bytewise()]), "llama-bpe")
    copy_tokenizer(path, tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    loaded, copied = load_tokenizer(path), load_tokenizer(tmp_path / "run")
    assert [loaded.encode(text) for text in TEXTS] == [copied.encode(text) for text in TEXTS]
    assert copied.eos_id == loaded.eos_id == 1


# ---- sentencepiece ------------------------------------------------------------------------------------------------

def test_sentencepiece_ids_are_those_of_the_original_model(tmp_path):
    original, loaded = load_tokenizer(EMBEDDED_BASE), load_tokenizer(write_gguf(tmp_path / "x.gguf", strong_model()))
    for text in TEXTS:
        assert loaded.encode(text) == original.encode(text), text
        assert loaded.decode(loaded.encode(text)) == original.decode(original.encode(text))
    assert loaded.begin == [1] and loaded.eos_id == 2


def test_the_files_own_begin_and_space_prefix_are_kept(tmp_path):
    def tokens(writer):
        sentencepiece_tokens(writer)
        writer.add_add_bos_token(False)
        writer.add_add_space_prefix(False)
    loaded = load_tokenizer(write_gguf(tmp_path / "x.gguf", strong_model(), tokenizer=tokens))
    original = load_tokenizer(EMBEDDED_BASE)
    assert loaded.begin == [] and loaded.encode(" the") == original.encode("the")[1:] != loaded.encode("the")


def test_numbers_of_a_protocol_buffer_are_written_as_it_says():
    assert varint(300) == b"\xac\x02"
    assert protobuf_field(2, "testing") == b"\x12\x07testing" and protobuf_field(1, 150) == b"\x08\x96\x01"


# ---- refused ------------------------------------------------------------------------------------------------------

def other(writer):
    writer.add_tokenizer_model("bert")
    writer.add_token_list(["a"])


def without_pre(writer):
    byte_level_tokens(writer, trained_bpe([bytewise()]), "smollm")
    del writer.kv_data[0]["tokenizer.ggml.pre"]


def with_end(writer):
    sentencepiece_tokens(writer)
    writer.add_add_eos_token(True)


def merge_of_three(writer):
    bpe = models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])
    byte_level_tokens(writer, tokenizers.Tokenizer(bpe), "smollm", merges=["a b c"])


def far_end(writer):
    byte_level_tokens(writer, trained_bpe([bytewise()]), "smollm")
    writer.kv_data[0]["tokenizer.ggml.eos_token_id"].value = 50000


@pytest.mark.parametrize("tokens,message", [
    (other, "tokenizer 'bert' is not supported; supported: gpt2, llama"),
    (lambda writer: byte_level_tokens(writer, trained_bpe([bytewise()]), "tekken"),
     "tokenizer.ggml.pre 'tekken' is not supported; supported: smollm, llama-bpe, qwen2"),
    (without_pre, "metadata key tokenizer.ggml.pre is missing"),
    (with_end, "tokenizer.ggml.add_eos_token is true, but an end token after every prompt is not supported"),
    (far_end, "tokenizer.ggml.eos_token_id is 50000, but there are"),
    (lambda writer: sentencepiece_tokens(writer, at_3=4),
     "user-defined tokens ('\\n') are not supported in a tokenizer of kind 'llama'"),
    (lambda writer: sentencepiece_tokens(writer, at_0=3), "a tokenizer of kind 'llama' needs an unknown token"),
    (merge_of_three, "tokens and merges do not make a byte-level BPE")])
def test_a_tokenizer_that_cannot_be_made_exactly_is_refused(tmp_path, tokens, message):
    path = write_gguf(tmp_path / "x.gguf", strong_model(), tokenizer=tokens)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
        load_tokenizer(path)
