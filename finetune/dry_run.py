"""--dry-run: all checks of a command that need no weights, a line each, and what they could not look at.

| what is here | what is checked |
|---|---|
| a model's config.json | flags, sizes, blocks, ranks, memory |
| also its tokenizer, and the data | every row as it would be read; steps; memory of the longest rows |
| also its weights | names and shapes of all tensors, from the files' headers |

Of a model of the hub, config.json and the tokenizer are fetched, weights never. A data set of the hub is not fetched.
"""
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from adapters.adapted import adapted_layers
from finetune.by_process import Processes
from finetune.checks import completed, planned_model
from finetune.config import RunConfig
from finetune.data import LONGEST, check_needs, prepare_data, splits_of, task_of, with_recognised_task
from finetune.memory import moved, predicted, trained_numbers
from finetune.resolve import resolve_run
from finetune.run import check_out
from finetune.shown import stepping
from finetune.source import Source
from model.directory import weight_files
from model.hub import SMALL, HubModel, NotFetched, directory_here, snapshot
from model.tokenizer import tokenizer_file
from quant.linear import QuantLinear
from tasks.hub_data import HubData
from tasks.task import Encoded


def planned_processes(given: Mapping[str, Any]) -> Processes:
    """Raises ValueError for --nproc where nothing is predicted."""
    if "nproc" in given and not {"mem_report", "dry_run"} & given.keys():
        raise ValueError(f"--nproc {given['nproc']} goes with --mem-report or --dry-run only: leave it out, or add one")
    return Processes(given.get("nproc", 1), "shard_base" in given)


@dataclass(frozen=True)
class Described(Source):
    """A model of which there may be no more than its config.json."""

    @cached_property
    def path(self) -> Path:
        if not isinstance(self.place, HubModel):
            return self.place
        try:
            return directory_here(self.place)
        except NotFetched:
            return snapshot(self.place, SMALL)

    @cached_property
    def has_weights(self) -> bool:
        try:
            return bool(weight_files(self.path))
        except FileNotFoundError:
            return self.is_adapter_run

    @property
    def has_tokenizer(self) -> bool:
        try:
            return tokenizer_file(self.path).is_file()
        except (ValueError, FileNotFoundError):
            return False

    def quantized(self) -> dict[str, dict]:
        return super().quantized() if self.has_weights else {}

    def check_tensors(self) -> None:
        if self.has_weights:
            super().check_tensors()


def dry_run(given: Mapping[str, Any], processes: Processes) -> None:
    """Prints a line for each check. Raises ValueError and FileNotFoundError as the command itself would."""
    check_out(given.get("out"))
    config = resolve_run(given)
    source = Described(config.base.model)
    config, planned = completed(given, source, config)
    planned = planned or planned_model(source, config)
    config, rows, train = checked_data(source, config, processes)
    say("model", f"{source.place}: " + (
        "the names and shapes of its tensors" if source.has_weights else
        "its config.json; no weights are here, so the names and shapes of its tensors are not checked"))
    parts = predicted(planned, config, rows, processes)
    codes = sum(isinstance(m, QuantLinear) for m in planned.modules())
    say("sizes", f"{config.of_method.title}, {config.base.quantization or config.base.codes or '16 bits'}: {codes} "
        f"quantized layers, adapters in {len(adapted_layers(planned))}, {trained_numbers(planned):,} parameters train")
    say("steps", steps_of(config, train))
    say("memory", f"{megabytes(parts.values())} for {len(rows)} rows of up to {len(rows[-1].tokens) - 1} tokens at a "
        f"time: " + ", ".join(f"{part} {megabytes([size])}" for part, size in parts.items()))
    if processes.number > 1:
        sent = moved(planned, config, processes).values()
        say("moved", f"each of {processes} sends and receives {megabytes(sent)} in a step")
    print("nothing was found to be wrong, and nothing was written")


def megabytes(sizes: Iterable[float]) -> str:
    return f"{sum(sizes) / 1e6:,.1f} MB"


def say(what: str, words: str) -> None:
    print(f"{what:<8}{words}")


def steps_of(config: RunConfig, train: int | None) -> str:
    settings = config.training
    if not settings.steps and train is None:
        return f"{settings.epochs} epochs in batches of {settings.batch_size} rows"
    steps = settings.steps or settings.epochs * math.ceil(train / settings.batch_size)
    return f"{steps} of {settings.batch_size} rows, {stepping(config)}"


def checked_data(source: Described, config: RunConfig,
                 processes: Processes) -> tuple[RunConfig, list[Encoded], int | None]:
    """Says what was checked. Returns the configuration with the task, the rows that a process holds at a time, and how
    many train. Without a tokenizer and rows, all are taken to be as long as rows may be."""
    asked, at_a_time = config.data, processes.rows_at_a_time(config)
    check_needs(task_of(asked), asked)
    elsewhere = [str(place) for place in (asked.data, asked.test_data) if isinstance(place, HubData)]
    if elsewhere:
        say("data", f"{', '.join(elsewhere)}: of the hub, not fetched in a dry run and not checked")
        return config, longest_rows(source, config, at_a_time), None
    config = replace(config, data=with_recognised_task(asked))
    if source.has_tokenizer:
        data = prepare_data(source, config, config.base.by_gptq)
        say("data", f"{len(data.train)} rows to train on, {len(data.validation)} to validate on, {len(data.test)} to "
            f"score")
        return config, sorted(data.train, key=lambda e: len(e.tokens))[-at_a_time:], len(data.train)
    splits = splits_of(task_of(config.data), config.data)
    say("data", f"{len(splits.train)} rows to train on, {len(splits.validation)} to validate on, {len(splits.test)} to "
        f"score; no tokenizer is here, so their lengths are not checked")
    return config, longest_rows(source, config, at_a_time), len(splits.train)


def longest_rows(source: Described, config: RunConfig, rows: int) -> list[Encoded]:
    task, asked = task_of(config.data), config.data
    longest = asked.max_length or min(task.usual_length or LONGEST, source.config.max_position_embeddings)
    return [Encoded([0] * (longest + 1), 1)] * rows
