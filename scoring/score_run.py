"""A run, scored in each of its states."""
from collections.abc import Sequence
from pathlib import Path

from adapters.adapted import adapted_layers
from adapters.rounding import TrainingLost
from finetune.adapted_model import (
    attach_adapters,
    codes_moved,
    linear_names,
    load_adapter,
    merge_best,
    save_beside,
    sixteen_bit_type,
)
from finetune.config import RunConfig, ScoringConfig, flat
from finetune.config_json import config_json
from finetune.data import PreparedData
from finetune.quantize import requantize
from finetune.residual import residuals_of
from finetune.run import Run
from finetune.saving import saved_with
from finetune.source import Source, load_run_base, load_trained, run_fingerprint, why_no_base
from model import processes
from model.config_json import config_to_json
from model.files import sha256_of, write_record
from model.llama import Llama
from model.tokenizer_files import tokenizer_files
from scoring.destination import Destination
from scoring.predictions import save_predictions
from scoring.restore import Restoration, restored_states
from scoring.resume import KeptAnswers
from scoring.scores import Row, Scoring, comparing, score_state, tell_loss, tell_moves, tell_share
from scoring.state import BASE, QUANTIZED, TRAINED, State, merged_state
from scoring.table import print_scores, save_table


def evaluate_run(run: Run, config: RunConfig, data: PreparedData, to: Destination,
                 restoration: Restoration | None = None, without_base: bool = False) -> list[Row]:
    """Scores base (unless it is left out), quantized base, as trained, merged, and requantized and restored if asked
    for. Prints the table, and writes the table and the answers to `to`. A merged k-bit model is saved as the model
    directory `merged/`. Answers of the same command before an interruption are taken up.

    Training may go on meanwhile: what was trained is read once. Of several processes, which share the rows, the first
    one prints and writes."""
    compute = config.compute
    whole = load_trained(run, config, compute.torch_dtype, compute.device) if config.adapter_kind is None else None
    scoring = scoring_of(run, config, data, to, restoration)
    of_run = [all_weights(whole, run, scoring)] if whole else []
    del whole
    base = [] if without_base else original_base(run, config, scoring)
    of_run = of_run or adapter_states(run, config, scoring)
    return report([*base, *of_run, *restored_states(run, config, scoring, restoration)], run, config, scoring, to)


def restore_run(run: Run, config: RunConfig, data: PreparedData, to: Destination,
                restoration: Restoration) -> list[Row]:
    """The states that Kanda & Hatano compare, and no others: as trained, and restored."""
    scoring = scoring_of(run, config, data, to, restoration)
    model = load_trained(run, config, config.compute.torch_dtype, config.compute.device)
    rows = [score_state(TRAINED, model, scoring)]
    del model
    rows += restored_states(run, config, scoring, restoration)
    return report(rows, run, config, scoring, to)


def report(rows: Sequence[Row], run: Run, config: RunConfig, scoring: Scoring, to: Destination) -> list[Row]:
    data, unfinished = scoring.data, run.keep_still().unfinished
    title = f"{run.path}: {config.method}, {config.base.bits} bits, {config.data.task}, {len(data.test)} test rows, " \
            f"{len(data.validation)} validation rows{f', unfinished: {unfinished}' if unfinished else ''}"
    processes.by_first(
        keep_scores, rows, scoring, to.place, to.results, unfinished, config=config_json(config),
        run=str(run.path.resolve()), model=run_fingerprint(run), base=run.fingerprints["base"],
        trained=run.keep_still().to_json(), missing=scoring.missing)
    print_scores(rows, title, data.task)
    return list(rows)


def keep_scores(rows: Sequence[Row], scoring: Scoring, place: Run, results: Path, unfinished: str | None = None,
                **facts) -> None:
    """The table and the answers, on disk. The answers kept for an interruption are then not needed any more."""
    task, data = scoring.data.task, scoring.data
    save_table(rows, results, task=task.name, protocol=task.protocol, template_version=task.template_version,
               test_rows=len(data.test), validation_rows=len(data.validation), data=data.fingerprints, **facts)
    save_predictions(place.predictions_file, rows, data, scoring.asked, unfinished)
    scoring.kept.forget()


# ---- what answers depend on -----------------------------------------------------------------------------------------

