"""PEFT's LoRA adapters, attached to a model here: `python eval.py --model DIR --adapter PEFT_DIR`.

    y = base(x) + scaling * B A x                              plain LoRA
    y = base(x) + scaling * (D_in / group) * B A m(x)          use_qalora; m: the mean of each group of inputs

with scaling = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora. rank_pattern and alpha_pattern set r and
lora_alpha of single layers. The layers that the configuration names must be those with tensors.

The factor D_in / group is PEFT's own: neither Xu et al. nor `qalora.py` have it. PEFT has QA-LoRA beside GPTQ layers
only. Beside all others it ignores use_qalora, so the shape of A tells which of the two a layer has. PEFT cannot merge
its QA-LoRA. Here it is a `QALoRA`, which merges into the offsets of blocks that lie inside its groups.
"""
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapters.adapted import AdaptedLinear, replace_layers
from adapters.lam import Lam
from adapters.lora import LoRA
from adapters.peft_config import CONFIG, compiled_pattern, is_target, read_config
from adapters.qalora import QALoRA
from model.checkpoint import FLOATS, empty_model
from model.config import LlamaConfig
from model.files import sha256_of
from model.llama import Linear, Llama
from model.stored_names import Stored, joined_layers, layer_places
from model.tensor_files import open_safetensors

WEIGHTS, PREFIX = "adapter_model.safetensors", "base_model.model."
LONGEST_NAME = 300


@dataclass(frozen=True)
class PEFTLayer:
    """The rank and the scaling of one layer's LoRA, and where its factors are."""
    rank: int
    scaling: float  # of the mean of a group if there are groups
    stored: Stored  # the layer of the adapter, and the rows of its B: files of some families join layers
    group: int = 1  # inputs that are averaged

    def of(self, factors: dict[str, Tensor]) -> LoRA | QALoRA:
        A, B = factors["A"], self.stored.of(factors["B"])
        kind = LoRA if self.group == 1 else QALoRA
        adapter = kind(len(B), A.shape[1] * self.group, Lam(self.group, 1), self.rank, 1.0)
        adapter.scaling = self.scaling
        adapter.A.copy_(A)
        adapter.B.copy_(B)
        return adapter


@dataclass(frozen=True)
class PEFTAdapter:
    """A directory that PEFT saved, and the layers that it has an adapter for."""
    path: Path
    layers: dict[str, PEFTLayer]

    @property
    def fingerprint(self) -> str:
        return sha256_of(self.path / CONFIG, self.path / WEIGHTS)


def read_peft(directory: Path, config: LlamaConfig) -> PEFTAdapter:
    """The adapter's layers. Raises FileNotFoundError; ValueError if it is not LoRA or QA-LoRA, if its tensors do not
    fit the model, or if one holds NaN or infinity, which only damaged weights do."""
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
        for ours, place in layer_places(factor[1], config).items():
            if layers.setdefault(ours, layer_of(stated, factor[1], place)).stored != place:
                raise ValueError(f"{directory / WEIGHTS}: two of its adapters are for {ours}")
    theirs = {lora.stored.name: lora.rank for lora in layers.values()}
    group = stated["qalora_group_size"] if stated.get("use_qalora") else 1
    means = {layer: check_shapes(directory / WEIGHTS, model, layer, rank, shapes, group)
             for layer, rank in theirs.items()}
    layers = {ours: with_means(lora, group, means[lora.stored.name]) for ours, lora in layers.items()}
    if not layers:
        raise ValueError(f"{directory / WEIGHTS}: holds no adapter")
    check_targets(directory, stated, model, set(theirs))
    check_finite(directory / WEIGHTS)
    return PEFTAdapter(directory, layers)


def check_finite(path: Path) -> None:
    with open_safetensors(path) as file:
        for name in file.keys():
            if wrong := int((~file.get_tensor(name).isfinite()).sum()):
                raise ValueError(f"{path}: {name} holds {wrong} values that are not finite: the adapter is damaged, or "
                                 f"its training diverged")


