"""A k-bit model directory in the format of another tool (quant/formats): MLX.

Codes are written as they are. An adapter that merges changes the offsets or the scales of its layers, and nothing else.
If the base is a directory in the same format, everything that was not trained is copied: its quantized embeddings too.
"""
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from adapters.adapted import AdaptedLinear
from finetune.adapted_model import sixteen_bit_type
from finetune.config import DTYPES
from interop.hugging_face import hugging_face_config, in_type, read_model, write_tokenizer
from interop.trained import PlannedCodes, Trained, dense_tensor, fitting_codes, merged_layer, tensor_names
from model.checkpoint import weight_files
from model.families import FAMILIES
from model.files import write_json
from model.llama import Llama
from model.stored_checkpoint import StoredWeights, stored_format
from model.tensor_files import name_of, write_safetensors
from quant.formats import MLX
from quant.formats.stored import StoredFormat

INSTEAD = ("Train with --quantizer minmax --bits 4 --block 32x1 and an adapter that merges into its offsets (--method "
           "qablora --lam 32x8, or qalora) or into its codes (--merge-into codes), or export the dense model with "
           "--format safetensors")


class StoredFormatExport:
    is_directory, tolerance = True, 0.0
    kind: ClassVar[type[StoredFormat]]

    def __init__(self, trained: Trained, to: Path, dtype: str | None):
        """dtype: of factors and dense weights. None: factors get the smallest type that holds them, dense weights keep
        theirs. Raises ValueError for a model without codes, and, with the layer, for codes that the format does not
        hold. Reads headers only."""
        if joined := FAMILIES[trained.config.model_type].fused:
            raise ValueError(f"{trained.path}: files of model_type {trained.config.model_type!r} join layers "
                             f"({', '.join(joined)}), whose codes are not joined here: use --format safetensors")
        self.trained, self.dtype = trained, dtype and DTYPES[dtype]
        self.settings = settings_of(trained, self.kind)
        self.base = base_in_format(trained, self.kind)

    def write(self, model: Llama, place: Path) -> dict:
        """Raises ValueError, naming the layer, for factors and weights that --dtype cannot hold."""
        tensors, settings = self.copied(), dict(self.settings)
        if self.base:
            settings |= {layer: self.kind.setting_for(self.base.levels(layer), stated.bits, stated.block)
                         for layer, stated in self.base.stated.items()}
        for name in tqdm(tensor_names(model.config), "writing", unit="tensor", disable=None, leave=False):
            layer, _, leaf = name.rpartition(".")
            if layer in self.settings and leaf == "weight":
                tensors |= {f"{layer}.{part}": tensor for part, tensor in self.parts(model, layer).items()}
            elif f"{layer}.{next(iter(self.kind.parts))}" not in tensors or leaf == "bias":
                tensors[name] = in_type(dense_tensor(model, name), self.dense_type(model, layer), name)
        write_safetensors(place / "model.safetensors", tensors)
        dense = next(t.dtype for name, t in tensors.items() if name.endswith("norm.weight"))
        config = hugging_face_config(self.trained.config, dense)
        write_json(place / "config.json", {**config, **self.kind.config_of(settings)})
        write_tokenizer(self.trained, place)
        types = sorted({name_of(t.dtype) for t in tensors.values()})
        return {"layers_of_codes": len(settings), "types": ", ".join(types)}

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
            return self.kind.write(merged_layer(model, layer), self.dtype)
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
        written_as = self.kind.of(self.kind.config_of({layer: self.settings[layer]}))
        return written_as.layer(layer, self.parts(model, layer)).dequantize()


class MLXExport(StoredFormatExport):
    name, kind = "mlx", MLX


def base_in_format(trained: Trained, kind: type[StoredFormat]) -> StoredWeights | None:
    """The files that the run was trained on, or that are exported, if they are in the same format."""
    if trained.run and (not trained.adapter_name or trained.run.base_file.is_file()):
        return None
    place = trained.base.path if trained.run else trained.path
    files = [] if Trained.at(place).run else weight_files(place)
    stored = stored_format(files[0]) if files and files[0].suffix == ".safetensors" else None
    return StoredWeights(files, stored) if isinstance(stored, kind) else None


def settings_of(trained: Trained, kind: type[StoredFormat]) -> dict:
    """The sizes of each layer that holds codes, after its adapter is merged. Raises ValueError for a layer that does
    not fit, and says what to train instead. Reads headers only."""
    def setting_of(codes: PlannedCodes) -> Any:
        codes.check_merges()
        return kind.setting_for(codes.grid.levels, codes.grid.bits, codes.grid.block)
    settings = fitting_codes(trained, setting_of, INSTEAD)
    if not settings:
        raise ValueError(f"{trained.path}: holds no codes, so that the format {kind.name} has nothing to say: use "
                         f"--format safetensors, which its tools load as well")
    return settings
