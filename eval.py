"""Score a run in each of its states, or a model as it is and quantized.

    python eval.py runs/x                                                     # base, quantized, as trained, merged
    python eval.py runs/x --test-data test.jsonl --test-limit 200
    python eval.py --model DIR --quantizer minmax --bits 3 --task banking77   # no run: base and quantized base
"""
import argparse
import sys
from pathlib import Path

from finetune import arguments
from finetune.evaluate import evaluate_model, evaluate_run
from finetune.job import check_data, prepare_job
from finetune.models import Source, check_layers, read_run

FROM_RUN = ("test_data", "test_limit", "eval_batch_size", "max_new_tokens", "dtype", "device")  # flags a run may be given


def main() -> None:
    parser = arguments.OneLineParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a run directory")
    arguments.add_base_flags(parser)
    args = parser.parse_args()
    try:
        if args.run:
            score_run(parser, args)
        else:
            score_model(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def score_run(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    run, args, saved = read_run(given.run)
    for name, value in vars(given).items():
        if name != "run" and value != parser.get_default(name):
            if name not in FROM_RUN:
                raise ValueError(f"--{name.replace('_', '-')} comes from the run and cannot be changed; a run takes "
                                 + ", ".join(f"--{n.replace('_', '-')}" for n in FROM_RUN))
            setattr(args, name, value)
    job = prepare_job(Source(run.path), args)
    check_data(job, saved)
    evaluate_run(run, args, saved, job, run.eval_file)


def score_model(args: argparse.Namespace) -> None:
    arguments.resolve_quantizer(args, args.quantizer or ("none" if args.bits in (None, 16) else "minmax"), "eval.py")
    args.method, args.lam, args.max_length, args.from_scratch = "full", None, None, False
    source = Source(args.model)
    check_layers(source, args)
    evaluate_model(source, args)


if __name__ == "__main__":
    main()
