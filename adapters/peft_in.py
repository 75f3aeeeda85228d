"""PEFT's LoRA adapters, attached to a model here: `python eval.py --model DIR --adapter PEFT_DIR`.

Plain LoRA is read: y = base(x) + scaling * B A x, with scaling = lora_alpha / r, or lora_alpha / sqrt(r) with
use_rslora. rank_pattern and alpha_pattern set r and lora_alpha of single layers. Any other PEFT feature is refused by
name. exclude_modules and eva_config only say which layers got an adapter and how it began, so they are not needed.
"""
import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adapters.adapted import AdaptedLinear, replace_layers
from adapters.lam import Lam
from adapters.lora import LoRA
from model.checkpoint import FLOATS, empty_model
from model.config import LlamaConfig
from model.files import read_json, sha256_of
from model.llama import Linear, Llama
from model.tensor_files import open_safetensors

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
# The values that leave plain LoRA plain. None, False and empty always do.
PLAIN: dict[str, tuple] = {
    "bias": ("none",), "fan_in_fan_out": (False,), "use_dora": (False,), "use_qalora": (False,), "lora_bias": (False,),
    "modules_to_save": (), "trainable_token_indices": (), "target_parameters": (), "megatron_config": (),
    "layer_replication": (), "alora_invocation_tokens": (), "corda_config": (),
    "arrow_config": (), "use_bdlora": (), "velora_config": (), "kasa_config": (), "monteclora_config": (),
    "lora_ga_config": (), "loftq_config": (),
    # pissa, olora, corda, loftq and others change the base too: the adapter beside the original base is another model
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva")}


@dataclass(frozen=True)
class PEFTLayer:
    """The rank and the scaling of one layer's LoRA."""
    rank: int
    scaling: float


@dataclass(frozen=True)
class PEFTAdapter:
    """A directory that PEFT saved, and the layers that it has an adapter for."""
    path: Path
    layers: dict[str, PEFTLayer]

    @property
    def fingerprint(self) -> str:
        return sha256_of(self.path / CONFIG, self.path / WEIGHTS)


def read_peft(directory: Path, config: LlamaConfig) -> PEFTAdapter:
    """The adapter's layers. All checks run on file headers. Raises FileNotFoundError; ValueError if it is not plain
    LoRA, or its tensors do not fit the model."""
    stated = read_config(directory)
    if not (directory / WEIGHTS).is_file():
        raise FileNotFoundError(f"{directory / WEIGHTS}: no such file (adapters in .bin files are pickled, and not "
                                f"read: save them as safetensors)")
    with open_safetensors(directory / WEIGHTS) as file:
        stored = {name: file.get_slice(name) for name in file.keys()}
        shapes = {name: tuple(tensor.get_shape()) for name, tensor in stored.items()}
        for name, tensor in stored.items():
            if tensor.get_dtype() not in FLOATS:
                raise ValueError(f"{directory / WEIGHTS}: {name} is of type {tensor.get_dtype()}, but must be "
                                 f"{' or '.join(FLOATS)}")
    model = empty_model(config, torch.float32)
    layers: dict[str, PEFTLayer] = {}
    factors = re.compile(re.escape(PREFIX) + r"(.+)\.lora_[AB]\.weight")
    for name in shapes:
        factor = factors.fullmatch(name) if len(name) <= LONGEST_NAME else None
        if not factor:
            raise ValueError(f"{directory / WEIGHTS}: {name[:LONGEST_NAME]} is no factor of a linear layer's LoRA, "
                             f"and nothing else is read")
        if factor[1] not in layers:
            layers[factor[1]] = layer_of(stated, factor[1])
    for layer, lora in layers.items():
        check_shapes(directory / WEIGHTS, model, layer, lora.rank, shapes)
    if not layers:
        raise ValueError(f"{directory / WEIGHTS}: holds no adapter")
    return PEFTAdapter(directory, layers)


def read_config(directory: Path) -> dict:
    """adapter_config.json. Raises FileNotFoundError; ValueError if it states more than plain LoRA."""
    path = directory / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{directory}: no PEFT adapter there (no {CONFIG})")
    stated = read_json(path)
    if stated.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type {stated.get('peft_type')!r} is not read; LORA is")
    for name, allowed in PLAIN.items():
        if stated.get(name) and stated[name] not in allowed:
            raise ValueError(f"{path}: {name} {stated[name]!r} is not plain LoRA, and not read")
    if not isinstance(stated.get("use_rslora") or False, bool):
        raise ValueError(f"{path}: use_rslora is {stated['use_rslora']!r}, but must be true or false")
    check_factor(path, "r", stated.get("r"))
    check_factor(path, "lora_alpha", stated.get("lora_alpha"))
    for name, what in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        patterns = stated.get(name) or {}
        if not isinstance(patterns, dict):
            raise ValueError(f"{path}: {name} is {str(patterns)[:60]}, but must be an object")
        for pattern, value in patterns.items():
            check_pattern(path, name, pattern)
            check_factor(path, f"{name} {pattern!r}", value, what)
    return stated


LARGEST_FACTOR, LONGEST_NAME = 1e6, 300


def check_factor(path: Path, name: str, value: object, what: str | None = None) -> None:
    """Raises ValueError unless a rank is an integer, and lora_alpha a number, above 0 and not absurdly large."""
    kinds, words = (int, "an integer") if (what or name) == "r" else ((int, float), "a number")
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value <= LARGEST_FACTOR:
        raise ValueError(f"{path}: {name} is {str(value)[:60]}, not {words} above 0, up to {LARGEST_FACTOR:.0f}")


def check_pattern(path: Path, name: str, pattern: str) -> None:
    """Raises ValueError for a regular expression that is wrong, or that may take very long to match.

    Names of layers are short. Without a repeated group, and with at most two repetitions, matching stays fast."""
    slow = re.search(r"\)\s*[*+{]|\(\?(?!:)|\\[1-9]", pattern) or len(re.findall(r"[*+{]", pattern)) > 2
    if slow or len(pattern) > 256:
        raise ValueError(f"{path}: {name} holds {pattern[:60]!r}, which may take very long to match: write the names "
                         f"of the layers, with at most two of * + {{ and none after a group")
    try:
        compiled_pattern(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: {name} holds {pattern[:60]!r}, which is no regular expression ({error})") from None


@cache
def compiled_pattern(pattern: str) -> re.Pattern:
    """The expression for names that end with `pattern`, after a dot."""
    return re.compile(rf"(.*\.)?({pattern})$")


def layer_of(stated: dict, layer: str) -> PEFTLayer:
    """The rank and scaling of a layer. A pattern's key is a regular expression for the end of a layer's name, after a
    dot. The first that matches counts."""
    def pattern(name: str, default: Any) -> Any:
        patterns = (stated.get(name) or {}).items()
        return next((value for key, value in patterns if compiled_pattern(key).match(layer)), default)
    rank, alpha = pattern("rank_pattern", stated["r"]), pattern("alpha_pattern", stated["lora_alpha"])
    return PEFTLayer(rank, alpha / (math.sqrt(rank) if stated.get("use_rslora") else rank))


def check_shapes(path: Path, model: Llama, layer: str, rank: int, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises ValueError unless the model has this linear layer and the factors fit it."""
    module = dict(model.named_modules()).get(layer)
    if not isinstance(module, Linear) or (layer == "lm_head" and model.config.tie_word_embeddings):
        raise ValueError(f"{path}: it has an adapter for {layer}, which is no linear layer of its own in the model")
    wanted = {"A": (rank, module.in_features), "B": (module.out_features, rank)}
    for letter, shape in wanted.items():
        name = f"{PREFIX}{layer}.lora_{letter}.weight"
        if shapes.get(name) != shape:
            raise ValueError(f"{path}: {name} has shape {list(shapes.get(name, ()))} instead of {list(shape)} "
                             f"(r {rank}, and the layer's sizes)")


@torch.no_grad()
def attach_peft(model: Llama, adapter: PEFTAdapter) -> None:
    """Put a LoRA beside each of the adapter's layers. A base layer may be dense or quantized."""
    with open_safetensors(adapter.path / WEIGHTS) as file:
        def adapt(name: str, base: nn.Module) -> AdaptedLinear:
            layer = adapter.layers[name]
            A, B = (file.get_tensor(f"{PREFIX}{name}.lora_{letter}.weight") for letter in "AB")
            lora = LoRA(len(B), A.shape[1], Lam(1, 1), layer.rank, layer.scaling * layer.rank)
            lora.scaling = layer.scaling
            lora.A.copy_(A)
            lora.B.copy_(B)
            return AdaptedLinear(base, lora.to(model.device))
        replace_layers(model, list(adapter.layers), adapt)
