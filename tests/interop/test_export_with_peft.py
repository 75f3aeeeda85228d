"""export.py MODEL --adapter PEFT_DIR: LoRA and QA-LoRA (`use_qalora`) of PEFT, merged into a model and exported."""
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import eval as eval_script
import export as export_script
from adapters.peft_config import CONFIG
from adapters.peft_in import WEIGHTS
from interop.with_peft import WithPEFT
from model.checkpoint import load_model
from model.directory import load_config, weight_files
from model.files import read_json, write_json
from quant.linear import QuantLinear
from tests.cli import FEW, call, rows_of
from tests.export_runs import difference, export, made_run, refusal
from tests.prebuilt import TOOLS, write_model

pytestmark = pytest.mark.usefixtures("elsewhere")
FIXTURES = Path(__file__).parent.parent / "fixtures"
BASE, ADAPTERS = FIXTURES / "grouped_tied", FIXTURES / "peft_qalora"
TARGETS, RANK, ALPHA, GROUP = ("q_proj", "down_proj"), 2, 3, 32


def loaded(directory):
    return load_model(weight_files(directory), load_config(directory), torch.float32)


@pytest.fixture
def codes(small_base, tmp_path):
    """A checkpoint of GPTQ, 4 bits in groups of 32."""
    write_model(TOOLS["gptq"], tmp_path / "codes", small_base)
    return tmp_path / "codes"


