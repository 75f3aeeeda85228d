"""What each state of a run answered to each test row, kept in the run's predictions.jsonl; and paired tests of two
states.

    python eval.py --compare runs/a runs/b runs/b:quantized
"""
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from finetune.data import PreparedData
from finetune.run import Run
from model.files import write_json
from model.journal import Journal, checked
from scoring.scores import Row
from scoring.state import BASE, QUANTIZED, TRAINED, older_key
from scoring.table import print_columns
from tasks import TASKS
from tasks.generative import TRUNCATED
from tasks.rows import read_rows
from tasks.significance import Comparison, compare_scores


@dataclass(frozen=True)
class Predictions:
    """One state's, in the order of the test rows."""
    name: str                    # RUN:KEY
    task: str
    rows: list[tuple]            # prompt, right answer, and the choices with their contexts if there are any
    scores: list[float]
    texts: list[str | None]      # what was written; None for an answer that was chosen
    asked: Mapping[str, object]  # the flags it was scored with; none in a file of an older version
    cut: int                     # rows whose prompt lost its left end
    unfinished: str | None = None  # `step 12 of 21`, of a state that was scored before training ended


def save_predictions(path: Path, rows: Sequence[Row], data: PreparedData, flags: Mapping[str, object],
                     unfinished: str | None = None) -> None:
    """A line a state and test row. States that are scored again replace their lines; others stay.

    flags: those that these answers depend on. Says which states in the file were scored with others.
    unfinished: `step 12 of 21`, if training has not ended."""
    again = {row.state.key for row in rows}
    kept = [line for line in _lines(path) if line["state"] not in again]
    for state, then in {line["state"]: line.get("asked") or {} for line in kept}.items():
        if other := differing(then, flags):
            print(f"{path}: state {state} stays from an earlier scoring with {other}")
    new = []
    for row in rows:
        mark = {"unfinished": unfinished} if unfinished and row.state.kind not in (BASE.kind, QUANTIZED.kind) else {}
        for i, (asked, line) in enumerate(zip(data.test, row.lines, strict=True)):
            marks = data.task.marks(asked, line)
            new.append({"state": row.state.key, "task": data.task.name, "row": i, "rows": len(data.test),
                        "asked": dict(flags), **mark, **line, "score": marks[data.task.metric], "marks": marks})
    Journal(path).rewrite(kept + new)


def differing(then: Mapping[str, object], now: Mapping[str, object]) -> str:
    """`--max-new-tokens 3, here 16`: the flags whose values both know and do not share."""
    return ", ".join(f"{name} {then[name]}, here {now[name]}" for name in now
                     if name in then and then[name] != now[name])


