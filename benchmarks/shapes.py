"""Random models in the shapes of published ones. Their weights are made on the device, one tensor at a time."""
import zlib

import torch
from torch import Tensor, nn

from adapters.adapted import adapter_parameters, replace_layers
from finetune.adapted_model import attach_adapters, linear_names
from finetune.config import RunConfig
from finetune.resolve import resolve_run
from model.checkpoint import empty_model
from model.config import LlamaConfig
from model.llama import Llama
from quant.grid import Block
from quant.linear import QuantLinear
from quant.quantizer import Quantizer

SHAPES = {
    "tiny": LlamaConfig(512, 64, 128, 2, 4, 2, 16, tie_word_embeddings=True),
    "135M": LlamaConfig(49152, 576, 1536, 30, 9, 3, 64, tie_word_embeddings=True),       # SmolLM2-135M
    "1B": LlamaConfig(128256, 2048, 8192, 16, 32, 8, 64, tie_word_embeddings=True),      # Llama-3.2-1B
    "7B": LlamaConfig(32000, 4096, 11008, 32, 32, 32, 128),                              # Llama-2-7B
}


def random_weight(name: str, config: LlamaConfig, shape: tuple[int, ...], device: str, dtype: torch.dtype) -> Tensor:
    """As `random_model` draws it, but by a seed of its own: the same name gives the same weight in every program."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=dtype, device=device)
    residual = name.endswith(("o_proj.weight", "down_proj.weight"))
    std = 0.02 / (2 * config.num_hidden_layers) ** 0.5 if residual else 0.02
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    return torch.empty(shape, device=device).normal_(0, std, generator=generator).to(dtype)


@torch.no_grad()
def our_model(config: LlamaConfig, quantizer: Quantizer | None, device: str) -> Llama:
    """Frozen, in bfloat16, its decoder's linear layers quantized as they are made."""
    model = empty_model(config, torch.bfloat16)

    def made(name: str, layer: nn.Module) -> nn.Module:
        weight = random_weight(f"{name}.weight", config, tuple(layer.weight.shape), device, torch.bfloat16)
        if quantizer:
            return QuantLinear.from_weight(quantizer.quantize(weight, name))
        layer.weight = nn.Parameter(weight, requires_grad=False)
        return layer
    replace_layers(model, linear_names(model, "all"), made)
    for name, p in list(model.named_parameters()):
        if p.is_meta:
            parent, _, leaf = name.rpartition(".")
            weight = random_weight(name, config, tuple(p.shape), device, torch.bfloat16)
            setattr(model.get_submodule(parent), leaf, nn.Parameter(weight, requires_grad=False))
    model.tie_weights()
    return model.eval()


def run_config(method: str, device: str, rows: int) -> RunConfig:
    """Rank 16, the default, on the attention layers; every linear layer is quantized. QA-LoRA on plain min-max, because
    GPTQ needs text."""
    own = {"quantizer": "minmax", "block": Block(32, 1)} if method == "qalora" else {}
    return resolve_run({"method": method, "targets": "attention", "device": device, "dtype": "bfloat16",
                        "batch_size": rows, "steps": 1000, **own})


def adapted_model(config: LlamaConfig, run: RunConfig) -> tuple[Llama, dict[str, nn.Parameter]]:
    spec = run.base.quantization
    model = our_model(config, spec.new_quantizer() if spec else None, run.compute.device)
    torch.manual_seed(0)
    attach_adapters(model, run)
    return model.train(), adapter_parameters(model)
