"""A task made ready for a model: its splits, encoded."""
import argparse
import hashlib
import json
from dataclasses import dataclass

from scoring.resume import KeptAnswers
from finetune.arguments import flag
from finetune.methods import GPTQ
from finetune.models import Source
from model.tokenizer import Tokenizer
from tasks import TASKS
from tasks.batching import split_list
from tasks.hub_data import data_file, pinned_data
from tasks.task import Encoded, Task

LONGEST = 2048  # tokens of a training row, or of a window of text, unless --max-length says otherwise
TOO_LONG = "longer than --max-length"
NEW_TOKENS = 256  # of an answer, where no training row says how long one is


@dataclass(frozen=True)
class Calibration:
    """What GPTQ sees: token ids, row by row, and where they come from."""
    rows: list[list[int]]
    source: str

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.rows).encode()).hexdigest()

    def to_json(self) -> dict:
        return {"source": self.source, "rows": len(self.rows), "tokens": sum(map(len, self.rows)), "sha256": self.fingerprint}


@dataclass
class Job:
    task: Task
    tokenizer: Tokenizer
    end_ids: tuple[int, ...]  # end-of-sequence tokens
    train: list[Encoded]
    validation: list[Encoded]
    test: list                # of the task's own kind
    left_out: dict[str, int]  # why -> how many training and validation rows
    empty_answers: int        # of the training and validation rows, those that teach to write nothing
    max_new_tokens: int
    fingerprints: dict[str, str]
    calibration: Calibration | None  # where GPTQ will be asked for
    kept: KeptAnswers | None = None  # of a scoring that may go on after an interruption


def prepare_job(source: Source, args: argparse.Namespace, calibrate: bool) -> Job:
    """Reads and checks all data before any weight is loaded. Raises ValueError when nothing is left to train on (but for a benchmark), or to
    calibrate on."""
    task = task_of(args)
    for name, needed in (("data", task.needs_data), ("test_data", task.needs_test_data)):
        if needed and getattr(args, name) is None:
            raise ValueError(f"--task {args.task} needs {flag(name)}")
    if args.limit and not task.trains:
        raise ValueError(f"--limit {args.limit}: it is for training rows, and --task {args.task} has none; --test-limit is for test rows")
    args.data, args.test_data = pinned_data(args.data, "train"), pinned_data(args.test_data, "test")  # what is kept of the flags names the commit
    splits = task.splits(data_file(args.data, "train"), data_file(args.test_data, "test"), args.limit, args.seed)
    for reason, rows in splits.left_out.items():
        print(f"--task {args.task}: {rows} training rows are left out: {reason}")
    if empty := sum(not row.answer.strip() for row in splits.train + splits.validation):
        print(f"--task {args.task}: {empty} training and validation rows have an empty answer: they teach to write nothing")
    tokenizer, end_ids, positions = source.tokenizer, source.stop_ids(), source.config.max_position_embeddings
    longest = args.max_length or min(LONGEST, positions)
    parts = [task.encode(part, tokenizer, end_ids[0]) for part in (splits.train, splits.validation)]
    train, validation = ([e for e in part if len(e.tokens) <= longest + 1] for part in parts)
    too_long = sum(map(len, parts)) - len(train) - len(validation)
    if task.trains:
        if not train or not validation:
            raise ValueError(f"--task {args.task}: {len(train)} rows to train on and {len(validation)} to validate on are left "
                             f"({too_long} are longer than {longest} tokens, see --max-length); both need at least one")
        check_ids([e.tokens for e in train + validation], source)
    longest_answer = max((len(e.tokens) - e.prompt_length for e in train + validation), default=NEW_TOKENS)
    max_new_tokens = args.max_new_tokens or (min(task.new_tokens, positions // 2) if task.new_tokens else min(longest_answer, positions - 1))
    if max(longest, max_new_tokens + 1) > positions:
        raise ValueError(f"{source.path} has {positions} positions: too few for --max-length {longest} or --max-new-tokens "
                         f"{max_new_tokens} and a prompt")
    test = task.test_rows(splits.test, tokenizer, longest)[:args.test_limit]
    calibration = calibration_of(args, tokenizer, train, longest) if calibrate else None
    check_ids([row.tokens for row in test if hasattr(row, "tokens")] + (calibration.rows if calibration else []), source)
    return Job(task, tokenizer, end_ids, train, validation, test, {**splits.left_out, TOO_LONG: too_long}, empty, max_new_tokens, splits.fingerprints(), calibration)


def task_of(args: argparse.Namespace) -> Task:
    """Raises ValueError for a protocol that the task has not."""
    kind = TASKS[args.task]
    if args.protocol is None:
        return kind()
    if args.protocol not in kind.protocols:
        raise ValueError(f"--protocol {args.protocol}: --task {args.task} has {' and '.join(kind.protocols) or 'one protocol only'}")
    return kind.protocols[args.protocol]()


def calibration_of(args: argparse.Namespace, tokenizer: Tokenizer, train: list[Encoded], longest: int) -> Calibration:
    """The first --calibration-rows training rows (plr.txt Sec. 4.1 calibrates on the task's own data), or windows of a text file
    of as many tokens as a training row may have."""
    if args.calibration is None and not train:
        raise ValueError(f"--task {args.task} has no training rows to calibrate {GPTQ} on: give a text file by --calibration")
    if args.calibration is None:
        return Calibration([e.tokens for e in train[:args.calibration_rows]], f"training rows of {args.task}")
    if not args.calibration.is_file():
        raise FileNotFoundError(f"--calibration {args.calibration}: no such text file")
    try:
        tokens = tokenizer.encode(args.calibration.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"--calibration {args.calibration}: not UTF-8 text ({error})") from None
    if not tokens:
        raise ValueError(f"--calibration {args.calibration}: holds no text")
    return Calibration(split_list(tokens, longest)[:args.calibration_rows], str(args.calibration))


def check_ids(rows: list[list[int]], source: Source) -> None:
    """Raises ValueError where the tokenizer is not the one that the model's vocabulary was made for."""
    largest = max(map(max, rows), default=0)
    if largest >= source.config.vocab_size:
        raise ValueError(f"{source.path}: its tokenizer gives token id {largest}, but config.json says "
                         f"vocab_size {source.config.vocab_size}")


def check_calibration(job: Job, saved: dict) -> None:
    """Raises ValueError unless GPTQ would see what it saw when the run began."""
    if "calibration" not in saved["fingerprints"]:
        raise ValueError(f"the run does not say what it was calibrated on (it is older than that), so that {job.calibration.source} cannot be checked")
    if job.calibration.fingerprint != saved["fingerprints"]["calibration"]:
        raise ValueError(f"{job.calibration.source} is no longer what the run was calibrated on (sha256 "
                         f"{job.calibration.fingerprint}, the run had {saved['fingerprints']['calibration']})")


def check_data(job: Job, saved: dict) -> None:
    """Raises ValueError unless training and validation rows are those that the run was trained with."""
    for part in ("train", "validation"):
        if job.fingerprints[part] != saved["fingerprints"]["data"][part]:
            raise ValueError(f"the {part} rows are no longer those of the run (sha256 {job.fingerprints[part]}, "
                             f"the run had {saved['fingerprints']['data'][part]}; of some tasks, another --test-data leaves other training rows out)")
