"""A prebuilt k-bit directory is trained on, and the adapter merges into its own codes."""
import pytest
import torch

import train as train_script
from model.checkpoint import load_model
from model.directory import load_config, weight_files
from tests.cli import FEW, call, rows_of
from tests.export_runs import export
from tests.prebuilt import TOOLS, write_model

pytestmark = pytest.mark.usefixtures("elsewhere")


def loaded(directory):
    return load_model(weight_files(directory), load_config(directory), torch.float32)


@pytest.mark.parametrize("name", TOOLS)
def test_a_prebuilt_base_is_trained_on_and_merged_with_its_own_codes(name, small_base, tmp_path):
    tool = TOOLS[name]
    held, base = write_model(tool, tmp_path / "base", small_base), loaded(tmp_path / "base")
    assert call(train_script, "--model", tmp_path / "base", "--method", "qalora", "--quantizer", "none", "--lam",
                f"{tool.group}x1", *FEW[:4], "--steps", "2", *FEW[6:8], *FEW[10:], "--out", "x") is None
    assert f"merged-{tool.bits}bit" in rows_of(tmp_path / "x")
    merged = loaded(tmp_path / "x" / "merged")
    for layer in held:
        assert torch.equal(base.get_submodule(layer).codes, merged.get_submodule(layer).codes), layer
        assert not torch.equal(merged.get_submodule(layer).dequantize(), base.get_submodule(layer).dequantize())
    if tool.name != "bitsandbytes":  # its levels are not affine
        export(tmp_path / "x", "mlx", tmp_path / "out")
        written = loaded(tmp_path / "out")
        for layer in held:
            difference = written.get_submodule(layer).dequantize() - merged.get_submodule(layer).dequantize()
            assert difference.abs().max() < 1e-6, layer
