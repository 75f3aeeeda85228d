"""What N processes share out between them: rows, the base if it is sharded, and what they send each other in a step.

| | each of N processes |
|---|---|
| rows of a batch | batch / N, at most `--micro-batch` of them at a time |
| decoder layers of a shared base | 1 / N of them, and two layers that are gathered |
| embeddings, head, last norm | as one process |
| adapters, gradients, optimizer | as one process |
| sent for the gradients, once a step | 2 (N - 1) / N of their bytes, as a ring of processes adds them up |
| received for a shared base, each micro-batch | (N - 1) / N of its layers' bytes, forward and again backward |

Two layers: what arrives, and the tensors that it is put into.
"""
import math
from dataclasses import dataclass

from finetune.config import RunConfig
from model.llama import Llama

Parts = dict[str, float]  # bytes


@dataclass(frozen=True)
class Processes:
    number: int = 1
    sharded: bool = False  # the base

    def __str__(self) -> str:
        return f"{self.number} processes{', which share the base' if self.sharded else ''}"

    @property
    def others(self) -> float:
        """The share that the other processes have."""
        return (self.number - 1) / self.number

    def rows(self, config: RunConfig) -> int:
        """Of a batch: those of the process that has most."""
        return math.ceil(config.training.batch_size / self.number)

    def rows_at_a_time(self, config: RunConfig) -> int:
        return min(self.rows(config), config.training.micro_batch or config.training.batch_size)

    def micro_batches(self, config: RunConfig) -> int:
        """Of a step."""
        return math.ceil(self.rows(config) / self.rows_at_a_time(config))


ALONE = Processes()


def of_process(base: Parts, planned: Llama, processes: Processes) -> Parts:
    """What a process holds of the base between layers, and what it gathers."""
    if not processes.sharded:
        return base
    layers, outside = of_layers(base, planned), outside_layers(planned)
    held = {part: size / processes.number for part, size in layers.items()}
    gathered = 2 * sum(layers.values()) / planned.config.num_hidden_layers
    return {**held, "weights": held["weights"] + outside, "gathered": gathered}


def outside_layers(planned: Llama) -> float:
    """Bytes of the dense weights in no decoder layer."""
    config = planned.config
    heads = 1 if config.tie_word_embeddings else 2
    return 2.0 * config.hidden_size * (heads * config.vocab_size + 1)


def of_layers(base: Parts, planned: Llama) -> Parts:
    """The part of a base that processes share."""
    return {**base, "weights": base["weights"] - outside_layers(planned)}


def moved_in_a_step(layer_bytes: float, trained: int, config: RunConfig, processes: Processes) -> Parts:
    """Bytes that each process receives, which are as many as it sends; `trained` numbers have gradients in float32."""
    parts = {"gradients": 2 * processes.others * 4.0 * trained}
    if processes.sharded:
        parts["base"] = 2 * processes.micro_batches(config) * processes.others * layer_bytes
    return parts
