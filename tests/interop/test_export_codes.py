"""export.py of runs that trained through the rounding (--merge-into codes): the moved codes, in every format."""
import pytest
import torch

from adapters.adapted import AdaptedLinear, adapted_layers
from adapters.merge import merge_into_codes
from finetune.adapted_model import merge_best, save_beside
from finetune.run import open_run
from finetune.source import Source
from quant.gguf_superblocks import SUPERBLOCK_TYPES
from quant.linear import QuantLinear
from tests.cli import forbid_loading
from tests.export_runs import as_trained, difference, export, made_run, refusal
from tests.gguf_files import gguf, write_k_types
from tests.interop.test_export_gguf import loaded, q4_1, read  # noqa: F401

pytestmark = pytest.mark.usefixtures("elsewhere")
CODES = ["--method", "qlora", "--rank", "4", "--merge-into", "codes"]


def same_as_merged(run, found) -> None:
    """Every adapted layer of the run is codes in `found`, the merged ones; they are not those of the base."""
    for name, layer in adapted_layers(as_trained(run)).items():
        merged, other = merge_into_codes(layer), found.get_submodule(name)
        assert isinstance(other, QuantLinear) and not isinstance(other, AdaptedLinear)
        assert torch.equal(merged.dequantize(), other.dequantize()), name
        assert not torch.equal(layer.base.dequantize(), other.dequantize()), name


@pytest.mark.parametrize("quantizer,bits,format", [
    ("minmax", 4, "gguf"), ("minmax", 5, "gguf"), ("absmax", 4, "gguf"), ("absmax", 8, "gguf"),
    ("minmax", 4, "mlx"), ("minmax", 2, "mlx")])
def test_the_export_holds_the_moved_codes_and_the_factors_of_the_base(small_base, tmp_path, quantizer, bits, format):
    run = made_run(tmp_path / "run", small_base, *CODES, "--quantizer", quantizer, "--bits", bits, "--block", "32x1")
    to = tmp_path / ("out.gguf" if format == "gguf" else "out")
    report = export(run, format, to)
    assert report["largest_weight_difference"] == 0
    again = loaded(to) if format == "gguf" else Source(to).load(torch.float32, "cpu")
    same_as_merged(run, again)
    if format == "gguf":
        assert report["merged_layers_with_the_codes_of_the_base"] == 0
        assert report["merged_layers_with_the_scales_of_the_base"] == report["merged_layers"]
        if quantizer == "absmax":  # no offset came
            assert read(to)[0]["blk.0.ffn_up.weight"].tensor_type.name == {4: "Q4_0", 8: "Q8_0"}[bits]


def test_a_dense_export_is_the_rounded_model(small_base, tmp_path):
    run = made_run(tmp_path / "run", small_base, *CODES, "--bits", "3", "--block", "16x1")
    export(run, "safetensors", tmp_path / "out", "--dtype", "float32")
    assert difference(as_trained(run), Source(tmp_path / "out").load(torch.float32, "cpu")) < 1e-4


def test_a_gguf_file_keeps_its_types_and_factors(q4_1, tmp_path):  # noqa: F811
    run = made_run(tmp_path / "run", q4_1, "--quantizer", "none", *CODES)
    export(run, "gguf", tmp_path / "out.gguf")
    same_as_merged(run, loaded(tmp_path / "out.gguf"))
    before, after = read(q4_1)[0], read(tmp_path / "out.gguf")[0]
    a, b = (tensors["blk.0.ffn_up.weight"].data.reshape(-1, 20) for tensors in (before, after))
    assert (a[:, :4] == b[:, :4]).all() and (a[:, 4:] != b[:, 4:]).any()


@pytest.mark.parametrize("kind", [kind if kind in ("Q3_K", "Q4_K") else pytest.param(kind, marks=pytest.mark.slow)
                                  for kind in SUPERBLOCK_TYPES])
def test_a_k_type_keeps_its_scales_and_takes_the_moved_codes(tmp_path, kind):
    """In gguf, byte for byte what it was but for the codes, and as the gguf package reads it; and in RUN/merged."""
    _, path = write_k_types(tmp_path / "base.gguf", kind)
    run = made_run(tmp_path / "run", path, "--quantizer", "none", *CODES)
    report = export(run, "gguf", tmp_path / "out.gguf")
    assert report["largest_weight_difference"] == 0
    assert report["merged_layers_with_the_scales_of_the_base"] == report["merged_layers"] > 0
    same_as_merged(run, loaded(tmp_path / "out.gguf"))
    before, after = (read(file)[0]["blk.0.attn_q.weight"] for file in (path, tmp_path / "out.gguf"))
    assert before.tensor_type == after.tensor_type and (before.data != after.data).any()
    whole, found = (SUPERBLOCK_TYPES[kind].quantized_weight(torch.from_numpy(t.data.copy())) for t in (before, after))
    assert torch.equal(whole.grid.scale, found.grid.scale) and torch.equal(whole.grid.offset, found.grid.offset)
    assert torch.equal(found.dequantize(), torch.from_numpy(gguf.quants.dequantize(after.data, after.tensor_type)))
    merged = as_trained(run)
    assert merge_best(merged, torch.float16)
    save_beside(merged, open_run(run), run / "merged")
    same_as_merged(run, Source(run / "merged").load(torch.float32, "cpu"))


def test_peft_is_refused_before_anything_is_loaded(small_base, tmp_path, monkeypatch):
    run = made_run(tmp_path / "run", small_base, *CODES, "--block", "16x1")
    forbid_loading(monkeypatch)
    assert "a LoRA beside the unrounded base is another model: export the merged model with --format safetensors" in \
        refusal(run, "peft", tmp_path / "out")


LOTA = ["--method", "lota", "--rank", "4", "--omega", "0.5", "--quantizer", "minmax", "--block", "32x1"]


@pytest.mark.parametrize("bits,format", [(4, "gguf"), (5, "gguf"), (4, "mlx"), (2, "mlx"), (3, "safetensors")])
def test_lota_leaves_with_its_codes_and_offsets(small_base, tmp_path, bits, format):
    """Exactly in MLX; in GGUF, the offsets are float16."""
    torch.manual_seed(0)
    run = made_run(tmp_path / "run", small_base, *LOTA, "--bits", bits)
    to = tmp_path / ("out.gguf" if format == "gguf" else "out")
    dense = ["--dtype", "float32"] if format == "safetensors" else []
    report = export(run, format, to, *dense)
    again, ours = loaded(to) if format == "gguf" else Source(to).load(torch.float32, "cpu"), as_trained(run)
    assert report["largest_weight_difference"] < (1e-3 if format == "gguf" else 1e-6)
    moved = difference(ours, Source(small_base).load(torch.float32, "cpu"))
    assert difference(ours, again) < (0.05 if format == "gguf" else 1e-3) * moved
    for name, layer in adapted_layers(ours).items() if format != "safetensors" else ():
        codes = again.get_submodule(name).quantized_weight().codes
        assert torch.equal(codes, merge_into_codes(layer).quantized_weight().codes)
        assert not torch.equal(codes, layer.base.quantized_weight().codes)


def test_lota_goes_into_no_type_without_an_offset(tmp_path):
    _, path = write_k_types(tmp_path / "base.gguf", "Q6_K")
    run = made_run(tmp_path / "run", path, *LOTA[:-4], "--quantizer", "none")
    assert "Q6_K stores a block's scale as d * s for a small integer s, and no offset" in refusal(
        run, "gguf", tmp_path / "out.gguf")
