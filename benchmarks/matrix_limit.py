"""The time that a training step's matrix products take by themselves: the limit that a step is compared with.

    python -m benchmarks.matrix_limit DIR bfloat16 1024

A step on a frozen base multiplies the tokens by every weight twice: forward, and for the gradient of the input, which
the lowest decoder layer's q, k and v need not give. So do the vocabulary's logits. Adapters are left out: 1 % of the
products at rank 16. Each shape is timed by itself, median of several, and counted as often as it occurs. Prints JSON:
wall and processor seconds a step.
"""
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from model.config import LlamaConfig
from model.directory import load_config

REPEATS = 9


def shapes(config: LlamaConfig) -> dict[tuple[int, int], int]:
    """(D_out, D_in) of the weights, and how often a step multiplies by each, forward and backward together."""
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    counted: dict[tuple[int, int], int] = {}
    for shape, products in (((q, hidden), 2 * layers - 1), ((kv, hidden), 2 * (2 * layers - 1)),
                            ((hidden, q), 2 * layers), ((inner, hidden), 4 * layers), ((hidden, inner), 2 * layers),
                            ((config.vocab_size, hidden), 2)):
        counted[shape] = counted.get(shape, 0) + products
    return counted


def seconds(shape: tuple[int, int], dtype: torch.dtype, tokens: int) -> tuple[float, float]:
    """(wall, processor) of one product: the mean of forward and backward, medians of REPEATS."""
    weight, x, grad = (torch.randn(n, m).to(dtype) for n, m in (shape, (tokens, shape[1]), (tokens, shape[0])))
    found = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter(), time.process_time()
        x @ weight.T
        grad @ weight
        found.append(((time.perf_counter() - start[0]) / 2, (time.process_time() - start[1]) / 2))
    wall, processor = zip(*found[1:], strict=True)
    return statistics.median(wall), statistics.median(processor)


def main() -> None:
    model, dtype, tokens = sys.argv[1:]
    counted = shapes(load_config(Path(model)))
    found = [(count, *seconds(shape, getattr(torch, dtype), int(tokens))) for shape, count in counted.items()]
    print(json.dumps({"wall": sum(count * wall for count, wall, _ in found),
                      "processor": sum(count * processor for count, _, processor in found)}))


if __name__ == "__main__":
    main()
