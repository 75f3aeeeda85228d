"""Every state of a run, scored one after the other, so that memory holds one base at a time."""
import argparse
from pathlib import Path

from finetune.arguments import DTYPES
from finetune.job import Job, prepare_job
from finetune.methods import GPTQ
from finetune.models import (Source, attach_adapters, check_fingerprint, load_adapter, load_run_base, load_trained,
                             merge_best, save_beside, sixteen_bit_type)
from finetune.predictions import TRAINED, save_predictions
from finetune.quantize import load_base, requantize
from finetune.restore import Restoration, restored_states
from finetune.run import Run
from finetune.table import Row, float32_logits, largest_difference, print_table, save_table, score_state
from model.files import write_json
from model.llama import Llama


def evaluate_run(run: Run, args: argparse.Namespace, saved: dict, job: Job, results: Path,
                 restoration: Restoration | None = None) -> list[Row]:
    """base, quantized base (where it is quantized), as trained, merged, requantized and restored (where asked for). Prints the
    table, writes it to `results` and what was written for each row to predictions.jsonl; the merged model, where it is a k-bit one, is
    saved as the model directory `merged/`."""
    rows = [*original_base(args, saved, job), *states_of_run(run, args, saved, job), *restored_states(run, args, job, restoration)]
    return report(rows, run, args, saved, job, results)


def restore_run(run: Run, args: argparse.Namespace, saved: dict, job: Job, restoration: Restoration) -> list[Row]:
    """What plr.txt compares, and no other state: as trained, and restored."""
    rows = [trained_state(run, args, job), *restored_states(run, args, job, restoration)]
    return report(rows, run, args, saved, job, run.eval_file)


def report(rows: list[Row], run: Run, args: argparse.Namespace, saved: dict, job: Job, results: Path) -> list[Row]:
    title = f"{run.path}: {args.method}, {args.bits} bits, {args.task}, {len(job.test)} test rows, " \
            f"{len(job.validation)} validation rows"
    print_table(rows, title)
    save_table(rows, results, task=args.task, test_rows=len(job.test), validation_rows=len(job.validation),
               data=job.fingerprints, base=saved["fingerprints"]["base"])
    save_predictions(run, rows, job)
    return rows


def original_base(args: argparse.Namespace, saved: dict, job: Job) -> list[Row]:
    """The base before quantization and training; left out, and said so, where it is no longer there."""
    if args.from_scratch:
        return []
    source = Source(args.model)
    try:
        check_fingerprint(source, saved)
    except (FileNotFoundError, ValueError) as error:
        print(f"no row for the base: {error}")
        return []
    model = source.load(DTYPES[args.dtype], args.device)
    return [score_state("base", model, job, args.eval_batch_size)]


def states_of_run(run: Run, args: argparse.Namespace, saved: dict, job: Job) -> list[Row]:
    """What the run itself holds: the quantized base, where there is one, and what was trained."""
    if args.method == "full":
        return [trained_state(run, args, job)]
    model, rows = load_run_base(run, args, saved), []
    if run.base_file.is_file():
        rows.append(score_state("quantized base", model, job, args.eval_batch_size))
    return rows + adapted_states(model, run, args, job)


def trained_state(run: Run, args: argparse.Namespace, job: Job) -> Row:
    return score_state(TRAINED, load_trained(run, DTYPES[args.dtype], args.device), job, args.eval_batch_size)


def adapted_states(model: Llama, run: Run, args: argparse.Namespace, job: Job) -> list[Row]:
    """As trained, merged, and requantized where asked for, all of them made of `model`, the run's base, in place."""
    storage = sixteen_bit_type(model)
    attach_adapters(model, args)
    load_adapter(model, run)
    rows = [score_state(TRAINED, model, job, args.eval_batch_size)]
    before = float32_logits(model, job.validation)

    def compared(state: str) -> Row:
        row = score_state(state, model, job, args.eval_batch_size)
        row.logit_difference = largest_difference(before, float32_logits(model, job.validation))
        return row
    state, k_bits = merge_best(model, storage)
    rows.append(compared(state))
    if k_bits:
        save_beside(model, run, run.merged)
    elif args.requantize:
        error, report = requantize(model, args, job)
        how = f"gptq on {args.requantize_grid}" if args.requantize == GPTQ else f"rounding to {args.requantize_grid}"
        rows.append(compared(f"requantized, {args.requantize_bits} bits, {how} (lossy)"))
        rows[-1].weight_error = error
        save_beside(model, run, run.requantized)
        if report:
            write_json(run.requantized / run.quantization_file.name, report)
    return rows


def evaluate_model(source: Source, args: argparse.Namespace) -> list[Row]:
    """A model without a run: as it is and, where a quantizer is named, quantized."""
    job = prepare_job(source, args, calibrate=args.quantizer == GPTQ)
    rows = []
    plain = argparse.Namespace(**{**vars(args), "quantizer": "none"})
    for state, how in [("base", plain), ("quantized base", args)][:1 if args.quantizer == "none" else 2]:
        model, _ = load_base(source, how, job)
        rows.append(score_state(state, model, job, args.eval_batch_size))
        del model
    print_table(rows, f"{source.place}: {args.quantizer}, {args.bits} bits, {args.task}, {len(job.test)} test rows")
    return rows
