"""What is exported: a run as trained, or a model directory or GGUF file that is itself a result, such as RUN/merged.
`with_peft.py` puts an adapter of PEFT beside the latter."""
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from adapters.adapted import AdaptedLinear
from adapters.merge import MergeRefused, MergeTarget, merge_into_codes, merge_target
from finetune.adapted_model import linear_names
from finetune.checks import planned_run
from finetune.run import Run, is_run, open_run
from finetune.source import Source, check_fingerprint, check_trained, load_trained, note_another
from finetune.values import Place
from model.checkpoint import empty_model, open_weights, quantized_layers, stored_grids
from model.config import LlamaConfig
from model.directory import load_config, weight_files
from model.gguf_reader import is_gguf
from model.llama import Llama
from quant.formats.stored import Stated
from quant.linear import QuantLinear

T = TypeVar("T")
RESULTS = re.compile(r"merged|requantized|restored-.+")  # directories inside a run that hold a model


@dataclass(frozen=True)
class Trained:
    path: Path
    run: Run | None = None

    @classmethod
    def at(cls, path: Path) -> "Trained":
        """Reads headers only. Raises ValueError or FileNotFoundError if there is no model at `path`, if no epoch of the
        run has ended, or if the run's base has changed."""
        if is_run(path):
            run = open_run(path)
            check_trained(run)
            note_another(run)
            trained = cls(path, run)
            if trained.adapter_name and not run.base_file.is_file() and not run.config.base.quantization:
                check_fingerprint(trained.base, run)
            return trained
        config = load_config(path)
        open_weights(weight_files(path), config, torch.float32)
        return cls(path)

    @property
    def name(self) -> str:
        """Without the directories of this machine: `x` for runs/x, `x/merged` for runs/x/merged."""
        path = self.path.resolve()
        return f"{path.parent.name}/{path.name}" if self.run_of_result else path.name

    @cached_property
    def config(self) -> LlamaConfig:
        return load_config(self.path)

    @property
    def tokenizer(self):
        return Source(self.path).tokenizer

    @property
    def adapter_name(self) -> str | None:
        """A key of ADAPTERS; None without an adapter."""
        return self.run.config.adapter_kind if self.run else None

    @property
    def base(self) -> Source:
        """The model that the run was trained from."""
        return Source(self.model_place)

    @property
    def model_place(self) -> Place:
        return self.run.config.base.model

    @property
    def origin(self) -> Path | None:
        """The model at the start of the chain: the run's base, or its base's base, and so on. It has the small files,
        or the metadata, that runs do not keep. None if it is not on this machine any more, or has changed. Fetches
        nothing."""
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

    @cached_property
    def run_of_result(self) -> "Trained | None":
        """The run with an adapter whose result this directory is: RUN/merged, RUN/requantized, RUN/restored-... ; None
        for all others."""
        parent = self.path.resolve().parent
        if self.run or not RESULTS.fullmatch(self.path.resolve().name) or not is_run(parent):
            return None
        run = open_run(parent)
        return Trained(parent, run) if run.adapter_file.is_file() else None

    @property
    def is_requantized(self) -> bool:
        parent = self.run_of_result
        return parent is not None and self.path.resolve() == parent.run.requantized

    @property
    def as_it_is(self) -> Path | None:
        """The GGUF file that this is, or that the run was trained on without quantizing it. All that the run did not
        train is then still the file's own."""
        if self.run is None:
            place = self.path
        else:
            place = self.model_place if self.adapter_name and not self.run.config.base.quantization else None
        return place if isinstance(place, Path) and is_gguf(place) else None

    @property
    def code_files(self) -> list[Path]:
        """The files whose headers name the layers that hold codes: those of the base if there is an adapter."""
        if not self.adapter_name:
            return weight_files(self.path)
        if self.run.base_file.is_file():
            return [self.run.base_file]
        return Trained.at(self.base.path).code_files

    def quantized(self) -> dict[str, dict]:
        """The layers that hold codes, in the form of `model.checkpoint.quantized_layers`."""
        if not self.adapter_name or self.run.base_file.is_file():
            return quantized_layers(self.code_files)
        return self.base.quantized()

    @cached_property
    def adapted(self) -> list[str]:
        """The names of the layers with an adapter."""
        targets = self.run.config.adapter.targets if self.adapter_name else None
        return linear_names(empty_model(self.config, torch.float32), targets) if targets else []

    def planned(self) -> Llama:
        """The model with its adapters on the meta device, without memory for its weights."""
        return planned_run(self.run, self.run.config)

    def load(self) -> Llama:
        """The model as trained, base and adapters side by side, computing in float32."""
        if self.run:
            return load_trained(self.run, self.run.config, torch.float32, "cpu")
        return Source(self.path).load(torch.float32, "cpu")


    def state(self) -> dict:
        """`unfinished: step 12 of 21`, if training has not ended. After `load`: of what was loaded."""
        unfinished = self.run.keep_still().unfinished if self.run else None
        return {"unfinished": unfinished} if unfinished else {}


