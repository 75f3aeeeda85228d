"""Reading GGUF files: the model that a file holds, and the files that are refused."""
import sys
from dataclasses import replace

import numpy
import pytest
import torch

from model.checkpoint import load_model, open_weights, quantized_layers, save_model
from model.config_json import config_from_json, config_to_json
from model.directory import load_config, weight_files
from model.gguf_architectures import half_split, our_name
from model.gguf_file import TENSOR_TYPES
from model.gguf_layout import gguf_package
from model.gguf_reader import GGUFWeights, gguf_config, read_gguf
from model.rotary import llama3_frequencies, rotary_frequencies
from quant.linear import QuantLinear
from tests.cli import SMALL
from tests.gguf_files import ODD_HEADS, gguf, interleaved, strong_model, write_gguf, write_k_types

TOKENS = torch.randint(3, 4096, (2, 11), generator=torch.Generator().manual_seed(0))
LLAMA_3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def load(path, **options):
    return load_model(weight_files(path), load_config(path), torch.float32, **options)


def difference(path, model) -> float:
    with torch.inference_mode():
        return (load(path)(TOKENS) - model(TOKENS)).abs().max().item()


def refused(path) -> str:
    with pytest.raises(ValueError) as error:
        load(path)
    assert str(path) in str(error.value)
    return str(error.value)


# ---- the same model -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("tied", [True, False])
def test_an_f32_file_gives_the_logits_of_the_safetensors_directory(tmp_path, tied):
    model = strong_model(replace(ODD_HEADS, tie_word_embeddings=tied))
    save_model(model, tmp_path / "model.safetensors")
    other = load_model([tmp_path / "model.safetensors"], model.config, torch.float32)
    path = write_gguf(tmp_path / "x.gguf", model)
    assert load_config(path) == model.config
    assert torch.equal(load(path)(TOKENS), other(TOKENS))


def test_query_and_key_rows_that_are_not_put_back_give_another_model(tmp_path):
    model = strong_model()
    assert difference(write_gguf(tmp_path / "right.gguf", model), model) == 0
    assert difference(write_gguf(tmp_path / "wrong.gguf", model, interleave=False), model) > 0.1


def test_another_number_of_heads_gives_another_model(tmp_path):
    model = strong_model()
    heads = {"llama.attention.head_count": 8, "llama.attention.head_count_kv": 4, "llama.attention.key_length": 8}
    assert difference(write_gguf(tmp_path / "x.gguf", model, metadata=heads), model) > 0.1


def qwen2_model():
    raw = config_to_json(replace(ODD_HEADS, model_type="qwen2", attention_bias=True))
    model = strong_model(config_from_json(raw, "qwen2"))
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return model


def test_qwen2_rows_are_not_interleaved_and_have_biases(tmp_path):
    model = qwen2_model()
    path = write_gguf(tmp_path / "x.gguf", model, arch="qwen2", interleave=False)
    assert load_config(path) == model.config and model.model.layers[0].self_attn.o_proj.bias is None
    assert difference(path, model) == 0
    interleaved_rows = write_gguf(tmp_path / "y.gguf", model, arch="qwen2")
    assert difference(interleaved_rows, model) > 0.1  # control: rows that are not in Qwen2's order


