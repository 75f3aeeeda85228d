"""GGUF files in: what a model directory says by config.json and safetensors, one GGUF file says by its metadata and tensors.

Layers of type Q4_1, Q4_0 and Q8_0 come as the codes that they are (quant/gguf_blocks.py); embeddings of such a type are dequantized.
Everything else comes in the type that the file has. Tensors are read one at a time.

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

from model.config import LlamaConfig, config_from_json
from model.llama import llama3_frequencies, rotary_frequencies
from quant.gguf_blocks import BLOCK, BLOCK_TYPES, dense_rows, quantized_weight
from quant.linear import QuantLinear

PLAIN_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Architecture:
    model_type: str           # as config.json would say
    interleaved_rotary: bool  # q and k rows are stored with the two of each rotary pair side by side


ARCHITECTURES = {"llama": Architecture("llama", interleaved_rotary=True), "qwen2": Architecture("qwen2", interleaved_rotary=False)}
CONFIG_KEYS = {
    "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length", "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count", "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length"}
OPTIONAL_KEYS = {"num_key_value_heads": "attention.head_count_kv", "head_dim": "attention.key_length",
                 "rope_theta": "rope.freq_base"}
TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_TENSORS = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
LINEAR = ("_proj", "lm_head")
ROPE_DIVISORS = "rope_freqs.weight"
LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # of Llama 3.1 and 3.2


# ---- the file -----------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Stored:
    """A tensor in the file."""
    type: str
    shape: tuple[int, ...]  # rows first, as in torch
    start: int
    bytes: int


@dataclass(frozen=True)
class GGUFFile:
    path: Path
    metadata: dict[str, object]
    tensors: dict[str, Stored]
    kinds: dict[str, tuple[str, str | None]] = field(default_factory=dict)  # of metadata: GGUF's type, and that of a list's elements

    def get(self, key: str):
        """A metadata value that must be there."""
        if key not in self.metadata:
            raise ValueError(f"{self.path}: its metadata lack {key}")
        return self.metadata[key]

    @property
    def architecture(self) -> str:
        name = self.get("general.architecture")
        if name not in ARCHITECTURES:
            raise ValueError(f"{self.path}: architecture {name!r} is not supported; supported: {', '.join(ARCHITECTURES)}")
        return name

    def read(self, name: str) -> Tensor:
        """One tensor's bytes: (rows, bytes of a row), one row for a vector."""
        stored = self.tensors[name]
        data = numpy.fromfile(self.path, numpy.uint8, stored.bytes, offset=stored.start)
        return torch.from_numpy(data).view(math.prod(stored.shape[:-1]), -1)

    def dense(self, name: str) -> Tensor:
        """One tensor in the file's own type, or in float32 where that is a block type."""
        rows, stored = self.read(name), self.tensors[name]
        values = rows.view(PLAIN_TYPES[stored.type]) if stored.type in PLAIN_TYPES else dense_rows(rows, BLOCK_TYPES[stored.type])
        return values.view(stored.shape)


def is_gguf(path: Path) -> bool:
    return path.suffix == ".gguf" and not path.is_dir()


