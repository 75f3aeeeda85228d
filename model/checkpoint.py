"""Checkpoints in and out: safetensors, in one file or in shards with an index, streamed tensor by tensor.

GGUF files are read here too, through gguf_reader.py. Which files a model directory holds is in directory.py. Names and
shapes are compared with the model's before the first tensor is read, so a wrong directory costs no time.

A layer is stored dense (`NAME.weight`) or quantized (`NAME.codes`, `.levels`, `.scale`, `.offset`). Double quantization
replaces `.scale` by `.scale.codes`, `.scale.absmax` and `.scale.mean`. Integer zero points replace `.offset` by
`.offset.zero`. The file's header lists the quantized layers: `quantized: {NAME: {bits, block}}`.
"""
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from model.config import LlamaConfig
from model.files import parse_json, say_once, some
from model.gguf_reader import GGUFWeights, is_gguf
from model.llama import Linear, Llama
from model.stored_checkpoint import StoredWeights, stored_format
from model.stored_names import Stored, places
from model.tensor_files import open_safetensors, write_safetensors
from quant.factors import OUTER_BLOCK, DoubleQuantized, ZeroPoints
from quant.formats.stored import EACH, INTEGER, NONE
from quant.grid import Block, Grid
from quant.linear import QuantLinear
from quant.packing import packed_bytes, word_shape

IGNORED_ENDINGS = ("rotary_emb.inv_freq",)  # old files hold the rotary frequencies, which follow from the config
FLOATS = ("F32", "F16", "BF16", "F64")
# The parts of a quantized layer -> the types that they may have. Every other tensor is one of FLOATS.
TYPES_OF_PARTS = {"codes": ("U8",), "zero": ("U8",)}


