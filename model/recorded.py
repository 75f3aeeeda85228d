"""Work on a GPU, recorded once and then launched as a whole: a CUDA graph.

A processor takes several microseconds to launch a kernel, and tens through an interpreter. A small kernel takes less,
so that the GPU waits. A recording is one launch. It reads and writes the same memory each time: what changes is copied
into tensors that stay in place.
"""
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch

Result = TypeVar("Result")
WARM_UPS = 2  # before a recording: compilers start, libraries take their memory and choose their kernels


class Recorded(Generic[Result]):
    """`Recorded(work, device)()` is work(), its result in the same tensors each time. Recording computes nothing.

    On other devices than CUDA, the work is done anew each time: same numbers, other tensors. `pool`: memory that
    recordings share which are never used at the same time; what one leaves in it, the next overwrites."""

    def __init__(self, work: Callable[[], Result], device: torch.device, pool: Any = None):
        self.work, self.graph = work, None
        if device.type == "cuda":
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, pool=pool):
                self.result = work()
            del self.work  # whose owner holds this recording: its memory is free as soon as nobody holds the owner

    def __call__(self) -> Result:
        if self.graph is None:
            return self.work()
        self.graph.replay()
        return self.result


def new_pool(device: torch.device) -> Any:
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


def warm_up(work: Callable[[], Any], device: torch.device) -> None:
    """Does the work on a stream of its own, as a recording asks for. Random numbers are drawn as if nothing was."""
    if device.type != "cuda":
        return
    random, stream = torch.cuda.get_rng_state(device), torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.set_rng_state(random, device)
