"""Score a run in each of its states, or a model as it is and quantized; compare runs; complete prompts.

    python eval.py runs/x                                                     # base, quantized, as trained, merged
    python eval.py runs/x --test-data test.jsonl --test-limit 200
    python eval.py runs/x --restore 3 4 8 16                                  # and Post-LoRA Restoration: other widths under its adapter
    python eval.py runs/x --restore 8 --merge                                 # and the adapter folded into the 8-bit base: a model of its own
    python eval.py runs/q2 runs/q3 runs/q4 --restore 3 4 8 16 --plot plr.png  # plr.txt Table 1 and Figure 2
    python eval.py runs/sft runs/sft-qlora                                    # every state of both, in one table
    python eval.py --compare runs/sft "runs/sft-qlora:quantized base"         # paired tests on what was scored last
    python eval.py runs/x --requantize gptq                                   # and, lossily, back to k bits
    python eval.py --model DIR --quantizer gptq --bits 3 --task banking77     # no run: base and quantized base
    python eval.py --model DIR --task perplexity --test-data wiki.txt         # or a benchmark; of a run, too:
    python eval.py runs/x --task perplexity --test-data wiki.txt
    python eval.py runs/x --task mmlu --data dev.jsonl --test-data test.jsonl [--protocol hendrycks]
    python eval.py runs/x --prompt "..." --temperature 0.7                    # no task: how the model as trained goes on from here
    python eval.py --model DIR --adapter PEFT_DIR --task banking77            # PEFT's LoRA adapter beside a model, or beside its codes
    python eval.py --model DIR --bits 4 --prompt "..."                        # or a model, here rounded to 4 bits
"""
import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from finetune import arguments
from finetune.checks import check_adapters, check_quantization
from scoring.score_run import evaluate_model, evaluate_run, restore_run
from finetune.data import Job, check_calibration, check_data, prepare_job, task_of
from finetune.methods import GPTQ, METHODS
from finetune.models import Source, check_trained, read_run
from finetune.pictures import check_picture
from scoring.predictions import check_predictions, compare
from sample import add_prompt_flags, complete, refuse_without_prompt
from scoring.restore import Restoration, add_restore_flags, asked_for, check_restoration
from finetune.run import Run
from scoring.table import Row, print_table, save_table
from scoring.tradeoff import check_scores, points_of, show_tradeoff
from adapters.peft_in import read_peft
from model.checkpoint import empty_model
from model.hub import pinned

REQUANTIZE = ("requantize", *arguments.REQUANTIZE_FLAGS, *arguments.GPTQ_FLAGS)
OF_THE_ROWS = ("protocol", "test_data", "test_limit", "max_new_tokens")
MAY_CHANGE = ("model", "task", *OF_THE_ROWS, "eval_batch_size", "dtype", "device", *REQUANTIZE)  # of a run
OF_ANOTHER_TASK = ("data", "limit", "max_length", *OF_THE_ROWS)  # what a run says of these is of its own task
OUTPUTS = ("compare", "plot", "json", "out", "without_base")


def main() -> None:
    parser = arguments.OneLineParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="*", help="run directories")
    add_restore_flags(parser)
    parser.add_argument("--compare", nargs="+", metavar="RUN[:STATE]", help="paired tests of each of the others beside the first, on the "
                        "predictions of their last scoring; STATE is a row of their tables, 'as trained' unless named")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="with --restore: score against memory as a picture; the numbers go beside it, or to --json")
    parser.add_argument("--json", type=Path, metavar="FILE", help="of several runs, --plot or --compare: the joint table")
    parser.add_argument("--out", type=Path, metavar="DIR", help="of a model without a run: where its scores and predictions go; default: "
                        "evals/NAME-TASK")
    parser.add_argument("--without-base", action="store_true", help="leave out the row of the base as it is, before quantization")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="of a model without a run: PEFT's LoRA adapter beside it, as it is or quantized")
    add_prompt_flags(parser)
    arguments.add_base_flags(parser)
    args = parser.parse_args()
    given = {name: value for name, value in arguments.given_flags(parser, args).items() if name not in ("run", *OUTPUTS)}
    try:
        refuse_without_prompt(given)
        if args.compare:
            refuse_beside_compare(args, given)
            compare(args.compare, args.json)
        elif args.prompt:
            complete(args, given)
        elif args.run:
            score_runs(args, given)
        else:
            score_model(args, given)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


def refuse_beside_compare(args: argparse.Namespace, given: dict) -> None:
    if args.run or args.plot or args.out or given:
        raise ValueError("--compare reads what was scored before and takes no other flag than --json: name all runs behind it")


@dataclass
class Prepared:
    """A run that may be scored: everything that can be refused has been looked at."""
    run: Run
    args: argparse.Namespace
    saved: dict
    job: Job
    place: Run     # where its scores go
    results: Path


