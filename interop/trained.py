"""What leaves: a run as it was trained, or a model directory or GGUF file that is a result itself."""
import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from adapters.adapted import AdaptedLinear
from finetune.methods import METHODS
from finetune.models import Source, check_fingerprint, check_trained, linear_names, load_trained, new_adapter, read_run
from finetune.run import Run
from model.checkpoint import empty_model, load_config, open_weights, quantized_layers, weight_files
from model.config import LlamaConfig
from model.files import read_json
from model.gguf_reader import is_gguf
from model.llama import Llama
from quant.grid import Block
from quant.linear import QuantLinear


@dataclass(frozen=True)
class Trained:
    path: Path
    run: Run | None = None
    args: argparse.Namespace | None = None
    saved: dict | None = None

    @classmethod
    def at(cls, path: Path) -> "Trained":
        """Reads headers only. Raises ValueError or FileNotFoundError for what is no model, is not trained to the end of an epoch, or whose
        base is no longer what it was."""
        if is_run(path):
            run, args, saved = read_run(path)
            check_trained(run, args)
            trained = cls(path, run, args, saved)
            if trained.adapter_name and not run.base_file.is_file() and args.quantizer == "none":
                check_fingerprint(trained.base, saved)
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
        """A key of ADAPTERS; None where there is no adapter."""
        return METHODS[self.args.method].adapter if self.args else None

    @property
    def base(self) -> Source:
        """What the run was trained from."""
        return Source(self.args.model)

    @property
    def origin(self) -> Path | None:
        """The first model of the line, where it is still on this machine and what it was: a run's base, its base's base, ... It has the small
        files, or the metadata, that runs do not keep. Fetches nothing."""
        if self.run is None:
            return self.path
        if not isinstance(self.args.model, Path) or not self.args.model.exists():
            return None
        try:
            check_fingerprint(self.base, self.saved)
        except (ValueError, OSError):
            return None
        return Trained(self.args.model, *read_run(self.args.model)).origin if is_run(self.args.model) else self.args.model

    @property
    def as_it_is(self) -> Path | None:
        """The GGUF file that the run was trained on as it is, or that this is: whatever the run did not train is still the file's own."""
        place = self.path if self.run is None else self.args.model if self.adapter_name and self.args.quantizer == "none" else None
        return place if isinstance(place, Path) and is_gguf(place) else None

    @property
    def code_files(self) -> list[Path]:
        """The files whose headers name the layers that are codes under the adapter, or without one."""
        if self.run is None or self.args.method == "full":
            return weight_files(self.path)
        if self.run.base_file.is_file():
            return [self.run.base_file]
        return Trained.at(self.base.path).code_files

    def quantized(self) -> dict[str, dict]:
        """The layers that are codes, as `model.checkpoint.quantized_layers` has them."""
        if self.run is None or self.args.method == "full" or self.run.base_file.is_file():
            return quantized_layers(self.code_files)
        return self.base.quantized()

    @cached_property
    def adapted(self) -> list[str]:
        """The layers that an adapter stands beside."""
        return linear_names(empty_model(self.config, torch.float32), self.args.targets) if self.adapter_name else []

    def empty_adapter(self, layer: nn.Module, block: Block | None) -> nn.Module:
        """The adapter beside a layer of this size, without memory for its numbers."""
        with torch.device("meta"):
            return new_adapter(self.args, layer.out_features, layer.in_features, block)

    def load(self) -> Llama:
        """As trained, base and adapters side by side, computing in float32."""
        return load_trained(self.run, torch.float32, "cpu") if self.run else Source(self.path).load(torch.float32, "cpu")


def is_run(path: Path) -> bool:
    return not is_gguf(path) and (path / "config.json").is_file() and "arguments" in read_json(path / "config.json")


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
