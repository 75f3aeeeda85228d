"""Score a run in each of its states, or a model as it is and quantized; or compare what was scored.

    python eval.py runs/x                                                     # base, quantized, as trained, merged
    python eval.py runs/x --test-data test.jsonl --test-limit 200
    python eval.py runs/x --task mmlu --data dev.jsonl --test-data test.jsonl # a benchmark
    python eval.py runs/x --restore 3 4 8 16                                  # Post-LoRA Restoration: other widths
    python eval.py runs/x --restore 8 --merge                                 # and merged into the 8-bit base
    python eval.py runs/q2 runs/q3 runs/q4 --restore 3 4 8 16 --plot plr.png  # Kanda & Hatano, Table 1 and Figure 2
    python eval.py runs/sft runs/sft-qlora                                    # every state of both, in one table
    python eval.py --compare runs/sft runs/sft-qlora:quantized                # paired tests on what was scored last
    python eval.py runs/x --out scores                                        # beside training, or of a read-only run
    python eval.py runs/x --requantize gptq                                   # lossily back to k bits
    python eval.py --model DIR --quantizer gptq --bits 3 --task banking77     # a model without a run
    python eval.py --model DIR --task perplexity --test-data wiki.txt
    python eval.py --model DIR --adapter PEFT_DIR --task banking77            # with PEFT's LoRA adapter
"""
import threads  # noqa: F401  before torch

# isort: split
import finetune.startup  # noqa: F401 (first, for what goes wrong in the imports below)

# isort: split
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from adapters.peft_in import read_peft
from finetune.checks import check_requantization, planned_base, planned_run
from finetune.command import Given, Work, run_command
from finetune.command_line import OF_ANY_MODEL, Parser, typed
from finetune.config import BaseConfig, ComputeConfig, DataConfig, EvaluationConfig, RunConfig, flag
from finetune.data import (
    PreparedData,
    check_calibration,
    check_data,
    prepare_data,
    task_of,
    with_pinned_data,
)
from finetune.pictures import check_picture
from finetune.resolve import GPTQ_FIELDS, check_gptq_fields, rescored, resolve_scoring
from finetune.run import Run, open_run
from finetune.source import Source, check_fingerprint, check_trained, note_another
from finetune.values import spec_text
from model import processes
from model.files import say_once
from model.hub import pinned
from model.token_agreement import note_other_tokenizer
from quant.spec import QuantSpec, whole
from scoring.destination import Destination
from scoring.predictions import check_predictions, compare
from scoring.restore import Restoration, check_restoration
from scoring.score_model import evaluate_model
from scoring.score_run import evaluate_run, restore_run
from scoring.show_tradeoff import show_tradeoff
from scoring.table import print_table, save_table
from scoring.tradeoff import check_scores, points_of


@cache
def eval_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, nargs="*", default=[], help="score these run directories")
    parser.add_fields(QuantSpec, BaseConfig, ComputeConfig, DataConfig, EvaluationConfig, leave_out=("from_scratch",),
                      here=OF_ANY_MODEL)
    model, scored, output = (parser.groups[name].add_argument for name in ("model", "evaluation", "output"))
    model("--adapter", type=Path, metavar="DIR", help="a model without a run: put PEFT's LoRA adapter beside it")
    scored("--restore", type=typed(whole), nargs="+", metavar="BITS",
           help="Post-LoRA Restoration: score the run's adapter on its base at these widths; 16: the original weights")
    scored("--restore-quantizer", type=typed(spec_text), metavar="SPEC",
           help="make the restored bases this way, e.g. gptq:minmax@32x1 "
                "(default: as the run's own base; gptq for a run on a 16-bit base)")
    scored("--merge", action="store_true",
           help="with --restore: also merge the adapter into each restored base, exactly, score it, and save it in "
                "RUN/restored-BITSbit; refused before anything is loaded if it does not merge")
    scored("--without-base", action="store_true", help="leave out the row of the base before quantization")
    scored("--compare", nargs="+", metavar="RUN[:KEY]",
           help="test each of the others against the first, row by row, on the answers of their last scoring; KEY is a "
                "state such as quantized, merged-4bit or restored-8bit (default: trained)")
    output("--plot", type=Path, metavar="FILE",
           help="with --restore: draw score against memory; the numbers go beside it, or to --json")
    output("--json", type=Path, metavar="FILE", help="several runs, --plot or --compare: write the joint table")
    output("--out", type=Path, metavar="DIR",
           help="write here, and nothing into the run (default: the run; of a model without a run, evals/NAME-TASK)")
    return parser


