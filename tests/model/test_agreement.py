"""Two places that should agree are compared. If they differ, the error names both; if they agree, the model loads."""
import json
import re
import shutil
from dataclasses import replace

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file

from finetune.source import Source
from model.checkpoint import load_model, open_weights
from model.config_json import config_from_json, config_to_json
from model.directory import INDEX, load_config, weight_files
from model.files import write_json
from model.token_agreement import end_ids, note_other_tokenizer
from model.tokenizer import load_tokenizer
from tests.gguf_files import strong_model, write_gguf
from tests.model.test_model import FIXTURES, TINY
from tests.model.test_tokenizer import BOS, EOS, json_tokenizer, small_sentencepiece

CASE = FIXTURES / "grouped_tied"
LEAST = {"vocab_size": 8, "hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 3, "num_attention_heads": 8}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LINEAR = {"rope_type": "linear", "factor": 2.0}
LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 8192}
S, F = "sliding_attention", "full_attention"


def read(**changes):
    return config_from_json({**LEAST, **changes}, "here")


def refused(**changes) -> str:
    with pytest.raises(ValueError, match="here: ") as error:
        read(**changes)
    return str(error.value)


# ---- config.json --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("changes,named", [
    ({"rope_scaling": YARN, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
     ["yarn", "rope_scaling", "rope_parameters", "disagree"]),
    ({"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
     ["rope_scaling", "rope_parameters", "disagree"]),
    ({"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": LINEAR}, ["4.0", "2.0", "disagree"]),
    ({"rope_scaling": {"rope_type": "linear", "type": "llama3", "factor": 4.0}}, ["rope_type", "type", "llama3"]),
    ({"rope_theta": 500000.0, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
     ["rope_theta is 500000.0 at the top level, but 10000.0 in rope_parameters"]),
    ({"rope_theta": 500000.0, "rope_scaling": {**LINEAR, "rope_theta": 10000.0}}, ["10000.0 in rope_scaling"]),
    ({"rope_parameters": {**LLAMA_3, "rope_theta": 5e5}, "original_max_position_embeddings": 4096},
     ["original_max_position_embeddings is 4096 at the top level, but 8192 in rope_parameters"]),
    ({"rope_parameters": {F: {"rope_type": "default", "rope_theta": 1e6},
                          S: {"rope_type": "default", "rope_theta": 1e4}}}, ["differs between", F, S]),
    ({"rope_parameters": {F: {"rope_type": "default"}, "rope_theta": 1e4}}, ["beside 'rope_theta'"]),
    ({"rope_parameters": {"global": LINEAR}}, ["'global', which is no kind of layer"]),
    ({"rope_parameters": {F: DYNAMIC, S: DYNAMIC}}, ["'dynamic' is not supported"]),
    ({"rope_scaling": {"factor": 4.0}}, ["factor 4.0, but no rope_type"]),
    ({"rope_parameters": {"rope_type": "default", "factor": 4.0}}, ["which scales nothing"]),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, ["partial_rotary_factor is 0.5"]),
    ({"partial_rotary_factor": 0.25}, ["partial_rotary_factor is 0.25"]),
    ({"model_type": "mistral", "sliding_window": 4, "layer_types": [S, F, S]},
     ["layer_types names 'full_attention' for layer 1, but sliding_window is 4"]),
    ({"model_type": "mistral", "sliding_window": None, "layer_types": [S, S, S]},
     ["layer 0", "sliding_window is None"]),
    ({"model_type": "llama", "layer_types": [F, F, S]}, ["layer 2", "a Llama has no windows"]),
    ({"model_type": "qwen2", "num_key_value_heads": 8, "layer_types": [F, F, S]},
     ["layer 2", "use_sliding_window is False"]),
    ({"model_type": "gemma2", "sliding_window": None, "layer_types": [S, F, S], "num_key_value_heads": 4},
     ["layer 0", "sliding_window is null"]),
    ({"model_type": "llama", "architectures": ["MistralForCausalLM"]}, ["MistralForCausalLM", "model_type is 'llama'"]),
    ({"architectures": ["Qwen2ForCausalLM"]}, ["Qwen2ForCausalLM", "no model_type is there, which means 'llama'"]),
    ({"model_type": "mistral", "architectures": ["MixtralForCausalLM"]}, ["MixtralForCausalLM", "'mistral'"]),
    ({"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM", "GemmaModel"], "num_key_value_heads": 4},
     ["'GemmaModel'", "'gemma2'"]),
    ({"architectures": "LlamaForCausalLM"}, ["must be a list of names"])])
