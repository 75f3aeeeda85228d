"""What a model takes in storage, and a process in memory."""
import resource

import torch

from adapters.adapted import AdaptedLinear
from finetune.adapted_model import linear_names
from model.llama import Llama
from quant.linear import stored_bytes


def bits_per_weight(model: Llama) -> float:
    """Stored bits of the decoder's linear layers, adapters included, over the number of their weights."""
    modules = [model.get_submodule(name) for name in linear_names(model, "all")]
    bases = [m.base if isinstance(m, AdaptedLinear) else m for m in modules]
    return 8 * stored_bytes(modules) / sum(m.in_features * m.out_features for m in bases)


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most that this process has held so far, in MB: `peak_memory_mb` of main memory; on a CUDA device also
    `peak_gpu_memory_mb` of its tensors, without what CUDA itself takes."""
    peak = {"peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}  # ru_maxrss is in kB on Linux
    if device.type == "cuda":
        peak["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    return peak