# ---- codes after the merge -------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class PlannedCodes:
    """A layer that holds codes, and where its adapter goes in them."""
    name: str
    stated: Stated              # before the merge
    target: MergeTarget | None  # None: no adapter that merges

    @property
    def gains_offset(self) -> bool:
        """The adapter merges into the offset, whose values are then any numbers."""
        return self.target is not None and "offset" in self.target.into

    def check_merges(self) -> None:
        """Raises MergeRefused, with the layer and the reason, for an adapter that does not merge into k bits."""
        if self.target and not self.target.keeps_codes:
            raise MergeRefused(f"layer {self.name}: {self.target.reason}")


def fitting_codes(trained: Trained, fit: Callable[[PlannedCodes], T], instead: str,
                  merged: bool = True) -> dict[str, T]:
    """What `fit` makes of each layer that holds codes. Raises ValueError for one that `fit` refuses: with the run, the
    layer, and what to do instead. Reads headers only. merged: with its adapter, if it has one; False for the base."""
    planned = trained.planned() if trained.adapted else empty_model(trained.config, torch.float32)
    found = {}
    for name, grid in stored_grids(trained.code_files, trained.quantized()).items():
        layer = planned.get_submodule(name)
        adapted = isinstance(layer, AdaptedLinear)
        target, base = (merge_target(layer.base, layer.adapter), layer.base) if adapted else (None, layer)
        stated = Stated(base.out_features, base.in_features, grid.bits, grid.block.in_layer(base.in_features),
                        grid.offset, grid.levels)
        try:
            found[name] = fit(PlannedCodes(name, stated, target if merged else None))
        except ValueError as error:
            where = "" if name in str(error) else f"layer {name}: "
            raise ValueError(f"{trained.path}: {where}{error}. {instead}") from None
    return found


def merged_layer(model: Llama, layer: str) -> QuantLinear:
    """A layer of codes. Its adapter, if it has one, is merged into them, their offsets or their scales."""
    module = model.get_submodule(layer)
    return merge_into_codes(module, layer) if isinstance(module, AdaptedLinear) else module


# ---- the dense model ------------------------------------------------------------------------------------------------

def tensor_names(config: LlamaConfig) -> list[str]:
    """The Hugging Face names of the dense model's tensors; tied embeddings once."""
    names = empty_model(config, torch.float32).state_dict()
    return [name for name in names if not (config.tie_word_embeddings and name == "lm_head.weight")]


def dense_tensor(model: Llama, name: str) -> Tensor:
    """A tensor of the dense model that `model` equals. Merged and dequantized weights are float32; other tensors keep
    their type."""
    layer, _, leaf = name.rpartition(".")
    module = model.get_submodule(layer)
    if leaf == "bias":
        return (module.base if isinstance(module, AdaptedLinear) else module).bias.detach()
    if isinstance(module, AdaptedLinear):
        return module.weight().detach()
    return module.dequantize() if isinstance(module, QuantLinear) else module.weight.detach()


def dense_tensors(model: Llama) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the whole dense model, one at a time."""
    yield from ((name, dense_tensor(model, name)) for name in tensor_names(model.config))