def test_a_qwen2_file_of_codes_is_the_model_of_its_codes(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", qwen2_model(), "Q4_1", arch="qwen2", interleave=False)
    layers = {name: m for name, m in load(path).named_modules() if isinstance(m, QuantLinear)}
    assert len(layers) == 14
    assert all((m.bias is not None) == name.endswith(("q_proj", "k_proj", "v_proj")) for name, m in layers.items())


def test_a_file_without_a_familys_biases_is_refused(tmp_path):
    model = qwen2_model()
    missing = {f"blk.{i}.attn_{m}.bias": None for i in range(2) for m in "qkv"}
    path = write_gguf(tmp_path / "x.gguf", model, arch="qwen2", interleave=False, tensors=missing)
    assert "missing: model.layers.0.self_attn.q_proj.bias" in refused(path)


def test_biases_are_interleaved_too_and_stay_float32(tmp_path):
    model = strong_model(replace(ODD_HEADS, attention_bias=True, o_bias=True, mlp_bias=True))
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    for kind, most in (("F32", 0), ("Q8_0", 2)):
        path = write_gguf(tmp_path / f"{kind}.gguf", model, kind)
        loaded = load(path).state_dict()
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                assert loaded[name].dtype == torch.float32 and torch.equal(loaded[name], p), name
        assert difference(path, model) <= most


@pytest.mark.parametrize("kind,dtype", [("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_sixteen_bit_weights_stay_in_their_type_and_norms_in_float32(tmp_path, kind, dtype):
    model, path = strong_model(), tmp_path / "x.gguf"
    for p in model.parameters():
        p.copy_(p.to(dtype) if p.ndim == 2 else p)
    loaded = load(write_gguf(path, model, kind))
    for name, t in loaded.state_dict().items():
        assert t.dtype == (torch.float32 if "norm" in name else dtype), name
        assert torch.equal(t.float(), model.state_dict()[name]), name
    assert difference(path, model) == 0


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("tied", [True, False])
def test_quantized_layers_are_the_files_own_codes_and_compute_what_their_dequantized_weights_do(tmp_path, kind, tied):
    model = strong_model(replace(ODD_HEADS, tie_word_embeddings=tied))
    path = write_gguf(tmp_path / "x.gguf", model, kind)
    loaded = load(path)
    assert {type(m) for name, m in loaded.named_modules() if name.endswith("_proj")} == {QuantLinear}
    dense, stored = loaded.state_dict(), {t.name: t for t in gguf.GGUFReader(path).tensors}
    for name, p in model.named_parameters():
        if p.ndim == 2:  # the weight in the file, dequantized by the package
            block = number("Q8_0" if "embed" in name else kind)
            p.copy_(torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(p.numpy(), block), block)))
        layer = name.removesuffix(".weight")
        ours = loaded.get_submodule(layer).dequantize() if f"{layer}.codes" in dense else dense[name]
        assert torch.equal(ours, p), name
    assert len(stored) == len(model.state_dict()) - tied
    assert difference(path, model) < 1e-4
    assert dense["model.embed_tokens.weight"].dtype == torch.float32


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"])
def test_superblocks_are_the_model_of_their_values_rows_of_q_and_k_put_back(tmp_path, kind):
    """The gguf package reads these types and does not write them, so the file's bytes are made here."""
    model, path = write_k_types(tmp_path / "x.gguf", kind)
    loaded = load(path)
    codes = [m for m in loaded.modules() if isinstance(m, QuantLinear)]
    assert len(codes) == (0 if kind == "IQ4_XS" else 14)
    for name, p in model.named_parameters():
        layer = loaded.get_submodule(name.removesuffix(".weight"))
        assert torch.equal(layer.dequantize() if layer in codes else layer.weight, p), name
    assert difference(path, model) < 1e-3


def number(kind: str):
    return gguf.GGMLQuantizationType[kind]


def test_what_a_file_says_of_its_codes_is_known_without_reading_them(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "x.gguf", strong_model(), "Q4_1")
    monkeypatch.setattr(numpy, "fromfile", None)
    stated = quantized_layers(weight_files(path))
    assert len(stated) == 2 * 7
    assert stated["model.layers.1.self_attn.q_proj"] == {"bits": 4, "block": "32x1", "zero_points": False}


def test_tensors_are_read_one_at_a_time_and_only_those_asked_for(tmp_path, monkeypatch):
    path, read = write_gguf(tmp_path / "x.gguf", strong_model(), "Q4_1"), []
    fromfile = numpy.fromfile
    monkeypatch.setattr(numpy, "fromfile", lambda *a, **k: read.append(a[2]) or fromfile(*a, **k))
    tensors = GGUFWeights(path).tensors("model.layers.1.self_attn.")
    assert read == []
    name, _ = next(tensors)
    assert name == "model.layers.1.self_attn.q_proj.codes" and len(read) == 1
    assert len({n.rpartition(".")[0] for n, _ in tensors}) == 4 and len(read) == 4


def test_putting_rows_back_undoes_what_the_converter_does():
    assert half_split(torch.arange(6), 1).tolist() == [0, 2, 4, 1, 3, 5]
    w = torch.arange(48.0).view(24, 2)
    assert torch.equal(half_split(interleaved(w, 3), 3), w) and not torch.equal(half_split(interleaved(w, 3), 2), w)


def test_names_are_the_model_directorys():
    assert our_name("blk.3.attn_q.weight") == "model.layers.3.self_attn.q_proj.weight"
    assert our_name("output_norm.weight") == "model.norm.weight" and our_name("output.weight") == "lm_head.weight"
    assert our_name("blk.0.ffn_gate_inp.weight") == "blk.0.ffn_gate_inp.weight"


# ---- rotary scaling -----------------------------------------------------------------------------------------------

def divisors(config, **changed) -> torch.Tensor:
    """The tensor that llama.cpp's converter writes: the divisor of each frequency."""
    frequencies = rotary_frequencies(config)
    return frequencies / llama3_frequencies(frequencies, **{**LLAMA_3, **changed})


def test_linear_scaling_is_read(tmp_path):
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    path = write_gguf(tmp_path / "x.gguf", strong_model(), metadata=scaling)
    assert load_config(path).rope_scaling == {"rope_type": "linear", "factor": 4.0}


def test_llama_3_scaling_is_found_again_from_its_divisors(tmp_path):
    config = replace(ODD_HEADS, rope_scaling={"rope_type": "llama3", **LLAMA_3})
    path = write_gguf(tmp_path / "x.gguf", strong_model(), tensors={"rope_freqs.weight": (divisors(ODD_HEADS), "F32")})
    assert load_config(path) == config
    assert difference(path, strong_model(config)) == 0 and difference(path, strong_model()) > 1e-3


def test_divisors_of_no_published_scaling_are_refused(tmp_path):
    unpublished = divisors(ODD_HEADS, original_max_position_embeddings=4096)
    path = write_gguf(tmp_path / "x.gguf", strong_model(), tensors={"rope_freqs.weight": (unpublished, "F32")})
    assert "rope_freqs.weight does not hold the divisors of Llama 3.1's rotary scaling" in refused(path)


# ---- refused ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("metadata,message", [
    ({"llama.embedding_length": None}, "metadata key llama.embedding_length is missing"),
    ({"llama.block_count": 3}, "missing: model.layers.2."),
    ({"llama.attention.head_count": 3}, "num_attention_heads=3 is not a multiple of num_key_value_heads=2"),
    ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count is 8, but a head has 16 dimensions"),
    ({"llama.attention.value_length": 32}, "llama.attention.value_length is 32, but a head has 16"),
    ({"llama.rope.scaling.type": "ntk", "llama.rope.scaling.factor": 4.0}, "rotary scaling 'ntk' is not supported"),
    ({"llama.attention.causal": False}, "llama.attention.causal is not true"),
    ({"llama.vocab_size": 100}, "llama.vocab_size is 100, but tokenizer.ggml.tokens holds 4096 tokens")])
