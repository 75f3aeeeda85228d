"""Fine-tune one method on one base for one task, then score base, quantized base, as trained and merged.

    python train.py --method qablora --bits 4

A run directory holds everything afterwards (finetune/run.py). `python eval.py RUN` prints its table again.
`python train.py --resume RUN` goes on after an interruption.
"""
import finetune.startup  # noqa: F401 (first, for what goes wrong in the imports below)

# isort: split
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import safetensors
import torch
from torch import nn

from adapters import ADAPTERS
from adapters.adapted import adapted_layers, adapter_parameters
from finetune.adapted_model import attach_adapters, save_adapter, why_not_k_bits
from finetune.checks import check_run, with_codes_of_base
from finetune.command import Given, Work, run_command
from finetune.command_line import train_parser
from finetune.config import DTYPES, RunConfig, flag
from finetune.config_json import FORMAT, config_json
from finetune.data import PreparedData, check_calibration, check_data, prepare_data, with_pinned_data
from finetune.loop import Trainer, TrainingDiverged, saved_step
from finetune.pictures import plot_losses
from finetune.quantize import load_base
from finetune.resolve import resolve_run
from finetune.run import Run, check_out, new_run, open_run
from finetune.saving import save_trained
from finetune.size import bits_per_weight, peak_memory
from finetune.source import Source, check_fingerprint, load_run_base
from model.checkpoint import random_model, save_model
from model.config_json import config_to_json
from model.files import sha256_of, write_record
from model.finite import check_weights
from model.hub import pinned
from model.llama import Llama
from model.tokenizer import Tokenizer, continuation, copy_tokenizer, travelling_files
from quant.linear import QuantLinear
from scoring.score_run import evaluate_run
from tasks import TRAINING_TASKS
from tasks.generative import spelled
from tasks.listing import task_table_text
from tasks.task import Encoded, prompt_ids

Parameters = dict[str, nn.Parameter]
Prepared = tuple[Llama, Parameters, Callable[[], None]]  # the model, what trains, and what saves that


def main() -> None:
    run_command(train_parser(), fine_tune)


def fine_tune(given: Given, work: Work) -> None:
    if "list_tasks" in given:
        work.done()
        return print(task_table_text(TRAINING_TASKS.values()))
    if "resume" in given:
        run = reopened(given)
        goes_on(work, run)
        return train_and_score(run, run.config, data_of(run), work)
    work.begins("preparing the data")
    source, config, data = prepare(given)
    if "show_example" in given:
        work.done()
        return show_example(data)
    run = new_run(given.get("out"), f"{config.method}-{config.base.bits}bit-{config.data.task}")
    with discarded_if_useless(run, work):
        goes_on(work, run)
        describe(run, source, config, data)
        train_and_score(run, config, data, work)


def train_and_score(run: Run, config: RunConfig, data: PreparedData, work: Work) -> None:
    work.begins("loading the base" if run.base_file.is_file() else "preparing the base", log=run.path)
    try:
        train(run, config, data, work)
    except TrainingDiverged as error:
        raise ValueError(f"{error}{how_to_get_out(run)}") from error
    work.begins("scoring", safe="training is done, and the answers so far are kept",
                memory=f"score with: python eval.py {run.path} --eval-batch-size 8")
    evaluate_run(run, config, data, run, run.results_file)


@contextmanager
def discarded_if_useless(run: Run, work: Work) -> Iterator[None]:
    """A new run that fails before it made anything worth keeping is removed. One that is stopped stays, if --resume can
    go on with it."""
    try:
        yield
    except BaseException as error:
        if not run.has_progress() and (isinstance(error, Exception) or not run.config_file.is_file()):
            run.discard()
            work.begins(work.doing, safe="nothing was kept", go_on="give the same command again", log=None)
        raise


# ---- what the last line says ----------------------------------------------------------------------------------------

def goes_on(work: Work, run: Run) -> None:
    work.begins("preparing the data", safe=lambda: what_stands(run),
                go_on=f"go on with: python train.py --resume {run.path}")


def what_stands(run: Run) -> str:
    return f"saved at step {saved_step(run.state_file)}" if run.state_file.is_file() else "no step is saved yet"


def how_to_get_out(run: Run) -> str:
    """What to do with what a run kept that could not go on."""
    if not run.trained_file.is_file():
        return ""
    return f", in {run.trained_file}: python eval.py {run.path} scores it, python export.py {run.path} writes it out"


