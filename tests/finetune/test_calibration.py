"""GPTQ over a whole model: layer by layer, each calibrated on the outputs of the quantized layers before it."""
import copy
import json

import pytest
import torch

import train
from finetune.adapted_model import linear_names
from finetune.data import Calibration
from finetune.gptq_model import gptq_model, show_report
from finetune.quantize import WeightErrors, quantize_model_by_gptq, quantized_layer
from model.checkpoint import open_weights, random_model, read_tensors, save_model
from model.config import LlamaConfig
from model.llama import Linear
from quant.gptq import CalibrationError, Hessian, LayerReport, gptq
from quant.grid import Block
from quant.linear import QuantLinear
from quant.minmax import MinMax
from quant.spec import QuantSpec
from tests.cli import FEW, call, interrupted_after

CONFIG = LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                     num_key_value_heads=1, head_dim=16, max_position_embeddings=64, tie_word_embeddings=True,
                     eos_token_ids=(2,))
ROWS = [torch.randint(3, 32, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in range(5, 45)]
QUANTIZER = MinMax(2, Block(8, 1))


def model_of(scale=10.0):
    """Weights large enough that every layer bends what the next one sees."""
    model = random_model(CONFIG, torch.float32, 0)
    for name, p in model.named_parameters():
        p.data *= scale if "_proj" in name else 1.0
    return model.requires_grad_(False)


def calibrated(model, rows=ROWS, targets="all", bring=lambda prefix: None):
    reports = gptq_model(model, bring, linear_names(model, targets), QUANTIZER, False, rows,
                         lambda name, layer, weight: quantized_layer(layer, weight))
    return model, reports


def inputs_of(model, name):
    """What the named layer reads, row by row, without padding or batches: the slow way."""
    seen = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0]))
    for row in sorted(ROWS, key=len):
        model(torch.tensor([row]))
    hook.remove()
    return torch.cat(seen)


def by_hand(seen_by):
    """Layer after layer in the order of use; `seen_by(half_quantized_model)` is the model whose activations count."""
    model, order = model_of(), [name for i in range(2) for stage in model_of().model.layers[i].stages
                                for name in (f"model.layers.{i}.{part}" for part in stage)]
    for name in order:
        layer, hessian = model.get_submodule(name), None
        hessian = Hessian(layer.in_features)
        hessian.add(inputs_of(seen_by(model), name))
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child,
                QuantLinear.from_weight(gptq(layer.weight, hessian.mean(name), QUANTIZER)[0]))
    return model


def share_of_equal_codes(a, b):
    names = linear_names(a, "all")
    equal = torch.cat([(a.get_submodule(n).quantized_weight().codes
                        == b.get_submodule(n).quantized_weight().codes).flatten()
                       for n in names])
    return equal.double().mean().item()


def test_each_layer_is_calibrated_on_the_outputs_of_the_quantized_layers_before_it():
    """Nearly every code: sums over batches round otherwise than sums over rows, and a few weights stand at a tie."""
    streamed, _ = calibrated(model_of())
    original = model_of()
    assert share_of_equal_codes(streamed, by_hand(lambda model: model)) > 0.99
    # control: activations of the 16-bit model
    assert share_of_equal_codes(streamed, by_hand(lambda model: original)) < 0.9


def test_padding_is_not_calibrated_on():
    _, reports = calibrated(model_of())
    assert {r.tokens for r in reports} == {sum(map(len, ROWS))} and len(reports) == 14


def test_memory_holds_one_dense_decoder_layer(tmp_path):
    """When a decoder layer is brought, those before it are codes and those after it have no memory."""
    save_model(model_of(), tmp_path / "m.safetensors")
    model, weights, wanted = open_weights([tmp_path / "m.safetensors"], CONFIG, torch.float32)
    brought = []

    def bring(prefix):
        for i, block in enumerate(model.model.layers):
            linears = [m for m in block.modules() if isinstance(m, (Linear, QuantLinear))]
            loaded = [name for name in brought if name.startswith("model.layers.")]
            if i < len(loaded):
                assert all(isinstance(m, QuantLinear) for m in linears)
            else:
                assert all(m.weight.is_meta for m in linears)
        brought.append(prefix)
        read_tensors(model, weights, wanted, "cpu", prefix)
    calibrated(model, bring=bring)
    assert brought == ["model.embed_tokens.", "model.layers.0.", "model.layers.1.", "model.norm.", "lm_head."]
    whole, _ = calibrated(model_of())
    assert share_of_equal_codes(model, whole) == 1
    assert torch.equal(model(torch.tensor([ROWS[0]])), whole(torch.tensor([ROWS[0]])))


