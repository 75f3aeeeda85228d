"""Measure what fine-tuning by each method costs: memory for fine-tuning, memory for inference, and time (Shen et al.,
Table 5).

    python -m experiments.method_costs --out experiments/results
    python -m experiments.method_costs --model smollm2 --task sql-create-context --data FILE --rows lora qlora peqa

All methods are measured in one process on one device. On each batch all take one step in turn, so quote the ratios, not
the seconds. On a GPU, memory is that of tensors at the peak, from loading the base to the end of a step. On a CPU it is
the sum of what `train.py --mem-report` measures, and of its prediction for the layer at work. Flags that are not listed
go to train.py. Results go to --out/methods_costs_base_DEVICE.json, or with --model to
--out/methods_real_costs_MODEL_DEVICE.json, where DEVICE is cpu or cuda; `python -m experiments.findings` puts them into
the record of the plan.
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
from experiments.plans.method_rows import Row, methods
from experiments.shared import experiment_parser, run_experiment
from finetune.adapted_model import linear_names, merge_best, sixteen_bit_type
from finetune.checks import planned_model
from finetune.command_line import train_parser
from finetune.config import RunConfig
from finetune.data import PreparedData, calibration_of
from finetune.loop import Trainer
from finetune.memory import measured, predicted
from finetune.quantize import requantize
from finetune.range_test import batches, trainer_of
from finetune.resolve import resolve_run
from finetune.run import Run
from finetune.source import Source
from model.files import write_json
from quant.linear import stored_bytes
from tasks.task import Encoded

WARM_UP, TIMED = 3, 12
LONG = 2048  # tokens of a calibration row, at most
WIDTH = 4          # of the quantized bases
ROUNDED = "qlora"  # the row that is also rounded afterwards


@dataclass
class Measured:
    """A method that trains, and what was measured of it. MB are 10^6 bytes."""
    row: Row
    config: RunConfig
    data: PreparedData
    trainer: Trainer
    making: float              # seconds to load and quantize the base
    base_mb: float
    peak_mb: float             # to fine-tune, the base included
    steps: list[float]         # seconds

    def to_json(self, lora: list[float]) -> dict:
        """`lora`: the seconds of LoRA's steps on the same batches."""
        ratios = [mine / its for mine, its in zip(self.steps, lora, strict=True)]
        finish, inference = self.finished()
        return {"row": self.row.name, "title": self.row.title, "bits": self.config.base.bits,
                "seconds_before_training": self.making, "base_mb": self.base_mb, "peak_mb": self.peak_mb,
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
    parser.add_argument("--rows", nargs="+", metavar="ROW",
                        help="measure these rows of the plan methods, and compare all with the first (default: all, "
                             "compared with LoRA)")
    parser.add_argument("--graphs", action="store_true", help="record training on the GPU where it can be recorded")
    parser.add_argument("--model", help="start from this model (default: the embedded base)")
    return parser


def main() -> None:
    options, shared = options_parser().parse_known_args()  # the rest goes to train.py
    every = {row.name: row for row in methods()}
    names = options.rows or sorted(every, key=lambda name: name != "lora")
    shared += ["--model", options.model] if options.model else []
    found, failed = measure([every[name] for name in names], shared, options.graphs)
    model, device = found[0].config.base.model.name, found[0].trainer.model.device
    name = f"methods_real_costs_{model}" if options.model else "methods_costs_base"
    write_json(options.out / f"{name}_{device.type}.json", {
        "device": device_words(device), "model": model, "recorded": options.graphs, "steps": TIMED,
        "flags": [Path(word).name if word.startswith("/") else word for word in shared],  # no place of this machine
        "failed": failed, "rows": [one.to_json(found[0].steps) for one in found]})


def device_words(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_words(torch.get_num_threads())


def cpu_words(threads: int) -> str:
    return f"{threads} CPU thread{'s' if threads > 1 else ''}"


def measure(rows: Sequence[Row], shared: list[str], graphs: bool) -> tuple[list[Measured], dict[str, str]]:
    """Each with the seconds of its steps: of the same batches, in turn. And why others could not be measured."""
    source, config, data = train_script.prepare(train_parser().given([*rows[0].flags, *shared]))
    data = replace(data, calibration=calibration_of(config, data.tokenizer, data.train, config.data.max_length or LONG))
    found: list[Measured] = []
    failed: dict[str, str] = {}
    for row in rows:
        try:
            found.append(begun(row, source, data, [*shared, *["--cuda-graphs"] * graphs]))
        except (ValueError, OSError, SystemExit) as error:  # SystemExit: a flag that is not known
            failed[row.name] = str(error)
    for batch in islice(batches(found[0].trainer), WARM_UP + TIMED):
        for one in found:
            start = time.perf_counter()
            one.trainer.take_step(batch, rate(one))
            one.steps.append(elapsed(start, one.trainer.model.device))
    for one in found:
        del one.steps[:WARM_UP]
    return found, failed


def rate(one: Measured) -> float:
    """Any will do. An optimizer without a learning rate gets its first share of entries that step."""
    return one.config.training.lr or 0.95


def begun(row: Row, source: Source, data: PreparedData, shared: list[str]) -> Measured:
    """The method with its base, and with the memory of one step on the batch with the most tokens."""
    afterwards = row.rounding_flags(WIDTH) if row.name == ROUNDED else []
    config = resolve_run(train_parser().given([*row.flags, *row.base_flags(WIDTH), *afterwards, *shared]))
    device = torch.device(config.compute.device)
    held = start_of_memory(device)
    start = time.perf_counter()
    trainer = trainer_of(Run(Path("unused")), source, config, data)
    making, trained = elapsed(start, device), sum(p.numel() for p in trainer.parameters.values())
    base_mb = (stored_bytes([trainer.model]) - (4 * trained if config.adapter_kind else 0)) / 1e6
    one, largest = Measured(row, config, data, trainer, making, base_mb, 0.0, []), largest_batch(trainer)
    trainer.take_step(largest, rate(one))
    if device.type == "cuda":
        one.peak_mb = (torch.cuda.max_memory_allocated(device) - held) / 1e6
    else:
        at_work = predicted(planned_model(source, config), config, largest)["working"]
        one.peak_mb = (sum(measured(trainer.model, config, largest).values()) + at_work) / 1e6
    return one


def largest_batch(trainer: Trainer) -> Sequence[Encoded]:
    """The one with the most tokens."""
    return max(islice(batches(trainer), TIMED), key=tokens)


def tokens(batch: Sequence[Encoded]) -> int:
    return sum(len(e.tokens) for e in batch)


def start_of_memory(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


if __name__ == "__main__":
    run_experiment(main)