# ---- before any weight is read --------------------------------------------------------------------------------------

def prepare(given: Mapping[str, Any]) -> tuple[Source, RunConfig, PreparedData]:
    """All that can be wrong is found here, before any weight is read. The run remembers the commit of what the hub
    holds."""
    check_out(given.get("out"))
    config = resolve_run(given)
    config = replace(config, base=replace(config.base, model=pinned(config.base.model)))
    source = Source(config.base.model)
    config = with_codes_of_base(source, config)
    check_run(source, config)
    config = with_pinned_data(config)
    calibrate = config.base.by_gptq or config.evaluation.requantizes_by_gptq
    return source, config, prepare_data(source, config, calibrate)


def reopened(given: Mapping[str, Any]) -> Run:
    if others := [flag(name) for name in given if name != "resume"]:
        raise ValueError(f"--resume takes every other flag from the run, {', '.join(others)} too: give it alone")
    return open_run(given["resume"])


def data_of(run: Run) -> PreparedData:
    """The rows of an interrupted run. They and the base must be what they were."""
    config = run.config
    source = Source(config.base.model)
    if not config.base.from_scratch and not run.base_file.is_file():
        check_fingerprint(source, run)
    needs_base = config.base.by_gptq and not run.base_file.is_file()
    data = prepare_data(source, config, calibrate=needs_base or config.evaluation.requantizes_by_gptq)
    check_data(data, run)
    if needs_base:
        check_calibration(data, run)
    return data


def describe(run: Run, source: Source, config: RunConfig, data: PreparedData) -> None:
    """Writes the run's config.json. The tokenizer is copied, so that the run is a model of its own."""
    copy_tokenizer(source.path, run.path)
    write_record(run.config_file, {
        "format": FORMAT,
        "config": config_json(config),
        "model_config": config_to_json(source.config),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__,
                     "safetensors": safetensors.__version__},
        "fingerprints": {"base": None if config.base.from_scratch else source.fingerprint, "data": data.fingerprints,
                         "calibration": data.calibration.fingerprint if config.base.by_gptq else None,
                         "tokenizer": {path.name: sha256_of(path) for path in travelling_files(run.path)}},
        "data": {"template_version": data.task.template_version, "left_out": data.left_out,
                 "empty_answers": data.empty_answers},
    })


# ---- training -------------------------------------------------------------------------------------------------------

def train(run: Run, config: RunConfig, data: PreparedData, work: Work | None = None) -> None:
    torch.manual_seed(config.data.seed)
    model, parameters, keep_best = full(run, config) if config.adapter_kind is None else adapted(run, config, data)
    check_weights(model, data.used_ids, str(config.base.model))
    trainer = Trainer(model, parameters, config.training, config.data.seed, data.train, data.validation,
                      run.state_file, keep_best, run.metrics.append, run.metrics.flush)
    print_plan(run.path, config, model, parameters, data, trainer.total_steps)
    if run.has_state():
        trainer.load_state()
        print(f"{run.path} goes on {trainer.goes_on_at()}")
    elif run.metrics_file.is_file():
        print("no step was saved before: training starts again at step 1")
    run.forget_after(trainer.step)
    if work:
        work.begins("training", memory="start a new run with a smaller --micro-batch: it changes no number but "
                                       "rounding")
    trainer.run()
    peak = peak_memory(model.device)
    write_record(run.training_file, {"trainable_parameters": sum(p.numel() for p in parameters.values()),
                                   "tokens": trainer.tokens, "seconds": round(trainer.seconds, 3),
                                   **{key: round(megabytes) for key, megabytes in peak.items()}})
    of_gpu = f", of the GPU {peak['peak_gpu_memory_mb']:.0f} MB" if "peak_gpu_memory_mb" in peak else ""
    print(f"trained {trainer.tokens} tokens in {trainer.seconds:.0f} s, {trainer.tokens / trainer.seconds:.0f} "
          f"tokens/s, peak memory of the process {peak['peak_memory_mb']:.0f} MB{of_gpu}")
    plot_losses(run)


