"""Measure what fine-tuning by each method costs: memory for fine-tuning, memory for inference, and time (Shen et al.,
Table 5).

    python -m experiments.method_costs --out runs/methods
    python -m experiments.method_costs --out runs/methods --model DIR --task sql-create-context --dtype bfloat16

All methods are measured in one process on one device. On each batch all take one step in turn, so quote the ratios,
not the seconds. Memory is that of tensors on a GPU, from loading the base to the end of a step; on a CPU it is not
measured. Results go to --out/costs-MODEL.json.
"""
import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch

import train as train_script
from adapters.adapted import adapter_parameters
from experiments.plans.method_rows import Row, methods
from experiments.shared import experiment_parser
from finetune.adapted_model import linear_names, merge_best, sixteen_bit_type
from finetune.command_line import train_parser
from finetune.config import RunConfig
from finetune.data import PreparedData, calibration_of
from finetune.loop import Trainer
from finetune.memory import prepared
from finetune.quantize import requantize
from finetune.range_test import base_model, batches
from finetune.resolve import resolve_run
from finetune.source import Source
from model.files import write_json
from quant.linear import stored_bytes

WARM_UP, TIMED = 3, 12
LONG = 2048  # tokens of a calibration row, at most
WIDTH = 4  # of the quantized bases


@dataclass
class Measured:
    """A method that trains, and what was measured of it. MB are 10^6 bytes; None: not measured on this device."""
    row: Row
    config: RunConfig
    data: PreparedData
    trainer: Trainer
    quantizing: float          # seconds to load the base, and to quantize it
    base_mb: float
    peak_mb: float | None      # tensors on the GPU at the peak of loading and of the first steps
    steps: list[float]         # seconds

    def to_json(self, lora: list[float]) -> dict:
        """`lora`: the seconds of LoRA's steps on the same batches."""
        ratios = [mine / its for mine, its in zip(self.steps, lora, strict=True)]
        finish, inference = self.finished()
        return {"row": self.row.name, "title": self.row.title, "bits": self.config.base.bits,
                "seconds_before_training": self.quantizing, "base_mb": self.base_mb, "peak_mb": self.peak_mb,
                "step_seconds": statistics.median(self.steps), "step_to_lora": statistics.median(ratios),
                "seconds_after_training": finish, "inference_mb": inference,
                "trainable_parameters": sum(p.numel() for p in self.trainer.parameters.values())}

    def finished(self) -> tuple[dict[str, float], dict[str, float]]:
        """By state: seconds to make the model to deploy, and its MB. Nothing trains afterwards."""
        model, spec, start = self.trainer.model, self.config.evaluation.requantize, time.perf_counter()
        if self.config.adapter_kind is None:
            return {"merged": 0.0}, {"merged": stored_bytes([model]) / 2e6}  # float32 here, saved in 16 bits
        bits = merge_best(model, sixteen_bit_type(model))
        seconds, megabytes = {"merged": elapsed(start, model.device)}, {"merged": stored_bytes([model]) / 1e6}
        if spec and not bits:
            requantize(model, linear_names(model, self.config.adapter.targets), spec, self.data.calibration)
            seconds["requantized"], megabytes["requantized"] = elapsed(start, model.device), stored_bytes([model]) / 1e6
        return seconds, megabytes


def elapsed(start: float, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def options_parser() -> argparse.ArgumentParser:
    parser = experiment_parser(__doc__, "runs/methods")
    parser.add_argument("--rows", nargs="+", help="measure these rows of the plan, the first as what others are "
                                                  "compared with (default: all, beside LoRA)")
    return parser


def main() -> None:
    options, shared = options_parser().parse_known_args()  # the rest goes to train.py
    every = {row.name: row for row in methods()}
    found = measure([every[name] for name in options.rows or sorted(every, key=lambda name: name != "lora")], shared)
    first = found[0]
    write_json(options.out / f"costs-{first.config.base.model.name}.json", {
        "device": device_words(first.trainer.model.device), "model": first.config.base.model.name, "flags": shared,
        "steps": TIMED, "rows": [one.to_json(first.steps) for one in found]})


def device_words(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"


def measure(rows: Sequence[Row], shared: list[str]) -> list[Measured]:
    """Each with the seconds of its steps: of the same batches, in turn."""
    source, config, data = train_script.prepare(train_parser().given([*rows[0].flags, *shared]))
    data = replace(data, calibration=calibration_of(config, data.tokenizer, data.train, config.data.max_length or LONG))
    found = [begun(row, source, data, shared) for row in rows]
    for batch in islice(batches(found[0].trainer), WARM_UP + TIMED):
        for one in found:
            start = time.perf_counter()
            one.trainer.take_step(batch, one.config.training.lr)
            one.steps.append(elapsed(start, one.trainer.model.device))
    for one in found:
        del one.steps[:WARM_UP]
    return found


def begun(row: Row, source: Source, data: PreparedData, shared: list[str]) -> Measured:
    """The method with its base, and with the memory of one step on the batch with the most tokens."""
    torch.manual_seed(0)
    width = [] if 16 in row.widths else ["--bits", str(WIDTH)]
    config = resolve_run(train_parser().given([*row.flags, *width, *shared]))
    device = torch.device(config.compute.device)
    held = start_of_memory(device)
    start = time.perf_counter()
    model = base_model(source, config, data)
    quantizing = elapsed(start, device)
    base_mb = stored_bytes([model]) / 1e6
    model = prepared(model, config)
    parameters = dict(model.named_parameters()) if config.adapter_kind is None else adapter_parameters(model)
    trainer = Trainer(model, parameters, config.training, 0, data.train, data.validation, Path("unused"),
                      lambda: None, lambda record: None)
    longest = max(islice(batches(trainer), TIMED), key=lambda rows: sum(len(e.tokens) for e in rows))
    trainer.take_step(longest, config.training.lr)
    return Measured(row, config, data, trainer, quantizing, base_mb, peak_since(held, device), [])


def start_of_memory(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak_since(held: int, device: torch.device) -> float | None:
    return (torch.cuda.max_memory_allocated(device) - held) / 1e6 if device.type == "cuda" else None


if __name__ == "__main__":
    main()
