"""A task made ready for a model: its splits, encoded."""
import argparse
from dataclasses import dataclass

from finetune.models import Source
from model.tokenizer import Tokenizer
from tasks import TASKS
from tasks.task import Encoded, Example, Task

LONGEST = 2048  # tokens of a training row, unless --max-length says otherwise


@dataclass
class Job:
    task: Task
    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]  # end tokens and the line break
    train: list[Encoded]
    validation: list[Encoded]
    test: list[Example]
    left_out: int             # training and validation rows longer than --max-length
    max_new_tokens: int
    fingerprints: dict[str, str]


def prepare_job(source: Source, args: argparse.Namespace) -> Job:
    """Reads and checks all data before any weight is loaded. Raises ValueError when nothing is left to train on."""
    task = TASKS[args.task]()
    splits = task.splits(args.data, args.test_data, args.limit, args.seed)
    tokenizer, stop_ids = source.tokenizer, source.stop_ids()
    longest = args.max_length or min(LONGEST, source.config.max_position_embeddings)
    parts = [task.encode(part, tokenizer, stop_ids[0]) for part in (splits.train, splits.validation)]
    train, validation = ([e for e in part if len(e.tokens) <= longest + 1] for part in parts)
    left_out = sum(map(len, parts)) - len(train) - len(validation)
    if not train or not validation:
        raise ValueError(f"--task {args.task}: {len(train)} rows to train on and {len(validation)} to validate on are left "
                         f"({left_out} are longer than {longest} tokens, see --max-length); both need at least one")
    check_ids(train + validation, source)
    positions = source.config.max_position_embeddings
    longest_answer = max(len(e.tokens) - e.prompt_length for e in train + validation)
    max_new_tokens = args.max_new_tokens or min(longest_answer, positions - 1)
    if max(longest, max_new_tokens + 1) > positions:
        raise ValueError(f"{source.path} has {positions} positions: too few for --max-length {longest} or --max-new-tokens "
                         f"{max_new_tokens} and a prompt")
    return Job(task, tokenizer, (*stop_ids, *newline_ids(tokenizer)), train, validation, splits.test[:args.test_limit],
               left_out, max_new_tokens, splits.fingerprints())


def newline_ids(tokenizer: Tokenizer) -> list[int]:
    """The token that ends a line, where the tokenizer has one of its own. Every task's answer is one line: what a model
    writes after it does not count, and need not be generated."""
    return tokenizer.encode("a\n")[len(tokenizer.encode("a")):][:1]


def check_ids(rows: list[Encoded], source: Source) -> None:
    """Raises ValueError where the tokenizer is not the one that the model's vocabulary was made for."""
    largest = max(max(e.tokens) for e in rows)
    if largest >= source.config.vocab_size:
        raise ValueError(f"{source.path}: its tokenizer gives token id {largest}, but config.json says "
                         f"vocab_size {source.config.vocab_size}")


def check_data(job: Job, saved: dict) -> None:
    """Raises ValueError unless training and validation rows are those that the run was trained with."""
    for part in ("train", "validation"):
        if job.fingerprints[part] != saved["fingerprints"]["data"][part]:
            raise ValueError(f"the {part} rows are no longer those of the run (sha256 {job.fingerprints[part]}, "
                             f"the run had {saved['fingerprints']['data'][part]})")