def test_layers_that_are_not_named_stay_as_they_are():
    model, reports = calibrated(model_of(), targets="attention")
    assert isinstance(model.model.layers[1].self_attn.o_proj, QuantLinear) and len(reports) == 8
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, model_of().model.layers[1].mlp.up_proj.weight)


@pytest.mark.parametrize("rows,spoil,message", [
    ([], lambda model: None, "layer model.layers.0.self_attn.q_proj: no calibration token"),
    (ROWS, lambda model: model.model.layers[1].post_attention_layernorm.weight.data.fill_(float("nan")),
     "layer model.layers.1.mlp.gate_proj: its calibration inputs are not finite"),
    (ROWS, lambda model: model.model.layers[0].input_layernorm.weight.data.zero_(),
     "layer model.layers.0.self_attn.q_proj: all of its calibration inputs are zero")])
def test_what_cannot_be_calibrated_on_stops_with_the_layers_name(rows, spoil, message):
    model = model_of()
    spoil(model)
    with pytest.raises(CalibrationError, match=message):
        calibrated(model, rows)


def test_the_report_is_worst_first_and_names_layers_above_rounding(capsys):
    reports = [LayerReport(f"layer{i}", 10, 0.01, 0, error, 0.3) for i, error in enumerate([0.1, 0.4, 0.2])]
    saved = show_report(copy.deepcopy(reports), "these rows", len(ROWS))
    printed = capsys.readouterr().out
    assert [layer["layer"] for layer in saved["layers"]] == ["layer1", "layer2", "layer0"]
    assert [layer["above_rounding"] for layer in saved["layers"]] == [True, False, False]
    assert printed.index("layer1") < printed.index("layer2") < printed.index("layer0")
    assert "ABOVE ROUNDING: layer1: 4.00e-01 by gptq, 3.00e-01 by rounding" in printed and printed.count("ABOVE") == 1
    assert printed.startswith("gptq, calibrated on these rows: 40 rows; worst layers")


@pytest.mark.parametrize("value", [float("nan"), 1e20])
def test_an_error_that_is_no_number_is_refused_by_its_layer(value):
    weight = torch.randn(8, 16)
    quantized, errors = QuantSpec.of("minmax", 4, Block(8, 1)).new_quantizer().quantize(weight, "up"), WeightErrors()
    errors.add("up", weight, quantized)  # control
    quantized.grid.offset.view(-1)[0] = value
    with pytest.raises(ValueError, match=r"up: \|\|W - W_hat\|\|\^2 is (nan|inf) .* must be finite"):
        errors.add("up", weight, quantized)


def test_the_report_that_a_run_keeps_says_what_gptq_was_calibrated_on(capsys):
    model, errors = model_of(), WeightErrors()
    spec = QuantSpec.of("gptq", 2, Block(8, 1))
    original = {name: model.get_submodule(name).weight.clone() for name in linear_names(model, "all")}
    saved = quantize_model_by_gptq(model, lambda prefix: None, list(original), spec, Calibration(ROWS, "these rows"),
                                   errors)
    assert saved["calibration"]["tokens"] == sum(map(len, ROWS)) and len(saved["calibration"]["sha256"]) == 64
    assert (saved["calibration"]["source"], saved["calibration"]["rows"]) == ("these rows", 40)
    assert len(saved["layers"]) == 14
    difference = torch.cat([(weight - model.get_submodule(name).dequantize()).flatten()
                            for name, weight in original.items()])
    size = torch.cat([weight.flatten() for weight in original.values()])
    assert errors.overall() == pytest.approx((difference.norm() / size.norm()).item(), rel=1e-5)
    assert share_of_equal_codes(model, calibrated(model_of())[0]) == 1


def test_a_resumed_run_states_the_calibration_that_it_began_with(small_base, tmp_path, monkeypatch):
    """Its rows are not prepared again; kept answers and comparisons go by what was recorded."""
    monkeypatch.chdir(tmp_path)
    with interrupted_after(2, monkeypatch):
        call(train, "--model", small_base, "--method", "qlora", "--quantizer", "gptq", "--calibration-rows", "4", *FEW,
             "--out", "x")
    assert call(train, "--resume", "x") is None
    lines = [json.loads(line) for line in (tmp_path / "x" / "predictions.jsonl").read_text().splitlines()]
    calibration = json.loads((tmp_path / "x" / "config.json").read_text())["fingerprints"]["calibration"]
    assert calibration and {line["asked"]["calibration"] for line in lines} == {calibration[:12]}
