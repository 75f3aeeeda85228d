"""mlx-lm computes what is computed here: from its own quantized models, and from exports to its format. Skipped without
mlx-lm (tests/interop/requirements.txt).

    python -m pytest tests/interop/test_mlx.py
"""
from dataclasses import replace

import numpy
import pytest
import torch
from safetensors.torch import save_file

from model.checkpoint import load_model, random_model
from model.config_json import config_to_json
from model.directory import load_config, weight_files
from model.files import write_json
from model.llama import Llama
from model.tokenizer_files import copy_tokenizer
from quant.formats.mlx import BITS, GROUPS
from quant.linear import QuantLinear
from tests.cli import SMALL
from tests.export_runs import TOKENS, as_trained, export, made_run

mx = pytest.importorskip("mlx.core", reason='pip install "mlx[cpu]" mlx-lm')
mlx_lm = pytest.importorskip("mlx_lm.utils", reason="pip install mlx-lm")
pytestmark = pytest.mark.usefixtures("elsewhere")
WIDE = replace(SMALL, hidden_size=128, head_dim=64, intermediate_size=256)


def of_mlx(directory) -> numpy.ndarray:
    """Logits, all weights in float32."""
    from mlx.utils import tree_map
    mx.set_default_device(mx.cpu)
    model, _ = mlx_lm.load_model(directory)
    model.update(tree_map(lambda t: t.astype(mx.float32) if t.dtype in (mx.float16, mx.bfloat16) else t,
                          model.parameters()))
    return numpy.array(model(mx.array(TOKENS.numpy())))


@torch.inference_mode()
def ours(model: Llama) -> numpy.ndarray:
    model.dtype = torch.float32
    return model(TOKENS).numpy()


def loaded(directory) -> Llama:
    return load_model(weight_files(directory), load_config(directory), torch.float32)


@pytest.fixture(scope="module")
def wide(small_base, tmp_path_factory):
    path = tmp_path_factory.mktemp("wide")
    model = random_model(WIDE, torch.float32, seed=1)
    save_file({name: t.clone() for name, t in model.state_dict().items() if name != "lm_head.weight"
               or not WIDE.tie_word_embeddings}, path / "model.safetensors")
    write_json(path / "config.json", config_to_json(WIDE))
    copy_tokenizer(small_base, path)
    return path


def quantized(wide, base, bits, group):
    """By mlx-lm."""
    model, config = mlx_lm.load_model(wide)
    model, config = mlx_lm.quantize_model(model, config, group, bits)
    mlx_lm.save_model(base, model)
    mlx_lm.save_config(config, base / "config.json")
    copy_tokenizer(wide, base)
    return base


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", GROUPS)
def test_a_model_that_mlx_quantized_is_read_trained_and_handed_back(wide, tmp_path, bits, group):
    base = quantized(wide, tmp_path / "base", bits, group)
    assert numpy.abs(ours(loaded(base)) - of_mlx(base)).max() < 1e-4
    run = made_run(tmp_path / "run", base, "--method", "qalora", "--quantizer", "none", "--lam", f"{group}x1")
    export(run, "mlx", tmp_path / "out")
    trained = ours(as_trained(run))
    assert numpy.abs(trained - of_mlx(tmp_path / "out")).max() < 1e-4 < 1e-2 < numpy.abs(trained - of_mlx(base)).max()
    before, after = loaded(base), loaded(tmp_path / "out")
    codes = [name for name, module in before.named_modules() if isinstance(module, QuantLinear)]
    assert codes and all(torch.equal(before.get_submodule(n).codes, after.get_submodule(n).codes) for n in codes)


def test_an_adapter_written_for_mlx_lm_computes_what_was_trained(wide, tmp_path):
    """mlx_score.py hands it to `mlx_lm.fuse`."""
    from mlx_lm.tuner.utils import load_adapters  # mlx_score imports mlx-lm

    from tests.interop.mlx_score import write_adapter
    base = quantized(wide, tmp_path / "base", 4, 64)
    trained = as_trained(made_run(tmp_path / "run", base, "--method", "qalora", "--quantizer", "none", "--lam", "64x1"))
    write_adapter(trained, tmp_path / "adapter")
    theirs = load_adapters(mlx_lm.load_model(base)[0], str(tmp_path / "adapter"))
    found = numpy.array(theirs(mx.array(TOKENS.numpy())))
    assert numpy.abs(ours(trained) - found).max() < 1e-4 < 1e-2 < numpy.abs(ours(loaded(base)) - found).max()


def test_figures_of_other_rows_are_not_mixed(tmp_path):
    from tests.interop.mlx_score import check_same
    check_same(tmp_path, {"rows": 100, "models": {}}, {"run": "x", "rows": 100})
    with pytest.raises(SystemExit, match="its rows is 100, and 20 is asked for: give another --out"):
        check_same(tmp_path, {"rows": 100, "models": {}}, {"run": "x", "rows": 20})
