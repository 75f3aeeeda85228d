"""GGUF files in. Metadata give the configuration, and tensors the weights, as config.json and safetensors do elsewhere.

Linear layers of type Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K stay codes (quant/gguf_blocks.py,
quant/gguf_superblocks.py). Embeddings of these types, and tensors of all other block types, are dequantized to float32.
Plain tensors keep the type that the file has. Tensors are read one at a time. gguf_file.py reads the file's layout.
"""
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy
import torch
from torch import Tensor

from model.checksums import check_sums
from model.config import LlamaConfig
from model.config_json import config_from_json
from model.gguf_architectures import (
    ARCHITECTURES,
    CONFIG_KEYS,
    OPTIONAL_KEYS,
    half_split,
    heads_of,
    is_shifted,
    our_name,
)
from model.gguf_file import GGUFFile, parse_gguf
from model.gguf_layout import (
    CODE_TYPES,
    END_KEYS,
    END_TEXTS,
    LINEAR,
    LLAMA_3_ROPE,
    LONGROPE,
    ROPE_DIVISORS,
)
from model.rotary import llama3_frequencies, rotary_frequencies
from model.stored_names import Stored, places
from quant.linear import QuantLinear


def is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf" and not path.is_dir()


def read_gguf(path: Path) -> GGUFFile:
    """Metadata and the list of tensors; no tensor is read. The result is cached until the file changes.

    Raises ValueError for a damaged file, for one of several parts, for a big-endian file, and for unsupported types."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such GGUF file")
    return _read_gguf(path, path.stat().st_size, path.stat().st_mtime_ns)


@cache
def _read_gguf(path: Path, size: int, changed: int) -> GGUFFile:
    return parse_gguf(path)


# ---- its configuration --------------------------------------------------------------------------------------------

def gguf_config(file: GGUFFile) -> LlamaConfig:
    """Raises ValueError for missing metadata, and for metadata that the forward pass does not support."""
    name, metadata = file.architecture, file.metadata
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    size = metadata.get(f"{name}.vocab_size") or len(file.list_of("tokenizer.ggml.tokens", str))
    if isinstance(tokens, list) and len(tokens) != size:
        raise ValueError(f"{file.path}: {name}.vocab_size is {str(size)[:40]}, but tokenizer.ggml.tokens holds "
                         f"{len(tokens)} tokens")
    config = config_from_json({
        **stated_keys(file), "model_type": ARCHITECTURES[name].model_type, "vocab_size": size,
        "rope_scaling": stated_scaling(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors, "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": stated_ends(file)}, str(file.path))
    if metadata.get(f"{name}.attention.causal", True) is not True:
        raise ValueError(f"{file.path}: {name}.attention.causal is not true, but this decoder only looks back")
    for key, wanted in (("rope.dimension_count", config.rotary_dim), ("attention.key_length", config.head_dim),
                        ("attention.value_length", config.head_dim)):
        if (size := metadata.get(f"{name}.{key}", wanted)) != wanted:
            raise ValueError(f"{file.path}: {name}.{key} is {str(size)[:40]}, but a head has {config.head_dim} "
                             f"dimensions, and all of them must rotate")
    return with_divisors(config, file) if ROPE_DIVISORS in file.tensors else config


def stated_keys(file: GGUFFile) -> dict:
    """The metadata under the names of config.json, with what llama.cpp takes for granted."""
    name, architecture = file.architecture, ARCHITECTURES[file.architecture]
    further = {**OPTIONAL_KEYS, **architecture.keys}
    keys = {**CONFIG_KEYS, **{ours: key for ours, key in further.items() if f"{name}.{key}" in file.metadata}}
    raw = {ours: shortest(file.get(f"{name}.{key}")) for ours, key in keys.items()}
    turning = file.metadata.get(f"{name}.rope.dimension_count")
    if name == "phi3" and isinstance(turning, int) and isinstance(raw["hidden_size"], int):
        raw["partial_rotary_factor"] = turning / (raw.get("head_dim")
                                                  or raw["hidden_size"] / raw["num_attention_heads"])
    if f"{name}.attention.sliding_window_pattern" in file.metadata:
        raw["sliding_window_pattern"] = file.get(f"{name}.attention.sliding_window_pattern", int)
    if raw.get("sliding_window") == 0:
        raw["sliding_window"] = None
    try:
        return {**raw, **architecture.implied(raw)}
    except (TypeError, ZeroDivisionError):
        return raw  # a value of a wrong type, which config_from_json names


def stated_ends(file: GGUFFile) -> list:
    """The end tokens as llama.cpp has them: those that keys name, then those whose text says it. A chat model whose
    file names </s> alone ends its turn by <|im_end|> all the same. The begin token is none of them."""
    stated = (file.metadata.get(f"tokenizer.ggml.{end}_token_id") for end in END_KEYS)
    found = list({repr(end): end for end in stated if end is not None}.values())
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    known = (*found, file.metadata.get("tokenizer.ggml.bos_token_id"))
    texts = enumerate(tokens if found and isinstance(tokens, list) else ())
    return found + [i for i, text in texts if isinstance(text, str) and text in END_TEXTS and i not in known]


def shortest(value):
    """The shortest decimal for a float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(numpy.float32(value))) if isinstance(value, float) else value