def main() -> None:
    run_command(eval_parser(), score, several=True)


def score(given: Given, work: Work) -> None:
    if len(given) == 1 and not given["run"]:
        eval_parser().print_usage()
        raise ValueError("name a run or --model, or compare runs by --compare (see --help)")
    if "compare" in given:
        if processes.several():
            raise ValueError(f"--compare reads what was scored before, and there are {processes.size()} processes: "
                             f"start it by python, without torchrun")
        refuse_beside_compare(given)
        compare(given["compare"], given.get("json"))
    elif given["run"]:
        score_runs(given, work)
    else:
        score_model(given, work)


def begin_scoring(work: Work, place: Path) -> None:
    work.begins("scoring", safe="the answers so far are kept", go_on="the same command goes on", log=place,
                memory="give a smaller --eval-batch-size")


def of_configuration(given: Given) -> Given:
    """Without the flags that are eval.py's own."""
    configured = eval_parser().configured
    return {name: value for name, value in given.items() if name in configured}


def refuse_beside_compare(given: Given) -> None:
    others = [flag(name) for name in given if name not in ("run", "compare", "json")]
    if given["run"] or others:
        named = ", ".join([*map(str, given["run"]), *others])
        raise ValueError("--compare reads what was scored before and takes no other flag than --json: leave out "
                         f"{named}, or name all runs behind --compare")


def restoration_of(given: Given) -> Restoration | None:
    """Raises ValueError for flags that need --restore, or a width below 16."""
    if "restore" not in given:
        if unused := [name for name in ("restore_quantizer", "merge") if name in given]:
            raise ValueError(f"{', '.join(map(flag, unused))} goes with --restore only")
        return None
    widths = tuple(dict.fromkeys(given["restore"]))
    if "restore_quantizer" in given and set(widths) == {16}:
        raise ValueError("--restore-quantizer goes with a width below 16 only")
    return Restoration(widths, given.get("restore_quantizer"), "merge" in given)


# ---- runs -----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Prepared:
    """A run that may be scored: all checks are done."""
    run: Run
    config: RunConfig
    data: PreparedData
    to: Destination


def score_runs(given: Given, work: Work) -> None:
    """All runs are checked before the first is scored. With --restore, several runs are scored as trained and restored
    only."""
    restoration, several = restoration_of(given), len(given["run"]) > 1
    check_outputs(given, restoration, several)
    prepared = [prepare_run(path, of_configuration(given), restoration, given.get("out")) for path in given["run"]]
    if restoration and (several or "plot" in given):
        if "requantize" in given:
            raise ValueError("--requantize makes a row of one run's own table: give one run, and no --plot")
        check_scores([(p.run.path, p.config, p.data) for p in prepared])
    for p in prepared:
        processes.by_first(p.to.lock, p.run)
    begin_scoring(work, prepared[0].to.place.path)
    if restoration and (several or "plot" in given):
        scored = [(p, restore_run(p.run, p.config, p.data, p.to, restoration)) for p in prepared]
        points = [point for p, rows in scored for point in points_of(p.run.path, p.config, rows)]
        processes.by_first(show_tradeoff, points, given.get("plot"), given.get("json"))
        return
    scored = [(p, evaluate_run(p.run, p.config, p.data, p.to, restoration, "without_base" in given))
              for p in prepared]
    if several:
        note_other_rows(prepared)
        named = {f"{p.run.path}: {row.state.title}": row for p, rows in scored for row in rows}
        print_table(named, "all runs", {name: how for p in prepared for name, how in p.data.task.formats.items()})
        if "json" in given:
            processes.by_first(save_table, list(named.values()), given["json"], names=list(named))


def note_other_rows(prepared: Sequence[Prepared]) -> None:
    """In one table, scores of other rows look as if they could be compared."""
    first, *others = ((p, (p.data.task.name, p.data.task.protocol, p.data.fingerprints["test"], len(p.data.test)))
                      for p in prepared)
    for other, asked in others:
        if asked != first[1]:
            print(f"note: {other.run.path} was not scored on the test rows of {first[0].run.path}: their scores do not "
                  f"compare")


