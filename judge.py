"""Judge two runs' answers against each other: win, tie and loss as blora.txt Sec. 4.2 defines them.

    python judge.py runs/a runs/b --judge gpt-4o                    # OPENAI_API_KEY, and OPENAI_BASE_URL for any other server
    python judge.py runs/a "runs/b:quantized base" --judge NAME     # another state than the one as trained
    python judge.py runs/a runs/b --judge-model DIR                 # a local model; plain prompt, no chat template
    python judge.py runs/a runs/b --dry-run --limit 3               # prints the prompts, asks nobody

Both runs' predictions.jsonl (of eval.py or train.py) must be of the same test rows. Every row is asked in both orders; an interrupted
judging goes on by the same command, and asks nothing twice.
"""
import argparse
import re
import sys
from pathlib import Path

from finetune.arguments import COMPUTE, OneLineParser, default_device, default_dtype, device, model_place, positive, seed
from finetune.models import Source
from scoring.predictions import check_same_rows, read_predictions
from scoring.table import print_columns
from judging.endpoint import Endpoint, JudgeFailed
from judging.judgements import Compared, Judge, Outcome, judge_all, outcome_of, results_of
from judging.local import LocalJudge
from model.files import write_json


def main() -> None:
    args = parser().parse_args()
    try:
        compared = read_compared(args.a, args.b, args.limit)
        if args.dry_run:
            return print_prompts(compared)
        judge = judge_of(args, compared)
        out = args.out or Path("judged") / "--".join(re.sub(r"[^\w.-]+", "-", name).strip("-") for name in (args.a, args.b, judge.name))
        report(compared, judge, out, args.batch_size)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on")


def parser() -> argparse.ArgumentParser:
    parser = OneLineParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="RUN_A", help="RUN or RUN:STATE, as eval.py --compare takes it; wins are its own")
    parser.add_argument("b", metavar="RUN_B")
    parser.add_argument("--judge", metavar="NAME", help="the endpoint's model")
    parser.add_argument("--judge-model", type=model_place, metavar="MODEL", help="a local judge, as --model of eval.py names it")
    parser.add_argument("--dry-run", action="store_true", help="print the prompts, and make no connection")
    parser.add_argument("--limit", type=positive(int), help="judge the first so many rows")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: judged/A--B--JUDGE")
    parser.add_argument("--batch-size", type=positive(int), default=4, help="rows that a local judge reads together")
    parser.add_argument("--seed", type=seed, default=0, help="sent to the endpoint, beside temperature 0")
    parser.add_argument("--dtype", choices=COMPUTE, default=default_dtype())
    parser.add_argument("--device", type=device, default=default_device())
    return parser


def read_compared(a: str, b: str, limit: int | None) -> Compared:
    """Raises ValueError or FileNotFoundError where the two were not scored on the same rows, or wrote no text."""
    first, second = read_predictions(a), read_predictions(b)
    check_same_rows(first, second)
    if None in first.texts + second.texts:
        raise ValueError(f"--task {first.task} is answered by choosing, and {first.name} and {second.name} hold no text to judge")
    return Compared(first.name, second.name, first.task, [prompt for prompt, _ in first.rows][:limit], first.texts[:limit], second.texts[:limit])


def print_prompts(compared: Compared) -> None:
    prompts = [prompt for both in compared.prompts() for prompt in both]
    for number, prompt in enumerate(prompts):
        print(f"--- row {number // 2}, {'b a' if number % 2 else 'a b'}\n{prompt}")
    print(f"--- {len(prompts)} prompts of {sum(map(len, prompts))} characters for {len(compared.requests)} rows of {compared.a} (a) and {compared.b} (b); "
          f"nobody was asked")


def judge_of(args: argparse.Namespace, compared: Compared) -> Judge:
    """All that can be wrong with it is found before it is asked, or its weights are read."""
    if (args.judge is None) == (args.judge_model is None):
        raise ValueError("give one judge: --judge NAME, a model of the endpoint at OPENAI_BASE_URL, or --judge-model DIR; --dry-run needs none")
    if args.judge:
        return Endpoint.from_environment(args.judge, args.seed)
    judge = LocalJudge(Source(args.judge_model), args.dtype, args.device)
    judge.check([prompt for both in compared.prompts() for prompt in both])
    return judge


def report(compared: Compared, judge: Judge, out: Path, batch_size: int) -> None:
    try:
        judgements = judge_all(compared, judge, out, batch_size if isinstance(judge, LocalJudge) else 1)
    except JudgeFailed as error:
        raise ValueError(f"{error}; what has been judged is in {out}, and the same command goes on") from None
    outcome = outcome_of(judgements, compared)
    write_json(out / "results.json", results_of(outcome, compared, judge))
    print_columns(f"{compared.task}, {outcome.rows} rows, {compared.a} against {compared.b}, judged by {judge.name} in both orders (in {out})",
                  table_of(outcome))
    print(f"win rate counts a tie as half; p of wins and losses by the exact sign test; the answer shown first was preferred in both orders in "
          f"{outcome.preferred_first} rows, the one shown second in {outcome.preferred_second}")


def table_of(outcome: Outcome) -> list[list[str]]:
    figures = {"win rate": (outcome.win_rate, ".2%"), "standard error": (outcome.standard_error, ".2%"), "p": (outcome.p_value, ".2g"),
               "mean score a": (outcome.mean_score_a, ".2f"), "mean score b": (outcome.mean_score_b, ".2f")}
    return [["", "wins", "ties", "losses", "malformed", *figures],
            ["a against b", *(str(n) for n in (outcome.wins, outcome.ties, outcome.losses, outcome.malformed)),
             *("-" if value is None else format(value, how) for value, how in figures.values())]]


if __name__ == "__main__":
    main()
