"""A k-bit model directory in the format of another tool (quant/formats): MLX, GPTQ, compressed-tensors.

Codes are written as they are. An adapter that merges changes the codes, offsets or scales of its layers, and nothing
else. If an MLX directory was the base of an MLX export, everything that was not trained is copied: its quantized
embeddings too.
"""
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from adapters import ADAPTERS
from adapters.adapted import AdaptedLinear
from adapters.merge import MergeRefused
from finetune.adapted_model import linear_names, sixteen_bit_type
from finetune.values import DTYPES
from interop.hugging_face import hugging_face_config, in_type, read_model, write_tokenizer
from interop.trained import PlannedCodes, Trained, dense_tensor, fitting_codes, merged_layer, tensor_names
from model.checkpoint import empty_model
from model.directory import weight_files
from model.families import FAMILIES
from model.files import write_json
from model.llama import Llama
from model.stored_checkpoint import StoredWeights, stored_format
from model.tensor_files import name_of, write_safetensors
from quant.formats import GPTQ, MLX, CompressedTensors
from quant.formats.stored import StoredFormat, stated_of

VLLM = "vllm_not_tried_here"

class StoredFormatExport:
    is_directory, tolerance = True, 0.0
    name: ClassVar[str]
    kind: ClassVar[type[StoredFormat]]
    instead: ClassVar[str]  # what to do about a layer that does not fit
    beside_base = ""        # and about an adapter that can stand beside the base

    def __init__(self, trained: Trained, to: Path, dtype: str | None, merged: bool = True):
        """dtype: of factors and dense weights. None: the format's usual type of factors; dense weights keep theirs.
        merged: with the run's adapters; False for the base that they stand beside. Raises ValueError for a model
        without codes, and, with the layer, for codes that the format does not hold. Reads headers only."""
        if joined := FAMILIES[trained.config.model_type].fused:
            raise ValueError(f"{trained.path}: files of model_type {trained.config.model_type!r} join layers "
                             f"({', '.join(joined)}), whose codes are not joined here: use --format safetensors")
        self.trained, self.to, self.dtype = trained, to, dtype and DTYPES[dtype]
        if merged and self.beside_base and stands_beside(trained):
            self.instead = f"{self.instead}; {self.beside_base}"
        self.base = self.base_in_format()
        self.state(settings_of(trained, self.kind, self.instead, merged))

    def state(self, settings: dict[str, Any]) -> None:
        """These layers are written so. Raises ValueError if one model cannot hold them all."""
        self.settings, of_base = settings, self.base.stated if self.base else {}
        every = {**settings, **{name: self.kind.setting_for(sizes) for name, sizes in of_base.items()}}
        linear = linear_names(empty_model(self.trained.config, torch.float32), "all")
        try:
            self.config = self.kind.config_of(every, [name for name in linear if name not in every])
        except ValueError as error:
            raise ValueError(f"{self.trained.path}: {error}. {self.instead}") from None
        self.stored = self.kind.of(self.config)

    def base_in_format(self) -> StoredWeights | None:
        """Files of a base in the same format, of which all that was not trained is copied."""
        return None

    def write(self, model: Llama, place: Path) -> dict:
        """`model` has the run's adapters, or is the base. Raises ValueError, naming the layer, for factors and weights
        that --dtype cannot hold."""
        tensors = self.copied()
        for name in tqdm(tensor_names(model.config), "writing", unit="tensor", disable=None, leave=False):
            layer, _, leaf = name.rpartition(".")
            if layer in self.settings and leaf == "weight":
                tensors |= {f"{layer}.{part}": tensor for part, tensor in self.parts(model, layer).items()}
            elif f"{layer}.{next(iter(self.kind.parts))}" not in tensors or leaf == "bias":
                tensors[name] = in_type(dense_tensor(model, name), self.dense_type(model, layer), name)
        write_safetensors(place / "model.safetensors", tensors)
        dense = next(t.dtype for name, t in tensors.items() if name.endswith("norm.weight"))
        write_json(place / "config.json", {**hugging_face_config(self.trained.config, dense), **self.config})
        write_tokenizer(self.trained, place)
        types = sorted({name_of(t.dtype) for t in tensors.values()})
        return {"layers_of_codes": len(self.settings), "types": ", ".join(types)}

    def copied(self) -> dict[str, Tensor]:
        """The parts of the base's embeddings, if they are codes."""
        if not self.base:
            return {}
        return {f"{layer}.{part}": tensor for layer in self.base.stated if layer not in self.settings
                for part, tensor in self.base.parts(layer).items()}

    def parts(self, model: Llama, layer: str) -> dict[str, Tensor]:
        """The tensors of a layer of codes, its adapter merged. What was not trained is the base's own."""
        module = model.get_submodule(layer)
        if self.base and layer in self.base.stated and not isinstance(module, AdaptedLinear):
            return self.base.parts(layer)
        try:
            return self.stored.write(layer, merged_layer(model, layer), self.dtype)
        except ValueError as error:
            raise ValueError(f"layer {layer}: {error}") from None

    def dense_type(self, model: Llama, layer: str) -> torch.dtype:
        """Dense weights keep their type; one with an adapter merged into it gets that of the embeddings."""
        module = model.get_submodule(layer)
        if self.dtype or isinstance(module, AdaptedLinear):
            return self.dtype or sixteen_bit_type(model)
        return module.weight.dtype

    # ---- reading again

    def reread(self, place: Path) -> Llama:
        return read_model(self.trained, place)

    def beside(self, to: Path) -> dict[Path, str]:
        return {}

    def expected(self, model: Llama, name: str) -> Tensor:
        """Codes with their factors as they were written; dense tensors in their type."""
        layer, _, leaf = name.rpartition(".")
        if layer not in self.settings or leaf != "weight":
            codes = self.base and layer in self.base.stated
            return dense_tensor(model, name) if codes else dense_tensor(model, name).to(self.dense_type(model, layer))
        return self.stored.layer(layer, self.parts(model, layer)).dequantize()


