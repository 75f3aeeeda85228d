"""A file's numbers are checked before they are used: the message names the file, the value and what is allowed."""
import json
import re
import struct
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model.checkpoint import load_model, open_weights, random_model, save_model
from model.config_json import config_from_json, config_to_json
from model.directory import INDEX, load_config, weight_files
from model.durable import replace_file
from model.files import parse_json, read_json, write_json
from model.gguf_reader import read_gguf
from model.tensor_files import write_safetensors
from model.tokenizer import load_tokenizer
from quant.absmax import AbsMax
from quant.grid import Block
from quant.linear import QuantLinear
from tests.gguf_files import gguf, sentencepiece_tokens, strong_model, write_gguf
from tests.model.test_model import TINY

LEAST = {"vocab_size": 8, "hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 3, "num_attention_heads": 8}
LINEAR = {"rope_type": "linear", "factor": 2.0}
LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 8192}
NAN = float("nan")


# ---- config.json --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("changes,message", [
    ({"rope_theta": 0}, "rope_theta is 0, but must be a number above 1"),
    ({"rope_theta": -1e4}, "rope_theta is -10000.0"),
    ({"rope_theta": "10000"}, "rope_theta is '10000'"), ({"rope_theta": NAN}, "rope_theta is nan"),
    ({"rope_theta": float("inf")}, "rope_theta is inf"), ({"rope_theta": True}, "rope_theta is True"),
    ({"rope_theta": [1e4]}, "rope_theta is "),
    ({"rms_norm_eps": 16}, "rms_norm_eps is 16, but must be a number above 0"),
    ({"rms_norm_eps": 0}, "rms_norm_eps is 0"), ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
    ({"rms_norm_eps": None}, "rms_norm_eps is None"), ({"rms_norm_eps": -1e-6}, "rms_norm_eps is -1e-06"),
    ({"num_hidden_layers": 10 ** 6}, "num_hidden_layers is 1000000, but must be a positive integer up to 1024"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0"), ({"num_hidden_layers": True}, "num_hidden_layers is True"),
    ({"num_hidden_layers": 3.0}, "num_hidden_layers is 3.0"), ({"vocab_size": "8"}, "vocab_size is '8'"),
    ({"vocab_size": 10 ** 30}, "vocab_size is 1000000000000"), ({"hidden_size": -64}, "hidden_size is -64"),
    ({"hidden_size": None}, "hidden_size is None"), ({"head_dim": 10 ** 30}, "head_dim is 10000"),
    ({"head_dim": 7}, "head_dim is 7, but rotary positions need an even number"),
    ({"head_dim": "8"}, "head_dim is '8'"),
    ({"hidden_size": 4}, "head_dim is 0"), ({"num_key_value_heads": 10 ** 30}, "num_key_value_heads is 1000"),
    ({"num_key_value_heads": [8]}, "num_key_value_heads is "), ({"max_position_embeddings": 0}, "max_position_emb"),
    ({"max_position_embeddings": 1e99}, "max_position_embeddings is 1e"), ({"intermediate_size": 10 ** 12}, "intermed"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false', but must be true or false"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1"), ({"attention_bias": "no"}, "attention_bias is 'no'"),
    ({"mlp_bias": None}, "mlp_bias is None"), ({"model_type": ["llama"]}, "model_type \\['llama'\\] is not supported"),
    ({"model_type": {}}, "model_type {} is not"), ({"hidden_act": ["silu"]}, "hidden_act .* is not supported"),
    ({"rope_scaling": "linear"}, "rope_scaling is 'linear', but must be a JSON object"),
    ({"rope_scaling": []}, "rope_scaling is .., but must be a JSON"),
    ({"rope_scaling": {**LINEAR, "factor": 0}}, "factor of the rotary scaling is 0"),
    ({"rope_scaling": {**LINEAR, "factor": "2"}}, "factor of the rotary scaling is '2'"),
    ({"rope_scaling": {**LINEAR, "factor": NAN}}, "factor of the rotary scaling is nan"),
    ({"rope_scaling": {**LLAMA_3, "low_freq_factor": 4.0}}, "low_freq_factor is 4.0, but must be below"),
    ({"rope_scaling": {**LLAMA_3, "original_max_position_embeddings": 0.5}}, "original_max_position_embeddings of the"),
    ({"rope_scaling": {"rope_type": ["llama3"]}}, "rotary scaling .* is not supported"),
    ({"rope_parameters": {"full_attention": 3}}, "rope_parameters.full_attention is 3"),
    ({"model_type": "qwen2", "max_window_layers": -1}, "max_window_layers is -1"),
    ({"model_type": "qwen2", "use_sliding_window": "true"}, "use_sliding_window is 'true'"),
    ({"model_type": "gemma2", "query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
    ({"model_type": "gemma2", "query_pre_attn_scalar": None}, "query_pre_attn_scalar is None"),
    ({"model_type": "gemma2", "attn_logit_softcapping": 0}, "attn_logit_softcapping is 0"),
    ({"model_type": "gemma2", "final_logit_softcapping": "30"}, "final_logit_softcapping is '30'"),
    ({"model_type": "gemma2", "num_key_value_heads": 8, "layer_types": "sliding"}, "layer_types must be a list"),
    ({"model_type": "gemma2", "num_key_value_heads": 8, "layer_types": [["a"]] * 3}, "layer_types must be a list")])
def test_every_field_of_a_config_has_a_type_and_a_range(changes, message):
    with pytest.raises(ValueError, match=f"^here: {message}"):
        config_from_json({**LEAST, **changes}, "here")


@pytest.mark.parametrize("changes", [
    {}, {"rope_theta": 1000000}, {"rope_theta": 5e5}, {"rms_norm_eps": 1e-12}, {"num_hidden_layers": 126},
    {"vocab_size": 256000}, {"max_position_embeddings": 10485760}, {"head_dim": None}, {"rope_scaling": None},
    {"bos_token_id": None, "eos_token_id": None}, {"hidden_act": None}, {"pad_token_id": -1, "some_new_key": [1, {}]},
    {"model_type": "gemma2", "num_key_value_heads": 8, "attn_logit_softcapping": None,
     "final_logit_softcapping": None}])
def test_configs_in_use_are_read(changes):
    config = config_from_json({**LEAST, **changes}, "here")
    assert config_from_json(json.loads(json.dumps(config_to_json(config))), "again") == config


@pytest.mark.parametrize("raw", [[], 3, None, "llama"])
def test_a_configuration_of_a_run_that_is_no_object_is_refused(tmp_path, raw):
    write_json(tmp_path / "config.json", {"model_config": raw})
    with pytest.raises(ValueError, match="config.json: the model's configuration is .*must be a JSON object"):
        load_config(tmp_path)


# ---- quantized by another tool ------------------------------------------------------------------------------------

@pytest.mark.parametrize("stated,named", [
    ({"quant_method": "aqlm", "bits": 4, "group_size": 128}, "aqlm 4 bits, group_size 128"),
    ({"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}, "fp8 fmt e4m3, activation_scheme dynamic"),
    ({"quant_method": "quark", "format": "a"}, "quark format a"), ({"bits": 3}, "another tool 3 bits")])
def test_a_quantized_model_is_refused_by_the_name_of_its_quantizer(tmp_path, stated, named):
    write_json(tmp_path / "config.json", {**config_to_json(TINY), "quantization_config": stated})
    message = re.escape(f"config.json: quantized by {named} (quantization_config): weights in this format are not read")
    with pytest.raises(ValueError, match=message):
        load_config(tmp_path)


@pytest.mark.parametrize("stated,message", [
    ({"load_in_4bit": True}, "bnb_4bit_quant_type is fp4, but only nf4 is read"),
    ({"load_in_8bit": True, "load_in_4bit": False}, "of bitsandbytes only 4 bits are read, as nf4"),
    ({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv"}, "version is gemv, but only gemm")])
def test_settings_of_a_format_that_are_not_read_are_named_with_the_file(tmp_path, stated, message):
    write_json(tmp_path / "config.json", {**config_to_json(TINY), "quantization_config": stated})
    with pytest.raises(ValueError, match=f"config.json: quantization_config: .*{message}"):
        load_config(tmp_path)


def test_mlx_is_named_and_a_quantization_that_is_off_is_none(tmp_path):
    with pytest.raises(ValueError, match="here: quantization: mode is 'mxfp4', and only affine is read"):
        config_from_json({**LEAST, "quantization": {"bits": 4, "group_size": 64, "mode": "mxfp4"}}, "here")
    for off in (None, {}, {"load_in_4bit": False, "load_in_8bit": False, "quant_method": "bitsandbytes"}):
        assert config_from_json({**LEAST, "quantization_config": off}, "here")


@pytest.mark.parametrize("dtype,found",
                         [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.float8_e5m2, "F8_E5M2"),
                                         (torch.uint8, "U8"), (torch.int32, "I32"), (torch.bool, "BOOL")])
@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "model.norm.weight"])
def test_tensors_of_a_type_that_no_layer_has_are_refused(tmp_path, dtype, found, name):
    tensors = {n: t.clone() for n, t in strong_tiny().items()}
    tensors[name] = tensors[name].to(dtype)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError,
                       match=f"model.safetensors: {name} is of type {found}, but must be F32 or F16 or BF16"):
        open_weights(weight_files(tmp_path), TINY, torch.float32)


def strong_tiny():
    return random_model(TINY, torch.float32, 0).state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_the_usual_types_are_read(tmp_path, dtype):
    save_file({name: t.to(dtype) for name, t in strong_tiny().items()}, tmp_path / "model.safetensors")
    assert load_model(weight_files(tmp_path), TINY, torch.float32).model.norm.weight.dtype == dtype


@pytest.mark.parametrize("header",
                         ['{"model.norm": {"bits": 4, "block": "4x8"}}', '{"model": {"bits": 4, "block": "4x8"}}',
                                    '{"lm_head": {"bits": 4.0, "block": "4x8"}}', '{"lm_head": {"bits": 4}}',
                                    '{"lm_head": 3}',
                                    '{"lm_head": {"bits": 4, "block": "rowx1"}}',
                                    '{"lm_head": {"bits": 7, "block": "4x8"}}',
                                    '{"lm_head": {"bits": 4, "block": 48}}', '{"lm_head": {"bits": 4, "block": "7x8"}}',
                                    '{"lm_head": {"bits": 4, "block": "4x99999999999999999999"}}', '[1]', '"x"',
                                    "1" * 5000])
def test_a_header_of_quantized_layers_is_checked(tmp_path, header):
    write_safetensors(tmp_path / "model.safetensors", strong_tiny(), {"quantized": header})
    with pytest.raises(ValueError, match="model.safetensors: (bad header for quantized layer|damaged header)"):
        open_weights(weight_files(tmp_path), TINY, torch.float32)


@pytest.mark.parametrize("names,message", [
    (["pytorch_model.bin"],
     "The directory holds pytorch_model.bin, which are pickled, and pickled files are never read"),
    (["pytorch_model-1.bin", "pytorch_model-2.bin"], "pytorch_model-1.bin, pytorch_model-2.bin, which are pickled"),
    (["consolidated.00.pth"], "consolidated.00.pth, which are pickled"), (["x.gguf"], "give the path of the GGUF file"),
    (["adapter_config.json"],
     "an adapter of PEFT, without its base: give the base in its place, and to eval.py, sample.py and export.py also"),
    ([], "no such weight file$")])
def test_a_directory_with_weights_in_another_format_is_told_so(tmp_path, names, message):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=message):
        weight_files(tmp_path)
    with pytest.raises(FileNotFoundError, match=message if names else "needs a config.json$"):
        load_config(tmp_path)


# ---- JSON ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text,message", [
    ('{"a": 1,\n "b": 2,\n "a": 3}', r'holds the key "a" twice \(lines 1, 3\)'),
    ('{"x": {"b": 1, "b": 1}}', '"b" twice'),
    ('{"a": ' + "[" * 200000 + "]" * 200000 + "}", "nested too deeply"),
    ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
    ("", "not valid JSON"), ("[1]", "not an object"), ('{"a": 1', "not valid JSON")])
def test_json_that_is_wrong_is_named_with_its_file(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=f"config.json: .*{message}"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("encoding,message", [
    ("utf-16", "not UTF-8 text but UTF-16, .* iconv -f UTF-16"), ("utf-32", "not UTF-8 text but UTF-32"),
    ("utf-8-sig", None)])
def test_the_encoding_of_a_json_file_is_named_and_a_mark_of_utf_8_is_no_content(tmp_path, encoding, message):
    (tmp_path / "config.json").write_bytes('{"a": "é"}'.encode(encoding))
    if message is None:
        assert read_json(tmp_path / "config.json") == {"a": "é"}
    else:
        with pytest.raises(ValueError, match=f"config.json: {message}"):
            read_json(tmp_path / "config.json")


def test_equal_keys_in_different_objects_are_fine():
    assert parse_json('{"a": {"b": 1}, "c": {"b": 2}}') == {"a": {"b": 1}, "c": {"b": 2}}


def test_a_write_that_fails_names_the_users_file_and_no_temporary_one(tmp_path):
    target = tmp_path / "x.json"
    target.mkdir()
    (target / "inside").touch()
    with pytest.raises(OSError, match=r"x\.json'?$") as error:
        replace_file(target, lambda file: file.write(b"{}"))
    assert ".part" not in str(error.value) and error.value.filename == str(target)
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


# ---- GGUF ---------------------------------------------------------------------------------------------------------

HUGE = [(1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 40, 10 ** 6]


def header(n_tensors: int = 0, n_metadata: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_metadata) + rest


def text(value: str | bytes, length: int | None = None) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data) if length is None else length) + data


def tensor(name: str, shape: tuple, kind: int = 0, offset: int = 0, n: int | None = None) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape) if n is None else n, *shape, kind, offset)


