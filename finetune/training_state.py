"""What `--resume` needs of a `Trainer`, as tensors and a header: the parameters, the optimizer's moments, the random
state; the step, and what is known of the validation losses so far. What t-SignSGD does follows from the step.

The order of the data follows from (seed, epoch), so the step alone finds the place."""
import json
from typing import Any

import torch
from torch import Tensor

from finetune.optimizer import MOMENTS
from finetune.state_files import place_of
from model.tensor_files import TensorFile


def state_of(trainer: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, and the metadata of their file."""
    tensors = {"random": torch.get_rng_state()}
    if trainer.model.device.type == "cuda":
        tensors["random_cuda"] = torch.cuda.get_rng_state(trainer.model.device)
    for name, p in trainer.parameters.items():
        tensors[f"parameter.{name}"] = p
        for moment in MOMENTS[trainer.settings.optimizer]:
            tensors[f"{moment}.{name}"] = trainer.optimizer.state[p][moment]
    place = {"step": trainer.step, "best": trainer.best, "tokens": trainer.tokens, "seconds": trainer.seconds,
             "to_validate": trainer.to_validate}
    if trainer.settings.patience:
        place["since_best"] = trainer.since_best
    return tensors, {"place": json.dumps(place)}


@torch.no_grad()
def restore(trainer: Any, file: TensorFile) -> None:
    """Raises Damaged if the header does not say at which step the run was."""
    place, device = place_of(file), trainer.model.device
    for name, p in trainer.parameters.items():
        p.copy_(file.get_tensor(f"parameter.{name}"))
        if moments := MOMENTS[trainer.settings.optimizer]:
            trainer.optimizer.state[p] = {
                "step": torch.tensor(float(place["step"]), device=p.device if trainer.fused else "cpu"),
                **{m: file.get_tensor(f"{m}.{name}").to(p.device) for m in moments}}
    torch.set_rng_state(file.get_tensor("random"))
    if device.type == "cuda" and "random_cuda" in file.keys():
        torch.cuda.set_rng_state(file.get_tensor("random_cuda"), device)
    trainer.step, trainer.best = place["step"], place["best"]
    trainer.tokens, trainer.seconds = place["tokens"], place["seconds"]
    # a state of an older version is never saved before a validation, and knows no --patience
    trainer.to_validate, trainer.since_best = place.get("to_validate", False), place.get("since_best", 0)