def test_metadata_that_do_not_fit_are_refused_by_name(tmp_path, metadata, message):
    assert message in refused(write_gguf(tmp_path / "x.gguf", strong_model(), metadata=metadata))


@pytest.mark.parametrize("tensors,message", [
    ({"blk.0.ffn_up.weight": None}, "missing: model.layers.0.mlp.up_proj.weight"),
    ({"blk.0.ffn_gate_inp.weight": (torch.zeros(4, 32), "F32")}, "unknown: blk.0.ffn_gate_inp.weight"),
    ({"blk.0.ffn_up.weight": (torch.zeros(32, 64), "Q4_1")},
     "model.layers.0.mlp.up_proj.scale [32, 2] instead of [64, 1]"),
    ({"blk.1.ffn_up.weight": (torch.zeros(64, 64), "BF16")},
     "model.layers.1.mlp.up_proj.weight [64, 64] instead of [64, 32]")])
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path, tensors, message):
    assert message in refused(write_gguf(tmp_path / "x.gguf", strong_model(), tensors=tensors))


def test_tensors_of_another_type_are_refused_with_the_types_that_are_read(tmp_path, monkeypatch):
    monkeypatch.setitem(TENSOR_TYPES, 6, "Q8_1")  # a type that no model file has
    message = refused(write_gguf(tmp_path / "x.gguf", strong_model(), "Q5_0"))
    assert "tensors of type Q8_1 (blk.1.ffn_down.weight) are not supported; supported: F32, F16, BF16, Q4_0," in message