WRONG = {
    "no bytes": b"", "only the magic": b"GGUF", "an old version": header(version=1),
    "a later version": header(version=9),
    **{f"{n} metadata": header(0, n) for n in HUGE}, **{f"{n} tensors": header(n) for n in HUGE},
    **{f"{n} metadata in 49 bytes": header(0, n, bytes(25)) for n in HUGE},
    **{f"a key of {n}": header(0, 1, text(b"k", n)) for n in HUGE},
    **{f"a text of {n}": header(0, 1, text("k") + struct.pack("<I", 8) + text(b"v", n)) for n in HUGE},
    **{f"a list of {n} of type {kind}": header(0, 1, text("k") + struct.pack("<IIQ", 9, kind, n) + bytes(64))
       for n in HUGE for kind in (0, 4, 8, 9, 12)},
    "lists of lists": header(0, 1, text("k") + struct.pack("<IIQ", 9, 9, 1) * 99),
    "an unknown type": header(0, 1, text("k") + struct.pack("<I", 77) + bytes(64)),
    "a list of an unknown type": header(0, 1, text("k") + struct.pack("<IIQ", 9, 77, 1) + bytes(64)),
    "a boolean of 2": header(0, 1, text("k") + struct.pack("<IB", 7, 2)),
    "a list of booleans of 2": header(0, 1, text("k") + struct.pack("<IIQBB", 9, 7, 2, 1, 2)),
    "a key twice": header(0, 2, (text("k") + struct.pack("<IB", 0, 1)) * 2),
    "a key that is not UTF-8": header(0, 1, text(b"\xff\xfe") + struct.pack("<IB", 0, 1)),
    "an empty key": header(0, 1, text("") + struct.pack("<IB", 0, 1)),
    "alignment 0": header(0, 1, text("general.alignment") + struct.pack("<II", 4, 0)),
    "alignment 33": header(0, 1, text("general.alignment") + struct.pack("<II", 4, 33)),
    "alignment 2^31": header(0, 1, text("general.alignment") + struct.pack("<II", 4, 1 << 31)),
    "alignment as text": header(0, 1, text("general.alignment") + struct.pack("<I", 8) + text("32")),
    "a tensor twice": header(2, 0, tensor("a", (8,)) + tensor("a", (8,), offset=32) + bytes(200)),
    "no dimensions": header(1, 0, tensor("a", (), n=0) + bytes(200)),
    "many dimensions": header(1, 0, tensor("a", (1,) * 5) + bytes(200)),
    **{f"{n} dimensions": header(1, 0, tensor("a", (8,), n=n) + bytes(200)) for n in (99, (1 << 32) - 1)},
    "a dimension of 0": header(1, 0, tensor("a", (8, 0)) + bytes(200)),
    **{f"a dimension of {n}": header(1, 0, tensor("a", (8, n)) + bytes(200)) for n in HUGE},
    "dimensions that overflow": header(1, 0, tensor("a", (1 << 32, 1 << 32)) + bytes(200)),
    **{f"an offset of {n}": header(1, 0, tensor("a", (8,), offset=n) + bytes(200)) for n in HUGE},
    "an offset that is not aligned": header(1, 0, tensor("a", (8,), offset=4) + bytes(200)),
    "tensors that overlap": header(2, 0, tensor("a", (16,)) + tensor("b", (8,), offset=32) + bytes(200)),
    "tensors at one place": header(2, 0, tensor("a", (8,)) + tensor("b", (8,)) + bytes(200)),
    "half a block": header(1, 0, tensor("a", (16, 2), 2) + bytes(200)),
    "a tensor beyond the end": header(1, 0, tensor("a", (64,)) + bytes(64)),
    "another type": header(1, 0, tensor("a", (8,), 99) + bytes(200))}


