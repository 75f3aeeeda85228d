"""GGUF files out, as llama.cpp loads them: the k-bit model that was trained, or a dense one.

A layer that is whole-number codes in blocks of 32x1, or of several such, is Q4_1, Q4_0 or Q8_0 as it stands (quant/gguf_blocks.py). An adapter that
merges into the offsets moves each block's m and nothing else: codes and d are the base's own. m is rounded to float16, which is all that is
rounded. Where the base is a GGUF file, what was not trained goes over byte for byte: embeddings, norms, metadata, tokenizer.

Needs the `gguf` package (requirements-extra.txt).
"""
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import torch
from torch import Tensor
from tqdm import tqdm

from adapters.adapted import AdaptedLinear
from adapters.merge import MergeRefused, merge_into_codes, merge_target
from finetune.source import Source
from interop.gguf_metadata_writer import Metadata, architecture_of, kept_metadata, new_metadata
from interop.hugging_face import DTYPES, in_type
from interop.trained import Trained, dense_tensor, tensor_names
from model.checkpoint import empty_model, stored_grids
from model.config import LlamaConfig
from model.gguf_layout import PLAIN_TYPES, ROPE_DIVISORS, gguf_name, gguf_package, heads_of, interleaved, our_name
from model.gguf_reader import read_gguf
from model.llama import Llama, llama3_frequencies, rotary_frequencies
from quant.gguf_blocks import BLOCK_TYPES, fitting_type, in_file_blocks, stored_rows
from quant.grid import QuantizedWeight
from quant.linear import QuantLinear

FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}  # general.file_type, by the type of most layers
PLAIN_NAMES = {dtype: name for name, dtype in PLAIN_TYPES.items()}
INSTEAD = ("Train with --quantizer minmax --bits 4 --block 32x1 and an adapter that merges into its offsets (--method qablora --lam 32x8, or "
           "qalora), or export a dense file with --dtype bfloat16")


@dataclass(frozen=True)
class Planned:
    """A tensor of the file."""
    name: str
    type: str
    shape: tuple[int, ...]
    ours: str | None = None  # the model's tensor that it is; None: it goes over as the GGUF base has it, or follows from the config


