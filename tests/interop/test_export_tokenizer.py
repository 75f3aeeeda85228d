"""A tokenizer as GGUF metadata: read again, it gives the same ids, or the export is refused."""
import io
import json
import shutil
from dataclasses import replace

import pytest
import sentencepiece
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from finetune.adapted_model import merge_best, save_beside
from finetune.config import EMBEDDED_BASE
from finetune.run import open_run
from interop.gguf_tokenizer_writer import tokenizer_keys
from interop.trained import Trained
from model.checkpoint import random_model, save_model
from model.config_json import config_to_json
from model.files import say_once, write_json
from model.gguf_tokenizer_reader import SPLITTINGS
from model.token_agreement import note_other_tokenizer
from model.tokenizer import load_tokenizer
from tests.cli import SMALL
from tests.export_runs import export, made_run
from tests.model.test_gguf_tokenizer_reader import SPECIAL, TEXTS, bytewise, trained_bpe

GGML = "tokenizer.ggml."
CHAT = {"<|im_start|>": 4096, "<|im_end|>": 4097}


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


def test_begin_token_ends_and_chat_template_go_along(tmp_path, capsys):
    tokenizer = trained_bpe(SPLITTINGS["smollm"].steps())
    tokenizer.post_processor = processors.TemplateProcessing(single=[SPECIAL[0], "$A"],
                                                             special_tokens=[(SPECIAL[0], 0)])
    keys = keys_of(saved(tokenizer, tmp_path, chat_template="{{ x }}"), tokenizer.get_vocab_size(), eos=(1, 2, 5, 6))
    assert (keys["add_bos_token"], keys["bos_token_id"]) == (True, 0)
    assert [keys[f"{end}_token_id"] for end in ("eos", "eot", "eom")] == [1, 2, 5]
    assert "keys for 3 end tokens, and the model has 4" in capsys.readouterr().err  # the fourth is lost, and said
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


# ---- what stands beside the tokenizer file --------------------------------------------------------------------------

def chat_model(path, legacy=True, stated=None, **config):
    """The embedded base's tokenizer.model with two added tokens, as ChatML models have them."""
    path.mkdir(exist_ok=True)
    shutil.copy(EMBEDDED_BASE / "tokenizer.model", path)
    if stated is None:
        write_json(path / "added_tokens.json", CHAT)
    stated = {"eos_token": "<|im_end|>", "legacy": legacy, **(stated or {}), **config}
    write_json(path / "tokenizer_config.json", stated)
    return path


@pytest.mark.parametrize("stated,kinds", [
    (None, [4, 3]),  # added_tokens.json does not say what is special; the end token is
    ({"added_tokens_decoder": {str(i): {"content": text, "special": True} for text, i in CHAT.items()}}, [3, 3]),
    ({"added_tokens_decoder": {str(i): {"content": text} for text, i in CHAT.items()}}, [4, 4])])
def test_added_tokens_of_a_tokenizer_model_keep_their_ids_and_kinds(tmp_path, stated, kinds):
    keys = keys_of(chat_model(tmp_path, stated=stated), vocab_size=4100, eos=(4097,))
    assert keys["tokens"][4095:] == [keys["tokens"][4095], *CHAT, "[PAD4098]", "[PAD4099]"]
    assert keys["token_type"][4095:] == [1, *kinds, 5, 5] and keys["eos_token_id"] == 4097
    assert len(keys["scores"]) == 4100


@pytest.mark.parametrize("legacy", [True, False])
def test_a_gguf_file_read_again_gives_one_id_to_each_added_token(tmp_path, capsys, legacy):
    """With `legacy`, all ids are the same. Without it, text beside the tokens differs, and a line says so."""
    pytest.importorskip("gguf")
    say_once.cache_clear()
    base = model_of(chat_model(tmp_path / "base", legacy))
    export(base, "gguf", tmp_path / "x.gguf")
    ours, again = load_tokenizer(base), load_tokenizer(tmp_path / "x.gguf")
    text = "<|im_start|>user lost card<|im_end|><|im_start|>"
    for tokenizer in (ours, again):
        assert [i for i in tokenizer.encode(text) if i > 4095] == [4096, 4097, 4096] and tokenizer.eos_id == 4097
    assert ours.encode("a lost card") == again.encode("a lost card")
    assert (ours.encode(text) == again.encode(text)) == legacy
    assert ("llama.cpp treats spaces around added tokens" in capsys.readouterr().err) == (not legacy)
    export(tmp_path / "x.gguf", "safetensors", tmp_path / "back", "--dtype", "float32")
    back = load_tokenizer(tmp_path / "back")
    assert back.encode(text) == again.encode(text) and back.eos_id == 4097 and back.begin == [1]