class MLXExport(StoredFormatExport):
    name, kind = "mlx", MLX
    instead = ("Train with --quantizer minmax --bits 4 --block 32x1 and an adapter that merges into its offsets "
               "(--method qablora --lam 32x8, or qalora) or into its codes (--merge-into codes), or export the dense "
               "model with --format safetensors")

    def base_in_format(self) -> StoredWeights | None:
        trained = self.trained
        if trained.run and (not trained.adapter_name or trained.run.base_file.is_file()):
            return None
        place = trained.base.path if trained.run else trained.path
        files = [] if Trained.at(place).run else weight_files(place)
        stored = stored_format(files[0]) if files and files[0].suffix == ".safetensors" else None
        return StoredWeights(files, stored) if isinstance(stored, self.kind) else None


class IntegerExport(StoredFormatExport):
    """A format with integer zeros, which transformers reads, and vLLM as far as `not_in_vllm` says."""
    instead = ("Train with --block 32x1 and --method peqa, or with --block 32x1 --quantizer intminmax or absmax and "
               "--merge-into codes; or use --format safetensors, or mlx or gguf if the adapter merges into offsets")
    beside_base = ("or, if the base is one of intminmax or absmax, keep the adapter beside it, with --format peft "
                   "--base-format")

    def write(self, model: Llama, place: Path) -> dict:
        """Headers do not tell a symmetric grid with zero points from others; the zeros do. No merge changes them."""
        modules = {name: model.get_submodule(name) for name in self.settings}
        self.state({name: self.kind.setting_for(stated_of(m.base if isinstance(m, AdaptedLinear) else m))
                    for name, m in modules.items()})
        return {**super().write(model, place), VLLM: self.served()}

    def served(self, *more: str) -> str:
        """vLLM's command line. It computes in one type, to which it rounds the scales."""
        kind = "bfloat16" if self.dtype == torch.bfloat16 else "float16"
        return self.not_in_vllm() or " ".join(["vllm serve", str(self.to), "--dtype", kind, *more])

    @abstractmethod
    def not_in_vllm(self) -> str | None:
        """Why vLLM does not load it, by the source of vLLM 0.33."""


class GPTQExport(IntegerExport):
    name, kind = "gptq", GPTQ

    def not_in_vllm(self) -> str | None:
        if self.stored.symmetric and self.stored.bits in (4, 8):
            return None
        return ("vLLM reads GPTQ only of 4 and 8 bits on symmetric grids (--quantizer absmax); use compressed-tensors, "
                "or another engine")


class CompressedTensorsExport(IntegerExport):
    name, kind = "compressed-tensors", CompressedTensors

    def not_in_vllm(self) -> str | None:
        schemes = self.stored.schemes
        if all(scheme.bits == 4 or scheme.bits == 8 and scheme.symmetric for scheme in schemes):
            return None
        return "vLLM has kernels for 4 bits, and for 8 with symmetric grids; others need its package humming"


INTEGER_FORMATS = {export.name: export for export in (GPTQExport, CompressedTensorsExport)}


def stands_beside(trained: Trained) -> bool:
    """Whether the run's adapter computes the same beside the base as in training."""
    return bool(trained.adapter_name and ADAPTERS[trained.adapter_name].additive
                and not trained.run.config.adapter.merge_into)


def settings_of(trained: Trained, kind: type[StoredFormat], instead: str, merged: bool) -> dict[str, Any]:
    """How each layer that holds codes is stored, after its adapter is merged. Raises ValueError for a layer that does
    not fit, and says what to do instead. Reads headers only."""
    def setting_of(codes: PlannedCodes) -> Any:
        codes.check_merges()
        if codes.gains_offset and not kind.real_offsets:
            raise MergeRefused(f"its adapter merges into offsets, which become real numbers, and {kind.name} holds "
                               f"integer zeros")
        return kind.setting_for(codes.stated)
    settings = fitting_codes(trained, setting_of, instead, merged)
    if not settings:
        raise ValueError(f"{trained.path}: holds no codes, so that the format {kind.name} has nothing to say: use "
                         f"--format safetensors, which its tools load as well")
    return settings