class Weights:
    """The tensors of some safetensors files: names, shapes, and the file of each.

    Raises ValueError for a damaged file, a tensor that two files hold, and a tensor of a type that no layer has."""

    def __init__(self, files: list[Path]):
        self.files = files
        self.file_of: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.quantized: dict[str, dict] = {}
        self.stored: dict[str, Stored] = {}  # of tensors that the files have under other names, or as part of one
        for path in files:
            with open_safetensors(path) as file:
                self.quantized.update(_quantized_header(file.metadata(), path))
                for name in file.keys():
                    if not name.endswith(IGNORED_ENDINGS):
                        self._list(name, path, file.get_slice(name))

    def _list(self, name: str, path: Path, stored) -> None:
        if name in self.file_of:
            raise ValueError(f"{path}: {name} is also in {self.file_of[name]}; a model holds each tensor once")
        self.file_of[name], self.shapes[name] = path, tuple(stored.get_shape())
        allowed = TYPES_OF_PARTS.get(name.rpartition(".")[2], FLOATS)
        if (found := stored.get_dtype()) not in allowed:
            what = "its weights were quantized by another tool, in a format that is not read; give the model in 16 bits"
            raise ValueError(f"{path}: {name} is of type {found}, but must be {' or '.join(allowed)}"
                             f"{f' ({what})' if allowed is FLOATS else ''}")

    def name_as(self, config: LlamaConfig) -> None:
        """Give the tensors the names that they have in the model, and split those that hold several of its tensors.

        Raises ValueError if a tensor is there both ways, or a joined one does not have the rows of its parts."""
        for name in list(self.shapes):
            path, shape = self.file_of[name], self.shapes[name]
            found = places(name, shape, config, str(path))
            if name in found:
                continue
            self.forget(name)
            for ours, place in found.items():
                if ours in self.file_of:
                    raise ValueError(f"{path}: {name} holds {ours}, which is also in {self.file_of[ours]}; a model "
                                     f"holds each tensor once")
                self.file_of[ours], self.shapes[ours], self.stored[ours] = path, place.shape(shape), place
            if not found:
                say_once(f"{path}: holds a model of images; its text part alone is read")

    def forget(self, name: str) -> None:
        """Ignore this tensor of the files."""
        self.file_of.pop(name, None)
        self.shapes.pop(name, None)

    def stored_name(self, name: str) -> str:
        return self.stored[name].name if name in self.stored else name

    def levels(self, layer: str) -> Tensor:
        """The values that the codes of a quantized layer stand for."""
        with open_safetensors(self.file_of[f"{layer}.levels"]) as file:
            return file.get_tensor(f"{layer}.levels")

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Every tensor whose name begins with `prefix`, one at a time in memory. Raises Damaged for one that
        is not what was written."""
        for path in self.files:
            names = [name for name, file in self.file_of.items() if file == path and name.startswith(prefix)]
            if names:
                with open_safetensors(path) as file:
                    for name in names:
                        place = self.stored.get(name, Stored(name))
                        yield name, place.of(file.get_tensor(place.name))


def _quantized_header(metadata: dict[str, str], path: Path) -> dict[str, dict]:
    try:
        return parse_json(metadata.get("quantized", "{}"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged header: its list of quantized layers is not JSON ({error})") from None


def open_checkpoint(files: list[Path]) -> Weights | GGUFWeights | StoredWeights:
    """Three classes with the same interface. The rest of this file mentions only `Weights`."""
    if is_gguf(files[0]):
        return GGUFWeights(*files)
    stored = stored_format(files[0])
    return StoredWeights(files, stored) if stored else Weights(files)


def empty_model(config: LlamaConfig, dtype: torch.dtype) -> Llama:
    """The modules on the meta device: their weights take no memory."""
    with torch.device("meta"):
        return Llama(config, dtype)


def random_model(config: LlamaConfig, dtype: torch.dtype, seed: int) -> Llama:
    """Weights ~ N(0, 0.02^2). Those that write into the residual stream are divided by sqrt(2 * layers), as in GPT-2:
    the variance of the stream then does not grow with depth."""
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
    """An empty model, the weight files, and name -> shape of every tensor that the model needs. Reads only headers.

    Of tied models, a stored head is read too, because it must be equal to the embeddings.
    Raises ValueError, naming every tensor that is unknown, missing or of a wrong shape, and for another head."""
    weights = open_checkpoint(files)
    model = empty_model(config, dtype)
    weights.name_as(config)
    _make_room_for_codes(model, weights)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if isinstance(weights, StoredWeights):
        weights.forget_zero_biases(wanted)
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
        if isinstance(model.lm_head, QuantLinear):
            raise ValueError(f"{_where(weights)}: lm_head is stored as codes, but {TIED}")
        if "lm_head.weight" in weights.shapes:  # some files hold a second copy of the embeddings
            check_head(weights)
            weights.forget("lm_head.weight")
    check_names(wanted, weights)
    return model, weights, wanted


def load_model(files: list[Path], config: LlamaConfig, dtype: torch.dtype, device: torch.device | str = "cpu",
               change: Callable[[str, Linear], nn.Module] | None = None) -> Llama:
    """A model with frozen weights, in evaluation mode.

    dtype: the type of activations; weights keep the type that the file has.
    change: called with the name and the module of each linear layer once it is loaded. Its result replaces the layer.
    So quantizing a model needs the memory of the k-bit model and one dense layer.
    Raises ValueError as `open_weights` does."""
    model, weights, wanted = open_weights(files, config, dtype)
    read_tensors(model, weights, wanted, device, change=change)
    model.tie_weights()
    return model.eval()


def read_tensors(model: Llama, weights: Weights, wanted: dict, device: torch.device | str, prefix: str = "",
                 change: Callable[[str, Linear], nn.Module] | None = None) -> None:
    """Reads the tensors whose names begin with `prefix` into the model. `open_weights` returns the first three
    arguments; `change` is that of `load_model`. Raises ValueError for codes, levels, scales and offsets that no
    quantizer stores."""
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
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear) and f"{name}.".startswith(prefix) and not module.codes.is_meta:
            try:
                module.check(name)
            except ValueError as error:
                raise ValueError(f"{_where(weights)}: {error}") from None


def stored_layers(files: list[Path], config: LlamaConfig, names: list[str],
                  device: torch.device | str) -> Iterator[tuple[str, nn.Module]]:
    """Yields (name, module) of each named linear layer as the files hold it, dense or quantized, computing in float32.

    The iterator itself keeps only one layer in memory. Raises ValueError as `open_weights` does."""
    model, weights, wanted = open_weights(files, config, torch.float32)
    for name in names:
        read_tensors(model, weights, wanted, device, f"{name}.")
        parent, _, child = name.rpartition(".")
        yield name, model.get_submodule(parent)._modules.pop(child)


TIED = ("tie_word_embeddings is true (in config.json, or as the family's default), which means that the head is the "
        "embeddings: set it to false if the head was trained on its own")
ROWS = 8192  # rows of the embeddings that are compared at a time
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"


def check_head(weights: Weights) -> None:
    """Raises ValueError if the files of a tied model hold a head that is not the embeddings.

    Two types may differ by the rounding of the narrower one."""
    shape, other = (weights.shapes.get(name) for name in (HEAD, EMBEDDINGS))
    if other is None:
        return  # check_names names what is missing
    if isinstance(weights, StoredWeights) and EMBEDDINGS not in weights.dense:
        raise ValueError(f"{_where(weights)}: {HEAD} is dense and {EMBEDDINGS} codes, but {TIED}")
    with open_safetensors(weights.file_of[HEAD]) as a, open_safetensors(weights.file_of[EMBEDDINGS]) as b:
        head, embeddings = (file.get_slice(weights.stored_name(name)) for file, name in ((a, HEAD), (b, EMBEDDINGS)))
        starts = range(0, shape[0], ROWS) if shape == other and shape else ()
        parts = ((head[i:i + ROWS].nan_to_num(), embeddings[i:i + ROWS].nan_to_num()) for i in starts)
        if shape == other and all(torch.equal(x.to(y.dtype), y) or torch.equal(x, y.to(x.dtype)) for x, y in parts):
            return
    raise ValueError(f"{_where(weights)}: {HEAD} differs from {EMBEDDINGS}, but {TIED}")


def _where(weights: Weights) -> str:
    return some([str(path) for path in weights.files])


def check_names(wanted: dict[str, tuple[int, ...]], weights: Weights) -> None:
    found = weights.shapes
    faults = [("missing", [n for n in wanted if n not in found]),
              ("unknown", [n for n in found if n not in wanted]),
              ("wrong shape", [f"{n} {list(found[n])} instead of {list(wanted[n])}"
                               for n in wanted if n in found and found[n] != wanted[n]])]
    text = "; ".join(f"{what}: {some(names)}" for what, names in faults if names)
    if text:
        raise ValueError(f"{_where(weights)}: tensors do not fit the config: {text}")


def _make_room_for_codes(model: Llama, weights: Weights) -> None:
    """Put an empty quantized layer, of the stated bits and block, wherever the file holds codes."""
    for name, stated in weights.quantized.items():
        parent, _, child = name.rpartition(".")
        try:
            dense = model.get_submodule(name)
            D_out, D_in = dense.out_features, dense.in_features
            bits, block = stated["bits"], Block.parse(stated["block"])
            if not isinstance(dense, Linear) or type(bits) is not int or block.n_in is None:
                raise ValueError(f"{stated} is no number of bits and a block of two numbers for a linear layer")
            word_shape(bits)
            block.check_divides(D_out, D_in, name)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{_where(weights)}: bad header for quantized layer {name}: {error}") from None
        grid = _empty_grid(name, weights, (D_out // block.n_out, D_in // block.n_in), block, bits)
        bias = None if dense.bias is None else _empty(D_out)
        codes = _empty(packed_bytes(D_out * D_in, bits))
        setattr(model.get_submodule(parent), child, QuantLinear(D_out, D_in, codes, grid, bias))


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def _empty_grid(name: str, weights: Weights, factors: tuple[int, int], block: Block, bits: int) -> Grid:
    """Levels, scale and offset without memory, in the form that the file has."""
    def factor(kind: str, shape: tuple[int, int]):
        if f"{name}.{kind}.codes" in weights.shapes:
            return DoubleQuantized(_empty(*shape), _empty(-(-shape[0] * shape[1] // OUTER_BLOCK)), _empty(1))
        if f"{name}.{kind}.zero" in weights.shapes:
            return ZeroPoints(_empty(packed_bytes(shape[0] * shape[1], bits)), bits)
        return _empty(*shape)
    n_levels = 2 ** bits - (weights.shapes.get(f"{name}.levels") == (2 ** bits - 1,))  # symmetric grids have one less
    shared_offset = weights.shapes.get(f"{name}.offset") == (1, 1)
    offset = factor("offset", (1, 1) if shared_offset else factors)
    return Grid(_empty(n_levels), factor("scale", factors), offset, block, bits)


def save_model(model: Llama, path: Path, dtype: torch.dtype | None = None) -> None:
    """Writes every tensor of the model; tied weights once. dtype: of the dense tensors; None keeps the type of each."""
    buffers = {name for name, _ in model.named_buffers()}
    tensors = {name: t if name in buffers else t.to(dtype or t.dtype) for name, t in stored_tensors(model).items()}
    write_safetensors(path, tensors, stored_facts(model))


def stored_tensors(model: Llama) -> dict[str, Tensor]:
    """All that a file holds of a model, by name."""
    return {name: t for name, t in model.state_dict().items()
            if not (model.config.tie_word_embeddings and name == "lm_head.weight")}


def stored_facts(model: Llama) -> dict[str, str] | None:
    """What the file's header says of its quantized layers."""
    quantized = {name: {"bits": m.bits, "block": str(m.block)}
                 for name, m in model.named_modules() if isinstance(m, QuantLinear)}
    return {"quantized": json.dumps(quantized)} if quantized else None


