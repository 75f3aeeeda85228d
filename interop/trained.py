"""What is exported: a run as it was trained, or a model directory or GGUF file that is a result itself."""
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from adapters.adapted import AdaptedLinear
from finetune.adapted_model import linear_names
from finetune.checks import planned_run
from finetune.config import Place
from finetune.run import Run, is_run, open_run
from finetune.source import Source, check_fingerprint, check_trained, load_trained
from model.checkpoint import empty_model, load_config, open_weights, quantized_layers, weight_files
from model.config import LlamaConfig
from model.gguf_reader import is_gguf
from model.llama import Llama
from quant.linear import QuantLinear


@dataclass(frozen=True)
class Trained:
    path: Path
    run: Run | None = None

    @classmethod
    def at(cls, path: Path) -> "Trained":
        """Reads headers only. Raises ValueError or FileNotFoundError for what is no model, is not trained to the end of an epoch, or whose
        base is no longer what it was."""
        if is_run(path):
            run = open_run(path)
            check_trained(run)
            trained = cls(path, run)
            if trained.adapter_name and not run.base_file.is_file() and not run.config.base.quantization:
                check_fingerprint(trained.base, run)
            return trained
        config = load_config(path)
        open_weights(weight_files(path), config, torch.float32)
        return cls(path)

    @cached_property
    def config(self) -> LlamaConfig:
        return load_config(self.path)

    @property
    def tokenizer(self):
        return Source(self.path).tokenizer

    @property
    def adapter_name(self) -> str | None:
        """A key of ADAPTERS; None: there is no adapter."""
        return self.run.config.adapter_kind if self.run else None

    @property
    def base(self) -> Source:
        """What the run was trained from."""
        return Source(self.model_place)

    @property
    def model_place(self) -> Place:
        return self.run.config.base.model

    @property
    def origin(self) -> Path | None:
        """The first model of the line, where it is still on this machine and what it was: a run's base, its base's base, ... It has the small
        files, or the metadata, that runs do not keep. Fetches nothing."""
        if self.run is None:
            return self.path
        place = self.model_place
        if not isinstance(place, Path) or not place.exists():
            return None
        try:
            check_fingerprint(self.base, self.run)
        except (ValueError, OSError):
            return None
        return Trained(place, open_run(place)).origin if is_run(place) else place

    @property
    def as_it_is(self) -> Path | None:
        """The GGUF file that the run was trained on as it is, or that this is: whatever the run did not train is still the file's own."""
        if self.run is None:
            place = self.path
        else:
            place = self.model_place if self.adapter_name and not self.run.config.base.quantization else None
        return place if isinstance(place, Path) and is_gguf(place) else None

    @property
    def code_files(self) -> list[Path]:
        """The files whose headers name the layers that are codes under the adapter, or without one."""
        if not self.adapter_name:
            return weight_files(self.path)
        if self.run.base_file.is_file():
            return [self.run.base_file]
        return Trained.at(self.base.path).code_files

    def quantized(self) -> dict[str, dict]:
        """The layers that are codes, as `model.checkpoint.quantized_layers` has them."""
        if not self.adapter_name or self.run.base_file.is_file():
            return quantized_layers(self.code_files)
        return self.base.quantized()

    @cached_property
    def adapted(self) -> list[str]:
        """The layers that an adapter stands beside."""
        targets = self.run.config.adapter.targets if self.adapter_name else None
        return linear_names(empty_model(self.config, torch.float32), targets) if targets else []

    def planned(self) -> Llama:
        """The model with its adapters, without memory for any number."""
        return planned_run(self.run, self.run.config)

    def load(self) -> Llama:
        """As trained, base and adapters side by side, computing in float32."""
        return load_trained(self.run, self.run.config, torch.float32, "cpu") if self.run else Source(self.path).load(torch.float32, "cpu")


def tensor_names(config: LlamaConfig) -> list[str]:
    """Of the dense model, as Hugging Face has them; tied embeddings once."""
    names = empty_model(config, torch.float32).state_dict()
    return [name for name in names if not (config.tie_word_embeddings and name == "lm_head.weight")]


def dense_tensor(model: Llama, name: str) -> Tensor:
    """A tensor of the dense model that this one equals: merged and dequantized in float32, all else in the type it has."""
    layer, _, leaf = name.rpartition(".")
    module = model.get_submodule(layer)
    if leaf == "bias":
        return (module.base if isinstance(module, AdaptedLinear) else module).bias.detach()
    if isinstance(module, AdaptedLinear):
        return module.weight().detach()
    return module.dequantize() if isinstance(module, QuantLinear) else module.weight.detach()


def dense_tensors(model: Llama) -> Iterator[tuple[str, Tensor]]:
    """All of them, one at a time."""
    yield from ((name, dense_tensor(model, name)) for name in tensor_names(model.config))
