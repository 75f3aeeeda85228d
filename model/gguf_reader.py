"""GGUF files in. Metadata give the configuration, and tensors the weights, as config.json and safetensors do elsewhere.

Linear layers of type Q4_1, Q4_0 and Q8_0 stay codes (quant/gguf_blocks.py). Embeddings of these types are dequantized.
All other tensors keep the type that the file has. Tensors are read one at a time.

Needs the `gguf` package (requirements-extra.txt).
"""
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy
import torch
from torch import Tensor

from model.config import LlamaConfig
from model.config_json import config_from_json
from model.gguf_layout import (
    ARCHITECTURES,
    CONFIG_KEYS,
    LINEAR,
    LLAMA_3_ROPE,
    OPTIONAL_KEYS,
    PLAIN_TYPES,
    ROPE_DIVISORS,
    gguf_package,
    half_split,
    heads_of,
    our_name,
)
from model.llama import llama3_frequencies, rotary_frequencies
from quant.gguf_blocks import BLOCK, BLOCK_TYPES, dense_rows, quantized_weight
from quant.linear import QuantLinear

# ---- the file -----------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in the file."""
    type: str
    shape: tuple[int, ...]  # rows first, as in torch
    start: int
    bytes: int


@dataclass(frozen=True)
class GGUFFile:
    path: Path
    metadata: dict[str, object]
    tensors: dict[str, StoredTensor]
    # Metadata key -> its GGUF type, and the type of its elements if it is a list.
    kinds: dict[str, tuple[str, str | None]] = field(default_factory=dict)

    def get(self, key: str):
        """A metadata value. Raises ValueError if the file has none."""
        if key not in self.metadata:
            raise ValueError(f"{self.path}: metadata key {key} is missing")
        return self.metadata[key]

    @property
    def architecture(self) -> str:
        name = self.get("general.architecture")
        if name not in ARCHITECTURES:
            supported = ", ".join(ARCHITECTURES)
            raise ValueError(f"{self.path}: architecture {name!r} is not supported; supported: {supported}")
        return name

    def read(self, name: str) -> Tensor:
        """The bytes of a tensor, uint8: (rows, bytes per row). A vector is one row."""
        stored = self.tensors[name]
        data = numpy.fromfile(self.path, numpy.uint8, stored.bytes, offset=stored.start)
        return torch.from_numpy(data).view(math.prod(stored.shape[:-1]), -1)

    def dense(self, name: str) -> Tensor:
        """A tensor in the type that the file has, or in float32 if that is a block type."""
        rows, stored = self.read(name), self.tensors[name]
        plain = PLAIN_TYPES.get(stored.type)
        values = rows.view(plain) if plain else dense_rows(rows, BLOCK_TYPES[stored.type])
        return values.view(stored.shape)


def is_gguf(path: Path) -> bool:
    return path.suffix == ".gguf" and not path.is_dir()


