"""Fine-tune one method on one base for one task, then score base, quantized base, as trained and merged.

    python train.py --method qablora --bits 4

A run directory holds everything afterwards (finetune/run.py). `python eval.py RUN` prints its table again.
`python train.py --resume RUN` goes on after an interruption.
"""
import threads  # noqa: F401  before torch

# isort: split
import finetune.startup  # noqa: F401 (first, for what goes wrong in the imports below)

# isort: split
import math
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy
import safetensors
import torch
from torch import nn

from adapters.adapted import adapter_parameters
from finetune.adapted_model import attach_adapters, residuals_to_keep, save_adapter
from finetune.checks import completed
from finetune.command import Given, Work, run_command
from finetune.command_line import train_parser
from finetune.config import RunConfig, flag
from finetune.config_json import FORMAT, config_json
from finetune.data import PreparedData, check_calibration, check_data, prepare_data, with_pinned_data
from finetune.distillation import check_same_teacher, objective_of, teacher_source
from finetune.dry_run import dry_run, planned_processes
from finetune.kept import add_facts, facts_of, keep_anew
from finetune.lock import hold
from finetune.loop import Trainer, TrainingDiverged
from finetune.memory import report_memory
from finetune.pictures import plot_losses
from finetune.quantize import load_base
from finetune.range_test import find_rate
from finetune.residual import residuals_of, save_residuals
from finetune.resolve import resolve_run
from finetune.resuming import check_kept, holds_its_base, keep_base_of_gptq, weights_from_state
from finetune.run import Run, check_out, new_run, open_run
from finetune.saving import save_trained
from finetune.sessions import note_session
from finetune.sharded import load_shared_base, quantize_part_by_part
from finetune.shown import print_plan, show_example
from finetune.size import peak_memory
from finetune.source import Source, base_of, load_run_base, why_no_base
from finetune.values import DTYPES
from model import processes
from model.chat_template import write_end_tokens
from model.checkpoint import empty_model, random_model, save_model
from model.config_json import config_to_json
from model.directory import load_config
from model.files import sha256_of, write_record
from model.finite import check_weights
from model.hub import pinned
from model.llama import Llama
from model.tensor_files import name_of
from model.tokenizer_files import copy_tokenizer, travelling_files
from scoring.destination import Destination
from scoring.score_run import evaluate_run
from tasks import TRAINING_TASKS
from tasks.listing import task_table_text

Parameters = dict[str, nn.Parameter]
Prepared = tuple[Llama, Parameters, Callable[[], None]]  # the model, what trains, and what saves that


def main() -> None:
    run_command(train_parser(), fine_tune, several=True)


def fine_tune(given: Given, work: Work) -> None:
    if "list_tasks" in given:
        work.done()
        return print(task_table_text(TRAINING_TASKS.values()))
    if "resume" in given:
        run = reopened(given)
        goes_on(work, run)
        return train_and_score(run, run.config, data_of(run), work)
    planned = planned_processes(given)
    work.begins("preparing the data")
    if processes.several() and (asked := {"mem_report", "dry_run"} & given.keys()):
        raise ValueError(f"{flag(min(asked))} runs in one process, and there are {processes.size()}: start it by "
                         f"python, without torchrun, and give --nproc {processes.size()}")
    if "dry_run" in given:
        dry_run(given, planned)
        return work.done()
    source, config, data = prepare(given)
    processes.check_same("the configuration", config_json(config))
    processes.check_same("what the rows are", data.fingerprints)
    if "show_example" in given:
        work.done()
        return show_example(data)
    if "mem_report" in given:
        report_memory(source, config, data, planned)
        return work.done()
    name = f"{config.method}-{config.base.bits}bit-{config.data.task}"
    if "find_lr" in given:
        return find_lr(given, work, new_run(given.get("out"), f"{name}-rates"), source, config, data)
    run = new_run(given.get("out"), name)
    with discarded_if_useless(run, work):
        goes_on(work, run)
        processes.by_first(describe, run, source, config, data)
        train_and_score(run, config, data, work)


