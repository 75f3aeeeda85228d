"""Fine-tune one method on one base for one task, then score base, quantized base, as trained and merged.

    python train.py --method qablora --bits 4

A run directory holds everything afterwards (finetune/run.py); `python eval.py RUN` prints its table again, and
`python train.py --resume RUN` goes on where an interrupted run stopped.
"""
import argparse
import platform
import resource
import sys
from dataclasses import fields

import numpy
import safetensors
import torch

from adapters import ADAPTERS
from adapters.adapted import adapted_layers, adapter_parameters
from finetune import arguments, checks as check, models
from finetune.arguments import DTYPES
from model.config_json import config_to_json
from scoring.score_run import evaluate_run
from finetune.example import show_example
from finetune.data import Job, check_calibration, check_data, prepare_job
from finetune.loop import Settings, Trainer, TrainingDiverged
from finetune.methods import GPTQ, METHODS
from finetune.models import Source
from finetune.pictures import plot_losses
from finetune.quantize import load_base
from finetune.run import Run, new_run
from scoring.table import bits_per_weight
from model.checkpoint import random_model, save_model
from model.files import write_json
from model.hub import pinned
from model.llama import Llama
from model.tokenizer import copy_tokenizer
from quant.linear import QuantLinear


def main() -> None:
    parser = arguments.train_parser()
    args = parser.parse_args()
    run, fresh = None, False
    try:
        if args.resume:
            refuse_other_flags(arguments.given_flags(parser, args))
            run, args, saved = models.read_run(args.resume)
            job = reopen(run, args, saved)
        else:
            source, args, job = prepare(arguments.resolve(args, arguments.given_flags(parser, args)))
            if args.show_example:
                return show_example(job)
            run = new_run(args.out, f"{args.method}-{args.bits}bit-{args.task}")
            fresh = True
            saved = describe(run, source, args, job)
        train(run, args, saved, job)
        evaluate_run(run, args, saved, job, run, run.results_file)
    except (ValueError, OSError, TrainingDiverged) as error:
        if fresh and not run.has_progress():
            run.discard()
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"interrupted; go on with: python train.py --resume {run.path}" if run else "interrupted")


def refuse_other_flags(given: dict) -> None:
    if others := [arguments.flag(name) for name in given if name != "resume"]:
        raise ValueError(f"--resume takes every other flag from the run, {', '.join(others)} too: give it alone")


def prepare(args: argparse.Namespace) -> tuple[Source, argparse.Namespace, Job]:
    """All that can be wrong is found here, before a weight is read."""
    args.model = pinned(args.model)  # the run remembers the commit
    source = Source(args.model)
    check.take_block_of_base(source, args)
    check.check_layers(source, args)
    return source, args, prepare_job(source, args, calibrate=GPTQ in (args.quantizer, args.requantize))


def reopen(run: Run, args: argparse.Namespace, saved: dict) -> Job:
    """The job of an interrupted run, whose data and base must be what they were."""
    source = Source(args.model)
    if not args.from_scratch and not run.base_file.is_file():
        models.check_fingerprint(source, saved)
    needs_base = args.quantizer == GPTQ and not run.base_file.is_file()
    job = prepare_job(source, args, calibrate=needs_base or args.requantize == GPTQ)
    check_data(job, saved)
    if needs_base:
        check_calibration(job, saved)
    return job


def describe(run: Run, source: Source, args: argparse.Namespace, job: Job) -> dict:
    """Writes the run's config.json. The tokenizer is copied, so that the run is a model of its own."""
    saved = {
        "arguments": arguments.to_json(args),
        "model_config": config_to_json(source.config),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__,
                     "safetensors": safetensors.__version__},
        "fingerprints": {"base": None if args.from_scratch else source.fingerprint, "data": job.fingerprints,
                         "calibration": job.calibration.fingerprint if args.quantizer == GPTQ else None},
        "data": {"template_version": job.task.template_version, "left_out": job.left_out, "empty_answers": job.empty_answers},
    }
    copy_tokenizer(source.path, run.path)
    write_json(run.config_file, saved)
    return saved


def train(run: Run, args: argparse.Namespace, saved: dict, job: Job) -> None:
    torch.manual_seed(args.seed)
    model, parameters, keep_best = full(run, args) if args.method == "full" else adapted(run, args, saved, job)
    settings = Settings(**{f.name: getattr(args, f.name) for f in fields(Settings)})
    trainer = Trainer(model, parameters, settings, job.train, job.validation, run.state_file, keep_best, run.log)
    print_plan(run, args, model, parameters, job, trainer.total_steps)
    if run.state_file.is_file():
        trainer.load_state()
    run.forget_after(trainer.step)
    trainer.run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # ru_maxrss is in kB on Linux
    write_json(run.training_file, {"trainable_parameters": sum(p.numel() for p in parameters.values()), "tokens": trainer.tokens,
                                   "seconds": round(trainer.seconds, 3), "peak_memory_mb": round(peak)})
    print(f"trained {trainer.tokens} tokens in {trainer.seconds:.0f} s, {trainer.tokens / trainer.seconds:.0f} tokens/s, "
          f"peak memory of the process {peak:.0f} MB")
    plot_losses(run)


def full(run: Run, args: argparse.Namespace):
    """Every weight trains, in float32; what is saved has the checkpoint's own type unless --save-dtype says otherwise."""
    source, dtype = Source(args.model), DTYPES[args.dtype]
    if args.from_scratch:
        model, kept = random_model(source.config, dtype, args.seed).to(args.device), torch.float32
    else:
        model = source.load(dtype, args.device)
        kept = model.model.embed_tokens.weight.dtype
        model.float().requires_grad_(True)
    kept = DTYPES[args.save_dtype] if args.save_dtype else kept
    return model, dict(model.named_parameters()), lambda: save_model(model, run.model_file, kept)


def adapted(run: Run, args: argparse.Namespace, saved: dict, job: Job):
    """The adapters train; the base is quantized once, saved, and from then on read from its file."""
    if args.quantizer != "none" and not run.base_file.is_file():
        base, report = load_base(Source(args.model), args, job)
        if report:
            write_json(run.quantization_file, report)
        save_model(base, run.base_file)
    model = models.load_run_base(run, args, saved)
    models.attach_adapters(model, args)
    return model, adapter_parameters(model), lambda: models.save_adapter(model, run)


def print_plan(run: Run, args: argparse.Namespace, model: Llama, parameters: dict, job: Job, steps: int) -> None:
    trainable = sum(p.numel() for p in parameters.values())
    print(f"{run.path}: {METHODS[args.method].title} on {args.model}")
    how = f"{args.quantizer} on {args.grid}" if args.grid else args.quantizer
    codes = sum(isinstance(module, QuantLinear) for module in model.modules())
    print(f"  base      {how}, {args.bits} bits, block {args.block}: {codes} quantized layers, adapters in "
          f"{len(adapted_layers(model))}, {bits_per_weight(model):.3f} bits a weight with the adapters")
    kind = METHODS[args.method].adapter
    options = "".join(f", {name} {getattr(args, name)}" for name in ADAPTERS[kind].options) if kind else ""
    print(f"  trains    {trainable:,} parameters{options}, lr {args.lr:g}")
    print(f"  data      {len(job.train)} training rows, {len(job.validation)} validation, {len(job.test)} test"
          + "".join(f"; {rows} left out, {reason}" for reason, rows in job.left_out.items() if rows))
    print(f"  steps     {steps} of {args.batch_size} rows")
    if args.bits < 16 and (reason := models.why_not_k_bits(model)):
        print(f"  note      merges to 16 bits only: {reason}")


if __name__ == "__main__":
    main()
