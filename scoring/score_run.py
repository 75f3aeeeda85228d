"""Every state of a run, scored one after the other, so that memory holds one base at a time."""
import argparse
from dataclasses import asdict
from pathlib import Path

from finetune import arguments
from scoring.resume import KeptAnswers
from finetune.arguments import DTYPES
from finetune.data import Job, prepare_job
from finetune.methods import GPTQ
from finetune.models import (Source, attach_adapters, check_fingerprint, load_adapter, load_run_base, load_trained,
                             merge_best, save_beside, sixteen_bit_type)
from scoring.predictions import TRAINED, check_predictions, save_predictions
from finetune.quantize import how_quantized, load_base, requantize
from scoring.restore import Restoration, restored_states
from finetune.run import Run
from scoring.table import Row, float32_logits, largest_difference, print_scores, save_table, score_state
from adapters.peft_in import PEFTAdapter, attach_peft
from model.config_json import config_to_json
from model.files import read_json, sha256_of, write_json
from model.gguf_reader import is_gguf
from model.llama import Llama
from model.tokenizer import tokenizer_file


def evaluate_run(run: Run, args: argparse.Namespace, saved: dict, job: Job, place: Run, results: Path,
                 restoration: Restoration | None = None, without_base: bool = False) -> list[Row]:
    """base (unless it is to be left out), quantized base (where it is quantized), as trained, merged, requantized and restored (where asked for). Prints the
    table, writes it to `results` and what was answered to each row to predictions.jsonl in `place`; the merged model, where it is a k-bit one, is
    saved as the model directory `merged/`. Answers of the same command that was interrupted are taken up."""
    job.kept = KeptAnswers(place.path, answers_key(run, args, saved, job, restoration))
    rows = [*([] if without_base else original_base(args, saved, job)), *states_of_run(run, args, saved, job), *restored_states(run, args, job, restoration)]
    return report(rows, run, args, saved, job, place, results)


def restore_run(run: Run, args: argparse.Namespace, saved: dict, job: Job, place: Run, results: Path, restoration: Restoration) -> list[Row]:
    """What plr.txt compares, and no other state: as trained, and restored."""
    job.kept = KeptAnswers(place.path, answers_key(run, args, saved, job, restoration))
    rows = [trained_state(run, args, job), *restored_states(run, args, job, restoration)]
    return report(rows, run, args, saved, job, place, results)


NOT_IN_ANSWERS = ("eval_batch_size", "device", "out", "resume")  # flags that change nothing about an answer but rounding


def answers_key(run: Run, args: argparse.Namespace, saved: dict, job: Job, restoration: Restoration | None) -> dict:
    """All that a run's answers depend on."""
    trained = run.model_file if args.method == "full" else run.adapter_file
    return {"trained": sha256_of(trained), "base": saved["fingerprints"]["base"], **asked_key(args, job),
            **read_by(Source(run.path)), "restoration": asdict(restoration) if restoration else None}


def read_by(source: Source) -> dict:
    """What decides, beside the weights, what a model reads and computes: weights stay what they are when these are put right."""
    files = [source.path] if is_gguf(source.path) else [tokenizer_file(source.path), *filter(Path.is_file, [source.path / "tokenizer_config.json"])]
    return {"config": config_to_json(source.config), "end": source.stop_ids(), "tokenizer": sha256_of(*files)}


def asked_key(args: argparse.Namespace, job: Job) -> dict:
    flags = {name: value for name, value in arguments.to_json(args).items() if name not in NOT_IN_ANSWERS}
    return {"flags": flags, "protocol": job.task.protocol, "template_version": job.task.template_version, "data": job.fingerprints,
            "rows": len(job.test), "max_new_tokens": job.max_new_tokens, "calibration": job.calibration and job.calibration.fingerprint}


def report(rows: list[Row], run: Run, args: argparse.Namespace, saved: dict, job: Job, place: Run, results: Path) -> list[Row]:
    title = f"{run.path}: {args.method}, {args.bits} bits, {args.task}, {len(job.test)} test rows, " \
            f"{len(job.validation)} validation rows"
    print_scores(rows, title, job.task)
    keep_scores(rows, job, place, results, flags=arguments.to_json(args), model=Source(run.path).fingerprint, base=saved["fingerprints"]["base"])
    return rows


def keep_scores(rows: list[Row], job: Job, place: Run, results: Path, **facts) -> None:
    """The table and the answers, on disk; then what an interruption would have been taken up from is not needed any more."""
    save_table(rows, results, task=job.task.name, protocol=job.task.protocol, template_version=job.task.template_version, test_rows=len(job.test), validation_rows=len(job.validation),
               data=job.fingerprints, **facts)
    save_predictions(place.predictions_file, rows, job)
    job.kept.forget()


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


def evaluate_model(source: Source, args: argparse.Namespace, place: Run, without_base: bool = False,
                   adapter: PEFTAdapter | None = None) -> list[Row]:
    """A model without a run: as it is, quantized where a quantizer is named, and the last of these with the adapter, where there is one. The
    scores go to `place`. Raises ValueError where that holds those of another model or task."""
    job = prepare_job(source, args, calibrate=args.quantizer == GPTQ)
    fingerprint = f"{source.fingerprint}+{adapter.fingerprint}" if adapter else source.fingerprint
    check_place(place, fingerprint, job.task.name)
    job.kept = KeptAnswers(place.path, {"model": fingerprint, **read_by(source), **asked_key(args, job)})
    rows = []
    plain = argparse.Namespace(**{**vars(args), "quantizer": "none"})
    states = [("base", args)] if args.quantizer == "none" else [("base", plain), (how_quantized(args), args)]
    for state, how in states[without_base:]:
        model, report = load_base(source, how, job)
        if report:
            keep_report(place, state, report)
        rows.append(score_state(state, model, job, args.eval_batch_size))
        if adapter and how is args:
            attach_peft(model, adapter)
            rows.append(score_state(f"{state} with {adapter.path}", model, job, args.eval_batch_size))
        del model
    print_scores(rows, f"{source.place}: {args.quantizer}, {args.bits} bits, {args.task}, {len(job.test)} test rows", job.task)
    keep_scores(rows, job, place, place.results_file, flags=arguments.to_json(args), model=fingerprint)
    print(f"kept in {place.path}")
    return rows


def keep_report(place: Run, state: str, report: dict) -> None:
    """GPTQ's, beside those of other ways in which the model was quantized for this place."""
    kept = read_json(place.quantization_file) if place.quantization_file.is_file() else {}
    write_json(place.quantization_file, {**kept, state: report})


def check_place(place: Run, fingerprint: str, task: str) -> None:
    check_predictions(place.predictions_file)
    kept = read_json(place.results_file) if place.results_file.is_file() else {}
    if kept and (other := kept.get("model")) != fingerprint:
        raise ValueError(f"{place.path} holds the scores of another model (sha256 {other}): give another --out")
    if kept and kept.get("task") != task:
        raise ValueError(f"{place.path} holds scores of --task {kept.get('task')}: give another --out")
