"""Begin and end tokens of each family's kind of tokenizer, on files that the tests make."""
import io
import json
from functools import cache

import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from model.config_json import config_to_json
from model.directory import load_config
from model.files import write_json
from model.tokenizer import load_tokenizer
from tests.model.test_model import TINY

BOS, EOS = "<bos>", "<eos>"
VOCABULARY = {c: i + 2 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


def json_tokenizer(directory, adds_begin: bool, **stated):
    """One token per byte. adds_begin: by the file's own post-processor. stated: content of tokenizer_config.json."""
    tokenizer = Tokenizer(models.BPE({BOS: 0, EOS: 1, **VOCABULARY}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens([BOS, EOS])
    if adds_begin:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(stated))
    return load_tokenizer(directory)


@cache
def small_sentencepiece() -> bytes:
    """A trained tokenizer.model of 300 tokens."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a bank card", "a lost card", "the bank"] * 9), model_writer=model, model_type="bpe",
        vocab_size=300, byte_fallback=True, num_threads=1, minloglevel=2, hard_vocab_limit=False)
    return model.getvalue()


@pytest.fixture(scope="module")
def sentencepiece_bytes() -> bytes:
    return small_sentencepiece()


@pytest.mark.parametrize("adds_begin,stated,begin", [
    (True, {"bos_token": BOS, "add_bos_token": True}, [0]),     # Gemma 2, Llama 2: stated twice, added once
    (True, {"bos_token": BOS}, [0]),                            # Llama 3: its tokenizer_config.json does not say
    (True, {}, [0]),
    (False, {"bos_token": BOS, "add_bos_token": True}, [0]),    # only tokenizer_config.json says so
    (False, {"bos_token": {"content": BOS, "lstrip": False}, "add_bos_token": True}, [0]),
    (False, {"bos_token": BOS}, []),                            # SmolLM2 has one but does not use it
    (False, {"bos_token": None, "add_bos_token": False}, [])])  # Qwen2
def test_a_prompt_begins_as_its_family_has_it(tmp_path, adds_begin, stated, begin):
    tokenizer = json_tokenizer(tmp_path, adds_begin, **stated)
    letters = [VOCABULARY[c] for c in "card"]
    assert tokenizer.encode("card") == begin + letters
    assert tokenizer.encode("") == begin
    assert tokenizer.decode([*begin, *letters, 1]) == "card"  # begin and end tokens are not text


@pytest.mark.parametrize("stated,eos_id", [({"eos_token": EOS}, 1), ({"eos_token": {"content": EOS}}, 1), ({}, None),
                                           ({"eos_token": None}, None)])
def test_the_end_token_is_the_one_that_tokenizer_config_names(tmp_path, stated, eos_id):
    assert json_tokenizer(tmp_path, False, **stated).eos_id == eos_id


@pytest.mark.parametrize("stated,begins", [(None, True), ({}, True), ({"add_bos_token": True}, True),
                                           ({"add_bos_token": False}, False)])
def test_sentencepiece_prompts_begin_unless_the_config_beside_says_no(tmp_path, sentencepiece_bytes, stated, begins):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_bytes)
    if stated is not None:
        write_json(tmp_path / "tokenizer_config.json", stated)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.begin == ([1] if begins else []) and tokenizer.eos_id == 2
    ids = tokenizer.encode("a lost card")
    assert ids[:1] == [1] if begins else 1 not in ids
    assert tokenizer.decode(ids) == "a lost card"


@pytest.mark.parametrize("config,generation,expected", [
    (2, None, (2,)), (2, 2, (2,)), ([5, 6], None, (5, 6)), (None, [7], (7,)), (None, None, ()),
    (2, [1, 37, 2], (2, 1, 37)),      # Gemma 2's chat models: only generation_config.json has the end of a turn
    (9, {}, (9,))])                   # a generation_config.json that names none
def test_end_tokens_of_both_config_files_count_and_the_models_own_comes_first(tmp_path, config, generation, expected):
    write_json(tmp_path / "config.json", {**config_to_json(TINY), "eos_token_id": config})
    if generation is not None:
        write_json(tmp_path / "generation_config.json", {} if generation == {} else {"eos_token_id": generation})
    assert load_config(tmp_path).eos_token_ids == expected
    write_json(tmp_path / "config.json", config_to_json(load_config(tmp_path)))
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    assert load_config(tmp_path).eos_token_ids == expected  # a saved run holds all of them