# Metadata about rotary scaling that are understood. The last two say how a model was trained, and change nothing.
SCALING_KEYS = ("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear", "rope.scaling.original_context_length",
                "rope.scaling.finetuned")
OF_LONGROPE = "rope.scaling.attn_factor"


def stated_scaling(file: GGUFFile) -> dict | None:
    """The rotary scaling in the metadata, as llama.cpp reads it. A factor without a type is linear. `rope.scale_linear`
    is the older name of the factor. Type `none` means no scaling, whatever the factor; so does a factor of 0 or 1.

    Raises ValueError for a key that is not understood, and if both names of the factor are there and differ."""
    prefix = f"{file.architecture}."
    longrope = file.architecture == "phi3" and set(LONGROPE.values()) <= set(file.tensors)
    for key in file.metadata:
        name = key.removeprefix(prefix)
        if key.startswith(f"{prefix}rope.scal") and name not in SCALING_KEYS + (OF_LONGROPE,) * longrope:
            known = ", ".join(f"{prefix}{name}" for name in SCALING_KEYS)
            raise ValueError(f"{file.path}: {key} is not understood, so the rotary positions may differ; understood: "
                             f"{known}")
    if longrope:
        return longrope_scaling(file)
    kind = file.get(f"{prefix}rope.scaling.type", str, "linear")
    names = [f"{prefix}{name}" for name in ("rope.scaling.factor", "rope.scale_linear")]
    factors = {name: shortest(file.get(name, (int, float))) for name in names if name in file.metadata}
    if kind == "none":
        return None
    if len(set(factors.values())) > 1:
        stated = ", but ".join(f"{name} is {factor}" for name, factor in factors.items())
        raise ValueError(f"{file.path}: {stated}: the two must agree")
    if not factors:
        if f"{prefix}rope.scaling.type" in file.metadata:
            file.get(names[0])
        return None
    factor = next(iter(factors.values()))
    if kind == "yarn":
        original = file.metadata.get(f"{prefix}rope.scaling.original_context_length")
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    return None if kind == "linear" and factor in (0, 1) else {"rope_type": kind, "factor": factor}


def longrope_scaling(file: GGUFFile) -> dict:
    """Phi-3's, whose divisors are tensors. llama.cpp decides between them by the size of its context, not by the length
    of the text."""
    lists = {key: [shortest(value) for value in file.dense(name).float().flatten().tolist()]
             for key, name in LONGROPE.items()}
    original = file.metadata.get(f"{file.architecture}.rope.scaling.original_context_length")
    factor = shortest(file.get(f"{file.architecture}.{OF_LONGROPE}", (int, float), 1.0))
    return {"rope_type": "longrope", **lists, "original_max_position_embeddings": original, "attention_factor": factor}