def check_outputs(given: Given, restoration: Restoration | None, several: bool) -> None:
    if "adapter" in given:
        raise ValueError("--adapter is for a model without a run; a run has its own adapter")
    if several and "out" in given:
        raise ValueError(f"--out {given['out']} is for the scores of one run, and {len(given['run'])} are named")
    if "plot" in given:
        if not restoration:
            raise ValueError("--plot shows what restoring brings: it goes with --restore only")
        check_picture(given["plot"])
    if "json" in given and given["json"].is_dir():
        raise ValueError(f"--json {given['json']} is a directory")
    if "json" in given and not (several or "plot" in given):
        raise ValueError("--json is for the joint table of several runs; that of one is in "
                         f"{given['run'][0]}/eval.json")


def prepare_run(path: Path, given: Given, restoration: Restoration | None, out: Path | None) -> Prepared:
    run = open_run(path)
    check_trained(run)
    note_another(run)
    own = run.config
    config = rescored(own, given)
    other_task = config.data.task != own.data.task
    if "model" in given:
        check_named_base(run, config)
    restored = check_restoration(run, config, restoration) if restoration else []
    restores_by_gptq = any(base.by_gptq for base in restored)
    by_gptq = restores_by_gptq or config.evaluation.requantizes_by_gptq
    if restores_by_gptq and own.base.by_gptq and (others := [name for name in GPTQ_FIELDS if name in given]):
        raise ValueError(f"{', '.join(map(flag, others))}: a base restored by gptq is made as the run's own was, so "
                         "that nothing but its width differs")
    check_gptq_fields(given, by_gptq)
    if other_task and by_gptq:
        raise ValueError(f"gptq is calibrated on the rows that the run was trained on, and --task {config.data.task} "
                         "has others: leave --task out, or take a quantizer that rounds")
    to = Destination.of(run, config, out, bool(restoration))
    check_predictions(to.place.predictions_file)
    if config.evaluation.requantize:
        check_requantization(planned_run(run, config), config)
    config = with_pinned_data(config)
    data = prepare_data(Source(run.path), config, calibrate=by_gptq)
    if not other_task:
        check_data(data, run)
    if restores_by_gptq and own.base.by_gptq:
        check_calibration(data, run)
    return Prepared(run, config, data, to)


def check_named_base(run: Run, config: RunConfig) -> None:
    """Raises ValueError or FileNotFoundError if --model is not what the run was trained from. A base that the run names
    itself, and that is gone or has changed, only costs its row."""
    if config.base.from_scratch:
        raise ValueError(f"--model {config.base.model}: {run.path} was trained from random weights and has no base: "
                         f"leave it out")
    check_fingerprint(Source(config.base.model), run)


# ---- a model without a run ------------------------------------------------------------------------------------------

def score_model(given: Given, work: Work) -> None:
    refuse_flags_of_runs(given)
    config = resolve_scoring(of_configuration(given))
    if "without_base" in given and not config.base.quantization:
        raise ValueError("--without-base leaves nothing to score: no --quantizer is named")
    if "seed" in given and not task_of(config.data).trains:
        say_once(f"--seed {given['seed']} has no effect: --task {config.data.task} has no training rows to draw")
    config = replace(config, base=replace(config.base, model=pinned(config.base.model)))
    source = Source(config.base.model)
    planned_base(source, config.base)
    config = with_pinned_data(config)
    adapter = read_peft(given["adapter"], source.config) if "adapter" in given else None
    if adapter:
        note_other_tokenizer(adapter.path, source.tokenizer)
    name = source.place.name.removesuffix(".gguf") + (f"-{given['adapter'].resolve().name}" if adapter else "")
    place = Run(given.get("out") or Path("evals") / f"{name}-{task_of(config.data).name}")
    begin_scoring(work, place.path)
    evaluate_model(source, config, place, "without_base" in given, adapter)


def refuse_flags_of_runs(given: Given) -> None:
    if "requantize" in given:
        raise ValueError("--requantize needs a run; a model without one is quantized by --quantizer")
    if restoration_of(given) or "plot" in given or "json" in given:
        raise ValueError("--restore, --plot and --json need runs: give their directories")


if __name__ == "__main__":
    main()
