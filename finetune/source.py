"""From a place to a model: model directories, GGUF files, models of the hub, and runs."""
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from adapters.adapted import replace_layers
from adapters.rounding import MUCH, TrainingLost
from finetune.adapted_model import (
    attach_adapters,
    linear_names,
    load_adapter,
    merge_to_sixteen_bits,
    sixteen_bit_type,
)
from finetune.config import BaseConfig, RunConfig
from finetune.kept import Kept, is_another
from finetune.residual import residuals_of
from finetune.run import Run, open_run
from finetune.values import Place
from model.checkpoint import empty_model, load_model, open_weights, quantized_layers, read_tensors
from model.config import LlamaConfig
from model.config_json import config_to_json
from model.directory import load_config, weight_files
from model.files import read_json, say_once, sha256_of
from model.hub import directory_of
from model.llama import Llama
from model.token_agreement import end_ids, note_begin
from model.tokenizer import Tokenizer, load_tokenizer
from model.weight_sums import WeightSums, weight_sums

Change = Callable[[str, nn.Module], nn.Module]  # (name, layer) -> the layer that takes its place


@dataclass(frozen=True)
class Source:
    """A model directory, a GGUF file, a model of the hub, or a run. A run with an adapter stands for its model merged
    to 16 bits."""
    place: Place

    @cached_property
    def path(self) -> Path:
        """Where its files are on this machine. Raises NotFetched for a model of the hub that cannot be fetched."""
        return directory_of(self.place)

    @cached_property
    def config(self) -> LlamaConfig:
        return load_config(self.path)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.path)

    @property
    def has_tokenizer(self) -> bool:
        """A dry run may do without."""
        return True

    @property
    def is_adapter_run(self) -> bool:
        return Run(self.path).adapter_file.is_file()

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the weights. For a run with an adapter: of its base, its adapter and its codes."""
        return run_fingerprint(Run(self.path)) if self.is_adapter_run else self.sums.whole

    @property
    def sums(self) -> WeightSums:
        """Of a model that is not a run with an adapter."""
        return weight_sums(*weight_files(self.path))

    @property
    def fingerprint_without_codes(self) -> str:
        """What earlier versions recorded of a base that is a run with an adapter."""
        base = read_json(Run(self.path).config_file)["fingerprints"]["base"]
        return f"{base}+{sha256_of(Run(self.path).adapter_file)}"

    def quantized(self) -> dict[str, dict]:
        """The layers that are codes already, as `quantized_layers` gives them. Reads headers only."""
        if not self.is_adapter_run:
            return quantized_layers(weight_files(self.path))
        run = open_run(self.path)
        merged = linear_names(empty_model(self.config, torch.float32), run.config.adapter.targets)
        own_codes = run.base_file.is_file()
        stored = quantized_layers([run.base_file]) if own_codes else Source(run.config.base.model).quantized()
        return {name: stated for name, stated in stored.items() if name not in merged}

    def check_tensors(self) -> None:
        """Reads headers. Raises ValueError as `open_weights` does. A run with an adapter has its own checks."""
        if not self.is_adapter_run:
            open_weights(weight_files(self.path), self.config, torch.float32)

    def stop_ids(self) -> tuple[int, ...]:
        """End tokens; training teaches the first. Raises ValueError if the model names none, or names differ."""
        note_begin(self.config, self.tokenizer, self.path)
        ids = end_ids(self.config, self.tokenizer, self.path)
        if self.tokenizer.decode([ids[0]]):
            say_once(f"{self.path}: the end token {ids[0]} ({self.tokenizer.token(ids[0])!r}) is no special token: "
                     f"an answer that holds this text ends there. If that is wrong, correct eos_token_id")
        return ids

    def open(self, dtype: torch.dtype, device: str) -> tuple[Llama, Callable[[str], None]]:
        """The model without its weights, and a function that loads those whose names begin with a prefix. A run with an
        adapter has to be merged first: it comes whole, and the function does nothing."""
        if self.is_adapter_run:
            return self.load(dtype, device), lambda prefix: None
        return open_files(weight_files(self.path), self.config, dtype, device)

    def load(self, dtype: torch.dtype, device: str, change: Change | None = None) -> Llama:
        """As `load_model`; `change` is called for each linear layer."""
        if not self.is_adapter_run:
            return load_model(weight_files(self.path), self.config, dtype, device, change)
        run = open_run(self.path)
        model = load_trained(run, run.config, dtype, device)
        merge_to_sixteen_bits(model, sixteen_bit_type(model), lost := TrainingLost())
        if (lost.share or 0.0) >= MUCH:
            say_once(f"WARNING: {self.path}, merged to 16 bits: {lost.words('the merged weights')}. A base that loses "
                     f"nothing: python export.py {self.path} --format safetensors --dtype float32 --to DIR")
        if change:
            replace_layers(model, linear_names(model, "all"), change)
        return model


def open_files(files: list[Path], config: LlamaConfig, dtype: torch.dtype,
               device: str) -> tuple[Llama, Callable[[str], None]]:
    model, weights, wanted = open_weights(files, config, dtype)
    return model.eval(), lambda prefix: read_tensors(model, weights, wanted, device, prefix)


# ---- the model of a run ---------------------------------------------------------------------------------------------

def check_trained(run: Run) -> None:
    """Raises FileNotFoundError if training has not reached the end of its first epoch, ValueError if the file is
    damaged."""
    if not run.trained_file.is_file():
        raise FileNotFoundError(f"{run.path} holds no {run.trained_file.name} yet: go on with python train.py --resume "
                                f"{run.path}")
    Kept(run.trained_file, run.kept_file, run.has_ended)


def note_another(run: Run) -> None:
    """Says that the file which stands for what was trained is not the one that training kept. While it trains, nobody
    can tell."""
    if run.has_ended and (another := is_another(run.keep_still())):
        say_once(f"WARNING: {another}. What follows is of the file as it is")


def run_fingerprint(run: Run) -> str:
    """`Source.fingerprint` of a run, of the version of its trained file that `run` reads."""
    trained = run.kept.sha256 if run.kept else sha256_of(run.trained_file)
    if run.config.adapter_kind is None:
        return trained
    codes = f"+{sha256_of(run.base_file)}" if run.base_file.is_file() else ""
    kept = f"+{sha256_of(run.residual_file)}" if run.residual_file.is_file() else ""
    return f"{run.fingerprints['base']}+{trained}{codes}{kept}"


def check_fingerprint(source: Source, run: Run) -> None:
    """Raises ValueError if `source` is not what the run was trained from: its weights or its config are others."""
    expected = run.fingerprints["base"]
    if source.fingerprint != expected and not (source.is_adapter_run and source.fingerprint_without_codes == expected):
        raise ValueError(f"{source.path} is not what the run was trained from: its sha256 is {source.fingerprint}, "
                         f"the run's base had {expected}{first_difference(source, run)}")
    then, now = run.saved.get("model_config") or {}, json.loads(json.dumps(config_to_json(source.config)))
    if changed := [f"{key} is {now[key]}, the run has {then[key]}" for key in sorted(then.keys() & now.keys())
                   if now[key] != then[key] and not (key == "eos_token_id" and ids_of(now[key]) <= ids_of(then[key]))]:
        raise ValueError(f"{source.path} is not what the run was trained from: in its config, {'; '.join(changed)}")


def ids_of(stated: int | list[int] | None) -> set[int]:
    """Of eos_token_id. A run may have one more than its base: that which ends a turn of its chat template."""
    return set(stated) if isinstance(stated, list) else {stated} - {None}


def first_difference(source: Source, run: Run) -> str:
    """The end of an error. Nothing for a run with an adapter, whose files have checksums of their own, and for a run of
    an earlier version."""
    if source.is_adapter_run or not run.base_sums_file.is_file():
        return ""
    where = source.sums.first_difference(read_json(run.base_sums_file))
    return f". The first difference is in {where}" if where else ""


def base_of(run: Run) -> Source:
    """The model that the run was trained from. Raises FileNotFoundError and ValueError if it is not there, or
    another."""
    source = Source(run.config.base.model)
    try:
        check_fingerprint(source, run)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {run.path} holds no copy of its base, which must be there again") from None
    return source


def why_no_base(run: Run, base: BaseConfig) -> str | None:
    """Why the model that the run was trained from cannot be read where `base` names it. None: it can, or there was
    none."""
    if not base.from_scratch:
        try:
            check_fingerprint(Source(base.model), run)
        except (OSError, ValueError) as error:
            return str(error)
    return None


def load_run_base(run: Run, config: RunConfig, dtype: torch.dtype, device: str) -> Llama:
    """The base that the run was trained on: its own file, never quantized again; or, for a base that stayed as it was,
    the original, whose fingerprint is checked."""
    if run.base_file.is_file():
        return load_model([run.base_file], load_config(run.path), dtype, device)
    check_base_file(run, config)
    return base_of(run).load(dtype, device)


def check_base_file(run: Run, config: RunConfig) -> None:
    if config.base.quantization and not run.base_file.is_file():
        raise FileNotFoundError(f"{run.base_file}: no such file; it holds the codes that the run was trained on, "
                                f"and no other file does")


def open_run_base(run: Run, config: RunConfig, dtype: torch.dtype, device: str) -> tuple[Llama, Callable[[str], None]]:
    """As `load_run_base`, without weights, and a function that loads those whose names begin with a prefix."""
    check_base_file(run, config)
    return open_files([run.base_file], load_config(run.path), dtype, device) if run.base_file.is_file() else (
        base_of(run).open(dtype, device))


def load_trained(run: Run, config: RunConfig, dtype: torch.dtype, device: str) -> Llama:
    """The model as trained: base and adapters side by side, or all weights for method full. `run` tells afterwards
    which version of them was read."""
    if config.adapter_kind is None:
        return load_trained_weights(run, dtype, device).eval()
    run.keep_still()
    model = load_run_base(run, config, dtype, device)
    attach_adapters(model, config, residuals_of(run, config))
    load_adapter(model, run)
    return model.eval()


def load_trained_weights(run: Run, dtype: torch.dtype, device: str) -> Llama:
    """Of method full. If training puts another version in place while this one is read, that one is read."""
    while True:
        kept = run.keep_still()
        try:
            model = load_model(weight_files(run.path), load_config(run.path), dtype, device)
            if kept.is_still_there():
                return model
        except ValueError:
            if kept.is_still_there():
                raise
        run.kept = None
