"""export.py --format mlx: the k-bit model itself, and the way back, as a base for the next run."""
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import train as train_script
from model.checkpoint import load_model, random_model
from model.config_json import config_to_json
from model.directory import load_config, weight_files
from model.files import read_json, write_json
from model.tokenizer_files import copy_tokenizer
from quant.formats.mlx import MLX
from quant.formats.stored import stated_of
from quant.grid import Block
from quant.linear import QuantLinear
from quant.minmax import MinMax
from tests.cli import SMALL, call
from tests.export_runs import as_trained, difference, export, made_run, refusal

pytestmark = pytest.mark.usefixtures("elsewhere")
QALORA = ["--method", "qalora", "--quantizer", "minmax", "--block", "32x1", "--lam", "32x1"]


@pytest.fixture(scope="module")
def mlx_base(small_base, tmp_path_factory):
    """A directory as mlx-lm writes it: embeddings are codes too, one layer has other sizes, another is dense."""
    path, config = tmp_path_factory.mktemp("mlx"), replace(SMALL, tie_word_embeddings=True)
    model = random_model(config, torch.float32, seed=1)
    names = [name for name, module in model.named_modules() if hasattr(module, "weight") and module.weight.ndim == 2]
    names = [name for name in names if name not in ("lm_head", "model.layers.0.mlp.down_proj")]
    layers = {}
    for name in names:
        bits = 8 if name == "model.layers.0.self_attn.q_proj" else 4
        codes = MinMax(bits, Block(32, 1)).quantize(model.get_submodule(name).weight.detach())
        layers[name] = QuantLinear.from_weight(codes)
    stated = MLX.config_of({name: MLX.setting_for(stated_of(layer)) for name, layer in layers.items()})
    tensors = {f"{name}.{part}": tensor for name, layer in layers.items()
               for part, tensor in MLX.of(stated).write(name, layer, None).items()}
    dense = [name for name in model.state_dict() if name.rpartition(".")[0] not in names and name != "lm_head.weight"]
    save_file({**tensors, **{name: model.state_dict()[name].half() for name in dense}}, path / "model.safetensors")
    write_json(path / "config.json", {**config_to_json(config), **stated})
    copy_tokenizer(small_base, path)
    return path


def bits_or_values(tensor):
    return tensor.view(torch.uint8) if tensor.dtype == torch.uint32 else tensor.float()


def loaded(directory):
    return load_model(weight_files(directory), load_config(directory), torch.float32)


@pytest.mark.parametrize("flags", [QALORA, [*QALORA, "--bits", "3"], [*QALORA, "--bits", "8"],
                                   ["--method", "qablora", "--block", "32x2", "--lam", "32x8"],
                                   ["--method", "peqa", "--block", "32x1"],
                                   ["--method", "peqa", "--block", "rowx1"]], ids=" ".join)
def test_an_export_holds_the_codes_of_the_run_and_computes_what_it_computes(small_base, tmp_path, flags):
    run = made_run(tmp_path / "run", small_base, *flags)
    report, ours = export(run, "mlx", tmp_path / "out"), as_trained(run)
    theirs = loaded(tmp_path / "out")
    assert difference(ours, theirs) < 2e-4 and report["largest_weight_difference"] < 1e-6
    assert difference(ours, loaded(small_base)) > 0.05  # the run is another model than its base
    for name, module in theirs.named_modules():
        if isinstance(module, QuantLinear):
            assert torch.equal(module.codes, ours.get_submodule(name).base.codes), name
    stated = read_json(tmp_path / "out/config.json")
    assert stated["quantization"] == stated["quantization_config"] and stated["quantization"]["mode"] == "affine"


def test_an_mlx_base_is_read_trained_and_handed_back_with_all_of_its_codes(mlx_base, tmp_path):
    base = loaded(mlx_base)
    assert isinstance(base.model.layers[0].mlp.up_proj, QuantLinear)
    assert not isinstance(base.model.layers[0].mlp.down_proj, QuantLinear)
    run = made_run(tmp_path / "run", mlx_base, "--method", "qalora", "--quantizer", "none", "--lam", "32x1",
                   "--targets", "attention")
    export(run, "mlx", tmp_path / "out")
    before, after = (load_file(path / "model.safetensors") for path in (mlx_base, tmp_path / "out"))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(bits_or_values(before[name]), bits_or_values(after[name]))}
    assert moved == {f"model.layers.0.self_attn.{p}_proj.biases" for p in "qkvo"}
    assert difference(as_trained(run), loaded(tmp_path / "out")) < 2e-4
    stated = [read_json(path / "config.json")["quantization"] for path in (mlx_base, tmp_path / "out")]
    assert stated[0] == stated[1]
    export(tmp_path / "out", "mlx", tmp_path / "again")  # a directory that is a result itself
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()


def test_what_does_not_fit_is_refused_with_the_layer_and_what_to_train_instead(small_base, tmp_path):
    run = made_run(tmp_path / "a", small_base, "--method", "qablora")
    message = refusal(run, "mlx", tmp_path / "out")
    assert "layer model.layers.0.self_attn.q_proj: blocks of 4x8" in message and "--block 32x1" in message
    run = made_run(tmp_path / "b", small_base, "--method", "qlora", "--quantizer", "minmax", "--block", "32x1")
    assert "an adapter merges into k bits only if" in refusal(run, "mlx", tmp_path / "out")
    run = made_run(tmp_path / "c", small_base, "--method", "lora")
    assert "holds no codes" in refusal(run, "mlx", tmp_path / "out")


def test_a_smaller_type_of_factors_is_said_to_cost_something(small_base, tmp_path):
    run = made_run(tmp_path / "run", small_base, *QALORA)
    report = export(run, "mlx", tmp_path / "out", "--dtype", "bfloat16")
    kinds = {t.dtype for t in load_file(tmp_path / "out/model.safetensors").values()}
    assert kinds == {torch.uint32, torch.bfloat16} and report["largest_weight_difference"] > 1e-4
    assert report["largest_logit_difference"] > 1e-3


UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize("change,message", [
    (lambda t, c: t.pop(f"{UP}.scales"), "up_proj.scales is missing"),
    (lambda t, c: t.update({f"{UP}.biases": t[f"{UP}.biases"][:8].clone()}), "biases .*; both must be"),
    (lambda t, c: c["quantization"].update(bits=8), "quantization and quantization_config differ"),
    (lambda t, c: [c[key].update(bits=8) for key in ("quantization", "quantization_config")], "8 bits in groups of 32"),
    (lambda t, c: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int32)}), "norm.weight is of type I32"),
    (lambda t, c: t[f"{UP}.scales"].fill_(float("nan")), "up_proj.scale holds a value that is not finite"),
    (lambda t, c: t.update({"lm_head.weight": torch.zeros(5, 5)}), "lm_head.weight is dense and .* codes")])
def test_a_damaged_directory_is_refused_by_name(mlx_base, tmp_path, change, message):
    tensors, config = load_file(mlx_base / "model.safetensors"), read_json(mlx_base / "config.json")
    change(tensors, config)
    save_file(tensors, tmp_path / "model.safetensors")
    write_json(tmp_path / "config.json", config)
    with pytest.raises(ValueError, match=message):
        loaded(tmp_path)


def test_codes_are_not_quantized_again_and_do_not_train(mlx_base, tmp_path):
    for method, message in (("qlora", "is quantized already"), ("full", "codes do not train")):
        assert message in call(train_script, "--method", method, "--model", mlx_base, "--steps", "1")