def with_divisors(config: LlamaConfig, file: GGUFFile) -> LlamaConfig:
    """Llama 3.1's rotary scaling, which GGUF files store as one divisor per frequency.

    Raises ValueError if the published parameters do not give these divisors."""
    divisors = file.dense(ROPE_DIVISORS).float()
    if not (divisors.isfinite().all() and divisors.max() >= 1):
        raise ValueError(f"{file.path}: {ROPE_DIVISORS} does not hold divisors, finite numbers from 1 on")
    frequencies, scaling = rotary_frequencies(config), {"factor": shortest(divisors.max().item()), **LLAMA_3_ROPE}
    published = frequencies / llama3_frequencies(frequencies, **scaling)
    if config.rope_scaling or divisors.shape != published.shape or not torch.allclose(divisors, published, rtol=1e-5):
        raise ValueError(f"{file.path}: {ROPE_DIVISORS} does not hold the divisors of Llama 3.1's rotary scaling, the "
                         f"only supported one (low_freq_factor 1, high_freq_factor 4, original length 8192)")
    return LlamaConfig(**{**vars(config), "rope_scaling": {"rope_type": "llama3", **scaling}})


# ---- its tensors --------------------------------------------------------------------------------------------------

class GGUFWeights:
    """The tensors of a GGUF file, with the interface of `model.checkpoint.Weights`."""

    def __init__(self, path: Path):
        self.file, self.files = read_gguf(path), [path]
        config, architecture = gguf_config(self.file), self.file.architecture
        self.heads = heads_of(architecture, config)
        self.stored: dict[str, Stored] = {}  # name in the model -> tensor of the file, and its rows
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.quantized: dict[str, dict] = {}
        for name, tensor in self.file.tensors.items():
            if name == ROPE_DIVISORS or architecture == "phi3" and name in LONGROPE.values():
                continue
            for ours, place in places(our_name(name, architecture), tensor.shape, config, str(path)).items():
                if ours in self.stored:
                    raise ValueError(f"{path}: two of its tensors have the same place in the model")
                self.stored[ours] = Stored(name, place.rows)
                self._list(ours, tensor.type, place.shape(tensor.shape))

    def _list(self, ours: str, kind: str, shape: tuple[int, ...]) -> None:
        """Linear layers of a block type are codes. An embedding is a look-up table and has to be dense."""
        layer = ours.removesuffix(".weight")
        if kind in CODE_TYPES and layer.endswith(LINEAR) and len(shape) == 2:
            self.quantized[layer] = {"bits": CODE_TYPES[kind].bits, "block": str(CODE_TYPES[kind].block)}
            self.shapes.update({f"{layer}.{leaf}": part for leaf, part in CODE_TYPES[kind].shapes(*shape).items()})
        else:
            self.shapes[ours] = shape

    def name_as(self, config: LlamaConfig) -> None:
        """The names are the model's already."""

    def forget(self, name: str) -> None:
        self.stored.pop(name, None)
        self.shapes.pop(name, None)

    def levels(self, layer: str) -> Tensor:
        return CODE_TYPES[self.type_of(f"{layer}.weight")].levels()

    def type_of(self, name: str) -> str:
        """The type that the file has for a tensor of the model."""
        return self.file.tensors[self.stored[name].name].type

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Every tensor whose name begins with `prefix`, one weight at a time in memory. Raises Damaged if x.gguf.sha256
        states another sha256 of the file."""
        check_sums(self.files)
        for ours, place in self.stored.items():
            if ours.startswith(prefix):
                yield from self._load(ours, place)

    def _load(self, ours: str, place: Stored) -> Iterator[tuple[str, Tensor]]:
        layer, _, leaf = ours.rpartition(".")
        codes = leaf == "weight" and layer in self.quantized
        rows = place.of(self.file.read(place.name) if codes else self.file.dense(place.name))
        if heads := self.heads.get(layer.rpartition(".")[2]):
            rows = half_split(rows, heads)
        if not codes:
            yield ours, rows.float() - 1 if is_shifted(ours, self.file.architecture) else rows
            return
        weight = CODE_TYPES[self.type_of(ours)].quantized_weight(rows)
        for part, tensor in QuantLinear.from_weight(weight).state_dict().items():
            yield f"{layer}.{part}", tensor
