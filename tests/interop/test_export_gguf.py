"""export.py --format gguf: the k-bit model itself, or a dense one, as llama.cpp reads it."""
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch

from finetune.adapted_model import merge_best, save_beside
from finetune.run import open_run
from finetune.values import SaveEvery
from interop.gguf_metadata_writer import model_keys
from interop.gguf_writer import NEAR
from model.checkpoint import load_model, random_model, save_model
from model.config_json import config_to_json
from model.directory import load_config, weight_files
from model.files import write_json
from model.gguf_architectures import gguf_name, our_name
from model.gguf_layout import LLAMA_3_ROPE
from model.tokenizer_files import copy_tokenizer
from quant.absmax import AbsMax
from quant.gguf_blocks import BLOCK_TYPES, fitting_type, in_file_blocks, stored_rows
from quant.grid import Block
from quant.integer_minmax import IntegerMinMax
from quant.minmax import MinMax
from quant.normal_float import NormalFloat
from tests.cli import SMALL
from tests.export_runs import as_trained, difference, export, in_format_1, made_run, refusal
from tests.gguf_files import ODD_HEADS, gguf, interleaved, strong_model, write_gguf, write_k_types
from tests.model.test_families import GEMMA2, SMOLLM3, YARN

pytestmark = pytest.mark.usefixtures("elsewhere")
QABLORA = ["--method", "qablora", "--lam", "32x8"]


def read(path: Path):
    """(tensors, metadata) by the gguf package itself."""
    reader = gguf.GGUFReader(path)
    return {t.name: t for t in reader.tensors}, {key: stated.contents() for key, stated in reader.fields.items()}


def loaded(path: Path):
    return load_model(weight_files(path), load_config(path), torch.float32)


def blocks_of(tensor) -> numpy.ndarray:
    """(blocks, 20) bytes of a Q4_1 tensor: d, m, codes."""
    return tensor.data.reshape(-1, 20)


def merged_layers(tensors: dict) -> list[str]:
    return [name for name in tensors if name.startswith("blk.") and tensors[name].data.ndim == 2]


# ---- a GGUF file in, a GGUF file out ------------------------------------------------------------------------------

@pytest.fixture
def q4_1(tmp_path) -> Path:
    return write_gguf(tmp_path / "base.gguf", strong_model(), "Q4_1",
                      metadata={"general.name": "small", "general.license": "mit", "general.file_type": 3})


@pytest.mark.parametrize("flags", [QABLORA, ["--method", "qalora", "--lam", "32x1"],
                                   ["--method", "qblora", "--lam", "32", "--rank", "4", "--targets", "mlp"]])
def test_only_m_of_each_block_moves(q4_1, tmp_path, flags):
    run = made_run(tmp_path / "run", q4_1, "--quantizer", "none", *flags)
    report = export(run, "gguf", tmp_path / "out.gguf")
    (before, keys), (after, new_keys) = read(q4_1), read(tmp_path / "out.gguf")
    assert list(before) == list(after) and keys == new_keys  # metadata and tokenizer too
    adapted = [name for name in merged_layers(before) if "mlp" not in flags or "ffn" in name]
    for name, tensor in before.items():
        theirs = after[name]
        assert tensor.tensor_type == theirs.tensor_type and tensor.shape.tolist() == theirs.shape.tolist()
        if name not in adapted:
            assert tensor.data.tobytes() == theirs.data.tobytes(), name
            continue
        a, b = blocks_of(tensor), blocks_of(theirs)
        assert (a[:, :2] == b[:, :2]).all() and (a[:, 4:] == b[:, 4:]).all()
        assert (a[:, 2:4] != b[:, 2:4]).any(axis=1).mean() > 0.8
    assert report["merged_layers_with_the_codes_of_the_base"] == report[
        "merged_layers_with_the_scales_of_the_base"] == report["merged_layers"] == len(adapted)