def quantized_layers(files: list[Path]) -> dict[str, dict]:
    """The layers that these files hold as codes: {NAME: {bits, block, zero_points}}. zero_points: True if the offset is
    stored as integers. Reads only headers."""
    weights = open_checkpoint(files)
    return {name: {**stated, "zero_points": f"{name}.offset.zero" in weights.shapes}
            for name, stated in weights.quantized.items()}


@dataclass(frozen=True)
class StoredGrid:
    """The grid of a stored layer, without the values of scale and offset."""
    bits: int
    block: Block
    levels: Tensor
    offset: str  # EACH, INTEGER or NONE of quant.formats.stored


def stored_grids(files: list[Path], names: Collection[str]) -> dict[str, StoredGrid]:
    """The grid of each named layer, all of which must be codes in these files. Reads only headers and levels."""
    weights = open_checkpoint(files)

    def grid(name: str) -> StoredGrid:
        stated, shapes = weights.quantized[name], weights.shapes
        integers, one = f"{name}.offset.zero" in shapes, shapes.get(f"{name}.offset") == (1, 1)
        offset = INTEGER if integers else NONE if one else EACH
        return StoredGrid(stated["bits"], Block.parse(stated["block"]), weights.levels(name), offset)
    return {name: grid(name) for name in names}
