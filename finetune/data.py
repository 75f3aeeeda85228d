"""The rows of a task, made ready for a model: split, encoded, checked, fingerprinted."""
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeVar

from finetune.config import DataConfig, ScoringConfig, flag
from finetune.run import Run
from finetune.source import Source
from model.files import say_once
from model.tokenizer import Tokenizer
from tasks import TASKS
from tasks.batching import split_list
from tasks.generative import GenerativeTask, before, spelled
from tasks.hub_data import data_file, pinned_data
from tasks.own_rows import AUTO, recognised
from tasks.rows import read_prose
from tasks.task import Asking, Encoded, Example, Splits, Task, begin_ids, same_row

LONGEST = 2048  # tokens of a training row, or of a window of text, unless --max-length says otherwise
TOO_LONG = "longer than --max-length"
NEW_TOKENS = 256  # of an answer, if no training row says how long one is
Config = TypeVar("Config", bound=ScoringConfig)


@dataclass(frozen=True)
class Calibration:
    """What GPTQ sees: token ids, row by row, and where they come from."""
    rows: list[list[int]]
    source: str

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.rows).encode()).hexdigest()

    def to_json(self) -> dict:
        return {"source": self.source, "rows": len(self.rows), "tokens": sum(map(len, self.rows)),
                "sha256": self.fingerprint}


@dataclass(frozen=True)
class PreparedData:
    task: Task
    tokenizer: Tokenizer
    end_ids: tuple[int, ...]  # end-of-sequence tokens
    train: list[Encoded]
    validation: list[Encoded]
    test: list                # of the task's own kind
    left_out: dict[str, int]  # why -> how many training and validation rows
    empty_answers: int        # training and validation rows whose answer is empty
    max_new_tokens: int
    fingerprints: dict[str, str]
    calibration: Calibration | None  # if GPTQ will be asked for
    named: tuple  # --data and --test-data
    used_ids: frozenset[int]  # every token id of every row that a model will read


def with_pinned_data(config: Config) -> Config:
    """Data sets of the hub by their commit, which does not move; and the task, if the rows name it."""
    data = config.data
    check_needs(task_of(data), data)
    data = replace(data, data=pinned_data(data.data, "train"), test_data=pinned_data(data.test_data, "test"))
    return replace(config, data=with_recognised_task(data))


def with_recognised_task(asked: DataConfig) -> DataConfig:
    """The task of a user's own rows, by their fields."""
    if asked.task != AUTO:
        return asked
    check_needs(task_of(asked), asked)
    return replace(asked, task=recognised(data_file(asked.data, "train")))


def splits_of(task: Task, asked: DataConfig) -> Splits:
    """Raises ValueError as the task does, with the remedy for test rows whose task was left out."""
    try:
        return task.splits(data_file(asked.data, "train"), data_file(asked.test_data, "test"), asked.limit, asked.seed)
    except ValueError as error:
        if asked.data or not asked.test_data or asked.task != DataConfig().task:
            raise
        raise ValueError(f"{error}. --test-data without --data holds rows of --task {asked.task}: for rows of your own "
                         f"give also --data with rows like them; for a benchmark name its --task") from None


def prepare_data(source: Source, config: ScoringConfig, calibrate: bool) -> PreparedData:
    """Reads and checks all rows before any weight is loaded. Raises ValueError if nothing is left to train on
    (benchmarks have no training rows), or to calibrate on."""
    asked = with_recognised_task(config.data)
    task = task_of(asked)
    check_needs(task, asked)
    splits = splits_of(task, asked)
    empty = note_rows(task, splits)
    tokenizer, end_ids, positions = source.tokenizer, source.stop_ids(), source.config.max_position_embeddings
    longest = asked.max_length or min(task.usual_length or LONGEST, positions)
    end_ids = (*end_ids, *task.meet(source.path, tokenizer, end_ids[0], longest))
    train, validation, too_long = encoded_rows(asked, task, splits, tokenizer, end_ids[0], longest)
    max_new_tokens = asked.max_new_tokens or usual_new_tokens(task, train + validation, positions)
    if max(longest, max_new_tokens + 1) > positions:
        raise ValueError(f"{source.path} has {positions} positions: too few for --max-length {longest} or "
                         f"--max-new-tokens {max_new_tokens} and a prompt")
    test = task.test_rows(splits.test, tokenizer, longest)[:asked.test_limit]
    if task.encodes_tokens:
        written = splits.train + splits.validation + [row for row in test if isinstance(row, Example)]
        note_tokens(f"--task {task.name}", written, tokenizer, end_ids[0])
    asking = Asking(tokenizer, end_ids, max_new_tokens, 1)
    for unusual, rows in Counter(chain.from_iterable(task.row_flags(row, asking) for row in test)).items():
        print(f"--task {asked.task}: {rows} of {len(test)} test rows with {unusual}")
    calibration = calibration_of(config, tokenizer, train, longest) if calibrate else None
    read = [e.tokens for e in train + validation] + [row.tokens for row in test if hasattr(row, "tokens")]
    read += [tokenizer.encode(text) for text in dict.fromkeys(text for row in test for text in task.texts(row))]
    read += calibration.rows if calibration else []
    check_ids(read, source)
    left_out = {**splits.left_out, TOO_LONG: too_long}
    return PreparedData(task, tokenizer, end_ids, train, validation, test, left_out, empty, max_new_tokens,
                        splits.fingerprints(), calibration, (asked.data, asked.test_data),
                        frozenset(chain.from_iterable(read)))


