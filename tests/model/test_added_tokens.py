"""Tokens that stand beside the tokenizer file, an end token that it appends, and the files that travel with a model."""

import pytest
import sentencepiece
import tokenizers
from tokenizers import models, processors

from model.files import read_json, write_json
from model.hub import SMALL
from model.tokenizer import load_tokenizer
from model.tokenizer_files import copy_tokenizer, tokenizer_files, travelling_files
from tests.gguf_files import sentencepiece_tokens, strong_model, write_gguf
from tests.model.test_tokenizer import BOS, EOS, VOCABULARY, json_tokenizer, small_sentencepiece

CHAT = {"<|im_start|>": 300, "<|im_end|>": 301}
LETTERS = [VOCABULARY[c] for c in "card"]


def beside(directory, added: dict | None = None, **stated):
    """The small tokenizer.model, with what is stated beside it."""
    (directory / "tokenizer.model").write_bytes(small_sentencepiece())
    if added is not None:
        write_json(directory / "added_tokens.json", added)
    write_json(directory / "tokenizer_config.json", stated)
    return load_tokenizer(directory)


def decoder(**flags) -> dict:
    return {str(i): {"content": text, "special": True, **flags} for text, i in CHAT.items()}


# ---- added tokens of a tokenizer.model ----------------------------------------------------------------------------

@pytest.mark.parametrize("added,stated", [
    (CHAT, {}), ({**CHAT, "<unk>": 0, "<s>": 1, "</s>": 2}, {}),  # the file may repeat ids of tokenizer.model
    (None, {"added_tokens_decoder": decoder()}), (CHAT, {"added_tokens_decoder": decoder()})])
@pytest.mark.parametrize("legacy", [True, False])
def test_an_added_token_is_one_id_wherever_it_stands(tmp_path, added, stated, legacy):
    tokenizer = beside(tmp_path, added, legacy=legacy, eos_token="<|im_end|>", **stated)
    plain = sentencepiece.SentencePieceProcessor(model_proto=small_sentencepiece())
    assert tokenizer.eos_id == 301
    assert tokenizer.encode("<|im_start|>") == [1, 300]
    assert tokenizer.encode("a<|im_start|>") == [1, *plain.encode("a"), 300]
    ids = tokenizer.encode("<|im_start|>bank<|im_end|><|im_start|> card")
    assert [i for i in ids if i >= 300] == [300, 301, 300] and ids[1] == 300
    spaced = plain.encode("bank")
    assert (ids[2:2 + len(spaced)] == spaced) == legacy  # legacy: sentencepiece puts a space before every part
    assert tokenizer.encode("a lost card") == [1, *plain.encode("a lost card")]
    assert len(plain.encode("<|im_start|>")) > 5  # control: sentencepiece alone does not know it


@pytest.mark.parametrize("legacy", [True, False])
def test_decoding_leaves_out_special_tokens_and_keeps_others(tmp_path, legacy):
    tokenizer = beside(tmp_path, {**CHAT, "<tool>": 302}, legacy=legacy,
                       additional_special_tokens=["<|im_start|>", {"content": "<|im_end|>"}])
    ids = tokenizer.encode("<|im_start|>bank card<tool>a<|im_end|>")
    assert tokenizer.decode(ids) == "bank card<tool>a"
    assert tokenizer.decode([*ids, 2], special=True) == "<s><|im_start|>bank card<tool>a<|im_end|></s>"
    assert tokenizer.token(300) == "<|im_start|>" and tokenizer.token(1) == "<s>"


def test_text_after_an_added_token_keeps_its_space(tmp_path):
    tokenizer = beside(tmp_path, CHAT, legacy=False)
    assert tokenizer.decode(tokenizer.encode("a<|im_end|> bank")) == "a<|im_end|> bank"
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>bank")) == "a<|im_end|>bank"


@pytest.mark.parametrize("flags,left", [({}, True), ({"rstrip": True}, False)])
def test_a_token_that_swallows_spaces_does(tmp_path, flags, left):
    tokenizer = beside(tmp_path, None, legacy=False, added_tokens_decoder=decoder(**flags))
    assert (tokenizer.encode("<|im_start|>  bank") != tokenizer.encode("<|im_start|>bank")) == left


def test_the_longest_token_wins(tmp_path):
    tokenizer = beside(tmp_path, {"<a>": 300, "<a><b>": 301})
    assert tokenizer.encode("<a><b><a>") == [1, 301, 300]