def test_the_new_m_is_the_merged_offset_rounded_to_float16_and_nothing_else_is_rounded(q4_1, tmp_path):
    run = made_run(tmp_path / "run", q4_1, "--quantizer", "none", *QABLORA)
    report = export(run, "gguf", tmp_path / "out.gguf")
    model, again = as_trained(run), loaded(tmp_path / "out.gguf")
    for name in ("model.layers.1.self_attn.k_proj", "model.layers.0.mlp.down_proj"):
        layer = model.get_submodule(name)
        delta = layer.adapter.delta_weight().detach()[:, ::32]
        assert torch.equal(again.get_submodule(name).offset, (layer.base.offset.float() + delta).half())
    assert 0 < report["largest_logit_difference"] < 0.2
    assert difference(model, again) < 0.2 < 1 < difference(model, loaded(q4_1))
    largest = max((layer.weight() - again.get_submodule(name).dequantize()).abs().max().item()
                  for name, layer in model.named_modules() if hasattr(layer, "adapter"))
    assert report["largest_weight_difference"] == pytest.approx(largest)


@pytest.mark.parametrize("shift", [0, 1])
def test_a_group_that_is_shifted_by_one_block_would_be_noticed(q4_1, tmp_path, shift, monkeypatch):
    """Control: each block gets the m of the next block."""
    run = made_run(tmp_path / "run", q4_1, "--quantizer", "none", *QABLORA)
    if shift:
        monkeypatch.setattr("interop.gguf_writer.stored_rows", lambda weight, kind: stored_rows(
            replace(weight, grid=replace(weight.grid, offset=weight.grid.offset.roll(1, 0))), kind))
        assert "what was read again is not what was written" in refusal(run, "gguf", tmp_path / "out.gguf")
    else:
        export(run, "gguf", tmp_path / "out.gguf")


def test_a_base_without_offsets_gets_them_where_something_merged_and_keeps_its_type_where_not(tmp_path):
    """Q4_0 -> Q4_1: d * (code - 8) + o is d * code + (o - 8 d)."""
    path = write_gguf(tmp_path / "base.gguf", strong_model(), "Q4_0")
    run = made_run(tmp_path / "run", path, "--quantizer", "none", *QABLORA, "--targets", "mlp")
    report = export(run, "gguf", tmp_path / "out.gguf")
    before, (after, _) = read(path)[0], read(tmp_path / "out.gguf")
    assert {name: after[name].tensor_type.name for name in ("blk.0.ffn_up.weight", "blk.0.attn_q.weight")} == {
        "blk.0.ffn_up.weight": "Q4_1", "blk.0.attn_q.weight": "Q4_0"}
    halves = before["blk.0.ffn_up.weight"].data.reshape(-1, 18)
    assert (halves[:, 2:] == blocks_of(after["blk.0.ffn_up.weight"])[:, 4:]).all()
    assert report["merged_layers_with_the_scales_of_the_base"] == report["merged_layers"] == 6
    assert difference(as_trained(run), loaded(tmp_path / "out.gguf")) < 0.2


def test_tensors_of_types_that_are_only_read_are_copied_byte_for_byte(tmp_path):
    """A file as on the hub: codes, and some layers of another type. Those with an adapter are codes."""
    _, path = write_k_types(tmp_path / "base.gguf", "IQ4_XS", "down_proj.weight", "Q4_1", {"general.file_type": 3})
    run = made_run(tmp_path / "run", path, "--quantizer", "none", *QABLORA, "--targets", "attention")
    export(run, "gguf", tmp_path / "out.gguf")
    (before, keys), (after, new_keys) = read(path), read(tmp_path / "out.gguf")
    changed = {name for name in before if before[name].data.tobytes() != after[name].data.tobytes()}
    assert keys == new_keys and changed == {name for name in before if ".attn_" in name and "norm" not in name}
    assert after["blk.0.ffn_down.weight"].tensor_type.name == "IQ4_XS"


