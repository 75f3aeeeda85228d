"""export.py of runs that trained scales and offsets together: the same codes, both factors in the format's type."""
import pytest
import torch

from adapters.adapted import adapted_layers
from adapters.merge import merge_into_codes
from finetune.adapted_model import merge_best, save_beside
from finetune.run import open_run
from finetune.source import Source
from quant.linear import QuantLinear
from tests.cli import forbid_loading
from tests.export_runs import as_trained, difference, export, made_run, refusal
from tests.gguf_files import write_k_types
from tests.interop.test_export_gguf import loaded, q4_1, read  # noqa: F401

pytestmark = pytest.mark.usefixtures("elsewhere")
BOTH = ["--method", "scaleoffset"]


def check(run, found, tolerance) -> None:
    """The merged layers in `found`, up to the rounding of their factors; the base's are far from them."""
    for name, layer in adapted_layers(as_trained(run)).items():
        merged, other = merge_into_codes(layer), found.get_submodule(name)
        assert isinstance(other, QuantLinear)
        far = (layer.base.dequantize() - merged.dequantize()).abs().max()
        assert (other.dequantize() - merged.dequantize()).abs().max() <= tolerance * far and far > 1e-3, name


@pytest.mark.parametrize("quantizer,bits,kind", [
    ("minmax", 4, "Q4_1"), ("minmax", 5, "Q5_1"), ("intminmax", 4, "Q4_1"), ("absmax", 4, "Q4_1")])
def test_a_gguf_file_has_the_codes_and_both_factors_in_float16(small_base, tmp_path, quantizer, bits, kind):
    """absmax had no offset, so the type becomes one that has."""
    run = made_run(tmp_path / "run", small_base, *BOTH, "--quantizer", quantizer, "--bits", bits, "--block", "32x1")
    report = export(run, "gguf", tmp_path / "out.gguf")
    assert read(tmp_path / "out.gguf")[0]["blk.0.ffn_up.weight"].tensor_type.name == kind
    assert report["merged_layers_with_the_codes_of_the_base"] == report["merged_layers"]
    assert report["merged_layers_with_the_scales_of_the_base"] == 0
    check(run, loaded(tmp_path / "out.gguf"), 2e-2)


@pytest.mark.parametrize("quantizer,bits", [("minmax", 2), ("minmax", 4), ("absmax", 3), ("intminmax", 8)])
def test_mlx_holds_the_merged_model_exactly(small_base, tmp_path, quantizer, bits):
    run = made_run(tmp_path / "run", small_base, *BOTH, "--quantizer", quantizer, "--bits", bits, "--block", "32x1")
    report = export(run, "mlx", tmp_path / "out")
    assert report["largest_weight_difference"] < 1e-6
    found = Source(tmp_path / "out").load(torch.float32, "cpu")
    check(run, found, 1e-4)
    assert difference(as_trained(run), found) < 2e-4


@pytest.mark.parametrize("format,quantizer,message", [
    ("gguf", "nf", "layer model.layers.0.self_attn.q_proj"), ("mlx", "nf", "layer model.layers.0.self_attn.q_proj"),
    ("peft", "minmax", "scaleoffset trains the scale and offset of its base, and a LoRA only adds to the base")])
def test_what_does_not_fit_is_refused_by_name_before_anything_is_loaded(small_base, tmp_path, monkeypatch, format,
                                                                        quantizer, message):
    run = made_run(tmp_path / "run", small_base, *BOTH, "--quantizer", quantizer, "--block", "32x1")
    forbid_loading(monkeypatch)
    assert message in refusal(run, format, tmp_path / ("out.gguf" if format == "gguf" else "out"))


def test_a_gguf_file_trains_as_it_is_and_keeps_its_codes(q4_1, tmp_path):  # noqa: F811
    run = made_run(tmp_path / "run", q4_1, "--quantizer", "none", *BOTH)
    export(run, "gguf", tmp_path / "out.gguf")
    check(run, loaded(tmp_path / "out.gguf"), 2e-2)
    before, after = read(q4_1)[0], read(tmp_path / "out.gguf")[0]
    a, b = (tensors["blk.0.ffn_up.weight"].data.reshape(-1, 20) for tensors in (before, after))
    assert (a[:, 4:] == b[:, 4:]).all() and (a[:, :2] != b[:, :2]).any() and (a[:, 2:4] != b[:, 2:4]).any()


@pytest.mark.parametrize("kind", ["Q3_K", "Q4_K"])
def test_a_k_type_trains_and_its_merge_is_exact_on_disk(tmp_path, kind):
    _, path = write_k_types(tmp_path / "base.gguf", kind)
    run = made_run(tmp_path / "run", path, "--quantizer", "none", *BOTH)
    assert f"{kind} stores a block's scale as d * s" in refusal(run, "gguf", tmp_path / "out.gguf")
    merged = as_trained(run)
    assert merge_best(merged, torch.float16)
    save_beside(merged, open_run(run), run / "merged")
    check(run, Source(run / "merged").load(torch.float32, "cpu"), 0)