def _lines(path: Path) -> list[dict]:
    """Raises ValueError, naming the file and the line, for one that `save_predictions` did not write."""
    lines = read_rows(path, ("state", "task", "prompt", "gold")) if path.is_file() and path.stat().st_size else []
    for number, line in enumerate(lines, 1):
        if not isinstance(line.get("score"), float):
            raise ValueError(f"{path}, line {number}: score is {line.get('score')!r}, not a number")
    lines = [checked(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
    for state, n in Counter(line["state"] for line in lines).items():
        if n != (rows := next(line.get("rows", n) for line in lines if line["state"] == state)):
            raise ValueError(f"{path}: holds {n} of the {rows} rows of state {state}, so lines of it are missing: "
                             "remove the file and score again")
    return [{**line, "state": older_key(line["state"])} for line in lines]


def check_predictions(path: Path) -> None:
    """Raises ValueError for a damaged file, which scoring would have to add to."""
    _lines(path)


def read_together(specs: Sequence[str]) -> list[Predictions]:
    """Of each `RUN` or `RUN:KEY`. A run's file is read once: a scoring beside this process may replace it, and two
    versions would be compared as if they were one. Raises ValueError or FileNotFoundError, naming the states that are
    there."""
    versions: dict[Path, list[dict]] = {}
    found = []
    for path, state in map(split_spec, specs):
        file = Run(path).predictions_file
        if not file.is_file():
            raise FileNotFoundError(f"{path}: no predictions.jsonl there; python eval.py {path} makes it")
        if file not in versions:
            versions[file] = _lines(file)
        found.append(_state_in(file, versions[file], path, state))
    return found


def _state_in(file: Path, every: list[dict], path: Path, state: str) -> Predictions:
    lines = [line for line in every if line["state"] == state]
    if not lines:
        there = ", ".join(dict.fromkeys(line["state"] for line in every)) or "none"
        raise ValueError(f"{file} holds no state {state!r}; it holds: {there}")
    return Predictions(f"{path}:{state}", lines[0]["task"], list(map(asked_in, lines)),
                       [float(line["score"]) for line in lines], [line.get("text") for line in lines],
                       lines[0].get("asked") or {}, sum(TRUNCATED in line.get("flags", ()) for line in lines),
                       lines[0].get("unfinished"))


def asked_in(line: dict) -> tuple:
    """What a model was asked in a line: shots are part of the prompt."""
    return line["prompt"], line["gold"], *(tuple(line.get(name, ())) for name in ("choices", "contexts"))


def split_spec(spec: str) -> tuple[Path, str]:
    """`split_spec("runs/a:quantized") == (Path("runs/a"), "quantized")`. A directory whose name has a colon is itself;
    a run without a key stands for its state as trained."""
    path, colon, state = spec.rpartition(":")
    return (Path(path), state) if colon and not Path(spec).is_dir() else (Path(spec), TRAINED.key)


def compare(specs: Sequence[str], json_file: Path | None) -> list[Comparison]:
    """Each of the others with the first, row by row. Raises ValueError if they were not asked the same. Other flags,
    such as --dtype, may be what is compared: they are said."""
    first, *others = read_together(specs)
    if not others:
        raise ValueError("--compare needs at least two runs, as RUN or RUN:KEY")
    for predictions in (first, *others):
        note_unfinished(predictions)
    for other in others:
        check_same_rows(first, other)
        note_differences(first, other)
    results = [compare_scores(other.scores, first.scores) for other in others]
    task = TASKS.get(first.task)  # None: a task of an older version
    how = task.formats.get(task.metric, ".2%") if task else ".2%"
    print_columns(f"{first.task}, {len(first.scores)} rows, each beside {first.name} ({results[0].mean_b:{how}})",
                  [COLUMNS, *(cells(other, result, how) for other, result in zip(others, results, strict=True))])
    if json_file:
        write_json(json_file, {"task": first.task, "beside": first.name, "comparisons": [
            {"name": other.name, **asdict(result)} for other, result in zip(others, results, strict=True)]})
    return results


def note_differences(first: Predictions, other: Predictions) -> None:
    if flags := differing(other.asked, first.asked):
        print(f"note: {other.name} was scored with other flags than {first.name}: {flags}")
    if other.cut != first.cut:
        print(f"note: {other.name} read {other.cut} prompts that were cut on the left, {first.name} {first.cut}: the "
              f"models have different room for a prompt")
    if older := [state.name for state in (first, other) if not state.asked]:
        print(f"note: {' and '.join(older)}: scored by an older version, which did not keep the flags; whether they "
              f"were the same is not known")


def note_unfinished(predictions: Predictions) -> None:
    if predictions.unfinished:
        print(f"note: {predictions.name} was scored before its training ended: {predictions.unfinished}")


def check_same_rows(a: Predictions, b: Predictions) -> None:
    if a.task != b.task:
        raise ValueError(f"{a.name} is scored on {a.task} and {b.name} on {b.task}: scores of two tasks are not "
                         "compared")
    if a.rows != b.rows:
        pairs = enumerate(zip(a.rows, b.rows, strict=False))
        differ = next((i for i, (x, y) in pairs if x != y), min(len(a.rows), len(b.rows)))
        raise ValueError(f"{a.name} ({len(a.rows)} rows) and {b.name} ({len(b.rows)} rows) were not scored on the same "
                         f"test rows (row {differ} is the first that differs): score both again with the same "
                         "--test-data and --test-limit, and for benchmarks the same --data and --protocol")
    ways = ({name: state.asked[name] for name in PROMPTS if name in state.asked} for state in (b, a))
    if prompts := differing(*ways):
        raise ValueError(f"{b.name} was asked in another way than {a.name} ({prompts}): score both again in the same "
                         f"way")


PROMPTS = ("protocol", "template")  # of the flags that are kept: those that decide how a row is asked
COLUMNS = ["", "score", "difference", "95 % interval", "right alone", "wrong alone", "p", "test"]


def cells(other: Predictions, result: Comparison, how: str) -> list[str]:
    alone = ["-" if n is None else str(n) for n in (result.only_a, result.only_b)]
    interval = "-" if result.low is None else f"[{result.low:+{how}}, {result.high:+{how}}]"
    p_value = "-" if result.p_value is None else f"{result.p_value:.2g}"
    return [other.name, f"{result.mean_a:{how}}", f"{result.difference:+{how}}", interval, *alone, p_value,
            result.test]
