"""How fast the product is, beside PEFT, bitsandbytes and transformers on the same work.

| file | the question |
|---|---|
| `training_step.py` | (a) a training step: tokens a second, peak memory, share of the matrix rate |
| `quantization.py` | (b) quantize and dequantize: weights a second, share of the copy bandwidth |
| `generation.py` | (d) greedy generation in a batch, and of one sequence; 16 bits and k bits |
| `parity.py` | the losses of every method on a device against those of the CPU |
| `gpu.sh` | the tests marked cuda, `parity.py` and the three above on a GPU, in at most 8 minutes; one JSON |

`measure.py` times, finds the machine's limits, and keeps a report that survives a failure. `shapes.py` has the random
models, `peers.py` the same weights in PEFT and transformers. Peers that are not installed are left out, with a word.
`pytest_json.py` and `summary.py` serve `gpu.sh`.
"""