def read_gguf(path: Path) -> GGUFFile:
    """Metadata and the list of tensors; no tensor is read. The result is cached until the file changes.

    Raises ValueError for a damaged file, for one of several parts, for a big-endian file, and for unsupported types."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such GGUF file")
    gguf_package()
    return _read_gguf(path, path.stat().st_size, path.stat().st_mtime_ns)


@cache
def _read_gguf(path: Path, size: int, changed: int) -> GGUFFile:
    reader, metadata = _open_reader(path)
    if metadata.get("split.count", 1) > 1:
        raise ValueError(f"{path}: one of {metadata['split.count']} parts; join them first with "
                         f"llama-gguf-split --merge")
    tensors = {t.name: StoredTensor(t.tensor_type.name, tuple(reversed(t.shape.tolist())), t.data_offset, t.n_bytes)
               for t in reader.tensors}
    supported = (*PLAIN_TYPES, *BLOCK_TYPES)
    if others := {stored.type: name for name, stored in tensors.items() if stored.type not in supported}:
        found = ", ".join(f"{kind} ({name})" for kind, name in others.items())
        raise ValueError(f"{path}: tensors of type {found} are not supported; supported: {', '.join(supported)}")
    names = {key: [kind.name for kind in stated.types] for key, stated in reader.fields.items()}
    kinds = {key: (first, rest[-1] if first == "ARRAY" else None) for key, (first, *rest) in names.items()}
    return GGUFFile(path, metadata, tensors, kinds)


def _open_reader(path: Path):
    """The package's reader, and the metadata as plain values.

    The reader slices a memory map tens of thousands of times. Slices of a plain array take a third of the time and half
    of the memory (SmolLM2: 1.0 s and 74 MB instead of 2.9 s and 163 MB)."""
    gguf = gguf_package()

    class Reader(gguf.GGUFReader):
        @property
        def data(self) -> numpy.ndarray:
            return self._data

        @data.setter
        def data(self, mapped: numpy.memmap) -> None:
            self._data = numpy.asarray(mapped)

    try:
        reader = Reader(path)
        metadata = {key: stated.contents() for key, stated in reader.fields.items()}
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, OSError) as error:
        raise ValueError(f"{path}: damaged, cut off, or not a GGUF file ({error})") from None
    if reader.endianess != gguf.GGUFEndian.LITTLE:
        raise ValueError(f"{path}: byte order is big-endian; only little-endian files are supported")
    return reader, metadata


# ---- its configuration --------------------------------------------------------------------------------------------

def gguf_config(file: GGUFFile) -> LlamaConfig:
    """Raises ValueError for missing metadata, and for metadata that the forward pass does not support."""
    name, metadata = file.architecture, file.metadata
    keys = {**CONFIG_KEYS, **{ours: key for ours, key in OPTIONAL_KEYS.items() if f"{name}.{key}" in metadata}}
    raw = {ours: shortest(file.get(f"{name}.{key}")) for ours, key in keys.items()}
    ends = (metadata.get(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot"))
    config = config_from_json({
        **raw, "model_type": ARCHITECTURES[name].model_type,
        "vocab_size": metadata.get(f"{name}.vocab_size") or len(file.get("tokenizer.ggml.tokens")),
        "rope_scaling": stated_scaling(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors, "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": list(dict.fromkeys(end for end in ends if end is not None))}, str(file.path))
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        if (size := metadata.get(f"{name}.{key}", config.head_dim)) != config.head_dim:
            raise ValueError(f"{file.path}: {name}.{key} is {size}, but a head has {config.head_dim} dimensions, and "
                             f"all of them must rotate")
    return with_divisors(config, file) if ROPE_DIVISORS in file.tensors else config


def shortest(value):
    """The shortest decimal for a float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(numpy.float32(value))) if isinstance(value, float) else value


def stated_scaling(file: GGUFFile) -> dict | None:
    prefix = f"{file.architecture}.rope.scaling"
    kind = file.metadata.get(f"{prefix}.type", "none")
    return None if kind == "none" else {"rope_type": kind, "factor": shortest(file.get(f"{prefix}.factor"))}


def with_divisors(config: LlamaConfig, file: GGUFFile) -> LlamaConfig:
    """Llama 3.1's rotary scaling, which GGUF files store as one divisor per frequency.

    Raises ValueError if the published parameters do not give these divisors."""
    divisors = file.dense(ROPE_DIVISORS).float()
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
        self.heads = heads_of(self.file.architecture, gguf_config(self.file))
        self.names = {our_name(name): name for name in self.file.tensors if name != ROPE_DIVISORS}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.quantized: dict[str, dict] = {}
        for ours, name in self.names.items():
            self._list(ours, self.file.tensors[name])

    def _list(self, ours: str, stored: StoredTensor) -> None:
        """Linear layers of a block type are codes. An embedding is a look-up table and has to be dense."""
        layer = ours.removesuffix(".weight")
        if stored.type in BLOCK_TYPES and layer.endswith(LINEAR) and len(stored.shape) == 2:
            kind = BLOCK_TYPES[stored.type]
            self.quantized[layer] = {"bits": kind.bits, "block": str(BLOCK)}
            self.shapes.update({f"{layer}.{leaf}": shape for leaf, shape in kind.shapes(*stored.shape).items()})
        else:
            self.shapes[ours] = stored.shape

    def forget(self, name: str) -> None:
        self.names.pop(name, None)
        self.shapes.pop(name, None)

    def levels(self, layer: str) -> Tensor:
        return BLOCK_TYPES[self.file.tensors[self.names[f"{layer}.weight"]].type].levels()

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Every tensor whose name begins with `prefix`, one weight at a time in memory."""
        for ours, name in self.names.items():
            if ours.startswith(prefix):
                yield from self._load(ours, name)

    def _load(self, ours: str, name: str) -> Iterator[tuple[str, Tensor]]:
        layer, _, leaf = ours.rpartition(".")
        codes = leaf == "weight" and layer in self.quantized
        rows = self.file.read(name) if codes else self.file.dense(name)
        if heads := self.heads.get(layer.rpartition(".")[2]):
            rows = half_split(rows, heads)
        if not codes:
            yield ours, rows
            return
        weight = quantized_weight(rows, BLOCK_TYPES[self.file.tensors[name].type])
        for part, tensor in QuantLinear.from_weight(weight).state_dict().items():
            yield f"{layer}.{part}", tensor