def full(run: Run, config: RunConfig) -> Prepared:
    """Every weight trains, in float32. It is saved in the checkpoint's own type unless --save-dtype names another."""
    source, compute = Source(config.base.model), config.compute
    if config.base.from_scratch:
        model = random_model(source.config, compute.torch_dtype, config.data.seed).to(compute.device)
        kept = torch.float32
    else:
        model = source.load(compute.torch_dtype, compute.device)
        kept = model.model.embed_tokens.weight.dtype
        model.float().requires_grad_(True)
    kept = DTYPES[config.training.save_dtype] if config.training.save_dtype else kept
    return model, dict(model.named_parameters()), lambda: save_trained(
        model, run, None if config.base.from_scratch else source, kept)


def adapted(run: Run, config: RunConfig, data: PreparedData | None) -> Prepared:
    """The adapters train. The base is quantized once, saved, and from then on read from its file. Only GPTQ needs the
    data."""
    compute = config.compute
    if config.base.quantization and not run.base_file.is_file():
        base, report = load_base(Source(config.base.model), config.base, compute, data and data.calibration)
        if report:
            write_record(run.quantization_file, report)
        save_model(base, run.base_file)
    model = load_run_base(run, config, compute.torch_dtype, compute.device)
    attach_adapters(model, config)
    return model, adapter_parameters(model), lambda: save_adapter(model, run)


# ---- what is printed ------------------------------------------------------------------------------------------------

def print_plan(path: Path, config: RunConfig, model: Llama, parameters: Parameters, data: PreparedData,
               steps: int) -> None:
    trainable, base = sum(p.numel() for p in parameters.values()), config.base
    codes = sum(isinstance(module, QuantLinear) for module in model.modules())
    print(f"{path}: {config.of_method.title} on {base.model}")
    print(f"  base      {base.quantization or base.codes or '16 bits'}: {codes} quantized layers, adapters in "
          f"{len(adapted_layers(model))}, {bits_per_weight(model):.3f} bits a weight with the adapters")
    stated = {name: getattr(config.adapter, name, None) for name in options_of(config)}
    options = "".join(f", {name} {value}" for name, value in stated.items() if value is not None)
    print(f"  trains    {trainable:,} parameters{options}, lr {config.training.lr:g}")
    print(f"  data      {len(data.train)} training rows, {len(data.validation)} validation, {len(data.test)} test"
          + "".join(f"; {rows} left out, {reason}" for reason, rows in data.left_out.items() if rows))
    print(f"  steps     {steps} of {config.training.batch_size} rows")
    if base.bits < 16 and (reason := why_not_k_bits(model)):
        print(f"  note      merges to 16 bits only: {reason}")


def options_of(config: RunConfig) -> tuple[str, ...]:
    return ADAPTERS[config.adapter_kind].options if config.adapter_kind else ()


def show_example(data: PreparedData) -> None:
    """Prints the template's version, the first training row as its tokens read, every token of it, and the first test
    prompt, with their token counts."""
    first, tokenizer, task = data.train[0], data.tokenizer, data.task
    prompt, answer = first.tokens[:first.prompt_length], first.tokens[first.prompt_length:]
    print(f"--- {task.name}, template version {task.template_version}: the first of {len(data.train)} training rows, "
          f"{len(first.tokens)} tokens; its prompt, {len(prompt)} tokens\n{tokenizer.decode(prompt)}")
    print(f"--- what is learned after it, {len(answer)} tokens with the end token\n"
          f"{continuation(tokenizer, prompt, answer[:-1])}")
    print(f"--- every token: id, as the tokenizer's file spells it, what it is\n{token_list(first, tokenizer)}")
    if data.test and hasattr(data.test[0], "prompt"):
        text = data.test[0].prompt
        ids = prompt_ids(text, tokenizer, data.end_ids[0])
        print(f"--- the first of {len(data.test)} test prompts, {len(ids)} tokens; "
              f"at most {data.max_new_tokens} are written\n{text}")


def token_list(row: Encoded, tokenizer: Tokenizer) -> str:
    """A line a token. A special one has no text of its own: decoding drops it, behind a letter too."""
    lines, letter = [], tokenizer.encode("a")[-1:]
    for place, token in enumerate(row.tokens):
        kind = ", special" if tokenizer.decode([*letter, token]) == tokenizer.decode(letter) else ""
        role = "read" if place < row.prompt_length else "learned"
        lines.append(f"{token:>8}  {spelled(tokenizer, token)!r:<24} {role}{kind}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
