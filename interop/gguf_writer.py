"""Writes GGUF files that llama.cpp loads: the k-bit model that was trained, or a dense one.

    weight = d * code + m    d and m in float16, for each block of 32 inputs x 1 output

A layer with whole-number levels whose blocks are 32x1, or divide into such blocks, fits Q4_1, Q5_1, Q4_0, Q5_0 or Q8_0
as it is (quant/gguf_blocks.py). An adapter that merges into the offsets changes each block's m and nothing else: codes
and d are the base's own. Only m is rounded, to float16. If the base is a GGUF file, everything that was not trained is
copied byte for byte: embeddings, norms, metadata, tokenizer.

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
from adapters.merge import MergeTarget
from adapters.rounded import CODES
from finetune.source import Source
from finetune.values import DTYPES
from interop.gguf_metadata_writer import Metadata, architecture_of, kept_metadata, new_metadata
from interop.hugging_face import in_type
from interop.modelfile import modelfile, modelfile_file
from interop.trained import PlannedCodes, Trained, dense_tensor, fitting_codes, merged_layer, tensor_names
from model.config import LlamaConfig
from model.gguf_architectures import gguf_name, heads_of, interleaved, is_shifted
from model.gguf_layout import LONGROPE, PLAIN_TYPES, ROPE_DIVISORS, gguf_package
from model.gguf_reader import GGUFWeights, read_gguf
from model.llama import Llama
from model.rotary import llama3_frequencies, rotary_frequencies
from model.stored_names import joined_names
from quant.formats.stored import NONE
from quant.gguf_blocks import BLOCK_TYPES, fitting_type, in_file_blocks, stored_rows
from quant.gguf_superblocks import SUPERBLOCK_TYPES
from quant.grid import QuantizedWeight
from quant.linear import QuantLinear
from tasks import TASKS

# general.file_type, by the type of most layers
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}
PLAIN_NAMES = {dtype: name for name, dtype in PLAIN_TYPES.items()}
NEAR = {"Q4_K": "Q4_1", "Q5_K": "Q5_1"}  # of the same bits and blocks, with a real offset
INSTEAD = ("Train with --quantizer minmax --bits 4 --block 32x1 and an adapter that merges into its offsets (--method "
           "qablora --lam 32x8, or qalora) or into its codes (--merge-into codes), or export a dense file with --dtype "
           "bfloat16")


@dataclass(frozen=True)
class Planned:
    """A tensor of the file."""
    name: str
    type: str
    shape: tuple[int, ...]
    # Its name in the model; several if it joins their rows; none if it is copied from the GGUF base, or computed from
    # the config.
    ours: tuple[str, ...] = ()


class GGUFExport:
    name, is_directory, tolerance = "gguf", False, 0.0

    def __init__(self, trained: Trained, to: Path, dtype: str | None):
        """dtype: of a dense file; None keeps the codes, and the types of all other tensors. Raises ValueError for a
        model that llama.cpp cannot compute, and for layers that fit none of its types. Reads headers only."""
        gguf_package()
        self.trained, self.dense = trained, dtype and DTYPES[dtype]
        self.architecture = architecture_of(trained)
        self.types = {} if self.dense else types_of_codes(trained)
        self.file = read_gguf(trained.as_it_is) if trained.as_it_is and not self.dense else None
        self.metadata = kept_metadata(trained) or new_metadata(trained, to.stem)
        self.planned: list[Planned] = []

    # ---- writing

    def write(self, model: Llama, place: Path) -> dict:
        """Raises ValueError, naming the tensor, for values outside the range of its type."""
        self.planned, merged = list(self.plan(model)), MergedCodes()
        metadata = {**self.metadata, **self.file_type()}
        bar = tqdm(self.planned, "writing", unit="tensor", disable=None, leave=False)
        write_file(place, self.architecture, metadata, self.planned, (self.rows(t, model, merged) for t in bar))
        types = Counter(t.type for t in self.planned)
        return {"tensors": ", ".join(f"{n} {kind}" for kind, n in types.most_common()), **merged.facts()}

    def file_type(self) -> Metadata:
        """general.file_type: that of the most common type of layers. A copy of types without a number has none of its
        own, so the base's stays."""
        linear = Counter(t.type for t in self.planned if t.name.startswith("blk.") and len(t.shape) == 2)
        number = FILE_TYPES.get(linear.most_common(1)[0][0])
        return {} if number is None else {"general.file_type": (number, "UINT32", None)}

    def plan(self, model: Llama) -> Iterator[Planned]:
        """Every tensor of the file with its type. The tensors of a GGUF base keep their order."""
        parts = joined_names(tensor_names(model.config), model.config)
        ours = {gguf_name(name, self.architecture): names for name, names in parts.items()}
        for name in self.file.tensors if self.file else ours:
            if self.file and not any(part in self.trained_weights() for part in ours.get(name, ())):
                yield Planned(name, self.file.tensors[name].type, self.file.tensors[name].shape)
            else:
                yield self.planned_tensor(model, name, ours[name])
        if not self.file:
            yield from (Planned(name, "F32", tuple(t.shape)) for name, t in rotary_tensors(model.config).items())

    def trained_weights(self) -> set[str]:
        return {f"{layer}.weight" for layer in self.trained.adapted}

    def planned_tensor(self, model: Llama, name: str, ours: tuple[str, ...]) -> Planned:
        """Codes get the type that they fit. Dense matrices keep their type, or get the one of --dtype. llama.cpp
        expects vectors in float32. Raises ValueError for parts of one tensor that do not have one type."""
        parts = [self.planned_part(model, name, part) for part in ours]
        if differ := [part for part in parts if part.type != parts[0].type]:
            raise ValueError(f"{self.trained.path}: {parts[0].ours[0]} is of type {parts[0].type} and "
                             f"{differ[0].ours[0]} of type {differ[0].type}, but both are rows of {name}, which has "
                             f"one type. Train all of them (--targets all), or use --format safetensors")
        return Planned(name, parts[0].type, (sum(part.shape[0] for part in parts), *parts[0].shape[1:]), ours)

    def planned_part(self, model: Llama, name: str, ours: str) -> Planned:
        layer, _, leaf = ours.rpartition(".")
        module = model.get_submodule(layer)
        base = module.base if isinstance(module, AdaptedLinear) else module
        shape = (base.out_features, base.in_features) if isinstance(base, QuantLinear) else tuple(base.weight.shape)
        if leaf == "bias" or len(shape) == 1:
            return Planned(name, "F32", shape[:1], (ours,))
        kind = self.types.get(layer) or (self.file.tensors[name].type if self.file and isinstance(base, QuantLinear)
                                         else PLAIN_NAMES[self.dense or base.weight.dtype])
        return Planned(name, kind, shape, (ours,))

    def rows(self, tensor: Planned, model: Llama, merged: "MergedCodes") -> Tensor:
        """The tensor's bytes as they are stored, uint8, (rows, bytes of a row)."""
        if not tensor.ours:
            return (self.file.read(tensor.name) if self.file
                    else rotary_tensors(model.config)[tensor.name].view(torch.uint8)[None])
        if tensor.type in SUPERBLOCK_TYPES:
            codes = torch.cat([self.rows_of_heads(merged.moved(model, part), part, model) for part in tensor.ours])
            return SUPERBLOCK_TYPES[tensor.type].with_codes(self.file.read(tensor.name), codes)
        return torch.cat([self.part_rows(tensor, part, model, merged) for part in tensor.ours])

    def part_rows(self, tensor: Planned, ours: str, model: Llama, merged: "MergedCodes") -> Tensor:
        layer = ours.rpartition(".")[0]
        if tensor.type in BLOCK_TYPES:
            rows = stored_rows(merged.add(model, layer, tensor.type), BLOCK_TYPES[tensor.type])
        else:
            rows = in_type(self.as_stored(dense_tensor(model, ours), ours), PLAIN_TYPES[tensor.type], ours)
        return torch.atleast_2d(self.rows_of_heads(rows, ours, model).contiguous()).view(torch.uint8)

    def rows_of_heads(self, rows: Tensor, ours: str, model: Llama) -> Tensor:
        """In the order that the file has the rows of attention heads in."""
        heads = heads_of(self.architecture, model.config).get(ours.rpartition(".")[0].rpartition(".")[2])
        return interleaved(rows, heads) if heads else rows

    def as_stored(self, tensor: Tensor, ours: str) -> Tensor:
        return tensor.float() + 1 if is_shifted(ours, self.architecture) else tensor

    def beside(self, to: Path) -> dict[Path, str]:
        run = (self.trained.run_of_result or self.trained).run
        return {modelfile_file(to): modelfile(self.metadata, to, TASKS[run.config.data.task] if run else None)}

    # ---- reading again

    def reread(self, place: Path) -> Llama:
        return Source(place).load(torch.float32, "cpu")

    def expected(self, model: Llama, name: str) -> Tensor:
        """Codes with their factors in float16, and other tensors in the type of the file. A copied tensor is the
        base's."""
        tensor = next((t for t in self.planned if name in t.ours), None)
        if tensor and tensor.type in BLOCK_TYPES:
            layer = name.rpartition(".")[0]
            return in_file_blocks(merged_layer(model, layer).quantized_weight(), BLOCK_TYPES[tensor.type]).dequantize()
        dense = dense_tensor(model, name)
        if is_shifted(name, self.architecture):
            return (1 + dense.float()) - 1
        return dense.to(PLAIN_TYPES[tensor.type]) if tensor and tensor.type in PLAIN_TYPES else dense


