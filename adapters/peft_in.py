"""PEFT's LoRA adapters, attached to a model here: `python eval.py --model DIR --adapter PEFT_DIR`.

Plain LoRA is read: y = base(x) + scaling * B A x, with scaling = lora_alpha / r, or lora_alpha / sqrt(r) with
use_rslora. rank_pattern and alpha_pattern set r and lora_alpha of single layers. Any other entry is refused by name,
unless it is empty or known to change nothing. The layers that the configuration names must be those with tensors.
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
from model.stored_names import Stored, joined_layers, layer_places
from model.tensor_files import open_safetensors

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
# The values that leave plain LoRA plain. None, False and empty always do.
PLAIN: dict[str, tuple] = {
    "bias": ("none",), "fan_in_fan_out": (False,), "use_dora": (False,), "use_qalora": (False,), "lora_bias": (False,),
    "modules_to_save": (), "trainable_token_indices": (), "target_parameters": (), "megatron_config": (),
    "layer_replication": (), "alora_invocation_tokens": (), "corda_config": (),
    "arrow_config": (), "use_bdlora": (), "velora_config": (), "kasa_config": (), "monteclora_config": (),
    "lora_ga_config": (), "loftq_config": (), "ensure_weight_tying": (False,), "task_type": ("CAUSAL_LM",),
    # pissa, olora, corda, loftq and others change the base too: the adapter beside the original base is another model
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva")}
READ = ("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
        "exclude_modules", "layers_to_transform", "layers_pattern")
# They say where the adapter came from or how it was trained. megatron_core and qalora_group_size are always written,
# and have no effect without megatron_config and use_qalora.
WITHOUT_EFFECT = ("base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "peft_version",
                  "auto_mapping", "runtime_config", "eva_config", "megatron_core", "qalora_group_size")


@dataclass(frozen=True)
class PEFTLayer:
    """The rank and the scaling of one layer's LoRA, and where its factors are."""
    rank: int
    scaling: float
    stored: Stored  # the layer of the adapter, and the rows of its B: files of some families join layers


@dataclass(frozen=True)
class PEFTAdapter:
    """A directory that PEFT saved, and the layers that it has an adapter for."""
    path: Path
    layers: dict[str, PEFTLayer]

    @property
    def fingerprint(self) -> str:
        return sha256_of(self.path / CONFIG, self.path / WEIGHTS)


def read_peft(directory: Path, config: LlamaConfig) -> PEFTAdapter:
    """The adapter's layers. Raises FileNotFoundError; ValueError if it is not plain LoRA, if its tensors do not fit the
    model, or if one holds NaN or infinity, which only damaged weights do."""
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
    for layer, rank in theirs.items():
        check_shapes(directory / WEIGHTS, model, layer, rank, shapes)
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


def read_config(directory: Path) -> dict:
    """adapter_config.json. Raises FileNotFoundError; ValueError if it states more than plain LoRA."""
    path = directory / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{directory}: no PEFT adapter there (no {CONFIG})")
    stated = read_json(path)
    if stated.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type {stated.get('peft_type')!r} is not read; LORA is")
    for name, value in stated.items():
        plain = value in (None, False, "", [], {}) and not isinstance(value, float) or value in PLAIN.get(name, ())
        if not plain and name not in (*READ, *WITHOUT_EFFECT):
            raise ValueError(f"{path}: {name[:60]} {repr(value)[:60]} is not plain LoRA, and not read")
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
    check_target_entries(path, stated)
    return stated


LARGEST_FACTOR, LONGEST_NAME = 1e6, 300


def check_factor(path: Path, name: str, value: object, what: str | None = None) -> None:
    """Raises ValueError unless a rank is an integer, and lora_alpha a number, above 0 and not absurdly large."""
    kinds, words = (int, "an integer") if (what or name) == "r" else ((int, float), "a number")
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value <= LARGEST_FACTOR:
        raise ValueError(f"{path}: {name} is {str(value)[:60]}, not {words} above 0, up to {LARGEST_FACTOR:.0f}")