class GGUFExport:
    name, is_directory, tolerance = "gguf", False, 0.0

    def __init__(self, trained: Trained, to: Path, dtype: str | None):
        """dtype: of a dense file; None for one that keeps everything as it is in the run. Raises ValueError for what llama.cpp does not compute,
        and for layers that have no type there. Reads headers only."""
        gguf_package()
        self.trained, self.dense = trained, dtype and DTYPES[dtype]
        self.architecture = architecture_of(trained)
        self.types = {} if self.dense else types_of_codes(trained)
        self.file = read_gguf(trained.as_it_is) if trained.as_it_is and not self.dense else None
        self.metadata = kept_metadata(trained) or new_metadata(trained, to.stem)
        self.planned: list[Planned] = []

    # ---- writing

    def write(self, model: Llama, place: Path) -> dict:
        """Raises ValueError, naming the tensor, for values that its type cannot hold."""
        self.planned, merged = list(self.plan(model)), MergedCodes()
        linear = Counter(t.type for t in self.planned if t.name.startswith("blk.") and len(t.shape) == 2)
        metadata = {**self.metadata, "general.file_type": (FILE_TYPES[linear.most_common(1)[0][0]], "UINT32", None)}
        rows = (self.rows(tensor, model, merged) for tensor in tqdm(self.planned, "writing", unit="tensor", disable=None, leave=False))
        write_file(place, self.architecture, metadata, self.planned, rows)
        types = Counter(t.type for t in self.planned)
        return {"tensors": ", ".join(f"{n} {kind}" for kind, n in types.most_common()), **merged.facts()}

    def plan(self, model: Llama) -> Iterator[Planned]:
        """Every tensor of the file with its type; a GGUF base's in its own order."""
        ours = {gguf_name(name): name for name in tensor_names(model.config)}
        for name in self.file.tensors if self.file else ours:
            layer, _, leaf = our_name(name).rpartition(".")
            if self.file and not (layer in self.trained.adapted and leaf == "weight"):
                yield Planned(name, self.file.tensors[name].type, self.file.tensors[name].shape)
            else:
                yield self.planned_tensor(model, name, ours[name])
        if (model.config.rope_scaling or {}).get("rope_type") == "llama3" and not self.file:
            yield Planned(ROPE_DIVISORS, "F32", (model.config.head_dim // 2,))

    def planned_tensor(self, model: Llama, name: str, ours: str) -> Planned:
        """Codes as the type that they fit; all else in the type it has, or that was asked for. llama.cpp wants vectors in float32."""
        layer, _, leaf = ours.rpartition(".")
        module = model.get_submodule(layer)
        base = module.base if isinstance(module, AdaptedLinear) else module
        shape = (base.out_features, base.in_features) if isinstance(base, QuantLinear) else tuple(base.weight.shape)
        if leaf == "bias" or len(shape) == 1:
            return Planned(name, "F32", shape[:1], ours)
        return Planned(name, self.types.get(layer) or PLAIN_NAMES[self.dense or base.weight.dtype], shape, ours)

    def rows(self, tensor: Planned, model: Llama, merged: "MergedCodes") -> Tensor:
        """What is stored of it, uint8: (rows, bytes of a row)."""
        if tensor.ours is None:
            return self.file.read(tensor.name) if self.file else rope_divisors(model.config).view(torch.uint8)[None]
        layer = tensor.ours.rpartition(".")[0]
        if tensor.type in BLOCK_TYPES:
            rows = stored_rows(merged.add(model, layer, tensor.type), BLOCK_TYPES[tensor.type])
        else:
            rows = in_type(dense_tensor(model, tensor.ours), PLAIN_TYPES[tensor.type], tensor.ours)
        heads = heads_of(self.architecture, model.config).get(layer.rpartition(".")[2])
        rows = interleaved(rows, heads) if heads else rows
        return torch.atleast_2d(rows.contiguous()).view(torch.uint8)

    # ---- reading again

    def reread(self, place: Path) -> Llama:
        return Source(place).load(torch.float32, "cpu")

    def expected(self, model: Llama, name: str) -> Tensor:
        """Codes with the factors that the file can hold; all else in the file's type. What went over as it was is read as it was."""
        tensor = next(t for t in self.planned if t.name == gguf_name(name))
        if tensor.ours and tensor.type in BLOCK_TYPES:
            layer = name.rpartition(".")[0]
            return in_file_blocks(merged_codes(model, layer), BLOCK_TYPES[tensor.type]).dequantize()
        return dense_tensor(model, name) if tensor.type in BLOCK_TYPES else dense_tensor(model, name).to(PLAIN_TYPES[tensor.type])


# ---- what fits ----------------------------------------------------------------------------------------------------

def types_of_codes(trained: Trained) -> dict[str, str]:
    """The type of each layer that is codes, merged where it has an adapter. Raises ValueError for a layer that fits none, with what to train
    instead. Reads headers only."""
    planned = trained.planned() if trained.adapted else empty_model(trained.config, torch.float32)
    types = {}
    for name, grid in stored_grids(trained.code_files, trained.quantized()).items():
        layer, has_offset = planned.get_submodule(name), grid.has_offset
        try:
            if isinstance(layer, AdaptedLinear):
                target = merge_target(layer.base, layer.adapter)
                if not target.keeps_codes:
                    raise MergeRefused(f"layer {name}: {target.reason}")
                has_offset, layer = has_offset or target.into == "offset", layer.base
            types[name] = fitting_type(grid.levels, grid.bits, grid.block.in_layer(layer.in_features), has_offset)
        except ValueError as error:
            where = "" if name in str(error) else f"layer {name}: "
            raise ValueError(f"{trained.path}: {where}{error}. {INSTEAD}") from None
    return types


def merged_codes(model: Llama, layer: str) -> QuantizedWeight:
    """The codes of a layer, with the adapter, where it has one, in their offsets (or scales)."""
    module = model.get_submodule(layer)
    return (merge_into_codes(module, layer) if isinstance(module, AdaptedLinear) else module).quantized_weight()


class MergedCodes:
    """Turns codes into those of a file, and keeps account: what became of the base's codes and scales, and what rounding did."""

    def __init__(self):
        self.all = self.layers = self.same_codes = self.same_scale = 0
        self.rounded, self.steps = 0.0, 0.0

    def add(self, model: Llama, layer: str, kind: str) -> QuantizedWeight:
        """Raises ValueError, naming the layer, for factors beyond float16."""
        module, exact = model.get_submodule(layer), merged_codes(model, layer)
        try:
            weight = in_file_blocks(exact, BLOCK_TYPES[kind])
        except ValueError as error:
            raise ValueError(f"layer {layer}: {error}") from None
        error = (weight.dequantize(torch.float64) - exact.dequantize(torch.float64)).abs().unflatten(1, (weight.grid.scale.shape[1], -1)).amax(2)
        scale = weight.grid.scale.double().abs()
        self.all += 1
        self.rounded = max(self.rounded, error.max().item())
        self.steps = max(self.steps, torch.where(scale > 0, error / scale, 0).max().item())
        if isinstance(module, AdaptedLinear):
            before = in_file_blocks(module.base.quantized_weight(), BLOCK_TYPES[kind])
            self.layers += 1
            self.same_codes += torch.equal(before.codes, weight.codes)
            self.same_scale += torch.equal(before.grid.scale, weight.grid.scale)
        return weight

    def facts(self) -> dict:
        merged = {"merged_layers": self.layers, "of_which_with_the_codes_of_the_base": self.same_codes,
                  "of_which_with_the_scales_of_the_base": self.same_scale} if self.layers else {}
        rounding = {"rounding_to_float16_factors_at_most": f"{self.rounded:.2g}, which is {self.steps:.2g} of the step between two codes of its block"}
        return {**merged, **(rounding if self.all else {})}


# ---- the file -----------------------------------------------------------------------------------------------------

def rope_divisors(config: LlamaConfig) -> Tensor:
    """What Llama 3.1's rotary scaling divides each frequency by, float32, (head_dim/2,)."""
    plain = rotary_frequencies(replace(config, rope_scaling=None))
    return plain / llama3_frequencies(plain, **{key: value for key, value in config.rope_scaling.items() if key != "rope_type"})


def write_file(place: Path, architecture: str, metadata: Metadata, tensors: list[Planned], rows: Iterator[Tensor]) -> None:
    """One tensor in memory at a time."""
    gguf = gguf_package()
    writer = gguf.GGUFWriter(place, architecture)
    for key, (value, kind, of) in metadata.items():
        writer.add_key_value(key, value, gguf.GGUFValueType[kind], of and gguf.GGUFValueType[of])
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.type]
        *outer, length = tensor.shape
        weights, size = gguf.GGML_QUANT_SIZES[kind]
        shape = (*outer, length // weights * size)
        writer.add_tensor_info(tensor.name, shape, numpy.dtype(numpy.uint8), math.prod(shape), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for part in rows:
        writer.write_tensor_data(part.numpy())
    writer.close()