@pytest.mark.parametrize("kind", ["Q5_1", "Q5_0"])
def test_five_bits_leave_as_q5_1_with_the_codes_and_the_scales_of_the_base(tmp_path, kind):
    path = write_gguf(tmp_path / "base.gguf", strong_model(), kind)
    run = made_run(tmp_path / "run", path, "--quantizer", "none", *QABLORA, "--targets", "mlp")
    report = export(run, "gguf", tmp_path / "out.gguf")
    before, after = read(path)[0], read(tmp_path / "out.gguf")[0]
    assert {t.tensor_type.name for name, t in after.items() if "ffn" in name and "norm" not in name} == {"Q5_1"}
    assert before["blk.0.attn_q.weight"].data.tobytes() == after["blk.0.attn_q.weight"].data.tobytes()
    offset = 4 if kind == "Q5_1" else 2
    codes = before["blk.1.ffn_up.weight"].data.reshape(-1, 20 + offset)[:, offset:]
    assert (codes == after["blk.1.ffn_up.weight"].data.reshape(-1, 24)[:, 4:]).all()
    assert report["merged_layers_with_the_scales_of_the_base"] == report["merged_layers"] == 6
    assert difference(as_trained(run), loaded(tmp_path / "out.gguf")) < 0.2 < 1 < difference(as_trained(run),
                                                                                            loaded(path))


@pytest.mark.parametrize("kind,lam", [("Q2_K", "16x8"), ("Q3_K", "16x1"), ("Q4_K", "32x8"), ("Q5_K", "32x8"),
                                      ("Q6_K", "32x8")])
def test_a_k_type_trains_and_merges_exactly_and_is_refused_in_gguf(tmp_path, kind, lam):
    _, path = write_k_types(tmp_path / "base.gguf", kind)
    run = made_run(tmp_path / "run", path, "--quantizer", "none", "--method", "qablora", "--lam", lam)
    message = refusal(run, "gguf", tmp_path / "out.gguf")
    assert f"{kind} stores a block's scale as d * s" in message and "layer model.layers.0.self_attn.q_proj" in message
    merged = as_trained(run)
    merge_best(merged, torch.float16)
    assert difference(merged, as_trained(run)) < 1e-4
    if kind in NEAR:
        assert f"its layers become {NEAR[kind]}, which rounds d and m to float16" in message
        save_beside(merged, open_run(run), run / "merged")
        export(run / "merged", "gguf", tmp_path / "out.gguf")
        assert read(tmp_path / "out.gguf")[0]["blk.1.ffn_up.weight"].tensor_type.name == NEAR[kind]
    base, layer = loaded(path), merged.get_submodule("model.layers.1.mlp.up_proj")
    assert torch.equal(layer.codes, base.get_submodule("model.layers.1.mlp.up_proj").codes)


def test_a_k_type_that_did_not_train_is_copied(tmp_path):
    _, path = write_k_types(tmp_path / "base.gguf", "Q2_K", "down_proj.weight")
    run = made_run(tmp_path / "run", path, "--quantizer", "none", "--method", "lora", "--targets", "attention")
    export(run, "gguf", tmp_path / "out.gguf")
    before, after = read(path)[0], read(tmp_path / "out.gguf")[0]
    assert after["blk.1.ffn_down.weight"].tensor_type.name == "Q2_K"
    assert before["blk.1.ffn_down.weight"].data.tobytes() == after["blk.1.ffn_down.weight"].data.tobytes()