def check_pattern(path: Path, name: str, pattern: str, most: int = 2) -> None:
    """Raises ValueError for a regular expression that is wrong, or that may take very long to match.

    Names of layers are short. Without a repeated group, and with few repetitions, matching stays fast."""
    slow = re.search(r"\)\s*[*+{]|\(\?(?!:)|\\[1-9]", pattern)
    repeated = re.findall(r"[*+{]|(?<![(*+}])\?", pattern)
    if slow or len(repeated) > most or len(pattern) > 256:
        raise ValueError(f"{path}: {name} holds {pattern[:60]!r}, which may take very long to match: write the names "
                         f"of the layers, with at most {most} of * + ? {{ and none of * + {{ after a group")
    try:
        compiled_pattern(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: {name} holds {pattern[:60]!r}, which is no regular expression ({error})") from None


def check_target_entries(path: Path, stated: dict) -> None:
    """Raises ValueError unless the entries that name layers are texts, lists of texts, or numbers of layers."""
    for name in ("target_modules", "exclude_modules", "layers_pattern"):
        value = stated.get(name)
        if isinstance(value, str) and name != "layers_pattern":
            check_pattern(path, name, value, 4)
        names = [value] if isinstance(value, str) else value or []
        if not isinstance(names, list) or not all(isinstance(text, str) for text in names):
            raise ValueError(f"{path}: {name} is {str(value)[:60]}, but must be a text or a list of texts")
        if name == "layers_pattern" and not all(re.fullmatch("[A-Za-z0-9_]*", text) for text in names):
            raise ValueError(f"{path}: layers_pattern is {str(value)[:60]}, but must be names of modules")
    numbers = stated.get("layers_to_transform")
    for number in numbers if isinstance(numbers, list) else [numbers]:
        if number is not None and type(number) is not int:
            raise ValueError(f"{path}: layers_to_transform is {str(numbers)[:60]}, but must be integers")


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


def is_target(stated: dict, name: str) -> bool:
    """Whether PEFT would put an adapter beside the layer. A text is a regular expression for the whole name; a list
    holds ends of names, and only such layers are selected by their number."""
    def among(wanted: str | list[str]) -> bool:
        if isinstance(wanted, str):
            return re.fullmatch(wanted, name) is not None
        return any(name == end or name.endswith(f".{end}") for end in wanted)
    targets, numbers = stated["target_modules"], stated.get("layers_to_transform")
    if (excluded := stated.get("exclude_modules")) and among(excluded):
        return False
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return name.startswith("model.layers.")
    if isinstance(targets, str) or name in targets or numbers in (None, []):
        return among(targets)
    pattern = stated.get("layers_pattern") or "[^.]*"
    place = re.match(rf".*?\.(?:{pattern if isinstance(pattern, str) else '|'.join(pattern)})\.(\d+)\.", name)
    chosen = numbers if isinstance(numbers, list) else [numbers]
    return among(targets) and place is not None and int(place[1]) in chosen


@cache
def compiled_pattern(pattern: str) -> re.Pattern:
    """The expression for names that end with `pattern`, after a dot."""
    return re.compile(rf"(.*\.)?({pattern})$")


def layer_of(stated: dict, layer: str, place: Stored) -> PEFTLayer:
    """The rank and scaling of a layer. A pattern's key is a regular expression for the end of a layer's name, after a
    dot. The first that matches counts."""
    def pattern(name: str, default: Any) -> Any:
        patterns = (stated.get(name) or {}).items()
        return next((value for key, value in patterns if compiled_pattern(key).match(layer)), default)
    rank, alpha = pattern("rank_pattern", stated["r"]), pattern("alpha_pattern", stated["lora_alpha"])
    return PEFTLayer(rank, alpha / (math.sqrt(rank) if stated.get("use_rslora") else rank), place)


def check_shapes(path: Path, model: Llama, layer: str, rank: int, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises ValueError unless the model has this linear layer and the factors fit it."""
    modules = dict(model.named_modules())
    parts = [part for part in map(modules.get, layer_places(layer, model.config)) if isinstance(part, Linear)]
    if not parts or (layer == "lm_head" and model.config.tie_word_embeddings):
        raise ValueError(f"{path}: it has an adapter for {layer}, which is no linear layer of its own in the model")
    wanted = {"A": (rank, parts[0].in_features), "B": (sum(part.out_features for part in parts), rank)}
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
            A, B = (file.get_tensor(f"{PREFIX}{layer.stored.name}.lora_{letter}.weight") for letter in "AB")
            B = layer.stored.of(B)
            lora = LoRA(len(B), A.shape[1], Lam(1, 1), layer.rank, layer.scaling * layer.rank)
            lora.scaling = layer.scaling
            lora.A.copy_(A)
            lora.B.copy_(B)
            return AdaptedLinear(base, lora.to(model.device))
        replace_layers(model, list(adapter.layers), adapt)