def read_gguf(path: Path) -> GGUFFile:
    """Metadata and the list of tensors; no tensor is read. A file that has not changed since is not read again.

    Raises ValueError for a damaged file, one in several parts, of another byte order, or with tensors of other types."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such GGUF file")
    gguf_package()
    return _read_gguf(path, path.stat().st_size, path.stat().st_mtime_ns)


def gguf_package():
    """An optional requirement, like matplotlib."""
    try:
        import gguf
    except ImportError:
        raise ValueError("a .gguf file needs the gguf package: pip install gguf (or pip install -r requirements-extra.txt)") from None
    return gguf


@cache
def _read_gguf(path: Path, size: int, changed: int) -> GGUFFile:
    reader, metadata = _open_reader(path)
    if metadata.get("split.count", 1) > 1:
        raise ValueError(f"{path}: one of {metadata['split.count']} parts: join them first with llama-gguf-split --merge")
    tensors = {t.name: Stored(t.tensor_type.name, tuple(reversed(t.shape.tolist())), t.data_offset, t.n_bytes) for t in reader.tensors}
    supported = (*PLAIN_TYPES, *BLOCK_TYPES)
    if others := {stored.type: name for name, stored in tensors.items() if stored.type not in supported}:
        raise ValueError(f"{path}: tensors of type {', '.join(f'{kind} ({name})' for kind, name in others.items())} are not supported; "
                         f"supported: {', '.join(supported)}")
    kinds = {key: [kind.name for kind in stated.types] for key, stated in reader.fields.items()}
    return GGUFFile(path, metadata, tensors, {key: (names[0], names[-1] if names[0] == "ARRAY" else None) for key, names in kinds.items()})


def _open_reader(path: Path):
    """The package's reader, and the metadata as plain values.

    The reader slices a memory map tens of thousands of times; slices of a plain array take a third of the time and half the
    memory (SmolLM2: 1.0 s and 74 MB instead of 2.9 s and 163 MB)."""
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
        raise ValueError(f"{path}: a big-endian file; only little-endian ones are supported")
    return reader, metadata


# ---- its configuration --------------------------------------------------------------------------------------------

def gguf_config(file: GGUFFile) -> LlamaConfig:
    """Raises ValueError for metadata that are missing, or that say what the forward pass has not."""
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
            raise ValueError(f"{file.path}: {name}.{key} is {size}, but a head has {config.head_dim} dimensions, and all of them turn")
    return with_divisors(config, file) if ROPE_DIVISORS in file.tensors else config


def shortest(value):
    """The decimal that a float32 stands for: 1e-05, not 9.999999747378752e-06."""
    return float(str(numpy.float32(value))) if isinstance(value, float) else value


def stated_scaling(file: GGUFFile) -> dict | None:
    prefix = f"{file.architecture}.rope.scaling"
    kind = file.metadata.get(f"{prefix}.type", "none")
    return None if kind == "none" else {"rope_type": kind, "factor": shortest(file.get(f"{prefix}.factor"))}


def with_divisors(config: LlamaConfig, file: GGUFFile) -> LlamaConfig:
    """Llama 3.1's scaling is stored as what each frequency is divided by. The parameters that give those divisors are sought
    among the published ones. Raises ValueError where they are not."""
    divisors = file.dense(ROPE_DIVISORS).float()
    frequencies, scaling = rotary_frequencies(config), {"factor": shortest(divisors.max().item()), **LLAMA_3}
    published = frequencies / llama3_frequencies(frequencies, **scaling)
    if config.rope_scaling or divisors.shape != published.shape or not torch.allclose(divisors, published, rtol=1e-5):
        raise ValueError(f"{file.path}: {ROPE_DIVISORS} does not hold what Llama 3.1's rotary scaling divides by (low_freq_factor 1, "
                         f"high_freq_factor 4, original length 8192), and no other is supported")
    return LlamaConfig(**{**vars(config), "rope_scaling": {"rope_type": "llama3", **scaling}})


# ---- its tensors --------------------------------------------------------------------------------------------------

def our_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`. An unknown name stays as it is, to be refused by it."""
    module, _, leaf = name.rpartition(".")
    prefix, _, rest = module.partition(".")
    layer, _, kind = rest.partition(".")
    if prefix == "blk" and kind in LAYER_TENSORS:
        return f"model.layers.{layer}.{LAYER_TENSORS[kind]}.{leaf}"
    return f"{TENSORS.get(module, module)}.{leaf}"


def gguf_name(name: str) -> str:
    """The inverse of `our_name`: `model.layers.3.self_attn.q_proj.weight` -> `blk.3.attn_q.weight`."""
    module, _, leaf = name.rpartition(".")
    if not module.startswith("model.layers."):
        return f"{next(theirs for theirs, ours in TENSORS.items() if ours == module)}.{leaf}"
    layer, _, kind = module.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{next(theirs for theirs, ours in LAYER_TENSORS.items() if ours == kind)}.{leaf}"


def half_split(rows: Tensor, heads: int) -> Tensor:
    """The rows of q or k in the order of Hugging Face files, x_i and x_{i + head_dim/2} turning together, from that of GGUF, where the
    two of a pair stand side by side: rows 0 1 2 3 4 5 of one head -> 0 2 4 1 3 5."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """The inverse of `half_split`: rows 0 2 4 1 3 5 of one head -> 0 1 2 3 4 5."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def heads_of(architecture: str, config: LlamaConfig) -> dict[str, int]:
    """The layers whose rows a file of this architecture interleaves, and of how many heads they are."""
    return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads} if ARCHITECTURES[architecture].interleaved_rotary else {}


class GGUFWeights:
    """What `model.checkpoint.Weights` is for safetensors."""

    def __init__(self, path: Path):
        self.file, self.files = read_gguf(path), [path]
        self.heads = heads_of(self.file.architecture, gguf_config(self.file))
        self.names = {our_name(name): name for name in self.file.tensors if name != ROPE_DIVISORS}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.quantized: dict[str, dict] = {}
        for ours, name in self.names.items():
            self._list(ours, self.file.tensors[name])

    def _list(self, ours: str, stored: Stored) -> None:
        """Linear layers of a block type are codes. An embedding is looked up rather than multiplied, and has to be dense."""
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
        """Every tensor whose name begins with `prefix`, one weight at a time."""
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
        yield from ((f"{layer}.{leaf}", tensor) for leaf, tensor in QuantLinear.from_weight(weight).state_dict().items())