def test_a_dense_layer_of_a_file_stays_in_its_type(tmp_path):
    path = write_gguf(tmp_path / "base.gguf", strong_model(), "F16")
    run = made_run(tmp_path / "run", path, "--method", "lora", "--targets", "mlp")
    export(run, "gguf", tmp_path / "out.gguf")
    before, after = read(path)[0], read(tmp_path / "out.gguf")[0]
    assert {name: t.tensor_type for name, t in before.items()} == {name: t.tensor_type for name, t in after.items()}
    changed = {name for name in before if before[name].data.tobytes() != after[name].data.tobytes()}
    assert changed == {name for name in before if ".ffn_" in name and "norm" not in name}
    assert difference(as_trained(run), loaded(tmp_path / "out.gguf")) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("dtype,kind", [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")])
def test_a_dense_file_of_any_run_with_the_files_own_metadata(q4_1, tmp_path, dtype, kind):
    run = made_run(tmp_path / "run", q4_1, "--quantizer", "none", "--method", "qlora")
    report = export(run, "gguf", tmp_path / "out.gguf", "--dtype", dtype)
    tensors, keys = read(tmp_path / "out.gguf")
    assert {t.tensor_type.name for t in tensors.values() if t.data.ndim == 2} == {kind}
    assert {t.tensor_type.name for name, t in tensors.items() if "norm" in name} == {"F32"}
    assert keys["general.license"] == "mit" and keys["general.file_type"] == {"F32": 0, "F16": 1, "BF16": 32}[kind]
    assert (report["largest_weight_difference"] == 0) == (dtype == "float32")
    assert difference(as_trained(run), loaded(tmp_path / "out.gguf")) < {"float32": 1e-4, "float16": 0.2,
                                                                         "bfloat16": 2}[dtype]


def test_a_run_on_a_gguf_file_of_format_1_exports_the_same_file(tmp_path):
    base = write_gguf(tmp_path / "base.gguf", strong_model(), "Q4_1")
    run = made_run(tmp_path / "run", base, "--method", "qablora", "--quantizer", "none", "--lam", "32x8")
    config, before = open_run(run).config, export(run, "gguf", tmp_path / "out" / "x.gguf")
    shutil.move(tmp_path / "out", tmp_path / "before")
    in_format_1(run, "qablora --quantizer none --lam 32x8")
    steps_only = replace(config.training, save_every=SaveEvery(steps=200))  # that version saved by steps alone
    assert open_run(run).config == replace(config, training=steps_only)
    assert export(run, "gguf", tmp_path / "out" / "x.gguf") == before


# ---- bases that were quantized here -------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def odd_base(tmp_path_factory, small_base) -> Path:
    """A model whose attention heads GGUF interleaves, with weights large enough for the order of rows to matter."""
    path = tmp_path_factory.mktemp("odd")
    write_json(path / "config.json", config_to_json(ODD_HEADS))
    save_model(strong_model(), path / "model.safetensors", torch.bfloat16)
    copy_tokenizer(small_base, path)
    return path


@pytest.mark.parametrize("flags", [
    ["--block", "32x1", *QABLORA], ["--block", "32x8", "--method", "qablora"],
    ["--quantizer", "absmax", "--block", "32x1", *QABLORA],
    ["--quantizer", "intminmax", "--block", "32x1", *QABLORA],
    ["--block", "64x1", "--method", "qalora", "--quantizer", "minmax", "--targets", "mlp", "--quantized-layers",
     "mlp"]], ids=" ".join)
def test_codes_on_whole_number_levels_in_blocks_of_32_or_several_such_are_q4_1(odd_base, small_base, tmp_path, flags):
    model = odd_base
    if "64x1" in flags:
        model = tmp_path / "wide"
        config = replace(ODD_HEADS, hidden_size=64)
        write_json(model / "config.json", config_to_json(config))
        save_model(strong_model(config), model / "model.safetensors", torch.bfloat16)
        copy_tokenizer(small_base, model)
    run = made_run(tmp_path / "run", model, *flags)
    report = export(run, "gguf", tmp_path / "out.gguf")
    tensors, _ = read(tmp_path / "out.gguf")
    kinds = {name: t.tensor_type.name for name, t in tensors.items()}
    quantized = [name for name in merged_layers(tensors) if "64x1" not in flags or "ffn" in name]
    assert {kinds[name] for name in quantized} == {"Q4_1"} and kinds["token_embd.weight"] == "BF16"
    assert kinds["output_norm.weight"] == "F32"
    assert report["merged_layers_with_the_codes_of_the_base"] == report[
        "merged_layers_with_the_scales_of_the_base"] == len(quantized)
    ours, theirs = as_trained(run), loaded(tmp_path / "out.gguf")
    assert difference(ours, theirs) < 0.3 < 1 < difference(ours, loaded(odd_base) if model == odd_base
                                                           else loaded(model))


def test_rows_of_q_and_k_are_stored_as_llama_cpp_wants_them(odd_base, tmp_path):
    run = made_run(tmp_path / "run", odd_base, "--block", "32x1", *QABLORA)
    export(run, "gguf", tmp_path / "out.gguf")
    model, tensors = as_trained(run), read(tmp_path / "out.gguf")[0]
    for name, heads in (("blk.1.attn_q.weight", 4), ("blk.1.attn_k.weight", 2), ("blk.1.attn_v.weight", None)):
        stored = torch.from_numpy(gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type))
        weight = model.get_submodule(our_name(name).removesuffix(".weight")).weight().detach()
        ours = interleaved(weight, heads) if heads else weight
        assert (stored - ours).abs().max() < 0.02
        # control: the order of Hugging Face files gives another matrix
        assert not heads or (stored - weight).abs().max() > 0.5


def test_peqa_on_blocks_of_32_leaves_with_its_scales_rounded(odd_base, tmp_path):
    run = made_run(tmp_path / "run", odd_base, "--method", "peqa")
    report = export(run, "gguf", tmp_path / "out.gguf")
    assert report["merged_layers_with_the_codes_of_the_base"] == 14
    assert report["merged_layers_with_the_scales_of_the_base"] == 0
    assert difference(as_trained(run), loaded(tmp_path / "out.gguf")) < 0.3


def test_the_exported_d_and_m_of_peqa_are_the_trained_scale_and_minus_scale_times_z(odd_base, tmp_path):
    """Both in float16; m is made of the d that is stored, so that a code equal to z is as near to 0 as float16 lets
    it."""
    run = made_run(tmp_path / "run", odd_base, "--method", "peqa")
    export(run, "gguf", tmp_path / "out.gguf")
    model, tensors = as_trained(run), read(tmp_path / "out.gguf")[0]
    for name in ("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.v_proj"):
        layer, stored = model.get_submodule(name), blocks_of(tensors[gguf_name(name + ".weight")])
        d, m = (torch.from_numpy(stored[:, at:at + 2].copy()).view(torch.float16)[:, 0] for at in (0, 2))
        scale = (layer.base.scale.float() * layer.adapter.log_factor.detach().exp()).half()
        z = layer.base.offset.integers(scale.shape)
        assert torch.equal(d, scale.flatten())
        assert torch.equal(m, (-scale.double() * z.double()).half().flatten())
        assert not torch.equal(d, layer.base.scale.flatten())  # control: the base's scales are others
        assert (m != 0).any()


def test_layers_without_an_adapter_leave_as_q4_0_and_q8_0_where_there_is_no_offset(odd_base, tmp_path):
    for bits, kind in ((4, "Q4_0"), (8, "Q8_0")):
        run = made_run(tmp_path / f"run{bits}", odd_base, "--method", "qlora", "--quantizer", "absmax", "--bits", bits,
                       "--block", "32x1")
        base = tmp_path / f"base{bits}"
        write_json(base / "config.json", config_to_json(ODD_HEADS))
        (run / "base.safetensors").rename(base / "model.safetensors")
        copy_tokenizer(run, base)
        report = export(base, "gguf", tmp_path / f"out{bits}.gguf")
        tensors, keys = read(tmp_path / f"out{bits}.gguf")
        assert {tensors[name].tensor_type.name for name in merged_layers(tensors)} == {kind}
        assert report["largest_weight_difference"] == 0 and report["largest_logit_difference"] < 1e-4
        assert keys["general.file_type"] == {"Q4_0": 2, "Q8_0": 7}[kind]


def test_a_merged_directory_leaves_as_the_run_does(odd_base, tmp_path):
    run = made_run(tmp_path / "run", odd_base, "--block", "32x1", *QABLORA)
    export(run, "gguf", tmp_path / "a.gguf")
    model = as_trained(run)
    merge_best(model, torch.bfloat16)
    save_beside(model, open_run(run), tmp_path / "merged")
    export(tmp_path / "merged", "gguf", tmp_path / "b.gguf")
    a, b = read(tmp_path / "a.gguf")[0], read(tmp_path / "b.gguf")[0]
    assert {name: t.data.tobytes() for name, t in a.items()} == {name: t.data.tobytes() for name, t in b.items()}


# ---- what does not fit --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("flags,message", [
    (["--block", "4x8", "--method", "qablora"],
     r"blocks of 4x8 \(n_in x n_out\) do not fall into GGUF's, which are 32x1\. "
     r"Train with .*--block 32x1 .*--lam 32x8"),
    (["--block", "32x1", "--bits", "3", *QABLORA],
     r"3 bits with an offset are none of GGUF's types.*--bits 4 --block 32x1"),
    (["--block", "32x1", "--bits", "8", *QABLORA], "8 bits with an offset are none of GGUF's types"),
    (["--block", "32x1", "--method", "qlora"],
     r"merges into k bits only if .*lam_in=1 x lam_out=1.* or export a dense file with --dtype"),
    (["--block", "32x1", "--quantizer", "nf", *QABLORA],
     r"levels that are no whole numbers \(-1, .*--quantizer minmax"),
    (["--block", "32x1", "--quantizer", "absmax", "--bits", "8", "--method", "qablora"], "8 bits with an offset")])