def test_two_keys_that_disagree_are_both_named(changes, named):
    message = refused(**changes)
    assert all(part in message for part in named), message


@pytest.mark.parametrize("changes,theta,scaling", [
    ({"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 500000}}, 5e5, None),
    ({"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {**LINEAR, "rope_theta": 1e6}}, 1e6, LINEAR),
    ({"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 7e4}}, 7e4, None),
    ({"rope_scaling": {}, "rope_theta": 7e4}, 7e4, None),
    ({"rope_parameters": {"rope_type": "default", "factor": 1.0, "partial_rotary_factor": 1.0}}, 1e4, None),
    ({"rope_parameters": {F: {**LINEAR, "rope_theta": 2e4}, S: {**LINEAR, "rope_theta": 2e4}}}, 2e4, LINEAR),
    ({"rope_parameters": {**LLAMA_3, "rope_theta": 5e5}, "original_max_position_embeddings": 8192}, 5e5, LLAMA_3)])
def test_two_keys_that_agree_are_read(changes, theta, scaling):
    config = read(**changes)
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)


@pytest.mark.parametrize("changes,windowed", [
    ({"model_type": "mistral", "sliding_window": 4, "layer_types": [S, S, S]}, (0, 1, 2)),
    ({"model_type": "mistral", "sliding_window": None, "layer_types": [F, F, F]}, ()),
    ({"model_type": "llama", "layer_types": [F, F, F]}, ()), ({"model_type": "llama", "layer_types": None}, ()),
    *(({"architectures": names}, ()) for names in ([], None, ["LLaMAForCausalLM"], ["LlamaModel"],
                                                   ["LlamaForSequenceClassification"])),
    ({"model_type": "mistral", "architectures": ["MistralModel"], "sliding_window": 4}, (0, 1, 2))])
def test_keys_that_say_the_same_are_read(changes, windowed):
    assert read(**changes).windowed_layers == windowed


@pytest.mark.parametrize("case", [path.name for path in FIXTURES.iterdir() if (path / "golden.safetensors").is_file()])
def test_published_models_load_with_their_logits(case):
    """Control: what is refused above is in none of them."""
    golden = load_file(FIXTURES / case / "golden.safetensors")
    model = load_model(weight_files(FIXTURES / case), load_config(FIXTURES / case), torch.float32)
    assert (model(golden["tokens"]) - golden["logits"]).abs().max() < 1e-3


# ---- tied embeddings ----------------------------------------------------------------------------------------------

def with_head(tmp_path, change):
    """The tied fixture, with a head of its own."""
    tensors = load_file(CASE / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    tensors["lm_head.weight"] = change(head)
    save_file(tensors, tmp_path / "model.safetensors")
    return [tmp_path / "model.safetensors"]


def one_value(head):
    head[-1, -1] += 0.01
    return head


@pytest.mark.parametrize("change", [torch.zeros_like, one_value, lambda head: head[:-1].clone(),
                                    lambda head: head + 0.01, lambda head: (head * 1.01).half()])
def test_a_head_of_its_own_in_a_tied_model_is_refused(tmp_path, change):
    files = with_head(tmp_path, change)
    for use in (load_model, open_weights):
        with pytest.raises(ValueError, match="lm_head.weight differs from model.embed_tokens.weight.*tie_word_emb"):
            use(files, load_config(CASE), torch.float32)
    untied = replace(load_config(CASE), tie_word_embeddings=False)
    head = load_file(files[0])["lm_head.weight"]
    if head.shape == (64, 32):  # control: the same file is read if the config says that it has a head of its own
        assert torch.equal(load_model(files, untied, torch.float32).lm_head.weight, head)


@pytest.mark.parametrize("change", [lambda head: head, lambda head: head.half(), lambda head: head.bfloat16(),
                                    lambda head: head.double()])
def test_a_head_that_is_the_embeddings_up_to_its_type_is_read_without_complaint(tmp_path, change, capsys):
    model = load_model(with_head(tmp_path, change), load_config(CASE), torch.float32)
    golden = load_file(CASE / "golden.safetensors")
    assert (model(golden["tokens"]) - golden["logits"]).abs().max() < 1e-3 and capsys.readouterr().err == ""


# ---- weight files -------------------------------------------------------------------------------------------------

def sharded(tmp_path, single: bool, shards: int):
    """The fixture as shards with an index. single: also as one file. shards: how many of the two are there."""
    directory = tmp_path / "m"
    directory.mkdir()
    tensors = load_file(CASE / "model.safetensors")
    names, places = sorted(tensors), {}
    for i, part in enumerate((names[:5], names[5:])):
        places |= dict.fromkeys(part, f"part-{i}.safetensors")
        if i < shards:
            save_file({name: tensors[name] for name in part}, directory / f"part-{i}.safetensors")
    write_json(directory / INDEX, {"weight_map": places})
    if single:
        shutil.copy(CASE / "model.safetensors", directory)
    return directory


@pytest.mark.parametrize("single,shards,read_files,said", [
    (True, 2, ["model.safetensors"], "model.safetensors is read, as in transformers"),
    (True, 1, ["model.safetensors"], ""), (True, 0, ["model.safetensors"], ""),
    (False, 2, ["part-0.safetensors", "part-1.safetensors"], "")])
def test_one_file_beside_an_index_is_the_model_and_a_line_says_so_if_both_are_whole(tmp_path, capsys, single, shards,
                                                                                 read_files, said):
    directory = sharded(tmp_path, single, shards)
    files = [weight_files(directory) for _ in range(2)][0]
    assert [path.name for path in files] == read_files
    err = capsys.readouterr().err
    assert (said in err and err.count("\n") == 1) if said else err == ""  # once, however often they are asked for
    assert load_model(files, load_config(CASE), torch.float32)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    directory = sharded(tmp_path, False, 2)
    tensors = load_file(directory / "part-0.safetensors")
    save_file({**load_file(directory / "part-1.safetensors"),
               **{name: tensors[name] * 2 for name in list(tensors)[:1]}},
              directory / "part-1.safetensors")
    with pytest.raises(ValueError, match="part-1.*is also in .*part-0"):
        load_model(weight_files(directory), load_config(CASE), torch.float32)


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "/tmp/a.safetensors", "sub/a.safetensors", "..",
                                  "a\\b.safetensors", "C:a.safetensors", "", "model.bin", 3, None, ["a.safetensors"]])
def test_a_shard_is_a_plain_name_beside_its_index(tmp_path, name):
    write_json(tmp_path / INDEX, {"weight_map": {"x": name}})
    with pytest.raises(ValueError, match=f"{INDEX}: the shard of x is {re.escape(repr(name))}, but must be the plain"):
        weight_files(tmp_path)


# ---- end and begin tokens -----------------------------------------------------------------------------------------

def ends(tmp_path, config, generation=None, adds_begin=False, **stated):
    write_json(tmp_path / "config.json", {**config_to_json(replace(TINY, vocab_size=300)), "eos_token_id": config})
    if generation is not None:
        write_json(tmp_path / "generation_config.json", {"eos_token_id": generation})
    tokenizer = json_tokenizer(tmp_path, adds_begin, **stated)
    return end_ids(load_config(tmp_path), tokenizer, tmp_path)


@pytest.mark.parametrize("config,generation,stated,message", [
    (5, None, {"eos_token": EOS}, r"the end token is 5 \('.'\) in config.json .* but 1 \('<eos>'\) in the tokenizer"),
    (5, [6, 7], {"eos_token": EOS}, "name all end tokens in generation_config.json"),
    (None, None, {}, r"neither config.json \(eos_token_id\) nor the tokenizer names"),
    (5, None, {"eos_token": "<|im_end|>"}, "names the end token '<|im_end|>', but the tokenizer has no such token"),
    (0, None, {"bos_token": BOS, "add_bos_token": True},
     r"token 0 \('<bos>'\) begins every prompt, but is also an end"),
    ([1, 0], None, {"bos_token": BOS, "eos_token": EOS, "add_bos_token": True}, "begins every prompt")])
def test_end_tokens_that_disagree_are_refused(tmp_path, config, generation, stated, message):
    message = message.replace("<|im_end|>", re.escape("<|im_end|>"))
    with pytest.raises(ValueError, match=message):
        ends(tmp_path, config, generation, **stated)


@pytest.mark.parametrize("config,generation,stated,expected", [
    (1, None, {"eos_token": EOS}, (1,)), (5, [5, 1], {"eos_token": EOS}, (5, 1)),
    ([5, 1], None, {"eos_token": EOS}, (5, 1)),
    (None, None, {"eos_token": EOS}, (1,)), (5, None, {}, (5,)),
    (0, None, {"bos_token": BOS, "eos_token": BOS}, (0,)),   # SmolLM2: one token for both, and prompts do not begin
    (1, None, {"eos_token": EOS, "bos_token": BOS, "add_bos_token": True}, (1,))])
def test_end_tokens_that_agree_are_those_of_the_config(tmp_path, config, generation, stated, expected):
    assert ends(tmp_path, config, generation, **stated) == expected


@pytest.mark.parametrize("config,generation,adds,named", [
    (5, None, True, ["config.json"]), (0, 7, True, ["generation_config.json"]),
    (5, 7, True, ["config.json", "generation_config.json"]), (None, 7, True, ["generation_config.json"]),
    (0, 0, True, []), (None, None, True, []),
    (5, 7, False, [])])                                      # Qwen2, SmolLM2: named, but never put first
def test_a_begin_token_that_the_tokenizer_does_not_put_first_is_said(tmp_path, capsys, config, generation, adds, named):
    json_tokenizer(tmp_path, adds, bos_token=BOS, eos_token=EOS)
    write_json(tmp_path / "config.json", {**config_to_json(replace(TINY, vocab_size=300)), "bos_token_id": config,
                                          "eos_token_id": 1})
    write_json(tmp_path / "generation_config.json", {"bos_token_id": generation})
    assert Source(tmp_path).stop_ids() == (1,)
    said = capsys.readouterr().err
    for name, value in (("config.json", config), ("generation_config.json", generation)):
        words = f"the begin token is {value} in {name} (bos_token_id), but the tokenizer puts 0 ('<bos>') before every"
        assert (words in said) == (name in named)


@pytest.mark.parametrize("name,file,value", [
    ("eos_token_id", "config.json", 300), ("eos_token_id", "config.json", [2, 300]),
    ("eos_token_id", "config.json", -1),
    ("eos_token_id", "config.json", "2"), ("eos_token_id", "config.json", [None]), ("bos_token_id", "config.json", 300),
    ("bos_token_id", "config.json", [1]), ("eos_token_id", "generation_config.json", [2, 300]),
    ("eos_token_id", "generation_config.json", {"a": 1}), ("eos_token_id", "generation_config.json", True)])
def test_ids_beyond_the_vocabulary_are_refused_with_their_file(tmp_path, name, file, value):
    write_json(tmp_path / "config.json", {**config_to_json(replace(TINY, vocab_size=300))})
    write_json(tmp_path / file, {**json.loads((tmp_path / "config.json").read_text()), name: value})
    with pytest.raises(ValueError, match=f"{file}: {name} is .*must be an id of the vocabulary, 0 to 299"):
        load_config(tmp_path)


def test_two_files_that_name_different_end_tokens_are_both_named(tmp_path):
    json_tokenizer(tmp_path, False, eos_token=EOS)
    write_json(tmp_path / "special_tokens_map.json", {"eos_token": {"content": EOS}})
    assert load_tokenizer(tmp_path).eos_id == 1
    write_json(tmp_path / "special_tokens_map.json", {"eos_token": BOS})
    with pytest.raises(ValueError,
                       match="eos_token is '<eos>' in .*tokenizer_config.json, but '<bos>' in .*special_tok"):
        load_tokenizer(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {})
    assert load_tokenizer(tmp_path).eos_id == 0  # only one file names it


def test_a_begin_token_that_one_file_adds_and_the_other_denies_is_refused(tmp_path):
    with pytest.raises(ValueError, match="puts '<bos>' before every text .post_processor., but add_bos_token is false"):
        json_tokenizer(tmp_path, True, bos_token=BOS, add_bos_token=False)


def test_a_begin_token_that_two_files_name_differently_is_not_put_twice(tmp_path):
    with pytest.raises(ValueError, match="puts '<bos>' before every text .post_processor., but the begin token in .*"
                                         "is '<eos>', and add_bos_token is true"):
        json_tokenizer(tmp_path, True, bos_token=EOS, add_bos_token=True)


@pytest.mark.parametrize("stated", [
    {"eos_token": "\ud83d"}, {"bos_token": {"content": "a\ude00"}},
    {"added_tokens_decoder": {"300": {"content": "\ud83d"}}}])
def test_half_a_surrogate_pair_is_no_token(tmp_path, stated):
    with pytest.raises(ValueError, match="tokenizer_config.json: .*, but must be a text") as error:
        json_tokenizer(tmp_path, False, **stated)
    assert str(error.value).isascii()


@pytest.mark.parametrize("kind", ["model", "json"])
def test_a_begin_token_that_the_tokenizer_does_not_have_is_refused(tmp_path, kind):
    stated = {"bos_token": "<nope>", "add_bos_token": True}
    if kind == "json":
        with pytest.raises(ValueError, match="names the begin token '<nope>', but the tokenizer has no such token"):
            json_tokenizer(tmp_path, False, **stated)
        return
    (tmp_path / "tokenizer.model").write_bytes(small_sentencepiece())
    for more in (stated, {"bos_token": "<nope>"}):
        write_json(tmp_path / "tokenizer_config.json", more)
        with pytest.raises(ValueError, match="names the begin token '<nope>', but the tokenizer has no such token"):
            load_tokenizer(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"bos_token": "<nope>", "add_bos_token": False})
    assert load_tokenizer(tmp_path).begin == []


def test_dropout_of_a_tokenizer_file_draws_no_ids(tmp_path):
    vocab = {c: i for i, c in enumerate(["ab", "a", "b"])}
    drawn = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("a", "b")], dropout=0.5))
    drawn.save(str(tmp_path / "tokenizer.json"))
    assert len({tuple(drawn.encode("ab" * 20).ids) for _ in range(20)}) > 1  # control
    tokenizer = load_tokenizer(tmp_path)
    assert {tuple(tokenizer.encode("ab" * 20)) for _ in range(20)} == {(0,) * 20}


