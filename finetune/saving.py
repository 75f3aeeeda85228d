"""Full fine-tuning on disk: every weight trains in float32, and is kept in the type of the checkpoint or --save-dtype.

    lost = ||round(W) - W|| / ||W - W_base||       Frobenius norms, over all tensors (adapters/rounding.py)

At small learning rates, the rounding of 16 bits takes back most of what was trained.
"""
import torch

from adapters.rounding import TrainingLost, said
from finetune.run import Run
from finetune.source import Source
from model.checkpoint import save_model
from model.files import read_json, write_json
from model.llama import Llama
from model.tensor_files import name_of


def save_trained(model: Llama, run: Run, source: Source | None, kept: torch.dtype) -> None:
    """Writes the run's model.safetensors in the type `kept`, and what that lost into saving.json. `source` is the base;
    None for random weights and for a base that has gone: beside those, nothing is measured."""
    save_model(model, run.model_file, kept)
    rounds = source is not None and kept != torch.float32
    try:
        lost = lost_in_saving(model, source, kept) if rounds else TrainingLost()
    except (OSError, ValueError) as error:  # the base has gone while the run trained
        print(f"what is lost by saving in {name_of(kept)} is not known: {error}")
        lost = TrainingLost()
    write_json(run.saving_file, {"type": name_of(kept), "training_lost": lost.share, "most_lost_in": lost.worst})


@torch.no_grad()
def lost_in_saving(model: Llama, source: Source, kept: torch.dtype) -> TrainingLost:
    """One tensor of the base is in memory at a time, unless the base has to be merged first."""
    base, load = source.open(torch.float32, "cpu")
    lost = TrainingLost()
    for name, parameter in model.named_parameters():
        load(name)
        exact, (layer, _, leaf) = parameter.cpu(), name.rpartition(".")
        lost.add(name.removesuffix(".weight"), exact.to(kept).to(exact.dtype) - exact,
                 exact - base.get_parameter(name).to(exact.dtype))
        base.get_submodule(layer).register_parameter(leaf, None)
    return lost


def saved_with(run: Run) -> tuple[float | None, str]:
    """The share that saving lost, and what to say of it. (None, "") for a run with adapters, or of an earlier
    version."""
    stated = read_json(run.saving_file) if run.saving_file.is_file() else {}
    share = stated.get("training_lost")
    if share is None:
        return None, ""
    return share, said(f"the weights that train.py saved in {stated['type']}", share, stated["most_lost_in"])
