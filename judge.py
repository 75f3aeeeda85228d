"""Judge two runs' answers against each other: win, tie and loss as Shen et al., Sec. 4.2 define them.

    python judge.py runs/a runs/b --judge gpt-4o              # OPENAI_API_KEY, and OPENAI_BASE_URL for any other server
    python judge.py runs/a runs/b:quantized --judge NAME      # another state than the one as trained
    python judge.py runs/a runs/b --judge-model DIR           # a local model; plain prompt, no chat template
    python judge.py runs/a runs/b --dry-run --limit 3         # print the prompts, ask nobody

Both runs' predictions.jsonl must be of the same test rows. Every row is asked in both orders. An interrupted judging
goes on by the same command, and asks nothing twice. """
import threads  # noqa: F401  before torch

# isort: split
import finetune.startup  # noqa: F401 (first, for what goes wrong in the imports below)

# isort: split
import re
from pathlib import Path

from finetune.command import Given, Work, run_command
from finetune.command_line import Parser, typed
from finetune.config import ComputeConfig, flag
from finetune.lock import hold
from finetune.resolve import part
from finetune.source import Source
from finetune.values import model_place, positive, seed
from judging.endpoint import Endpoint, JudgeFailed
from judging.judgements import Compared, Judge, Outcome, judge_all, outcome_of, results_of
from judging.local import LocalJudge
from model.files import say_once, write_record
from scoring.predictions import check_same_rows, note_differences, note_unfinished, read_together
from scoring.table import print_columns

BATCH = 4  # rows that a local judge reads together, unless --batch-size says otherwise


def judge_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("a", metavar="RUN_A", help="judge this run, or RUN:KEY for another state than trained")
    parser.add_argument("b", metavar="RUN_B", help="judge it against this run; wins are RUN_A's")
    add = parser.groups["evaluation"].add_argument
    add("--judge", metavar="NAME", help="ask this model of the endpoint")
    add("--judge-model", type=typed(model_place), metavar="MODEL",
        help="ask this local model; MODEL as --model of eval.py")
    add("--limit", type=typed(positive(int)), metavar="N", help="judge the first N rows (default: all)")
    add("--batch-size", type=typed(positive(int)), metavar="ROWS",
        help=f"let a local judge read this many rows at a time (default: {BATCH})")
    add("--seed", type=typed(seed), help="send this seed to the endpoint, beside temperature 0 (default: 0)")
    parser.add_fields(ComputeConfig)
    output = parser.groups["output"].add_argument
    output("--dry-run", action="store_true", help="print the prompts, and make no connection")
    output("--out", type=Path, metavar="DIR", help="keep judgements here (default: judged/A--B--JUDGE)")
    return parser


def main() -> None:
    run_command(judge_parser(), judge_runs)


def judge_runs(given: Given, work: Work) -> None:
    compared = read_compared(given["a"], given["b"], given.get("limit"))
    if "dry_run" in given:
        work.done()
        return print_prompts(compared)
    judge = judge_of(given, compared)
    name = "--".join(re.sub(r"[^\w.-]+", "-", part).strip("-") for part in (given["a"], given["b"], judge.name))
    out = given.get("out") or Path("judged") / name
    work.begins("judging", safe=f"what has been judged is in {out}", go_on="the same command goes on", log=out,
                memory="give a smaller --batch-size")
    report(compared, judge, out, given.get("batch_size", BATCH))


def read_compared(a: str, b: str, limit: int | None) -> Compared:
    """Raises ValueError or FileNotFoundError unless the two were scored on the same rows, and wrote text."""
    first, second = read_together((a, b))
    check_same_rows(first, second)
    for predictions in (first, second):
        note_unfinished(predictions)
    if None in first.texts + second.texts:
        raise ValueError(f"--task {first.task} is answered by choosing, and {first.name} and {second.name} hold no "
                         "text to judge")
    if first.name == second.name:
        raise ValueError(f"RUN_A and RUN_B are both {a}: name two runs, or two states of one, as in {a}:quantized")
    note_differences(first, second)
    requests = [asked[0] for asked in first.rows]
    return Compared(first.name, second.name, first.task, requests[:limit], first.texts[:limit], second.texts[:limit])


def print_prompts(compared: Compared) -> None:
    prompts = [prompt for both in compared.prompts() for prompt in both]
    for number, prompt in enumerate(prompts):
        print(f"--- row {number // 2}, {'b a' if number % 2 else 'a b'}\n{prompt}")
    print(f"--- {len(prompts)} prompts of {sum(map(len, prompts))} characters for {len(compared.requests)} rows of "
          f"{compared.a} (a) and {compared.b} (b); nobody was asked")


def judge_of(given: Given, compared: Compared) -> Judge:
    """The judge, after all checks that need neither a connection nor its weights. Raises ValueError."""
    if ("judge" in given) == ("judge_model" in given):
        raise ValueError("give one judge: --judge NAME, a model of the endpoint at OPENAI_BASE_URL, or --judge-model "
                         "DIR; --dry-run needs none")
    others = ("batch_size", "dtype", "device") if "judge" in given else ("seed",)
    if unused := [flag(name) for name in others if name in given]:
        who = "a local judge" if "judge" in given else "an endpoint"
        say_once(f"{', '.join(unused)}: no effect, as it is for {who}")
    if "judge" in given:
        return Endpoint.from_environment(given["judge"], given.get("seed", 0))
    compute = part(ComputeConfig, given)
    judge = LocalJudge(Source(given["judge_model"]), compute.dtype, compute.device)
    judge.check([prompt for both in compared.prompts() for prompt in both])
    return judge


def report(compared: Compared, judge: Judge, out: Path, batch_size: int) -> None:
    hold(out)
    try:
        judgements = judge_all(compared, judge, out, batch_size if isinstance(judge, LocalJudge) else 1)
    except JudgeFailed as error:
        raise ValueError(f"{error}; what has been judged is in {out}, and the same command goes on") from None
    outcome = outcome_of(judgements, compared)
    write_record(out / "results.json", results_of(outcome, compared, judge))
    print_columns(f"{compared.task}, {outcome.rows} rows, {compared.a} against {compared.b}, judged by {judge.name} "
                  f"in both orders (in {out})",
                  table_of(outcome))
    print("win rate counts a tie as half; p of wins and losses by the exact sign test; the answer shown first was "
          f"preferred in both orders in {outcome.preferred_first} rows, the one shown second in "
          f"{outcome.preferred_second}")


def table_of(outcome: Outcome) -> list[list[str]]:
    figures = {"win rate": (outcome.win_rate, ".2%"), "standard error": (outcome.standard_error, ".2%"),
               "p": (outcome.p_value, ".2g"),
               "mean score a": (outcome.mean_score_a, ".2f"), "mean score b": (outcome.mean_score_b, ".2f")}
    return [["", "wins", "ties", "losses", "malformed", *figures],
            ["a against b", *(str(n) for n in (outcome.wins, outcome.ties, outcome.losses, outcome.malformed)),
             *("-" if value is None else format(value, how) for value, how in figures.values())]]


if __name__ == "__main__":
    main()
