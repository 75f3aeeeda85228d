"""--keep-residual: what quantizing takes from the original weights, kept for training through the rounding.

    residual = (W - W_hat) / scale of each adapted layer, float16             (quant/moved.py)

It is made while the base is quantized, and is a file of the run: nothing that reads the run needs the original weights.
"""
from collections.abc import Callable

from torch import Tensor

from finetune.config import RunConfig
from finetune.run import Run
from model.tensor_files import open_safetensors, write_safetensors

Residuals = dict[str, Tensor | None]  # by layer; None until it is made


def save_residuals(run: Run, residuals: Residuals) -> None:
    write_safetensors(run.residual_file, residuals)


def residuals_of(run: Run, config: RunConfig) -> Callable[[str], Tensor] | None:
    """The residual of a layer by name; None for a run without. Raises FileNotFoundError if the file has gone."""
    if not config.adapter.keep_residual:
        return None
    if not run.residual_file.is_file():
        raise FileNotFoundError(f"{run.residual_file}: no such file; it holds the residuals that the run was trained "
                                f"with, and no other file does")
    return open_safetensors(run.residual_file).get_tensor