def test_what_fits_no_type_is_refused_with_what_to_train_instead(odd_base, tmp_path, monkeypatch, flags, message):
    run = made_run(tmp_path / "run", odd_base, *flags)
    with monkeypatch.context() as inside:
        inside.setattr("interop.trained.Trained.load", lambda self: pytest.fail("weights were loaded"))
        assert re.search(message, refusal(run, "gguf", tmp_path / "out.gguf"))
    if "3" in flags:
        assert difference(as_trained(run), dense(run, tmp_path / "out.gguf")) < 1e-4  # the message offers a dense file


def dense(run, to):
    export(run, "gguf", to, "--dtype", "float32")
    return loaded(to)


@pytest.mark.parametrize("changes,message", [
    (GEMMA2, "query_pre_attn_scalar is 20, but llama.cpp takes 16 for architecture 'gemma2'"),
    ({**GEMMA2, "query_pre_attn_scalar": 16, "windowed_layers": ()}, "windowed_layers is (), but llama.cpp takes (0,)"),
    (SMOLLM3, "unrotated_layers is (1,), but llama.cpp takes () for architecture 'smollm3' and has no key for it"),
    ({"model_type": "qwen3", "qk_norm": True, "attention_bias": True, "o_bias": True}, "reads no biases of qwen3"),
    ({"rope_scaling": {**YARN, "factor": 2.0}}, "rotary scaling 'yarn' with beta_fast, mscale"),
    ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
                       "original_max_position_embeddings": 64}},
     "'longrope' is not written as GGUF for architecture 'llama'")])