def note_rows(task: Task, splits: Splits) -> int:
    """Says what is unusual about the rows to learn from, tells the task which they are, and returns how many have an
    empty answer."""
    for reason, rows in splits.left_out.items():
        print(f"--task {task.name}: {rows} training rows are left out: {reason}")
    if empty := sum(not row.answer.strip() for row in splits.train + splits.validation):
        print(f"--task {task.name}: {empty} training and validation rows have an empty answer: they teach to write "
              "nothing")
    note_stops(task, splits.train + splits.validation)
    parts = splits.train, splits.validation
    learned, held_out = (frozenset(same_row(row.prompt, row.answer) for row in part) for part in parts)
    task.trained_on = learned | held_out
    if again := len(learned & held_out):
        print(f"--task {task.name}: {again} of {len(held_out)} different validation rows are training rows too: their "
              f"loss is too low")
    return empty


def encoded_rows(asked: DataConfig, task: Task, splits: Splits, tokenizer: Tokenizer, end: int,
                 longest: int) -> tuple[list[Encoded], list[Encoded], int]:
    """Rows to train on and to validate on, and how many are left out as longer than `longest` tokens. Raises ValueError
    if a task that trains has none of either."""
    parts = [task.encode(part, tokenizer, end) for part in (splits.train, splits.validation)]
    train, validation = ([e for e in part if len(e.tokens) <= longest + 1] for part in parts)
    too_long = sum(map(len, parts)) - len(train) - len(validation)
    if task.trains and not (train and validation):
        raise ValueError(f"--task {task.name}, --data {asked.data}: {len(train)} rows to train on and "
                         f"{len(validation)} to validate on are left ({too_long} are longer than {longest} tokens, "
                         f"see --max-length); both need at least one, so the file needs at least 2")
    return train, validation, too_long