def check_targets(directory: Path, stated: dict, model: Llama, layers: set[str]) -> None:
    """Raises ValueError unless the layers with tensors are those that the configuration names, as PEFT reads it."""
    if stated.get("layers_to_transform") in (None, []) and not stated.get("target_modules"):
        return
    stated = {**stated, "target_modules": stated.get("target_modules") or [name.rpartition(".")[2] for name in layers]}
    places = [name for name, module in model.named_modules() if isinstance(module, Linear | nn.Embedding)]
    if layers <= set(joined := joined_layers(places, model.config)):
        places = list(joined)  # of a base as its family's files have it, not of one with split layers
    named = {name for name in places if is_target(stated, name)}
    entries = "target_modules, exclude_modules and layers_to_transform"
    if missing := sorted(named - layers):
        raise ValueError(f"{directory / WEIGHTS}: holds nothing for {len(missing)} layers, {missing[0]} the first, "
                         f"that {CONFIG} names ({entries})")
    if extra := sorted(layers - named):
        raise ValueError(f"{directory / WEIGHTS}: holds an adapter for {extra[0]}, which {CONFIG} does not name "
                         f"({entries})")


def layer_of(stated: dict, layer: str, place: Stored) -> PEFTLayer:
    """The rank and scaling of a layer. A pattern's key is a regular expression for the end of a layer's name, after a
    dot. The first that matches counts."""
    def pattern(name: str, default: Any) -> Any:
        patterns = (stated.get(name) or {}).items()
        return next((value for key, value in patterns if compiled_pattern(key).match(layer)), default)
    rank, alpha = pattern("rank_pattern", stated["r"]), pattern("alpha_pattern", stated["lora_alpha"])
    return PEFTLayer(rank, alpha / (math.sqrt(rank) if stated.get("use_rslora") else rank), place)


def with_means(lora: PEFTLayer, group: int, means: int) -> PEFTLayer:
    """The layer as QA-LoRA, if its A reads so many means of groups; 0: it reads the inputs."""
    return replace(lora, group=group, scaling=lora.scaling * means) if means else lora


def check_shapes(path: Path, model: Llama, layer: str, rank: int, shapes: dict[str, tuple[int, ...]],
                 group: int = 1) -> int:
    """How many means of `group` inputs A reads; 0 if it reads the inputs themselves. Raises ValueError unless the model
    has this linear layer and the factors fit it."""
    modules = dict(model.named_modules())
    parts = [part for part in map(modules.get, layer_places(layer, model.config)) if isinstance(part, Linear)]
    if not parts or (layer == "lm_head" and model.config.tie_word_embeddings):
        raise ValueError(f"{path}: it has an adapter for {layer}, which is no linear layer of its own in the model")
    wanted = {"A": (rank, parts[0].in_features), "B": (sum(part.out_features for part in parts), rank)}
    means = means_of(path, layer, wanted["A"][1], shapes.get(f"{PREFIX}{layer}.lora_A.weight"), group)
    wanted["A"] = (rank, means or wanted["A"][1])
    for letter, shape in wanted.items():
        name = f"{PREFIX}{layer}.lora_{letter}.weight"
        if shapes.get(name) != shape:
            raise ValueError(f"{path}: {name} has shape {list(shapes.get(name, ()))} instead of {list(shape)} "
                             f"(r {rank}, and the layer's sizes)")
    return means


def means_of(path: Path, layer: str, D_in: int, A: tuple[int, ...] | None, group: int) -> int:
    """0 if A is as wide as the layer: beside layers that are not GPTQ's, PEFT's use_qalora is a plain LoRA. Raises
    ValueError if the group does not divide the layer's inputs."""
    if group == 1 or A is not None and A[-1:] == (D_in,):
        return 0
    if D_in % group:
        raise ValueError(f"{path}: qalora_group_size {group} in {CONFIG} does not divide D_in={D_in} of {layer}")
    return D_in // group


@torch.no_grad()
def attach_peft(model: Llama, adapter: PEFTAdapter) -> None:
    """Put a LoRA or a QA-LoRA beside each of the adapter's layers. A base layer may be dense or quantized."""
    with open_safetensors(adapter.path / WEIGHTS) as file:
        def adapt(name: str, base: nn.Module) -> AdaptedLinear:
            layer = adapter.layers[name]
            factors = {letter: file.get_tensor(f"{PREFIX}{layer.stored.name}.lora_{letter}.weight") for letter in "AB"}
            return AdaptedLinear(base, layer.of(factors).to(model.device))
        replace_layers(model, list(adapter.layers), adapt)