def adapter_for(base: Path, to: Path, **stated) -> Path:
    """As PEFT saves QA-LoRA beside GPTQ layers, with random factors."""
    to.mkdir()
    write_json(to / CONFIG, {**read_json(ADAPTERS / "means" / CONFIG), "r": RANK, "lora_alpha": ALPHA,
                             "qalora_group_size": GROUP, "target_modules": list(TARGETS), **stated})
    generator, tensors = torch.Generator().manual_seed(1), {}
    group = GROUP if stated.get("use_qalora", True) else 1
    for name, layer in loaded(base).named_modules():
        if name.endswith(TARGETS):
            for letter, shape in (("A", (RANK, layer.in_features // group)), ("B", (layer.out_features, RANK))):
                tensors[f"base_model.model.{name}.lora_{letter}.weight"] = 0.2 * torch.randn(shape, generator=generator)
    save_file(tensors, to / WEIGHTS)
    return to


def delta_of(adapter: Path, layer: str, D_in: int) -> torch.Tensor:
    """By PEFT's formula: scaling * D_in / group * B A, each column repeated over its group and divided by it."""
    factors = load_file(adapter / WEIGHTS)
    A, B = (factors[f"base_model.model.{layer}.lora_{letter}.weight"].double() for letter in "AB")
    return ALPHA / RANK * (D_in // GROUP) * (B @ A).repeat_interleave(GROUP, 1) / GROUP


@pytest.mark.parametrize("name", ["means", "patterns", "ignored"])
def test_a_dense_export_has_the_logits_that_peft_computed(small_base, tmp_path, name, monkeypatch):
    base, golden = shutil.copytree(BASE, tmp_path / "base"), load_file(ADAPTERS / "logits.safetensors")
    shutil.copy(small_base / "tokenizer.model", base)  # of more tokens than the model has
    monkeypatch.setattr("interop.hand_over.token_rows", lambda trained: golden["tokens"].tolist())
    report = export(base, "safetensors", tmp_path / "out", "--adapter", ADAPTERS / name, "--dtype", "float32")
    with torch.no_grad():
        wanted, logits, before = golden[f"logits.{name}"], *(
            loaded(place)(golden["tokens"]) for place in (tmp_path / "out", base))
    assert (logits - wanted).abs().max() < 1e-4 < 0.05 < (before - wanted).abs().max()
    assert report["adapter"].startswith(f"{name}, of PEFT: {'LoRA in' if name == 'ignored' else 'QA-LoRA of groups'}")


def test_qalora_merges_into_the_codes_of_gptq_and_leaves_for_mlx(codes, tmp_path):
    """No code moves. The weights are those of PEFT's formula; without its factor D_in / group they would not be."""
    adapter = adapter_for(codes, tmp_path / "adapter")
    report = export(codes, "mlx", tmp_path / "out", "--adapter", adapter)
    before, after = loaded(codes), loaded(tmp_path / "out")
    assert report["largest_weight_difference"] < 1e-6 and difference(before, after) > 0.05
    for name, layer in before.named_modules():
        if isinstance(layer, QuantLinear):
            merged = after.get_submodule(name)
            assert torch.equal(merged.codes, layer.codes), name
            change = merged.dequantize(torch.float64) - layer.dequantize(torch.float64)
            wanted = delta_of(adapter, name, layer.in_features) if name.endswith(TARGETS) else torch.zeros_like(change)
            assert (change - wanted).abs().max() < 1e-6, name
            if name.endswith("down_proj"):  # of 64 inputs
                assert (change - wanted / (layer.in_features // GROUP)).abs().max() > 0.01
    assert f"--adapter {adapter.name} --to out" in (tmp_path / "out/README.md").read_text()
    assert str(tmp_path) not in (tmp_path / "out/README.md").read_text()


def test_what_was_scored_beside_the_codes_is_what_was_merged(codes, tmp_path):
    adapter, few = adapter_for(codes, tmp_path / "adapter"), [*FEW[:4], *FEW[10:], "--dtype", "float32"]
    export(codes, "mlx", tmp_path / "out", "--adapter", adapter)
    assert call(eval_script, "--model", codes, "--adapter", adapter, *few, "--out", "beside") is None
    assert call(eval_script, "--model", tmp_path / "out", *few, "--out", "merged") is None
    beside, merged = (list(rows_of(tmp_path / place).values()) for place in ("beside", "merged"))
    losses = [row["validation_loss"] for row in beside + merged]
    assert losses[2] == pytest.approx(losses[1], abs=1e-5) and abs(losses[0] - losses[1]) > 1e-3


def test_a_gguf_file_in_is_a_gguf_file_with_the_same_codes_out(small_base, tmp_path):
    gguf = pytest.importorskip("gguf", reason="pip install -r requirements-extra.txt")
    run = made_run(tmp_path / "run", small_base, "--method", "qablora", "--block", "32x1", "--lam", "32x8")
    export(run, "gguf", tmp_path / "base.gguf")
    adapter = adapter_for(tmp_path / "base.gguf", tmp_path / "adapter")
    report = export(tmp_path / "base.gguf", "gguf", tmp_path / "out.gguf", "--adapter", adapter)
    assert report["merged_layers"] == report["merged_layers_with_the_codes_of_the_base"] == 2
    before, after, ours = gguf.GGUFReader(tmp_path / "base.gguf"), gguf.GGUFReader(tmp_path / "out.gguf"), 0
    for a, b in zip(before.tensors, after.tensors, strict=True):
        same = a.data.tobytes() == b.data.tobytes()
        assert same == (not a.name.endswith(("attn_q.weight", "ffn_down.weight"))), a.name
        ours += not same
    trained = WithPEFT.of(tmp_path / "base.gguf", adapter)
    assert ours == 2 and difference(trained.load(), loaded(tmp_path / "out.gguf")) < 1e-2


def test_an_adapter_that_rounding_takes_is_not_exported_unless_that_is_allowed(small_base, tmp_path):
    adapter, tensors = adapter_for(small_base, tmp_path / "adapter"), load_file(tmp_path / "adapter" / WEIGHTS)
    usual = export(small_base, "safetensors", tmp_path / "usual", "--adapter", adapter)
    assert 0 < usual["training_lost"] < 0.01
    save_file({name: 1e-3 * tensor for name, tensor in tensors.items()}, adapter / WEIGHTS)
    said = refusal(small_base, "safetensors", tmp_path / "out", "--adapter", adapter)
    assert "is 100% of what was trained" in said and "--allow-loss" in said
    lost = export(small_base, "safetensors", tmp_path / "out", "--adapter", adapter, "--allow-loss")
    assert lost["training_lost"] > 0.5 and lost["losses_not_measured"] == "a model without a run has no validation rows"


def test_what_does_not_merge_or_is_not_there_is_refused(codes, small_base, tmp_path):
    adapter, run = adapter_for(codes, tmp_path / "adapter"), made_run(tmp_path / "run", small_base, "--method", "lora")
    plain = adapter_for(codes, tmp_path / "plain", use_qalora=False)
    for base, form, which, message in (
            (codes, "mlx", plain, "lam_in=1 x lam_out=1"), (codes, "gptq", adapter, "merges into offsets"),
            (codes, "peft", adapter, "is PEFT's already"), (run, "safetensors", adapter, "which has its own"),
            (codes, "mlx", codes, "no PEFT adapter there")):
        assert message in refusal(base, form, tmp_path / "out", "--adapter", which)
    export(codes, "safetensors", tmp_path / "dense", "--adapter", plain, "--dtype", "float32")
    assert call(export_script, codes, "--format", "mlx", "--to", tmp_path / "without") is None
    assert difference(loaded(tmp_path / "dense"), loaded(tmp_path / "without")) > 0.05