def usual_new_tokens(task: Task, rows: Sequence[Encoded], positions: int) -> int:
    """The limit of an answer without --max-new-tokens: the protocol's, or the longest answer that was trained on."""
    if task.new_tokens:
        return min(task.new_tokens, positions // 2)
    longest_answer = max((len(e.learned) for e in rows), default=NEW_TOKENS)
    return min(longest_answer, positions - 1)


def note_stops(task: Task, rows: Sequence[Example]) -> None:
    """Says how many answers go on behind a text at which the task's answers end: what follows is learned, and cut."""
    stops = getattr(task, "stop_texts", ())
    if n := sum(before(row.answer.strip(), stops).strip() != row.answer.strip() for row in rows):
        print(f"--task {task.name}: {n} training and validation rows have an answer that goes on behind a stop text "
              f"({' or '.join(map(repr, stops))}): it is learned whole, but written answers are cut there")


def note_tokens(named: str, rows: Sequence[Example], tokenizer: Tokenizer, eos_id: int,
                say: Callable[[str], None] = print) -> None:
    """Says how many rows bring begin or end tokens of their own, and what is made of them."""
    begin = begin_ids(tokenizer, eos_id)
    spelt = {"begin": spelled(tokenizer, begin[0]) if begin else "", "end": spelled(tokenizer, eos_id)}
    for what, text in spelt.items():
        held = [row for row in rows if text and (text in row.prompt or text in row.answer)]
        if not held:
            continue
        if tokenizer.encode(text)[len(begin):][:1] == [begin[0] if what == "begin" else eos_id]:
            made = ("at the start it is read once" if what == "begin" else
                    "at the end of a prompt it is dropped, at the end of an answer learned once, elsewhere kept")
            say(f"{named}: {len(held)} rows bring the {what} token {text} with them: {made}")
        else:
            say(f"{named}: {len(held)} rows hold the text {text}, which this tokenizer reads as letters, not as the "
                f"{what} token")


def task_of(asked: DataConfig) -> Task:
    """Raises ValueError for a protocol that the task does not have."""
    kind = TASKS[asked.task]
    if asked.protocol is None:
        return kind()
    if asked.protocol not in kind.protocols:
        raise ValueError(f"--protocol {asked.protocol}: --task {asked.task} has "
                         f"{' and '.join(kind.protocols) or 'one protocol only'}")
    return kind.protocols[asked.protocol]()


def check_needs(task: Task, asked: DataConfig) -> None:
    """Raises ValueError for a file that the task needs and no flag names, for --limit without training rows. Says that
    --max-new-tokens has no effect on a task without written answers."""
    for name, needed in (("data", task.needs_data), ("test_data", task.needs_test_data)):
        if needed and getattr(asked, name) is None:
            raise ValueError(f"--task {asked.task} needs {flag(name)}")
    if asked.limit and not task.trains:
        raise ValueError(f"--limit {asked.limit} is for training rows, and --task {asked.task} has none: "
                         f"use --test-limit for test rows")
    if asked.max_new_tokens and asked.task != AUTO and not isinstance(task, GenerativeTask):
        say_once(f"--max-new-tokens {asked.max_new_tokens} has no effect: --task {asked.task} has no written answers")


def calibration_of(config: ScoringConfig, tokenizer: Tokenizer, train: list[Encoded], longest: int) -> Calibration:
    """The first --calibration-rows training rows (Kanda & Hatano, Sec. 4.1, calibrate on the task's own data), or
    windows of a text file with as many tokens as a training row may have."""
    file, rows, task = config.base.calibration, config.base.calibration_rows, config.data.task
    if file is None and not train:
        raise ValueError(f"--task {task} has no training rows to calibrate gptq on: name a text file by --calibration")
    if file is None:
        return Calibration([e.tokens for e in train[:rows]], f"training rows of {task}")
    if not file.is_file():
        raise FileNotFoundError(f"--calibration {file}: no such text file")
    try:
        tokens = tokenizer.encode(read_prose(file))
    except ValueError as error:
        raise ValueError(f"--calibration {error}") from None
    if not tokens:
        raise ValueError(f"--calibration {file}: holds no text")
    return Calibration(split_list(tokens, longest)[:rows], str(file))


def check_ids(rows: list[list[int]], source: Source) -> None:
    """Raises ValueError if the tokenizer gives ids beyond the model's vocabulary."""
    largest = max(chain.from_iterable(rows), default=0)
    if largest >= source.config.vocab_size:
        raise ValueError(f"{source.path}: its tokenizer gives token id {largest}, but config.json says "
                         f"vocab_size {source.config.vocab_size}")


def check_calibration(data: PreparedData, run: Run) -> None:
    """Raises ValueError unless GPTQ would see what it saw when the run began."""
    now, then = data.calibration, run.fingerprints
    if "calibration" not in then:
        raise ValueError(f"the run does not say what it was calibrated on (it is older than that), "
                         f"so {now.source} cannot be checked")
    if now.fingerprint != then["calibration"]:
        raise ValueError(f"{now.source} is no longer what the run was calibrated on (sha256 {now.fingerprint}, "
                         f"the run had {then['calibration']})")


def check_data(data: PreparedData, run: Run) -> None:
    """Raises ValueError unless training and validation rows are those that the run was trained with. Says so if the
    test rows have changed though the files and flags that name them are the run's own."""
    for part in ("train", "validation"):
        then = run.fingerprints["data"][part]
        if data.fingerprints[part] != then:
            raise ValueError(f"the {part} rows are no longer those of the run (sha256 {data.fingerprints[part]}, the "
                             f"run had {then}; for some tasks, another --test-data leaves other training rows out)")
    own, then = run.config.data, run.fingerprints["data"].get("test")
    if data.fingerprints["test"] != then and (data.task.name, data.named) == (own.task, (own.data, own.test_data)):
        say_once(f"WARNING: the test rows ({own.test_data or own.data}) are no longer those of the run (sha256 "
                 f"{data.fingerprints['test']}, the run had {then}). Scores are of the rows as they are now")