def find_lr(given: Given, work: Work, place: Run, source: Source, config: RunConfig, data: PreparedData) -> None:
    """Nothing is written but the table, in a directory of its own."""
    with discarded_if_useless(place, work):
        work.begins("trying learning rates", safe="nothing was kept", memory="use a smaller --micro-batch")
        find_rate(place, source, config, data, given["find_lr"])
    work.done()


def train_and_score(run: Run, config: RunConfig, data: PreparedData, work: Work) -> None:
    work.begins("loading the base" if run.base_file.is_file() else "preparing the base", log=run.path)
    try:
        train(run, config, data, work)
    except TrainingDiverged as error:
        raise ValueError(f"{error}{how_to_get_out(run)}") from error
    work.begins("scoring", safe="training is done, and the answers so far are kept",
                memory=f"score with: python eval.py {run.path} --eval-batch-size 8")
    score(run, config, data)


@contextmanager
def discarded_if_useless(run: Run, work: Work) -> Iterator[None]:
    """A new run that fails before it made anything worth keeping is removed. One that is stopped stays, if --resume can
    go on with it."""
    try:
        yield
    except BaseException as error:
        if not run.has_progress() and (isinstance(error, Exception) or not run.config_file.is_file()):
            if processes.is_first():
                run.discard()
            work.begins(work.doing, safe="nothing was kept", go_on="give the same command again", log=None)
        raise


# ---- what the last line says ----------------------------------------------------------------------------------------

def goes_on(work: Work, run: Run) -> None:
    work.begins("preparing the data", safe=run.states.stand,
                go_on=f"go on with: {processes.started_by()} train.py --resume {run.path}")


def how_to_get_out(run: Run) -> str:
    """What to do with what a run kept that could not go on."""
    if not run.path.is_dir():  # it was discarded
        return ""
    if not processes.by_first(run.trained_file.is_file):
        return processes.by_first(keep_base_of_gptq, run)
    return f", in {run.trained_file}: python eval.py {run.path} scores it, python export.py {run.path} writes it out"


# ---- before any weight is read --------------------------------------------------------------------------------------

def prepare(given: Mapping[str, Any]) -> tuple[Source, RunConfig, PreparedData]:
    """All that can be wrong is found here, before any weight is read."""
    source, config = checked(given)
    return source, config, prepare_data(source, config, calibrates(config))


def checked(given: Mapping[str, Any]) -> tuple[Source, RunConfig]:
    """What was asked for, without its rows. The run remembers the commit of what the hub holds."""
    check_out(given.get("out"))
    config = resolve_run(given)
    config = replace(config, base=replace(config.base, model=pinned(config.base.model)))
    if config.training.distill_from:
        config = replace(config, training=replace(config.training, distill_from=pinned(config.training.distill_from)))
    source = Source(config.base.model)
    config, _ = completed(given, source, config)
    return source, with_pinned_data(config)


def calibrates(config: RunConfig) -> bool:
    return config.base.by_gptq or config.evaluation.requantizes_by_gptq


def reopened(given: Mapping[str, Any]) -> Run:
    if others := [flag(name) for name in given if name != "resume"]:
        raise ValueError(f"--resume takes every other flag from the run, {', '.join(others)} too: give it alone")
    run = open_run(given["resume"])
    processes.by_first(hold, run.path)
    return run


def data_of(run: Run) -> PreparedData:
    """The rows of an interrupted run. They must be what they were, and so must the base, as far as the run does not
    hold it itself."""
    config = run.config
    if not config.base.from_scratch and not holds_its_base(run):
        base_of(run)
    elif config.training.distill and not config.training.distill_from:
        base_of(run)  # the teacher
    elif missing := why_no_base(run, config.base):
        print(f"training goes on without it, but the table at its end will have no row for the base: {missing}")
    check_same_teacher(config, run.fingerprints.get("teacher"))
    needs_calibration = config.base.by_gptq and not run.base_file.is_file()
    calibrate = needs_calibration or config.evaluation.requantizes_by_gptq
    data = prepare_data(Source(run.path), config, calibrate)
    check_data(data, run)
    if needs_calibration:
        check_calibration(data, run)
    return data