@pytest.mark.parametrize("ids", [[302], [10 ** 6], [300, 299999]])
def test_ids_of_a_padded_vocabulary_decode_to_nothing(tmp_path, ids):
    (tmp_path / "json").mkdir()
    sp, other = beside(tmp_path, {"<x>": 300}), json_tokenizer(tmp_path / "json", True)
    text = "a lost card"
    assert sp.decode([*sp.encode(text), *[i for i in ids if i != 300]]) == text
    assert other.decode([*other.encode(text), *ids]) == text
    assert sp.token(ids[-1]) == other.token(ids[-1]) == f"[PAD{ids[-1]}]"


# ---- tokens beside a tokenizer.json -------------------------------------------------------------------------------

@pytest.mark.parametrize("stated", [{"added_tokens_decoder": {"258": {"content": "<x>", "special": True}}}, {}])
def test_tokens_that_only_stand_beside_a_tokenizer_json_are_added(tmp_path, stated):
    json_tokenizer(tmp_path, False, **stated)
    if not stated:
        write_json(tmp_path / "added_tokens.json", {"<x>": 258})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("card<x>card") == [*LETTERS, 258, *LETTERS]
    assert tokenizer.decode([*LETTERS, 258]) == ("card" if stated else "card<x>")
    assert tokenizer.decode([*LETTERS, 258], special=True) == "card<x>"


@pytest.mark.parametrize("content,i", [("<x>", 999), ("<x>", 5), (EOS, 5), (EOS, "1")])
def test_an_id_that_the_library_would_change_in_silence_is_refused(tmp_path, content, i):
    json_tokenizer(tmp_path, True)
    stated = read_json(tmp_path / "tokenizer.json")
    stated["added_tokens"].append({**stated["added_tokens"][0], "content": content, "id": i})
    write_json(tmp_path / "tokenizer.json", stated)
    with pytest.raises(ValueError, match="tokenizer.json: (added_tokens gives .* id .*, but|not a tokenizers file)"):
        load_tokenizer(tmp_path)


# ---- an end token that the tokenizer appends ----------------------------------------------------------------------

@pytest.mark.parametrize("template,begin", [(f"{BOS} $A {EOS}", [0]), (f"$A {EOS}", []), (f"{BOS} $A", [0]), ("$A", []),
                                            (f"{BOS} $A {EOS} {EOS}", [0])])
def test_a_prompt_never_ends_with_the_end_token(tmp_path, capsys, template, begin):
    json_tokenizer(tmp_path, False, eos_token=EOS, add_eos_token=True)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    if template != "$A":
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[(BOS, 0), (EOS, 1)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    assert ours.encode("card") == begin + LETTERS and ours.encode("") == ours.begin == begin
    assert tokenizer.encode("card").ids[-1:] == ([1] if EOS in template else LETTERS[-1:])  # control: the file's own
    said = f"puts {EOS!r} behind every text (post_processor)" if EOS in template else "(add_eos_token in tokenizer_"
    assert said in capsys.readouterr().err.splitlines()[-1]
    whole, prompt = ours.encode("card card"), ours.encode("card")
    assert whole[:len(prompt)] == prompt


def test_a_tokenizer_that_puts_its_begin_token_twice_is_refused(tmp_path):
    json_tokenizer(tmp_path, False)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} {BOS} $A", special_tokens=[(BOS, 0)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"tokenizer.json: puts <bos> <bos> before every text \(post_processor\)"):
        load_tokenizer(tmp_path)


def test_an_end_token_in_the_text_itself_stays(tmp_path):
    assert json_tokenizer(tmp_path, True).encode(f"card{EOS}") == [0, *LETTERS, 1]


@pytest.mark.parametrize("adds", [True, False, None])
def test_sentencepiece_does_not_append_an_end_token_either_and_says_so(tmp_path, capsys, adds):
    assert beside(tmp_path, None, add_eos_token=adds).encode("a")[-1] != 2
    assert ("no prompt ends with it" in capsys.readouterr().err) == bool(adds)


# ---- two tokenizers -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("same", [True, False])
def test_a_tokenizer_model_with_other_tokens_than_the_json_is_said(tmp_path, capsys, same):
    (tmp_path / "tokenizer.model").write_bytes(small_sentencepiece())
    own = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    vocabulary = {own.id_to_piece(i): i for i in range(own.vocab_size())}
    if same:
        tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>")).save(str(tmp_path / "tokenizer.json"))
        load_tokenizer(tmp_path)
    else:
        json_tokenizer(tmp_path, True)
    said = capsys.readouterr().err
    assert ("tokenizer.json is read" in said and str(tmp_path / "tokenizer.model") in said) != same
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\n")  # control: tiktoken's format, as beside Llama 3
    load_tokenizer(tmp_path)
    assert capsys.readouterr().err == ""