def test_a_model_that_llama_cpp_would_compute_otherwise_is_refused_by_name(tmp_path, small_base, changes, message):
    config = replace(ODD_HEADS, **changes)
    write_json(tmp_path / "base/config.json", config_to_json(config))
    save_model(random_model(config, torch.float32, seed=0), tmp_path / "base/model.safetensors")
    copy_tokenizer(small_base, tmp_path / "base")
    said = refusal(tmp_path / "base", "gguf", tmp_path / "out.gguf")
    assert message in said and "Use --format safetensors" in said


def test_heads_that_llama_cpp_does_not_load_are_refused(tmp_path, small_base):
    config = replace(ODD_HEADS, model_type="qwen2", attention_bias=True)
    write_json(tmp_path / "base/config.json", config_to_json(config))
    save_model(random_model(config, torch.float32, seed=0), tmp_path / "base/model.safetensors")
    copy_tokenizer(small_base, tmp_path / "base")
    assert "a qwen2 whose heads have 64 dimensions together and whose hidden_size is 32" in refusal(
        tmp_path / "base", "gguf", tmp_path / "out.gguf")


def test_a_window_ends_the_context_where_it_would_begin_to_matter():
    assert model_keys(replace(SMALL, model_type="mistral", sliding_window=64,
                              windowed_layers=(0,)), "llama")["context_length"] == 64
    assert model_keys(SMALL, "llama")["context_length"] == SMALL.max_position_embeddings


@pytest.mark.slow
@pytest.mark.parametrize("model_type,scaling", [("llama", {"rope_type": "llama3", **LLAMA_3_ROPE, "factor": 8.0}),
                                                ("mistral", {"rope_type": "linear", "factor": 4.0}),
                                                ("qwen2", {"rope_type": "linear", "factor": 4.0})])
