"""Fine-tuning: from a command line to a run on disk.

| file | what it does |
|---|---|
| `config.py`, `config_json.py` | the typed configuration, and its form in config.json |
| `values.py` | what an option holds: text -> value |
| `command_line.py`, `resolve.py` | from flags to a configuration |
| `methods.py` | the methods of `--method`, one row each |
| `source.py` | from a place (directory, GGUF file, hub, run) to a model |
| `adapted_model.py` | adapters put beside a model's layers, saved, loaded and merged |
| `quantize.py`, `gptq_model.py` | a base quantized while it loads, by rounding or by GPTQ |
| `checks.py` | all that can be refused from file headers |
| `data.py` | a task's rows, encoded and checked |
| `loop.py` | the training loop |
| `command.py`, `stop.py` | how a command runs: its last line, its exit status, and signals |
| `startup.py` | what goes wrong while a script imports its modules |
| `run.py` | the files of a run |
| `size.py`, `pictures.py` | bits a weight; the loss curve |
"""