@pytest.mark.parametrize("name", WRONG)
def test_a_gguf_file_with_wrong_numbers_is_refused_at_once(tmp_path, name):
    path = tmp_path / "x.gguf"
    path.write_bytes(WRONG[name])
    started = time.monotonic()
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_gguf(path)
    assert time.monotonic() - started < 1


def test_whole_files_of_a_few_bytes_are_read(tmp_path):
    """Control: the same bytes, with right numbers."""
    path = tmp_path / "x.gguf"
    path.write_bytes(header(2, 0, tensor("a", (8,)) + tensor("b", (2, 4), offset=32) + bytes(200)))
    assert {name: stored.shape for name, stored in read_gguf(path).tensors.items()} == {"a": (8,), "b": (4, 2)}
    path.write_bytes(header(0, 1, text("k") + struct.pack("<IIQ", 9, 8, 2) + text("x") + text("y")))
    assert read_gguf(path).metadata == {"k": ["x", "y"]} and read_gguf(path).kinds == {"k": ("ARRAY", "STRING")}


def test_metadata_and_tensors_are_those_that_the_gguf_package_reads(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", strong_model(), "Q4_1", metadata={"general.name": "é", "a.b": 3, "a.c": 0.5})
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    assert ours.metadata == {key: stated.contents() for key,
                             stated in theirs.fields.items() if not key.startswith("GGUF.")}
    assert {name: (t.type, t.start, t.bytes) for name, t in ours.tensors.items()} == {
        t.name: (t.tensor_type.name, t.data_offset, t.n_bytes) for t in theirs.tensors}


def changed(**keys):
    """The embedded base's tokens, with other values under some keys."""
    def write(writer):
        sentencepiece_tokens(writer)
        for key, value in keys.items():
            stated = writer.kv_data[0][f"tokenizer.ggml.{key}"]
            stated.value = value(stated.value) if callable(value) else value
    return write


@pytest.mark.parametrize("tokens,message", [
    (changed(scores=lambda v: v[:-1]), "tokenizer.ggml.scores holds 4095 values, but there are 4096 tokens"),
    (changed(token_type=lambda v: v[:9]), "tokenizer.ggml.token_type holds 9 values"),
    (changed(token_type=lambda v: [*v[:9], 77, *v[10:]]), "token_type holds 77, but must hold 1 to 6"),
    (changed(token_type=lambda v: [*v[:9], -5, *v[10:]]), "token_type holds -5, but must hold 1 to 6"),
    (changed(token_type=lambda v: ["a"] * len(v)), "token_type holds 'a', but must hold an integer"),
    (changed(tokens=lambda v: [*v[:9], v[8], *v[10:]]), "4096 tokens, but 4095 different ones"),
    (changed(scores=lambda v: [float("nan"), *v[1:]]), "scores holds a value that is no finite"),
    (changed(model=""), "tokenizer '' is not supported")])
def test_lists_of_a_gguf_tokenizer_are_checked(tmp_path, tokens, message):
    path = write_gguf(tmp_path / "x.gguf", strong_model(), tokenizer=tokens)
    with pytest.raises(ValueError, match=f"{path}: .*{message}"):
        load_tokenizer(path)


@pytest.mark.parametrize("metadata,message", [
    ({"llama.block_count": 10 ** 6}, "num_hidden_layers is 1000000"),
    ({"llama.block_count": "2"}, "num_hidden_layers is '2'"),
    ({"llama.rope.freq_base": 0.0}, "rope_theta is 0.0"),
    ({"llama.attention.layer_norm_rms_epsilon": 16.0}, "rms_norm_eps"),
    ({"llama.attention.layer_norm_rms_epsilon": NAN}, "rms_norm_eps is nan"),
    ({"llama.context_length": 0}, "max_position"),
    ({"tokenizer.ggml.eos_token_id": 4096}, "eos_token_id is 4096, but must be an id"),
    ({"tokenizer.ggml.eos_token_id": "2"}, "eos_token_id is '2'"), ({"llama.vocab_size": "x"}, "vocab_size is x"),
    ({"split.count": "two"}, "one of two parts")])
def test_metadata_of_a_gguf_file_have_types_and_ranges(tmp_path, metadata, message):
    def tokens(writer):
        sentencepiece_tokens(writer)
        for key in metadata:
            writer.kv_data[0].pop(key, None)
    path = write_gguf(tmp_path / "x.gguf", strong_model(), metadata=metadata, tokenizer=tokens)
    with pytest.raises(ValueError, match=message) as error:
        load_config(path)
    assert str(path) in str(error.value)


def test_the_index_is_bounded(tmp_path):
    for wrong in ({}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": "a"}):
        write_json(tmp_path / INDEX, wrong)
        with pytest.raises(ValueError, match=f"{INDEX}: holds no weight_map"):
            weight_files(tmp_path)


# ---- codes --------------------------------------------------------------------------------------------------------

def metadata_without_checksums(path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return {key: value for key, value in file.metadata().items() if key != "sha256"}


def quantized_file(tmp_path, quantizer, change=None):
    model = random_model(TINY, torch.float32, 0)
    up = model.model.layers[0].mlp.up_proj
    model.model.layers[0].mlp.up_proj = QuantLinear.from_weight(quantizer.quantize(up.weight.detach()))
    save_model(model, tmp_path / "model.safetensors")
    if change:
        metadata = metadata_without_checksums(tmp_path / "model.safetensors")
        tensors = load_file(tmp_path / "model.safetensors")
        change({name.removeprefix("model.layers.0.mlp.up_proj."): t for name,
                t in tensors.items() if "0.mlp.up" in name})
        save_file(tensors, tmp_path / "model.safetensors", metadata)
    return weight_files(tmp_path)


@pytest.mark.parametrize("change,message", [
    (lambda t: t["codes"].fill_(255), "up_proj.codes holds 15, but there are 15 levels"),
    (lambda t: t["levels"].copy_(t["levels"].flip(0)), "up_proj.levels must be finite and ascend"),
    (lambda t: t["levels"].fill_(NAN), "up_proj.levels must be finite"),
    (lambda t: t["scale"].view(-1)[0].fill_(NAN), "up_proj.scale holds a value that is not finite"),
    (lambda t: t["offset"].fill_(float("inf")), "up_proj.offset holds a value that is not finite")])
def test_codes_and_their_grid_are_checked_when_they_are_read(tmp_path, change, message):
    assert load_model(quantized_file(tmp_path, AbsMax(4, Block(4, 1))), TINY, torch.float32)
    with pytest.raises(ValueError, match=f"model.safetensors: model.layers.0.mlp.{message}"):
        load_model(quantized_file(tmp_path, AbsMax(4, Block(4, 1)), change), TINY, torch.float32)


@pytest.mark.parametrize("part,dtype", [("codes", torch.int8), ("codes", torch.float32), ("scale", torch.int32),
                                        ("levels", torch.uint8), ("offset", torch.float8_e4m3fn)])
def test_parts_of_a_quantized_layer_have_their_types(tmp_path, part, dtype):
    files = quantized_file(tmp_path, AbsMax(4, Block(4, 1)))
    metadata = metadata_without_checksums(files[0])
    tensors = load_file(files[0])
    name = f"model.layers.0.mlp.up_proj.{part}"
    tensors[name] = tensors[name].to(dtype)
    save_file(tensors, files[0], metadata)
    with pytest.raises(ValueError, match=f"{name} is of type "):
        load_model(files, TINY, torch.float32)