def test_added_tokens_that_no_tokenizer_json_has_are_written_too(tmp_path):
    tokenizer = trained_bpe(SPLITTINGS["smollm"].steps())
    size = tokenizer.get_vocab_size()
    saved(tokenizer, tmp_path)
    write_json(tmp_path / "added_tokens.json", {"<tool>": size})
    keys = keys_of(tmp_path, size + 2, eos=(1,))
    assert keys["tokens"][size:] == ["<tool>", f"[PAD{size + 1}]"] and keys["token_type"][size:] == [4, 5]


@pytest.mark.parametrize("jinja,config,expected", [
    ("A", None, {"": "A"}), ("A", "B", {"": "A"}), (None, "B", {"": "B"}), (None, None, {}),
    (None, [{"name": "default", "template": "C"}, {"name": "tool_use", "template": "D"}],
     {"": "C", ".tool_use": "D", "s": ["tool_use"]})])
def test_the_chat_template_is_found_wherever_it_stands(tmp_path, jinja, config, expected):
    chat_model(tmp_path, **({"chat_template": config} if config else {}))
    if jinja:
        (tmp_path / "chat_template.jinja").write_text(jinja)
    keys = keys_of(tmp_path, vocab_size=4098, eos=(4097,))
    assert {key.removeprefix("tokenizer.chat_template"): value for key, value in keys.items()
            if "chat_template" in key} == expected


def test_a_chat_template_that_is_no_text_is_named(tmp_path):
    chat_model(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe{{x}}")
    with pytest.raises(ValueError, match="chat_template.jinja: not UTF-8 text"):
        keys_of(tmp_path, vocab_size=4098, eos=(4097,))


def model_of(path):
    """A random model beside a tokenizer, with everything that travels."""
    config = replace(SMALL, vocab_size=4098, eos_token_ids=(4097,))
    write_json(path / "config.json", config_to_json(config))
    save_model(random_model(config, torch.float32, seed=0), path / "model.safetensors")
    (path / "chat_template.jinja").write_text("{{ messages }}")
    write_json(path / "generation_config.json", {"eos_token_id": [4097], "temperature": 0.6})
    write_json(path / "special_tokens_map.json", {"eos_token": "<|im_end|>", "bos_token": "<s>"})
    return path


TRAVEL = ["added_tokens.json", "chat_template.jinja", "generation_config.json", "special_tokens_map.json",
          "tokenizer.model", "tokenizer_config.json"]


@pytest.mark.parametrize("form", ["safetensors", "peft", "gguf", "merged"])
def test_everything_that_travels_leaves_with_every_export_of_a_run(tmp_path, form):
    """Also after the base is gone: the run has it."""
    pytest.importorskip("gguf") if form == "gguf" else None
    base = model_of(chat_model(tmp_path / "base"))
    run = made_run(tmp_path / "run", base, "--method", "qablora", "--block", "32x1", "--lam", "32x8")
    shutil.rmtree(base)
    to = tmp_path / ("x.gguf" if form == "gguf" else "x")
    if form == "merged":
        model = Trained.at(run).load()
        merge_best(model, torch.float32)
        save_beside(model, open_run(run), to)
    else:
        export(run, form, to)
    if form == "gguf":
        fields = metadata_of(to)
        assert fields["tokenizer.chat_template"] == "{{ messages }}"
        assert fields["tokenizer.ggml.tokens"][4096:] == list(CHAT) and fields["tokenizer.ggml.eos_token_id"] == 4097
    else:
        for there in (to, to / "base") if form == "peft" else (to,):
            assert [(there / name).read_bytes() for name in TRAVEL] == [(run / name).read_bytes() for name in TRAVEL]
            assert load_tokenizer(there).encode("<|im_start|>a") == load_tokenizer(run).encode("<|im_start|>a")


def test_an_adapter_beside_the_original_base_has_its_chat_template_too(tmp_path, capsys):
    """Read again, its tokenizer is the base's."""
    run = made_run(tmp_path / "run", model_of(chat_model(tmp_path / "base")), "--method", "lora")
    export(run, "peft", tmp_path / "x")
    assert not (tmp_path / "x/base").exists() and (tmp_path / "x/chat_template.jinja").read_text() == "{{ messages }}"
    note_other_tokenizer(tmp_path / "x", load_tokenizer(tmp_path / "base"))
    assert "holds a tokenizer that differs" not in capsys.readouterr().out


def metadata_of(path):
    import gguf
    return {key: stated.contents() for key, stated in gguf.GGUFReader(path).fields.items()}