# ---- what fits ----------------------------------------------------------------------------------------------------

def types_of_codes(trained: Trained) -> dict[str, str]:
    """The GGUF type of each layer that holds codes, after its adapter is merged. Layers that are copied from a GGUF
    base are left out. Raises ValueError for a layer that fits no type, and says what to train instead. Reads headers
    only."""
    stored = GGUFWeights(trained.as_it_is) if trained.as_it_is else None

    def type_of(codes: PlannedCodes) -> str | None:
        if stored and codes.target is None:
            return None
        if stored:
            kind = stored.type_of(f"{codes.name}.weight")
            if kind in SUPERBLOCK_TYPES and codes.target.into == CODES:
                return kind
            check_merge_fits(kind, codes.target)
        codes.check_merges()
        stated = codes.stated
        has_offset = stated.offset != NONE or codes.gains_offset
        return fitting_type(stated.values(), stated.bits, stated.block, has_offset)
    return {name: kind for name, kind in fitting_codes(trained, type_of, INSTEAD).items() if kind}


def check_merge_fits(kind: str, target: MergeTarget) -> None:
    """Raises ValueError for a K type: what an adapter changes has no place in its superblocks, unless it is codes
    alone."""
    if kind in SUPERBLOCK_TYPES:
        stored = "and its offset as dmin * m, for small integers s, m. A merged scale or offset is no such product" \
            if SUPERBLOCK_TYPES[kind].has_offset else "for a small integer s, and no offset. A merged layer has one"
        near = f"; exported, its layers become {NEAR[kind]}, which rounds d and m to float16" if kind in NEAR else ""
        raise ValueError(f"{kind} stores a block's scale as d * s {stored}. RUN/merged, which train.py writes if every "
                         f"adapter merges into k bits, holds the merged model exactly{near}")


