"""What training changed, beside whatever is exported: the model before training, and delta_W of each tensor.

| exported | as trained | delta_W | before training |
|---|---|---|---|
| a run with an adapter | the run | the adapter's | the run without its adapters |
| a model with an adapter of PEFT | both | the adapter's | the model |
| a run of full fine-tuning | the run | W - W_base | its base |
| RUN/merged | the run | the adapter's | the run without its adapters |
| RUN/restored-8bit-merged | the directory | the adapter's | the directory without delta_W |
| RUN/requantized | the run | the adapter's | the run without its adapters |

RUN/requantized is lossy by itself. What its export rounds are the weights of the directory, not those of the run.
"""
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapters.adapted import AdaptedLinear, adapted_layers, dense_weight, replace_layers
from finetune.source import Source, check_fingerprint
from interop.trained import Trained, dense_tensor
from model.hub import directory_here
from model.llama import Linear, Llama


class NotMeasured(Exception):
    """Something was trained, but the model before training is not at hand. The message is the reason."""


@dataclass(frozen=True)
class Training:
    """One row of the table above."""
    trained: Llama
    rounded: Llama  # the weights that the export rounds: those of `trained`, or of a lossy result
    delta: Callable[[str], Tensor | None]  # name of a tensor -> its delta_W; None: it did not train
    before: Callable[[], AbstractContextManager[Llama]]


def was_trained(trained: Trained) -> bool:
    """Whether `training_of` may find what was trained. A model without a run or an adapter has nothing to lose."""
    if trained.run:
        return not trained.run.config.base.from_scratch
    return trained.run_of_result is not None or bool(trained.adapted)


def training_of(trained: Trained, model: Llama) -> Training:
    """`model` is `trained` as it was loaded. Loads the other models of the table. Raises NotMeasured."""
    if trained.adapted:
        return of_adapters(model, model)
    try:
        if parent := trained.run_of_result:
            run = parent.load()
            if trained.path.resolve() == parent.run.merged:
                return of_adapters(run, run)
            return of_adapters(run, model) if trained.is_requantized else of_restored(run, model)
        base = Source(directory_here(trained.model_place))
        check_fingerprint(base, trained.run)
        return of_full(model, base.load(torch.float32, "cpu"))
    except (ValueError, OSError) as error:
        raise NotMeasured(str(error)) from None


def of_adapters(run: Llama, rounded: Llama) -> Training:
    return Training(run, rounded, lambda name: adapter_delta(run, name), lambda: without_adapters(run))


def of_full(model: Llama, base: Llama) -> Training:
    return Training(model, model, lambda name: dense_tensor(model, name).float() - dense_tensor(base, name).float(),
                    lambda: nullcontext(base))


def of_restored(run: Llama, model: Llama) -> Training:
    return Training(model, model, lambda name: adapter_delta(run, name), lambda: without_deltas(model, run))


def adapter_delta(model: Llama, name: str) -> Tensor | None:
    layer, _, leaf = name.rpartition(".")
    module = model.get_submodule(layer)
    if leaf != "weight" or not isinstance(module, AdaptedLinear):
        return None
    exact = module.weight().detach()
    return exact - dense_weight(module.base, exact.dtype)


@contextmanager
def without_adapters(model: Llama) -> Iterator[Llama]:
    """Inside, every adapted layer computes what its base does."""
    layers = adapted_layers(model).values()
    for layer in layers:
        layer.forward = layer.base.forward
    try:
        yield model
    finally:
        for layer in layers:
            del layer.forward


@contextmanager
def without_deltas(model: Llama, run: Llama) -> Iterator[Llama]:
    """Inside, every layer that is adapted in `run` is dense in `model`, and holds W - delta_W."""
    kept = {name: model.get_submodule(name) for name in adapted_layers(run)}

    def dense(name: str, layer: nn.Module) -> Linear:
        W = dense_tensor(model, f"{name}.weight")
        less = Linear(W.shape[1], W.shape[0], bias=layer.bias is not None, device="meta")
        less.weight = nn.Parameter(W - adapter_delta(run, f"{name}.weight"), requires_grad=False)
        if layer.bias is not None:
            less.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
        return less
    replace_layers(model, list(kept), dense)
    try:
        yield model
    finally:
        replace_layers(model, list(kept), lambda name, layer: kept[name])