# ---- what is wrong beside a tokenizer -----------------------------------------------------------------------------

@pytest.mark.parametrize("name,content,message", [
    ("tokenizer_config.json", {"add_eos_token": "yes"}, "add_eos_token is 'yes', but must be true or false"),
    ("tokenizer_config.json", {"eos_token": 5}, "eos_token is 5, but must be a text"),
    ("tokenizer_config.json", {"bos_token": {"content": 3}}, "bos_token is .*must be a text"),
    ("tokenizer_config.json", {"add_bos_token": "yes"}, "add_bos_token is 'yes', but must be true or false"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}, "added_tokens_decoder holds 'x'"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"1": "a"}}, "added_tokens_decoder holds '1'"),
    ("tokenizer_config.json", {"added_tokens_decoder": [1]},
     "added_tokens_decoder is .1., but must be an object of ids"),
    ("added_tokens.json", {"<x>": "300"}, "the id of '<x>' is '300', but must be an integer"),
    ("added_tokens.json", {"<x>": -1}, "the id of '<x>' is '-1', but must be an integer"),
    ("added_tokens.json", {"": 300}, "the id of ''"),
    ("special_tokens_map.json", {"eos_token": []}, "eos_token is .*must be a text")])
@pytest.mark.parametrize("kind", ["json", "model"])
def test_files_beside_a_tokenizer_are_checked(tmp_path, name, content, message, kind):
    if kind == "json":
        json_tokenizer(tmp_path, False)
    else:
        beside(tmp_path)
    write_json(tmp_path / name, content)
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        load_tokenizer(tmp_path)


# ---- the files that travel ----------------------------------------------------------------------------------------

def test_everything_that_says_how_a_model_is_used_travels_with_it(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    beside(source, CHAT, eos_token="<|im_end|>")
    names = ("chat_template.jinja", "special_tokens_map.json", "generation_config.json")
    for name in names:
        (source / name).write_text("{}")
    for name in ("README.md", "pytorch_model.bin", "model.safetensors", "config.json"):
        (source / name).write_text("not these")
    travelling = {"tokenizer.model", "tokenizer_config.json", "added_tokens.json", *names}
    assert {path.name for path in travelling_files(source)} == travelling
    assert travelling <= set(SMALL)  # and they come from the Hub
    copy_tokenizer(source, target)
    assert {path.name for path in target.iterdir()} == travelling
    assert load_tokenizer(target).encode("<|im_start|>") == load_tokenizer(source).encode("<|im_start|>") == [1, 300]
    assert [path.name for path in tokenizer_files(target)] == [
        "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]


def test_the_chat_template_of_a_gguf_file_travels(tmp_path):
    template = {"tokenizer.chat_template": "{{ messages }}"}
    path = write_gguf(tmp_path / "x.gguf", strong_model(), metadata=template)
    copy_tokenizer(path, tmp_path / "run")
    assert (tmp_path / "run" / "chat_template.jinja").read_text() == "{{ messages }}"
    copy_tokenizer(write_gguf(tmp_path / "y.gguf", strong_model()), tmp_path / "other")
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["tokenizer.model"]
    assert travelling_files(path) == [] and tokenizer_files(path) == [path]


# ---- names in messages --------------------------------------------------------------------------------------------

def broken_tokens(writer):
    sentencepiece_tokens(writer)
    writer.kv_data[0]["tokenizer.ggml.tokens"].value[5] = ""  # sentencepiece refuses an empty piece


def test_a_message_about_a_gguf_tokenizer_names_that_file_and_no_temporary_one(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", strong_model(), tokenizer=broken_tokens)
    with pytest.raises(ValueError, match=f"{path}: not a sentencepiece model") as error:
        load_tokenizer(path)
    assert "tokenizer.model" not in str(error.value)


@pytest.mark.parametrize("name,content",
                         [("tokenizer.json", b""), ("tokenizer.json", b"{}"), ("tokenizer.json", b"\xff"),
                                          ("tokenizer.json", b"[" * 10000), ("tokenizer.model", b""),
                                          ("tokenizer.model", b"\xff" * 99), ("tokenizer.model", bytes(50))])
def test_a_damaged_tokenizer_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{tmp_path / name}: not a "):
        load_tokenizer(tmp_path)