def test_other_families_and_rotary_scalings_come_back_as_they_were(tmp_path, small_base, model_type, scaling):
    config = replace(ODD_HEADS, rope_scaling=scaling, model_type=model_type, attention_bias=model_type == "qwen2",
                     rope_theta=500000.0,
                     head_dim=8 if model_type == "qwen2" else 16, tie_word_embeddings=model_type != "mistral")
    model = strong_model(config)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.data.normal_(generator=torch.Generator().manual_seed(0))
    base = tmp_path / "base"
    write_json(base / "config.json", config_to_json(config))
    save_model(model, base / "model.safetensors")
    copy_tokenizer(small_base, base)
    assert export(base, "gguf", tmp_path / "out.gguf")["largest_logit_difference"] < 1e-4
    assert read(tmp_path / "out.gguf")[1]["general.architecture"] == ("qwen2" if model_type == "qwen2" else "llama")
    assert difference(loaded(base), loaded(tmp_path / "out.gguf")) < 1e-4
    assert difference(loaded(base), strong_model(replace(config, rope_scaling=None))) > 0.01


# ---- blocks -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_any_bytes_at_all_come_back_as_they_were(kind):
    rows = torch.randint(0, 256, (40, 3 * BLOCK_TYPES[kind].bytes), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(0))
    rows[:, 1::BLOCK_TYPES[kind].bytes] &= 0x3B  # finite
    assert torch.equal(stored_rows(BLOCK_TYPES[kind].quantized_weight(rows), BLOCK_TYPES[kind]), rows)


@pytest.mark.parametrize("quantizer,kind,exact", [
    (MinMax(4, Block(32, 1)), "Q4_1", True), (MinMax(4, Block(64, 2)), "Q4_1", True),
    (AbsMax(4, Block(32, 1)), "Q4_0", True), (MinMax(5, Block(32, 2)), "Q5_1", True),
    (AbsMax(5, Block(64, 1)), "Q5_0", True),
    (AbsMax(8, Block(None, 1)), "Q8_0", True), (IntegerMinMax(4, Block(96, 4)), "Q4_1", False)],
    ids=lambda value: getattr(value, "name", value))
def test_what_the_gguf_package_reads_is_the_grids_own_weight(quantizer, kind, exact):
    w = torch.randn(8, 192, generator=torch.Generator().manual_seed(0))
    weight = quantizer.quantize(w)
    grid = weight.grid
    assert fitting_type(grid.levels, grid.bits, grid.block, grid.factors()[1].shape != (1, 1)) == kind
    rows = stored_rows(in_file_blocks(weight, BLOCK_TYPES[kind]), BLOCK_TYPES[kind])
    theirs = torch.from_numpy(gguf.quants.dequantize(rows.numpy(), gguf.GGMLQuantizationType[kind]))
    assert torch.allclose(theirs, weight.dequantize(), rtol=0, atol=0 if exact else 2e-3)


@pytest.mark.parametrize("quantizer,message", [
    (MinMax(4, Block(16, 1)), "blocks of 16x1"), (NormalFloat(4, Block(32, 1)), "no whole numbers"),
    (MinMax(2, Block(32, 1)), "2 bits with"),
    (AbsMax(3, Block(32, 1)), "3 bits without"),
    (AbsMax(6, Block(32, 1)), "6 bits without"), (MinMax(8, Block(32, 1)), "8 bits with")])
def test_grids_that_no_type_holds(quantizer, message):
    grid = quantizer.fit(torch.randn(8, 64))
    with pytest.raises(ValueError, match=message):
        fitting_type(grid.levels, grid.bits, grid.block, grid.factors()[1].shape != (1, 1))


def test_factors_beyond_float16_are_refused():
    weight = MinMax(4, Block(32, 1), storage=torch.float32).quantize(torch.randn(4, 32) * 1e5)
    with pytest.raises(ValueError, match="beyond float16"):
        in_file_blocks(weight, BLOCK_TYPES["Q4_1"])


def test_names_go_both_ways():
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
                 "model.layers.11.self_attn.q_proj.bias"):
        assert our_name(gguf_name(name)) == name