def test_another_architecture_is_refused_with_what_is_supported(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", strong_model(), arch="mamba")
    assert "architecture 'mamba' is not supported; supported: llama" in refused(path)


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.6, 0.999])
def test_a_file_that_is_cut_off_is_named_before_a_tensor_is_read(tmp_path, share):
    path = write_gguf(tmp_path / "x.gguf", strong_model(), "Q4_1")
    whole = path.read_bytes()
    path.write_bytes(whole[:int(share * len(whole))])
    with pytest.raises(ValueError, match="damaged, cut off, or not a GGUF file"):
        open_weights(weight_files(path), ODD_HEADS, torch.float32)


def test_a_file_of_something_else_is_named(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04" + bytes(1000))
    assert "not a GGUF file (GGUF magic invalid)" in refused(tmp_path / "x.gguf")


def test_text_that_is_not_utf_8_is_a_damaged_file(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", strong_model(), metadata={"general.name": "mynameis"})
    path.write_bytes(path.read_bytes().replace(b"mynameis", b"\xff\xfenameis"))
    assert "damaged" in refused(path)


def test_a_big_endian_file_is_refused(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", strong_model(), byte_order=gguf.GGUFEndian.BIG)
    assert "big-endian" in refused(path)


def test_one_of_several_parts_is_refused(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", strong_model(), metadata={"split.count": 3})
    assert "one of 3 parts; join them first" in refused(path)


def test_a_name_in_capitals_is_a_gguf_file_too(tmp_path):
    assert load_config(write_gguf(tmp_path / "X.GGUF", strong_model(SMALL))).vocab_size == SMALL.vocab_size


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.gguf: no such GGUF file"):
        load_config(tmp_path / "nowhere.gguf")


def test_reading_needs_no_package(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "x.gguf", strong_model(), "Q4_1")
    monkeypatch.setitem(sys.modules, "gguf", None)
    load(path)
    with pytest.raises(ValueError, match="writing GGUF files needs the gguf package: pip install gguf"):
        gguf_package()


def test_the_type_and_tensor_that_need_the_package_are_named(tmp_path, monkeypatch):
    _, path = write_k_types(tmp_path / "x.gguf", "IQ4_XS")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "type IQ4_XS of blk.0.attn_q.weight needs the gguf package: pip install gguf" in refused(path)


def test_a_file_that_changed_is_read_again(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", strong_model())
    assert load_config(path).rope_theta == 500000
    write_gguf(path, strong_model(), metadata={"llama.rope.freq_base": 1234.5})
    assert load_config(path).rope_theta == 1234.5


def ends_of(path, tokens: dict[int, str], **ends) -> tuple[int, ...]:
    """The end tokens of a file with these tokens and keys."""
    def tokenizer(writer):
        names = {i: f"<t{i}>" for i in range(SMALL.vocab_size)} | tokens
        writer.add_tokenizer_model("llama")
        writer.add_token_list([names[i] for i in range(SMALL.vocab_size)])
    keys = {f"tokenizer.ggml.{name}_token_id": i for name, i in ends.items()}
    file = write_gguf(path, strong_model(SMALL), tokenizer=tokenizer, metadata=keys)
    return gguf_config(read_gguf(file)).eos_token_ids


@pytest.mark.parametrize("tokens,keys,ends", [
    ({2: "</s>", 7: "<|im_end|>", 9: "<|im_start|>"}, {"bos": 1, "eos": 2}, (2, 7)),
    ({7: "<|eot_id|>", 8: "<|eom_id|>", 5: "<|end_of_text|>"}, {"eos": 5, "bos": 4}, (5, 7, 8)),
    ({0: "<|endoftext|>", 2: "<|im_end|>"}, {"bos": 0, "eos": 2}, (2,)),  # it begins every prompt
    ({2: "</s>", 7: "im_end"}, {"bos": 1, "eos": 2, "eot": 4, "eom": 5}, (2, 4, 5)),
    ({7: "<|im_end|>"}, {"bos": 1}, ())])  # no end token at all is an error of its own
def test_a_token_ends_an_answer_by_its_text_as_in_llama_cpp(tmp_path, tokens, keys, ends):
    """llama.cpp 0.3.36 said so of each of these texts (llama_vocab_is_eog)."""
    assert ends_of(tmp_path / "x.gguf", tokens, **keys) == ends