class MergedCodes:
    """Converts codes to those of a file. Counts the layers that keep the base's codes and scales, and keeps the largest
    error of rounding the factors to float16."""

    def __init__(self):
        self.all = self.layers = self.same_codes = self.same_scale = 0
        self.rounded, self.steps = 0.0, 0.0

    def add(self, model: Llama, layer: str, kind: str) -> QuantizedWeight:
        """Raises ValueError, naming the layer, for factors beyond float16."""
        module, exact = model.get_submodule(layer), merged_layer(model, layer).quantized_weight()
        try:
            weight = in_file_blocks(exact, BLOCK_TYPES[kind])
        except ValueError as error:
            raise ValueError(f"layer {layer}: {error}") from None
        error = (weight.dequantize(torch.float64) - exact.dequantize(torch.float64)).abs()
        error = error.unflatten(1, (weight.grid.scale.shape[1], -1)).amax(2)  # of each block
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

    def moved(self, model: Llama, ours: str) -> Tensor:
        """The codes of a layer, which go among the scales that the file has: nothing is rounded."""
        layer = ours.rpartition(".")[0]
        self.layers += isinstance(model.get_submodule(layer), AdaptedLinear)
        self.same_scale += isinstance(model.get_submodule(layer), AdaptedLinear)
        return merged_layer(model, layer).quantized_weight().codes

    def facts(self) -> dict:
        merged = {"merged_layers": self.layers, "merged_layers_with_the_codes_of_the_base": self.same_codes,
                  "merged_layers_with_the_scales_of_the_base": self.same_scale} if self.layers else {}
        rounding = {"largest_error_of_float16_factors": f"{self.rounded:.2g}; {self.steps:.2g} of the step between two "
                                                        f"codes of a block"}
        return {**merged, **(rounding if self.all else {})}


# ---- the file -----------------------------------------------------------------------------------------------------

def rotary_tensors(config: LlamaConfig) -> dict[str, Tensor]:
    """Scalings that a file holds as divisors of the plain frequencies, one for each pair of dimensions, float32."""
    scaling = {key: value for key, value in (config.rope_scaling or {}).items() if key != "rope_type"}
    if not scaling or config.rope_scaling["rope_type"] not in ("llama3", "longrope"):
        return {}
    if config.rope_scaling["rope_type"] == "longrope":
        return {name: torch.tensor(scaling[key], dtype=torch.float32) for key, name in LONGROPE.items()}
    plain = rotary_frequencies(replace(config, rope_scaling=None))
    return {ROPE_DIVISORS: plain / llama3_frequencies(plain, **scaling)}


def write_file(place: Path, architecture: str, metadata: Metadata, tensors: list[Planned],
               rows: Iterator[Tensor]) -> None:
    """Writes the file with one tensor in memory at a time."""
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