def score_runs(args: argparse.Namespace, given: dict) -> None:
    """All runs are checked before the first is scored. With --restore, several runs are scored as trained and restored only."""
    restoration, several = asked_for(given), len(args.run) > 1
    if args.out:
        raise ValueError("--out is for a model without a run: a run's scores are kept in the run")
    if args.plot:
        if not restoration:
            raise ValueError("--plot shows what restoring brings: it goes with --restore only")
        check_picture(args.plot)
    if args.json and args.json.is_dir():
        raise ValueError(f"--json {args.json} is a directory")
    if args.json and not (several or args.plot):
        raise ValueError(f"--json is for the joint table of several runs; that of one is in {args.run[0]}/eval.json")
    prepared = [prepare_run(path, given, restoration) for path in args.run]
    if restoration and (several or args.plot):
        if "requantize" in given:
            raise ValueError("--requantize makes a row of one run's own table: give it without --plot, and one run")
        check_scores([(p.run.path, p.args, p.job) for p in prepared])
        points = [point for p in prepared for point in
                  points_of(p.run.path, p.args, restore_run(p.run, p.args, p.saved, p.job, p.place, p.results, restoration), restoration.widths)]
        return show_tradeoff(points, args.plot, args.json)
    rows = [(p.run.path, row) for p in prepared for row in evaluate_run(p.run, p.args, p.saved, p.job, p.place, p.results, restoration, args.without_base)]
    if several:
        joint_table(rows, {name: how for p in prepared for name, how in p.job.task.formats.items()}, args.json)


def prepare_run(path: Path, given: dict, restoration: Restoration | None) -> Prepared:
    run, args, saved = read_run(path)
    check_trained(run, args)
    other_task = given.get("task", args.task) != args.task
    if other_task:
        for name in OF_ANOTHER_TASK:
            setattr(args, name, None)
    may_change = (*MAY_CHANGE, *OF_ANOTHER_TASK) if other_task else MAY_CHANGE
    for name, value in given.items():
        if name not in may_change:
            raise ValueError(f"{arguments.flag(name)} comes from the run and cannot be changed; a run takes "
                             + ", ".join(map(arguments.flag, dict.fromkeys(may_change))))
        setattr(args, name, value)
    arguments.refuse_flags(args, METHODS[args.method], given)
    restored = {base.quantizer for base in check_restoration(run, args, saved, restoration)} if restoration else set()
    if GPTQ in restored and args.quantizer == GPTQ and (others := [name for name in arguments.GPTQ_FLAGS if name in given]):
        raise ValueError(f"{', '.join(map(arguments.flag, others))}: a base restored by {GPTQ} is made as the run's own was, so that nothing but "
                         f"its width differs")
    arguments.resolve_requantization(args, given, (args.requantize, *restored))
    if other_task and GPTQ in (args.requantize, *restored):
        raise ValueError(f"{GPTQ} is calibrated on the rows that the run was trained on, and --task {args.task} has others: leave --task out, or "
                         f"take a quantizer that rounds")
    place = run.benchmark(task_of(args).name) if other_task else run
    check_predictions(place.predictions_file)
    if args.requantize:
        check_adapters(empty_model(Source(run.path).config, torch.float32), args)
    job = prepare_job(Source(run.path), args, calibrate=GPTQ in (args.requantize, *restored))
    if not other_task:
        check_data(job, saved)
    if GPTQ in restored and args.quantizer == GPTQ:
        check_calibration(job, saved)
    return Prepared(run, args, saved, job, place, place.results_file if other_task else run.eval_file)


def joint_table(rows: list[tuple[Path, Row]], formats: dict[str, str], json_file: Path | None) -> None:
    named = [replace(row, state=f"{path}: {row.state}") for path, row in rows]
    print_table(named, "all runs", formats)
    if json_file:
        save_table(named, json_file)


def score_model(args: argparse.Namespace, given: dict) -> None:
    for name in ("requantize", *arguments.REQUANTIZE_FLAGS):
        if name in given:
            raise ValueError(f"{arguments.flag(name)} needs a run; a model without one is quantized by --quantizer")
    if asked_for(given) or args.plot or args.json:
        raise ValueError("--restore, --plot and --json need runs: give their directories")
    if "targets" in given:
        raise ValueError("--targets says where adapters go, and a model without a run has none: use --quantized-layers")
    arguments.resolve_model_quantizer(args, given)
    if args.without_base and args.quantizer == "none":
        raise ValueError("--without-base leaves nothing to score: no --quantizer is named")
    arguments.resolve_requantization(args, given, (args.quantizer,))
    args.model = pinned(args.model)  # the results remember the commit
    source = Source(args.model)
    check_quantization(source, args)
    adapter = read_peft(args.adapter, source.config) if args.adapter else None
    name = source.place.name.removesuffix(".gguf") + (f"-{args.adapter.resolve().name}" if adapter else "")
    place = Run(args.out or Path("evals") / f"{name}-{task_of(args).name}")
    evaluate_model(source, args, place, args.without_base, adapter)


if __name__ == "__main__":
    main()
