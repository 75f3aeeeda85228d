"""A base quantized while it loads: each layer rounded as it comes, or by GPTQ, one decoder layer at a time."""
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from adapters.adapted import replace_layers
from finetune.adapted_model import linear_names
from finetune.config import BaseConfig, ComputeConfig
from finetune.data import Calibration
from finetune.gptq_model import gptq_model, show_report
from finetune.residual import Residuals
from finetune.source import Source
from model.checkpoint import empty_model
from model.llama import Llama
from quant.grid import QuantizedWeight
from quant.linear import QuantLinear
from quant.moved import residual_of
from quant.quantizer import Quantizer
from quant.spec import QuantSpec


class WeightErrors:
    """||W - W_hat|| / ||W||, layer by layer and over all. `residuals`: gets W - W_hat itself of the layers it names."""

    def __init__(self, residuals: Residuals | None = None):
        self.squares: dict[str, tuple[float, float]] = {}
        self.residuals = residuals or {}

    def add(self, name: str, weight: Tensor, quantized: QuantizedWeight) -> None:
        error = weight.float() - quantized.dequantize()
        squares = error.square().sum().item(), weight.float().square().sum().item()
        if not all(map(math.isfinite, squares)):
            raise ValueError(f"{name}: ||W - W_hat||^2 is {squares[0]:g} and ||W||^2 is {squares[1]:g}, which must be "
                             f"finite: weights or factors are no numbers, or too large to be squared in float32")
        self.squares[name] = squares
        if name in self.residuals:
            self.residuals[name] = residual_of(weight, quantized).cpu()

    def overall(self) -> float:
        errors, sizes = zip(*self.squares.values(), strict=True)
        return (sum(errors) / sum(sizes)) ** 0.5

    def print_worst(self) -> None:
        relative = {name: (error / (size or 1.0)) ** 0.5 for name, (error, size) in self.squares.items()}
        worst = sorted(relative, key=relative.get, reverse=True)[:3]
        shown = ", ".join(f"{name} {relative[name]:.3f}" for name in worst)
        print(f"quantized; largest ||W - W_hat|| / ||W||: {shown}")


def quantized_layer(layer: nn.Module, weight: QuantizedWeight) -> QuantLinear:
    return QuantLinear.from_weight(weight, None if layer.bias is None else layer.bias.detach())


def load_base(source: Source, base: BaseConfig, compute: ComputeConfig, calibration: Calibration | None,
              residuals: Residuals | None = None) -> tuple[Llama, dict | None]:
    """The base, quantized if `base` says so, and GPTQ's report for `quantization.json`. Only GPTQ reads the
    calibration. The worst layers are printed. `residuals` gets those of the layers that it names. Raises ValueError,
    naming the layer, for one that cannot be quantized."""
    spec, dtype = base.quantization, compute.torch_dtype
    if spec is None:
        return source.load(dtype, compute.device), None
    names = linear_names(empty_model(source.config, torch.float32), base.quantized_layers)
    errors = WeightErrors(residuals)
    if spec.by_gptq:
        model, bring = source.open(dtype, compute.device)
        report = quantize_model_by_gptq(model, bring, names, spec, calibration, errors)
    else:
        model, report = source.load(dtype, compute.device, rounding(names, spec.new_quantizer(), errors)), None
    errors.print_worst()
    return model, report


def requantize(model: Llama, names: list[str], spec: QuantSpec,
               calibration: Calibration | None) -> tuple[float, dict | None]:
    """The named dense layers of a merged model as k bits again, in place: LOSSY. Returns the relative error of their
    weights and GPTQ's report."""
    errors = WeightErrors()
    if spec.by_gptq:
        report = quantize_model_by_gptq(model, lambda prefix: None, names, spec, calibration, errors)
        return errors.overall(), report
    replace_layers(model, names, rounding(names, spec.new_quantizer(), errors))
    return errors.overall(), None


def rounding(names: list[str], quantizer: Quantizer, errors: WeightErrors) -> Callable[[str, nn.Module], nn.Module]:
    """The `change` of `load_model` that rounds the named layers to their grid."""
    def change(name: str, layer: nn.Module) -> nn.Module:
        if name not in names:
            return layer
        quantized = quantizer.quantize(layer.weight.detach(), name)
        errors.add(name, layer.weight, quantized)
        return quantized_layer(layer, quantized)
    return change


def quantize_model_by_gptq(model: Llama, bring: Callable[[str], None], names: list[str], spec: QuantSpec,
                           calibration: Calibration, errors: WeightErrors,
                           done: Callable[[str], None] = lambda prefix: None) -> dict:
    """Quantizes the named layers in place, prints the worst, and returns the report of all."""
    def quantized(name: str, layer: nn.Module, weight: QuantizedWeight) -> QuantLinear:
        errors.add(name, layer.weight.detach(), weight)
        return quantized_layer(layer, weight)
    reports = gptq_model(model, bring, names, spec.new_quantizer(), spec.act_order, calibration.rows, quantized,
                         done)
    return {"calibration": calibration.to_json(), **show_report(reports, calibration.source, len(calibration.rows))}
