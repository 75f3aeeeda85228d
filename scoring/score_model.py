"""A model without a run, scored as it is and quantized."""
from dataclasses import replace

from adapters.peft_in import PEFTAdapter, attach_peft
from finetune.config import ScoringConfig
from finetune.config_json import config_json
from finetune.data import prepare_data
from finetune.lock import hold
from finetune.quantize import load_base
from finetune.run import Run
from finetune.source import Source
from model import processes
from model.files import read_json, write_record
from scoring.predictions import check_predictions
from scoring.resume import KeptAnswers
from scoring.score_run import asked_key, asked_of_all, keep_scores, read_by
from scoring.scores import Row, Scoring, score_state
from scoring.state import BASE, State
from scoring.table import print_scores


def evaluate_model(source: Source, config: ScoringConfig, place: Run, without_base: bool = False,
                   adapter: PEFTAdapter | None = None) -> list[Row]:
    """A model as it is, and quantized if a quantizer is named. The last of the two is also scored with the adapter, if
    there is one. Scores go to `place`. Raises ValueError if that holds the scores of another model or task."""
    spec, compute = config.base.quantization, config.compute
    data = prepare_data(source, config, calibrate=config.base.by_gptq)
    fingerprint = f"{source.fingerprint}+{adapter.fingerprint}" if adapter else source.fingerprint
    processes.by_first(hold, place.path)
    check_place(place, fingerprint, data.task.name)
    calibration = data.calibration and data.calibration.fingerprint
    key = {"model": fingerprint, **read_by(source), **asked_key(config, data, calibration)}
    kept = KeptAnswers(place.path, key)
    scoring = Scoring(data, config.evaluation.eval_batch_size, kept, asked_of_all(config, data, calibration))
    states = [(BASE, replace(config.base, quantization=None))]
    if spec:
        states.append((quantized_state(config), config.base))
    rows = []
    for state, base in states[without_base:]:
        model, gptq_report = load_base(source, base, compute, data.calibration)
        if gptq_report:
            processes.by_first(keep_report, place, state, gptq_report)
        rows.append(score_state(state, model, scoring))
        if adapter and base.quantization == spec:
            attach_peft(model, adapter)
            beside = replace(state, how=f"{state.how} with {adapter.path.resolve().name}".strip())
            rows.append(score_state(beside, model, scoring))
        del model
    how = f"{spec}" if spec else "as it is"
    processes.by_first(keep_scores, rows, scoring, place, place.results_file, config=config_json(config),
                       model=fingerprint)
    print_scores(rows, f"{source.place}: {how}, {config.data.task}, {len(data.test)} test rows", data.task)
    print(f"kept in {place.path}")
    return rows


def quantized_state(config: ScoringConfig) -> State:
    spec, layers = config.base.quantization, config.base.quantized_layers
    return State("quantized", spec.bits, spec.how + f", {layers} only" * (layers != "all"))


def keep_report(place: Run, state: State, gptq_report: dict) -> None:
    """GPTQ's report, beside those of other ways in which the model was quantized for this place."""
    kept = read_json(place.quantization_file) if place.quantization_file.is_file() else {}
    write_record(place.quantization_file, {**kept, state.key: gptq_report})


def check_place(place: Run, fingerprint: str, task: str) -> None:
    check_predictions(place.predictions_file)
    kept = read_json(place.results_file) if place.results_file.is_file() else {}
    if kept and (other := kept.get("model")) != fingerprint:
        raise ValueError(f"{place.path} holds the scores of another model (sha256 {other}): give another --out")
    if kept and kept.get("task") != task:
        raise ValueError(f"{place.path} holds scores of --task {kept.get('task')}: give another --out")
