"""PEFT's LoRA adapters, attached to a model here: `python eval.py --model DIR --adapter PEFT_DIR`.

Read is what is plain LoRA: y = base(x) + scaling * B A x, scaling = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora; r and lora_alpha of
each layer by rank_pattern and alpha_pattern. Everything else that PEFT can do to a model is refused by name.
"""
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from adapters.adapted import AdaptedLinear, replace_layers
from adapters.lora import LoRA
from adapters.lam import Lam
from model.checkpoint import empty_model, open_safetensors
from model.config import LlamaConfig
from model.files import read_json, sha256_of
from model.llama import Linear, Llama


CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
PLAIN = {"bias": ("none",), "fan_in_fan_out": (False,), "use_dora": (False,), "use_qalora": (False,), "lora_bias": (False,), "modules_to_save": (),
         "trainable_token_indices": (), "target_parameters": (), "megatron_config": (), "layer_replication": (), "alora_invocation_tokens": (),
         "exclude_modules": (), "corda_config": (), "eva_config": (), "arrow_config": (), "use_bdlora": (), "velora_config": (), "kasa_config": (),
         "monteclora_config": (), "lora_ga_config": (), "loftq_config": (),
         # pissa, olora, corda, loftq ... change the base, too: the adapter beside the base as it was is another model
         "init_lora_weights": (True, "gaussian", "orthogonal", "eva")}  # values that leave plain LoRA plain; None, False and empty always do


@dataclass(frozen=True)
class PEFTLayer:
    rank: int
    scaling: float


@dataclass(frozen=True)
class PEFTAdapter:
    path: Path
    layers: dict[str, PEFTLayer]

    @property
    def fingerprint(self) -> str:
        return sha256_of(self.path / CONFIG, self.path / WEIGHTS)


def read_peft(directory: Path, config: LlamaConfig) -> PEFTAdapter:
    """The adapter's layers, after every check that headers allow. Raises FileNotFoundError; ValueError for what is not plain LoRA, and for
    tensors that do not fit the model."""
    stated = read_config(directory)
    if not (directory / WEIGHTS).is_file():
        raise FileNotFoundError(f"{directory / WEIGHTS}: no such file (adapters in .bin files are pickled, and not read: save them as safetensors)")
    with open_safetensors(directory / WEIGHTS) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    model, layers = empty_model(config, torch.float32), {}
    factors = re.compile(re.escape(PREFIX) + r"(.+)\.lora_[AB]\.weight")
    if others := [name for name in shapes if not factors.fullmatch(name)]:
        raise ValueError(f"{directory / WEIGHTS}: {others[0]} is no factor of a linear layer's LoRA, and nothing else is read")
    for layer in dict.fromkeys(factors.fullmatch(name).group(1) for name in shapes):
        layers[layer] = layer_of(stated, layer)
        check_shapes(directory / WEIGHTS, model, layer, layers[layer].rank, shapes)
    if not layers:
        raise ValueError(f"{directory / WEIGHTS}: holds no adapter")
    return PEFTAdapter(directory, layers)


def read_config(directory: Path) -> dict:
    path = directory / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{directory}: no PEFT adapter there (no {CONFIG})")
    stated = read_json(path)
    if stated.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type {stated.get('peft_type')!r} is not read; LORA is")
    for name, allowed in PLAIN.items():
        if stated.get(name) and stated[name] not in allowed:
            raise ValueError(f"{path}: {name} {stated[name]!r} is not plain LoRA, and not read")
    for name in ("r", "lora_alpha"):
        if not isinstance(stated.get(name), (int, float)) or stated[name] <= 0:
            raise ValueError(f"{path}: {name} is {stated.get(name)!r}, not a number above 0")
    return stated


def layer_of(stated: dict, layer: str) -> PEFTLayer:
    """Its rank and scaling. A pattern's key is a regular expression for the end of a name, from a dot on; the first that fits counts."""
    def pattern(name: str, default: float) -> float:
        return next((value for key, value in (stated.get(name) or {}).items() if re.match(rf"(.*\.)?({key})$", layer)), default)
    rank, alpha = pattern("rank_pattern", stated["r"]), pattern("alpha_pattern", stated["lora_alpha"])
    return PEFTLayer(rank, alpha / (math.sqrt(rank) if stated.get("use_rslora") else rank))


def check_shapes(path: Path, model: Llama, layer: str, rank: int, shapes: dict[str, tuple[int, ...]]) -> None:
    try:
        module = model.get_submodule(layer)
    except AttributeError:
        module = None
    if not isinstance(module, Linear) or (layer == "lm_head" and model.config.tie_word_embeddings):
        raise ValueError(f"{path}: an adapter for {layer}, which is no linear layer of its own in the model")
    wanted = {"A": (rank, module.in_features), "B": (module.out_features, rank)}
    for letter, shape in wanted.items():
        name = f"{PREFIX}{layer}.lora_{letter}.weight"
        if shapes.get(name) != shape:
            raise ValueError(f"{path}: {name} has shape {list(shapes.get(name, ()))} instead of {list(shape)} (r {rank}, and the layer's own sizes)")


@torch.no_grad()
def attach_peft(model: Llama, adapter: PEFTAdapter) -> None:
    """A LoRA beside each of its layers, whatever holds the layer's weight."""
    with open_safetensors(adapter.path / WEIGHTS) as file:
        def adapt(name: str, base: nn.Module) -> AdaptedLinear:
            layer = adapter.layers[name]
            lora = LoRA(base.out_features, base.in_features, Lam(1, 1), layer.rank, layer.scaling * layer.rank)
            lora.scaling = layer.scaling
            for letter in "AB":
                getattr(lora, letter).copy_(file.get_tensor(f"{PREFIX}{name}.lora_{letter}.weight"))
            return AdaptedLinear(base, lora.to(model.device))
        replace_layers(model, list(adapter.layers), adapt)