def scoring_of(run: Run, config: RunConfig, data: PreparedData, to: Destination,
               restoration: Restoration | None) -> Scoring:
    # A resumed run does not prepare its calibration rows again; what it was calibrated on stays the same.
    calibration = data.calibration.fingerprint if data.calibration else run.fingerprints.get("calibration")
    key = {"trained": run.keep_still().sha256, "base": run.fingerprints["base"],
           **asked_key(config, data, calibration),
           **read_by(Source(run.path)), "restoration": str(restoration)}
    return Scoring(data, config.evaluation.eval_batch_size, KeptAnswers(to.place.path, key),
                   asked_of_all(config, data, calibration), models=to.models)


def read_by(source: Source) -> dict:
    """What decides, beside the weights, what a model reads and computes: config, tokenizer, end tokens."""
    path = source.path
    files = tokenizer_files(path)
    return {"model_config": config_to_json(source.config), "end": source.stop_ids(), "tokenizer": sha256_of(*files)}


def asked_of_all(config: ScoringConfig, data: PreparedData, calibration: str | None) -> dict:
    """What states of one table have in common, and states that were scored at different times may not."""
    return {"--dtype": config.compute.dtype, "--max-new-tokens": data.max_new_tokens, "protocol": data.task.protocol,
            "template": data.task.template_version,
            "calibration": calibration and calibration[:12]}


def asked_key(config: ScoringConfig, data: PreparedData, calibration: str | None) -> dict:
    stated = {f.name: str(value) for f, value in flat(config) if f.metadata.get("answers", True)}
    return {"config": stated, "protocol": data.task.protocol, "template_version": data.task.template_version,
            "data": data.fingerprints, "rows": len(data.test), "max_new_tokens": data.max_new_tokens,
            "calibration": calibration}


# ---- the states -----------------------------------------------------------------------------------------------------

def original_base(run: Run, config: RunConfig, scoring: Scoring) -> list[Row]:
    """The base before quantization and training. It is left out, with a word, if it is no longer what it was."""
    if config.base.from_scratch:
        return []
    if reason := why_no_base(run, config.base):
        print(f"no row for the base: {reason}")
        scoring.missing[BASE.key] = reason
        return []
    model = Source(config.base.model).load(config.compute.torch_dtype, config.compute.device)
    return [score_state(BASE, model, scoring)]


def all_weights(model: Llama, run: Run, scoring: Scoring) -> Row:
    """As trained, of method full."""
    row = score_state(TRAINED, model, scoring)
    share, words = saved_with(run)
    tell_share(row, share, f"{words}. train.py --save-dtype float32 keeps all of it")
    return row


def adapter_states(run: Run, config: RunConfig, scoring: Scoring) -> list[Row]:
    """What a run with an adapter holds: the quantized base, if there is one, and what was trained."""
    model, rows = load_run_base(run, config, config.compute.torch_dtype, config.compute.device), []
    if run.base_file.is_file():
        rows.append(score_state(QUANTIZED, model, scoring))
    return rows + adapted_states(model, run, config, scoring)


def adapted_states(model: Llama, run: Run, config: RunConfig, scoring: Scoring) -> list[Row]:
    """As trained, merged, and requantized if asked for. All are made of `model`, the run's base, in place."""
    storage = sixteen_bit_type(model)
    attach_adapters(model, config, residuals_of(run, config))
    load_adapter(model, run)
    rows = [score_state(TRAINED, model, scoring)]
    compared = comparing(model, scoring)
    lost, moved = TrainingLost(), codes_moved(model)
    sizes = {name: layer.base.in_features * layer.base.out_features for name, layer in adapted_layers(model).items()}
    bits = merge_best(model, storage, lost)
    rows.append(compared(merged_state(bits, storage)))
    tell_loss(rows[-1], lost)
    tell_moves(rows[-1], moved, sizes)
    spec = config.evaluation.requantize
    kept_in = scoring.models
    if bits and kept_in:
        processes.by_first(save_beside, model, run, kept_in.merged)
    elif spec and not bits:
        names = linear_names(model, config.adapter.targets)
        error, gptq_report = requantize(model, names, spec, scoring.data.calibration)
        rows.append(compared(State("requantized", spec.bits, spec.how, "lossy")))
        rows[-1].weight_error = error
        processes.by_first(keep_requantized, model, run, kept_in.requantized, gptq_report)
    return rows


def keep_requantized(model: Llama, run: Run, directory: Path, gptq_report: dict | None) -> None:
    save_beside(model, run, directory)
    if gptq_report:
        write_record(directory / run.quantization_file.name, gptq_report)