# ---- tokens of the tokenizer and of the files beside it -----------------------------------------------------------

@pytest.mark.parametrize("added,decoder,message", [
    ({"<x>": 300}, {"300": {"content": "<y>"}},
     "added_tokens.json: '<x>' has id 300, but .*tokenizer_config.json says"),
    ({"<x>": 300}, {"301": {"content": "<x>"}}, "'<x>' has id 300"),
    ({}, {"300": {"content": "<x>"}, "301": {"content": "<x>"}}, "gives one token two ids"),
    ({"<x>": 5}, {}, "token 5 is .*gives this id to '<x>'"),
    ({"</s>": 300}, {}, "'</s>' is token 2, but .*gives it id 300")])
def test_ids_that_two_files_give_differently_are_refused(tmp_path, added, decoder, message):
    (tmp_path / "tokenizer.model").write_bytes(small_sentencepiece())
    write_json(tmp_path / "added_tokens.json", added)
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("i,refused", [(258, False), (300, True), (3, True)])
def test_a_token_beside_a_tokenizer_json_has_the_next_id(tmp_path, i, refused):
    json_tokenizer(tmp_path, False)
    write_json(tmp_path / "added_tokens.json", {"<|im_start|>": i})
    if refused:
        with pytest.raises(ValueError, match=f"tokenizer.json: '<.im_start.>' is token 258, but .*gives it id {i}"):
            load_tokenizer(tmp_path)
    else:
        assert load_tokenizer(tmp_path).encode("<|im_start|>") == [258]