def describe(run: Run, source: Source, config: RunConfig, data: PreparedData) -> None:
    """Writes the run's config.json. The tokenizer is copied, so that the run is a model of its own."""
    copy_tokenizer(source.path, run.path)
    data.task.leave_beside(run.path)
    ends_more = data.end_ids != source.stop_ids()  # a chat template's end of turn
    if ends_more:
        write_end_tokens(run.path, data.end_ids)
    model_config = replace(source.config, eos_token_ids=data.end_ids) if ends_more else source.config
    teacher = teacher_source(config) if config.training.distill_from else None
    if not (config.base.from_scratch or source.is_adapter_run):
        write_record(run.base_sums_file, source.sums.marks)
    write_record(run.config_file, {
        "format": FORMAT,
        "config": config_json(config),
        "model_config": config_to_json(model_config),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__,
                     "safetensors": safetensors.__version__},
        "fingerprints": {"base": None if config.base.from_scratch else source.fingerprint, "data": data.fingerprints,
                         "calibration": data.calibration.fingerprint if config.base.by_gptq else None,
                         **({"teacher": teacher.fingerprint} if teacher else {}),
                         "tokenizer": {path.name: sha256_of(path) for path in travelling_files(run.path)}},
        "data": {"template_version": data.task.template_version, "left_out": data.left_out,
                 "empty_answers": data.empty_answers, **data.task.facts()},
    })


# ---- training -------------------------------------------------------------------------------------------------------

def train(run: Run, config: RunConfig, data: PreparedData, work: Work | None = None) -> None:
    torch.manual_seed(config.data.seed)
    model, parameters, save = full(run, config) if config.adapter_kind is None else adapted(run, config, data)
    check_weights(model, data.used_ids, str(config.base.model))
    model.checkpointing = config.training.gradient_checkpointing

    def keep() -> None:
        best = trainer.best if trainer.best < math.inf else None
        keep_anew(run.trained_file, run.kept_file, save, trainer.step, steps=trainer.total_steps, validation_loss=best)
    trainer = Trainer(model, parameters, config.training, config.data.seed, data.train, data.validation,
                      run.states.newest, keep, run.metrics.append, run.metrics.flush, objective=objective_of(config))
    print_plan(run.path, config, model, parameters, data, trainer.total_steps)
    if processes.by_first(run.has_state):
        processes.in_turn(trainer.load_state)
        processes.by_first(check_kept, run, trainer.step, trainer.best, keep)
        print(f"{run.path} goes on {trainer.goes_on_at()}")
    elif run.metrics_file.is_file():
        print("no step was saved before: training starts again at step 1")
    processes.by_first(begin_session, run, config, trainer.step)
    if work:
        work.begins("training", memory="start a new run with a smaller --micro-batch: it changes no number but "
                                       "rounding")
    trainer.run()
    peaks = processes.gather(peak_memory(model.device))
    processes.by_first(note_training, run, peaks, parameters, trainer)


def begin_session(run: Run, config: RunConfig, step: int) -> None:
    note_session(run.sessions, config.compute, step)
    run.forget_after(step)


def note_training(run: Run, peaks: list[dict[str, float]], parameters: Parameters, trainer: Trainer) -> None:
    """What training took, in training.json and in a line; and its picture. peaks: of memory, process by process."""
    peak = peaks[0]
    write_record(run.training_file, {"trainable_parameters": sum(p.numel() for p in parameters.values()),
                                   "tokens": trainer.tokens, "seconds": round(trainer.seconds, 3),
                                   **({"stopped_by": "patience"} if trainer.stopped_early else {}),
                                   **{key: round(megabytes) for key, megabytes in peak.items()},
                                   **({"processes": [{key: round(megabytes) for key, megabytes in one.items()}
                                                     for one in peaks]} if len(peaks) > 1 else {})})
    of_gpu = f", of the GPU {peak['peak_gpu_memory_mb']:.0f} MB" if "peak_gpu_memory_mb" in peak else ""
    print(f"trained {trainer.tokens} tokens in {trainer.seconds:.0f} s, {trainer.tokens / trainer.seconds:.0f} "
          f"tokens/s, peak memory of the process {peak['peak_memory_mb']:.0f} MB{of_gpu}")
    if len(peaks) > 1:
        print(f"peak memory by process: {', '.join(f'{max(one.values()):.0f}' for one in peaks)} MB")
    plot_losses(run)


