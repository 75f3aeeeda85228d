"""Score a run in each of its states, or a model as it is and quantized.

    python eval.py runs/x                                                     # base, quantized, as trained, merged
    python eval.py runs/x --test-data test.jsonl --test-limit 200
    python eval.py runs/x --requantize gptq                                   # and, lossily, back to k bits
    python eval.py --model DIR --quantizer gptq --bits 3 --task banking77     # no run: base and quantized base
"""
import argparse
import sys
from pathlib import Path

import torch

from finetune import arguments
from finetune.check import check_adapters, check_quantization
from finetune.evaluate import evaluate_model, evaluate_run
from finetune.job import check_data, prepare_job
from finetune.methods import GPTQ, METHODS
from finetune.models import Source, check_trained, read_run
from model.checkpoint import empty_model

REQUANTIZE = ("requantize", *arguments.REQUANTIZE_FLAGS, *arguments.GPTQ_FLAGS)
MAY_CHANGE = ("test_data", "test_limit", "eval_batch_size", "max_new_tokens", "dtype", "device", *REQUANTIZE)  # of a run


def main() -> None:
    parser = arguments.OneLineParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a run directory")
    arguments.add_base_flags(parser)
    args = parser.parse_args()
    given = arguments.given_flags(parser, args)
    try:
        if args.run:
            score_run(given.pop("run"), given)
        else:
            score_model(args, given)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


def score_run(path: Path, given: dict) -> None:
    run, args, saved = read_run(path)
    check_trained(run, args)
    for name, value in given.items():
        if name not in MAY_CHANGE:
            raise ValueError(f"{arguments.flag(name)} comes from the run and cannot be changed; a run takes "
                             + ", ".join(map(arguments.flag, MAY_CHANGE)))
        setattr(args, name, value)
    arguments.refuse_flags(args, METHODS[args.method], given)
    arguments.resolve_requantization(args, given, (args.requantize,))
    if args.requantize:
        check_adapters(empty_model(Source(run.path).config, torch.float32), args)
    job = prepare_job(Source(run.path), args, calibrate=args.requantize == GPTQ)
    check_data(job, saved)
    evaluate_run(run, args, saved, job, run.eval_file)


def score_model(args: argparse.Namespace, given: dict) -> None:
    for name in ("requantize", *arguments.REQUANTIZE_FLAGS):
        if name in given:
            raise ValueError(f"{arguments.flag(name)} needs a run; a model without one is quantized by --quantizer")
    if "targets" in given:
        raise ValueError("--targets says where adapters go, and a model without a run has none: use --quantized-layers")
    asks_for_codes = args.block or args.bits not in (None, 16)
    arguments.resolve_quantizer(args, given, "minmax" if asks_for_codes else "none")
    arguments.resolve_requantization(args, given, (args.quantizer,))
    source = Source(args.model)
    check_quantization(source, args)
    evaluate_model(source, args)


if __name__ == "__main__":
    main()