# ---- GGUF ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("metadata,scaling", [
    ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    ({"rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    ({"rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    ({"rope.scaling.type": "linear", "rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    ({"rope.scaling.factor": 4.0, "rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    ({"rope.scaling.factor": 2.5, "rope.scaling.original_context_length": 64}, {"rope_type": "linear", "factor": 2.5}),
    ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None),
    ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64},
     {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
    ({"rope.scaling.type": "yarn", "rope.scale_linear": 4.0, "context_length": 256},
     {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}),
    ({"rope.scaling.type": "none", "rope.scale_linear": 4.0}, None), ({"rope.scaling.type": "none"}, None),
    ({"rope.scaling.factor": 1.0}, None), ({"rope.scaling.factor": 0.0}, None), ({"rope.scale_linear": 1.0}, None),
    ({}, None)])
def test_rotary_scaling_of_a_gguf_file_is_what_llama_cpp_reads(tmp_path, metadata, scaling):
    stated = {f"llama.{key}": value for key, value in metadata.items()}
    assert load_config(write_gguf(tmp_path / "x.gguf", strong_model(), metadata=stated)).rope_scaling == scaling


@pytest.mark.parametrize("metadata,message", [
    ({"rope.scaling.factor": 4.0, "rope.scale_linear": 2.0},
     "scaling.factor is 4.0, but llama.rope.scale_linear is 2.0"),
    ({"rope.scaling.type": "dynamic", "rope.scaling.factor": 4.0}, "'dynamic' is not supported"),
    ({"rope.scaling.type": "longrope", "rope.scale_linear": 4.0}, "'longrope' needs short_factor, long_factor"),
    ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.yarn_beta_fast": 8.0}, "not understood"),
    ({"rope.scaling.type": "linear"}, "llama.rope.scaling.factor is missing"),
    ({"rope.scaling.attn_factor": 1.5}, "llama.rope.scaling.attn_factor is not understood"),
    ({"rope.scaling.yarn_log_multiplier": 0.1}, "is not understood"), ({"rope.scale": 2.0}, "is not understood"),
    ({"rope.scaling.type": 1, "rope.scaling.factor": 2.0}, "rope.scaling.type is '1', but must be a text"),
    ({"rope.scaling.factor": "4"}, "must be a number"), ({"rope.scaling.factor": float("nan")}, "a number above 0"),
    ({"rope.scaling.factor": -2.0}, "a number above 0"), ({"vocab_size": 4095}, "vocab_size is 4095, but")])
def test_what_a_gguf_file_says_of_rotary_scaling_and_is_not_understood_is_refused(tmp_path, metadata, message):
    path = write_gguf(tmp_path / "x.gguf", strong_model(), metadata={f"llama.{k}": v for k, v in metadata.items()})
    with pytest.raises(ValueError, match=message) as error:
        load_config(path)
    assert str(path) in str(error.value)


def test_an_end_token_that_is_ordinary_text_is_said(tmp_path, capsys):
    json_tokenizer(tmp_path, False)
    write_json(tmp_path / "config.json", {**config_to_json(replace(TINY, vocab_size=300)), "eos_token_id": 5})
    assert Source(tmp_path).stop_ids() == (5,)
    assert "the end token 5 ('$') is no special token" in capsys.readouterr().err


@pytest.mark.parametrize("end,said", [(EOS, False), (BOS, True)])
def test_a_tokenizer_of_an_adapter_that_differs_is_said(tmp_path, capsys, end, said):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "none").mkdir()
    json_tokenizer(tmp_path / "adapter", False, eos_token=end)
    base = json_tokenizer(tmp_path, False, eos_token=EOS)
    note_other_tokenizer(tmp_path / "adapter", base)
    note_other_tokenizer(tmp_path / "none", base)
    assert ("holds a tokenizer that differs from the base's" in capsys.readouterr().err) == said