def full(run: Run, config: RunConfig) -> Prepared:
    """Every weight trains, in float32. It is saved in the checkpoint's own type unless --save-dtype names another. A
    run with a state does not need the checkpoint any more."""
    compute = config.compute
    known, from_state = processes.by_first(lambda: [facts_of(run.kept_file).get("stored_as", "float32"),
                                                    config.base.from_scratch or weights_from_state(run)])
    if from_state:
        model = random_model(load_config(run.path), compute.torch_dtype, config.data.seed).to(compute.device)
        stored_as = DTYPES[known]
    else:
        model = Source(config.base.model).load(compute.torch_dtype, compute.device)
        stored_as = model.model.embed_tokens.weight.dtype
        model.float().requires_grad_(True)
    processes.by_first(add_facts, run.kept_file, stored_as=name_of(stored_as))
    kept = DTYPES[config.training.save_dtype] if config.training.save_dtype else stored_as
    source = None if config.base.from_scratch or why_no_base(run, config.base) else Source(config.base.model)
    return model, dict(model.named_parameters()), lambda: save_trained(model, run, source, kept)


def adapted(run: Run, config: RunConfig, data: PreparedData | None) -> Prepared:
    """The adapters train. The base is quantized once, saved, and from then on read from its file. Only GPTQ needs the
    data."""
    compute = config.compute
    if config.base.quantization and not processes.by_first(run.base_file.is_file):
        quantize_base(run, config, data)
    model = load_shared_base(run, config) if shares_base(config) else load_run_base(run, config, compute.torch_dtype,
                                                                                    compute.device)
    attach_adapters(model, config, residuals_of(run, config))
    return model, adapter_parameters(model), lambda: save_adapter(model, run)


def shares_base(config: RunConfig) -> bool:
    return config.training.shard_base and processes.several()


def quantize_base(run: Run, config: RunConfig, data: PreparedData | None) -> None:
    """Into the run's base.safetensors, and what else it leaves. Several processes calibrate GPTQ together; the first
    one rounds alone."""
    source = Source(config.base.model)
    residuals = residuals_to_keep(config, empty_model(source.config, torch.float32))

    def made() -> tuple[Llama, dict | None]:
        return load_base(source, config.base, config.compute, data and data.calibration, residuals)

    def keep(base: Llama, report: dict | None) -> None:
        if residuals:
            save_residuals(run, residuals)
        if report:
            write_record(run.quantization_file, report)
        save_model(base, run.base_file)
    if shares_base(config):
        quantize_part_by_part(run, config, data and data.calibration)
    elif config.base.by_gptq:
        base, report = made()
        processes.by_first(keep, base, report)
    else:
        processes.by_first(lambda: keep(*made()))


def score(run: Run, config: RunConfig, data: PreparedData) -> None:
    """Training is over, so an error here costs no more than the scores. A process that holds a part of the base cannot
    score: each answer takes as many steps as it has tokens, and all processes would have to take them together."""
    if shares_base(config):
        return print(f"--shard-base trains, and does not score: python eval.py {run.path} does, with the whole base in "
                     f"each process")
    try:
        evaluate_run(run, config, data, Destination.of_own_task(run, run.results_file))
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{error}. Training has ended, and what was trained is in {run.trained_file}: "
                         f"python eval.py {run.path} scores it") from None


if __name__ == "__main__":
    main()
