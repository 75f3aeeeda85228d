"""Checkpoints in and out: safetensors, one file or sharded with an index, streamed tensor by tensor. In only: GGUF (gguf.py).

Names and shapes are compared with the model's before the first tensor is read, so that a wrong directory costs no time.
A layer may be stored dense (`NAME.weight`) or quantized (`NAME.codes`, `.levels`, `.scale`, `.offset`, or what stands for the
last two: `.scale.codes`, `.scale.absmax`, `.scale.mean`, `.offset.zero`); the header of the file then says
`quantized: {NAME: {bits, block}}`.
"""
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from model.config import LlamaConfig
from model.config_json import config_from_json, token_ids
from model.files import read_json, write_safetensors
from model.gguf_reader import GGUFWeights, gguf_config, is_gguf, read_gguf
from model.llama import Linear, Llama
from quant.factors import OUTER_BLOCK, DoubleQuantized, ZeroPoints
from quant.grid import Block, Grid
from quant.linear import QuantLinear
from quant.packing import packed_bytes, word_shape

INDEX = "model.safetensors.index.json"
IGNORED_ENDINGS = ("rotary_emb.inv_freq",)  # old files carry the rotary frequencies; they follow from the config


class Weights:
    """Which of some files holds which tensor."""

    def __init__(self, files: list[Path]):
        self.files = files
        self.file_of: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.quantized: dict[str, dict] = {}
        for path in files:
            with open_safetensors(path) as file:
                self.quantized.update(_quantized_header(file.metadata(), path))
                for name in file.keys():
                    if not name.endswith(IGNORED_ENDINGS):
                        self.file_of[name] = path
                        self.shapes[name] = tuple(file.get_slice(name).get_shape())

    def forget(self, name: str) -> None:
        """Do as if the files did not hold this tensor."""
        self.file_of.pop(name, None)
        self.shapes.pop(name, None)

    def levels(self, layer: str) -> Tensor:
        """Of a layer that is codes: the few values that a code stands for."""
        with open_safetensors(self.file_of[f"{layer}.levels"]) as file:
            return file.get_tensor(f"{layer}.levels")

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Every tensor whose name begins with `prefix`, one at a time."""
        for path in self.files:
            names = [name for name, file in self.file_of.items() if file == path and name.startswith(prefix)]
            if names:
                with open_safetensors(path) as file:
                    yield from ((name, file.get_tensor(name)) for name in names)


def open_safetensors(path: Path):
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged or not a safetensors file ({error})") from None


def _quantized_header(metadata: dict[str, str] | None, path: Path) -> dict[str, dict]:
    try:
        return dict(json.loads((metadata or {}).get("quantized", "{}")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged header, its list of quantized layers is not JSON ({error})") from None


def open_checkpoint(files: list[Path]) -> Weights | GGUFWeights:
    """Two classes with one face; what follows knows of `Weights` only."""
    return GGUFWeights(*files) if is_gguf(files[0]) else Weights(files)


def weight_names(directory: Path) -> list[str]:
    """model.safetensors, or the shards that the index names."""
    index = directory / INDEX
    if not index.is_file():
        return ["model.safetensors"]
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{index}: holds no weight_map")
    return sorted(set(shards.values()))


def weight_files(directory: Path) -> list[Path]:
    """Those of a model directory; a GGUF file is its own."""
    if is_gguf(directory):
        return [directory]
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such model directory")
    files = [directory / name for name in weight_names(directory)]
    if missing := [str(path) for path in files if not path.is_file()]:
        raise FileNotFoundError(f"{', '.join(missing)}: no such weight file")
    return files


def load_config(directory: Path) -> LlamaConfig:
    """From a model directory's config.json, from the `model_config` inside a run's, or from a GGUF file's metadata. End tokens that only
    generation_config.json names follow those of config.json: instruction-tuned models keep the end of a turn there."""
    if is_gguf(directory):
        return gguf_config(read_gguf(directory))
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{directory}: no model there (no config.json)")
    raw = read_json(path)
    config = config_from_json(raw.get("model_config", raw), str(path))
    generation = directory / "generation_config.json"
    more = token_ids(read_json(generation).get("eos_token_id")) if generation.is_file() else ()
    return replace(config, eos_token_ids=tuple(dict.fromkeys((*config.eos_token_ids, *more))))


def empty_model(config: LlamaConfig, dtype: torch.dtype) -> Llama:
    """The modules without memory for their weights (meta device)."""
    with torch.device("meta"):
        return Llama(config, dtype)


def random_model(config: LlamaConfig, dtype: torch.dtype, seed: int) -> Llama:
    """Weights ~ N(0, 0.02^2); those that write into the residual stream divided by sqrt(2 * layers), as GPT-2 does, so
    that its variance does not grow with depth."""
    generator = torch.Generator().manual_seed(seed)
    model = Llama(config, dtype)
    for name, p in model.named_parameters():
        if p.ndim == 2:
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = 0.02 / (2 * config.num_hidden_layers) ** 0.5 if residual else 0.02
            nn.init.normal_(p, std=std, generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(p)
    return model


def open_weights(files: list[Path], config: LlamaConfig, dtype: torch.dtype) -> tuple[Llama, Weights, dict]:
    """The model without memory for its weights, the files, and the shape of every tensor that it wants from them.

    Raises ValueError naming every tensor that is unknown, missing or wrongly shaped."""
    weights = open_checkpoint(files)
    model = empty_model(config, dtype)
    _make_room_for_codes(model, weights)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:  # some files carry a second copy of the embeddings
        wanted.pop("lm_head.weight", None)
        weights.forget("lm_head.weight")
    check_names(wanted, weights)
    return model, weights, wanted


def load_model(files: list[Path], config: LlamaConfig, dtype: torch.dtype, device: torch.device | str = "cpu",
               change: Callable[[str, Linear], nn.Module] | None = None) -> Llama:
    """A model with its weights frozen.

    dtype: what activations are computed in; weights are kept in the file's own type.
    change: called with each linear layer's name and the layer as soon as it is loaded; what it returns takes the layer's
    place, so that quantizing a model never holds more than the k-bit model and one dense layer.
    Raises ValueError as `open_weights` does."""
    model, weights, wanted = open_weights(files, config, dtype)
    read_tensors(model, weights, wanted, device, change=change)
    model.tie_weights()
    return model.eval()


def read_tensors(model: Llama, weights: Weights, wanted: dict, device: torch.device | str, prefix: str = "",
                 change: Callable[[str, Linear], nn.Module] | None = None) -> None:
    """Those tensors of what `open_weights` returned whose names begin with `prefix`, into the model. `change` as for
    `load_model`."""
    waiting = {name: {n for n in wanted if n.rpartition(".")[0] == name}
               for name, module in model.named_modules() if isinstance(module, Linear)} if change else {}
    for name, tensor in weights.tensors(prefix):
        layer, _, leaf = name.rpartition(".")
        module = model.get_submodule(layer)
        if leaf in module._parameters:
            value = nn.Parameter(tensor.to(device), requires_grad=False)
            setattr(module, leaf, value)
        else:
            setattr(module, leaf, tensor.to(device))
        if layer in waiting:
            waiting[layer].discard(name)
            if not waiting[layer]:
                parent, _, child = layer.rpartition(".")
                setattr(model.get_submodule(parent), child, change(layer, module))


def stored_layers(files: list[Path], config: LlamaConfig, names: list[str],
                  device: torch.device | str) -> Iterator[tuple[str, nn.Module]]:
    """Each named linear layer as the files hold it, dense or codes, in float32 if asked to compute. The iterator itself holds one at
    a time. Raises ValueError as `open_weights` does."""
    model, weights, wanted = open_weights(files, config, torch.float32)
    for name in names:
        read_tensors(model, weights, wanted, device, f"{name}.")
        parent, _, child = name.rpartition(".")
        yield name, model.get_submodule(parent)._modules.pop(child)


def check_names(wanted: dict[str, tuple[int, ...]], weights: Weights) -> None:
    found = weights.shapes
    faults = [("missing", [n for n in wanted if n not in found]),
              ("unknown", [n for n in found if n not in wanted]),
              ("wrong shape", [f"{n} {list(found[n])} instead of {list(wanted[n])}"
                               for n in wanted if n in found and found[n] != wanted[n]])]
    text = "; ".join(f"{what}: {_some(names)}" for what, names in faults if names)
    if text:
        raise ValueError(f"{', '.join(map(str, weights.files))}: tensors do not fit the config: {text}")


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _make_room_for_codes(model: Llama, weights: Weights) -> None:
    """Where the file holds codes, put a quantized layer of the stated bits and block, still without memory."""
    for name, stated in weights.quantized.items():
        parent, _, child = name.rpartition(".")
        try:
            dense = model.get_submodule(name)
            D_out, D_in, bits, block = dense.out_features, dense.in_features, stated["bits"], Block.parse(stated["block"])
            word_shape(bits)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{', '.join(map(str, weights.files))}: bad header for quantized layer {name}: {error}") from None
        block.check_divides(D_out, D_in, name)
        grid = _empty_grid(name, weights, (D_out // block.n_out, D_in // block.n_in), block, bits)
        bias = None if dense.bias is None else _empty(D_out)
        setattr(model.get_submodule(parent), child, QuantLinear(D_out, D_in, _empty(packed_bytes(D_out * D_in, bits)), grid, bias))


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def _empty_grid(name: str, weights: Weights, factors: tuple[int, int], block: Block, bits: int) -> Grid:
    """Levels, scale and offset in the forms in which the file holds them."""
    def factor(kind: str, shape: tuple[int, int]):
        if f"{name}.{kind}.codes" in weights.shapes:
            return DoubleQuantized(_empty(*shape), _empty(-(-shape[0] * shape[1] // OUTER_BLOCK)), _empty(1))
        if f"{name}.{kind}.zero" in weights.shapes:
            return ZeroPoints(_empty(packed_bytes(shape[0] * shape[1], bits)), bits)
        return _empty(*shape)
    n_levels = 2 ** bits - (weights.shapes.get(f"{name}.levels") == (2 ** bits - 1,))  # symmetric grids have one fewer
    shared_offset = weights.shapes.get(f"{name}.offset") == (1, 1)
    return Grid(_empty(n_levels), factor("scale", factors), factor("offset", (1, 1) if shared_offset else factors), block, bits)


def save_model(model: Llama, path: Path, dtype: torch.dtype | None = None) -> None:
    """Every tensor of the model, tied weights once; dense ones in `dtype` where it is given."""
    quantized = {name: {"bits": m.bits, "block": str(m.block)}
                 for name, m in model.named_modules() if isinstance(m, QuantLinear)}
    buffers = {name for name, _ in model.named_buffers()}
    tensors = {name: t if name in buffers else t.to(dtype or t.dtype) for name, t in model.state_dict().items()
               if not (model.config.tie_word_embeddings and name == "lm_head.weight")}
    write_safetensors(path, tensors, {"quantized": json.dumps(quantized)} if quantized else None)


def quantized_layers(files: list[Path]) -> dict[str, dict]:
    """The layers that these files hold as codes: {NAME: {bits, block, zero_points}}, the last True where zero points are integers."""
    weights = open_checkpoint(files)
    return {name: {**stated, "zero_points": f"{name}.offset.zero" in weights.shapes} for name, stated in weights.quantized.items()}


@dataclass(frozen=True)
class StoredGrid:
    """What a layer's codes are rounded to, but for the factors."""
    bits: int
    block: Block
    levels: Tensor
    has_offset: bool  # one a block; else the whole layer has the same


def stored_grids(files: list[Path], names: Collection[str]) -> dict[str, StoredGrid]:
    """Of the named layers, which these files hold as codes. Reads headers, and the few levels of each layer."""
    weights = open_checkpoint(files)
    return {name: StoredGrid(weights.quantized[name]["bits"], Block.parse(weights.quantized[name]["block"]), weights.levels(name),
                             weights.shapes.get(f"{name}.offset") != (1, 1)) for name in names}
