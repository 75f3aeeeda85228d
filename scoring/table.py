"""The table that train.py ends with and eval.py prints: one row a state of the model."""
from collections.abc import Mapping, Sequence
from pathlib import Path

from model.files import write_record
from scoring.scores import Row
from tasks.task import Task

OPTIONAL = {  # columns that a table has if one of its rows has a value: field of Row, format
    "validation loss": ("validation_loss", ".4f"), "bits a weight": ("bits_per_weight", ".3f"),
    "MB": ("megabytes", ".2f"), "max |logit difference|": ("logit_difference", ".1e"),
    "codes moved": ("codes_moved", ".1%"), "weight error": ("weight_error", ".1%"),
    "||rounding|| / ||delta_W||": ("noticed_loss", ".1%"),
    "||W_l - W_k|| / ||delta_W||": ("restoration_ratio", ".3f")}


def print_scores(rows: Sequence[Row], title: str, task: Task) -> None:
    """The table, what its figures are, and the metric of each part of the test rows."""
    print_table({row.state.title: row for row in rows}, title, task.formats)
    is_share = rows and not task.trains and task.metric not in task.formats
    papers = f"; the papers report {task.metric}" if is_share else ""
    print(f"protocol: {task.protocol}{papers}")
    if parts := list(dict.fromkeys(part for row in rows for part in row.parts)):
        print_columns(f"{task.metric} of each part", [["", *(row.state.title for row in rows)], *(
            [part, *(f"{row.parts[part]:.2%}" for row in rows)] for part in parts)])


def print_table(rows: Mapping[str, Row], title: str, formats: Mapping[str, str] | None = None) -> None:
    """rows: under the names that stand in the first column. Below them, a line for each kind of test row that cannot
    score, scores too well, or was cut."""
    formats = formats or {}
    names = list(dict.fromkeys(name for row in rows.values() for name in row.scores))
    optional = {head: how for head, how in OPTIONAL.items()
                if any(getattr(row, how[0]) is not None for row in rows.values())}
    head = ["", *names, *optional]
    print_columns(title, [head, *([named, *(score_cell(row, name, formats.get(name)) for name in names),
                                   *(optional_cell(getattr(row, name), how) for name, how in optional.values())]
                                  for named, row in rows.items())])
    print_counts(rows)


def print_counts(rows: Mapping[str, Row]) -> None:
    """A line for each count of test rows that are out of the ordinary. States that share it share the line."""
    named_by: dict[tuple[str, int, int], list[str]] = {}
    for named, row in rows.items():
        for what, n in row.counts.items():
            if what != "rows":
                named_by.setdefault((what, n, row.counts["rows"]), []).append(named)
    for (what, n, of), names in named_by.items():
        who = "every state" if len(names) == len(rows) > 1 else ", ".join(names)
        print(f"{who}: {n} of {of} test rows with {what}")


def score_cell(row: Row, name: str, how: str | None) -> str:
    """`79.19% ± 0.73`: the score and its standard error, in the same unit. `how` is the format of scores that are no
    shares of 1."""
    value, error = row.scores.get(name), row.standard_errors.get(name)
    if value is None:
        return "-"
    if how:
        return format(value, how) + ("" if error is None else f" ± {error:{how}}")
    return f"{value:.2%}" + ("" if error is None else f" ± {100 * error:.2f}")


def optional_cell(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


def print_columns(title: str, lines: Sequence[Sequence[str]]) -> None:
    """Cells in columns, the first line a head; the first column aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n{title}")
    for line in [lines[0], ["-" * w for w in widths], *lines[1:]]:
        cells = (cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
        print("  ".join(cells).rstrip())


def save_table(rows: Sequence[Row], path: Path, **facts) -> None:
    write_record(path, {**facts, "rows": [row.to_json() for row in rows]})
