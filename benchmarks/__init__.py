"""How fast the product is, beside PEFT, bitsandbytes and transformers on the same work.

On a GPU, `benchmarks/gpu.sh` runs all of this in at most 8 minutes and leaves one JSON file:

| file | the question |
|---|---|
| `gpu_parity.py` | the losses of every method on a device against those of the CPU |
| `gpu_quantization.py` | (b) quantize and dequantize: weights a second, share of the copy bandwidth |
| `gpu_training_step.py` | (a) a training step: tokens a second, peak memory, share of the matrix rate |
| `gpu_generation.py` | (d) greedy generation in a batch, and of one sequence; 16 bits and k bits |

On a CPU, commits and peers alternate in processes of their own (`processes.py`); results are in `results/`:

| file | the question |
|---|---|
| `quantizers.py` | (b) quantize and dequantize: weights a second of every quantizer on one thread |
| `gptq.py` | (c) GPTQ of a model beside the textbook algorithm |
| `training_step.py` | (a) a training step of every method beside PEFT + bitsandbytes |
| `matrix_limit.py` | what the matrix products of a step take by themselves: the limit of (a) |
| `generation.py` | (d) greedy generation in a batch, and of one sequence, beside transformers + bitsandbytes |
| `choices.py` | (e) scoring of HellaSwag and MMLU beside lm-evaluation-harness |
| `loading.py` | (f) loading, loading and quantizing, and how commands start |
| `growth.py` | a step at 1x, 2x, 4x tokens, layers and parameters; a model of 7B's shape |

`measure.py` times, finds the machine's limits, and keeps a report that survives a failure. `shapes.py` has the random
models, `peers.py` the same weights in PEFT and transformers. Peers that are not installed are left out, with a word.
`pytest_json.py` and `summary.py` serve `gpu.sh`.
"""
