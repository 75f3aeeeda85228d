"""Rows of a data file: .jsonl (an object a line), .json (a list of objects, or an object a line), .csv, .parquet.

The kind of a field is written as an example of its data: `str`, `int`, `bool`, `[str]` for a list of text, and
`{"text": [str], "label": [str]}` for an object of such lists. Cells of a .csv file are text. Integers, `true`, `false`,
and lists and objects in JSON are parsed from that text. An integer may be text in any file, because copies of one
data set differ in how they store labels.
"""
import csv
import importlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

Kind = type | list | dict
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


def read_rows(path: Path, fields: Sequence[str] | Mapping[str, Kind]) -> list[dict]:
    """Every row. Each holds `fields`: text, if they are a sequence of names, else the kind that the mapping gives.

    Further fields are returned unchanged. Raises FileNotFoundError, or ValueError naming the file, the line (the row in
    .json and .parquet) and the problem."""
    return [row for _, row in placed_rows(path, fields)]


def placed_rows(path: Path, fields: Sequence[str] | Mapping[str, Kind]) -> list[tuple[str, dict]]:
    """(place, row) for each row of `read_rows`. A place reads `data/train.jsonl, line 4`; later checks name it."""
    kinds = fields if isinstance(fields, Mapping) else dict.fromkeys(fields, str)
    if not path.is_file():
        problem = "is a directory, not a data file" if path.is_dir() else "no such data file"
        raise FileNotFoundError(f"{path}: {problem}")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: the name of a data file must end in one of {', '.join(SUFFIXES)}")
    raw = _parquet(path) if suffix == ".parquet" else READERS[suffix](path, _text_of(path))
    rows = [(f"{path}, {place}", _checked(f"{path}, {place}", row, kinds, suffix == ".csv")) for place, row in raw]
    if not rows:
        raise ValueError(f"{path}: holds no rows")
    return rows


def _checked(place: str, row: object, kinds: Mapping[str, Kind], is_csv: bool) -> dict:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: expected a JSON object, found {type(row).__name__}")
    fitting = {}
    for name, kind in kinds.items():
        try:
            fitting[name] = _fitted(row.get(name), kind, is_csv)
        except ValueError:
            found = ", ".join(map(str, row)) or "nothing"
            raise ValueError(f"{place}: field {name!r} is missing or not {in_words(kind)} "
                             f"(fields of the row: {found})") from None
    return {**row, **fitting}


def _fitted(value: object, kind: Kind, is_csv: bool = False) -> object:
    """`value` as `kind`. Raises ValueError where it is of another kind."""
    if is_csv and isinstance(value, str) and kind is not str:
        return TRUTH[value.strip()] if kind is bool and value.strip() in TRUTH else _fitted(json.loads(value), kind)
    if kind is int and isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]+\s*", value):
        return int(value)
    if isinstance(kind, list) and isinstance(value, list):
        return [_fitted(item, kind[0]) for item in value]
    if isinstance(kind, dict) and isinstance(value, dict):
        return {**value, **{name: _fitted(value.get(name), inner) for name, inner in kind.items()}}
    if kind is type(value):  # not isinstance: true is an int in Python
        return value
    raise ValueError


def in_words(kind: Kind) -> str:
    """`in_words({"text": [str], "label": [str]}) == "an object of text (a list of text) and label (a list of text)"`"""
    if isinstance(kind, list):
        return f"a list of {in_words(kind[0])}"
    if isinstance(kind, dict):
        return "an object of " + " and ".join(f"{name} ({in_words(inner)})" for name, inner in kind.items())
    return {str: "text", int: "an integer", bool: "true or false"}[kind]


# ---- the formats: (place, row) for each row -------------------------------------------------------------------------

def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # a byte order mark is dropped; line breaks are kept unchanged
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from None


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not valid JSON ({error})") from None


def _json(path: Path, text: str) -> Iterator[tuple[str, object]]:
    """A list of rows, or an object a line, as in many .json files of the hub."""
    if text.lstrip().startswith("{"):
        yield from _json_lines(path, text)
        return
    try:
        whole = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(whole, list):
        raise ValueError(f"{path}: expected a JSON list of rows")
    yield from ((f"row {i}", row) for i, row in enumerate(whole, 1))


def _csv(path: Path, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The first line that is not empty names the fields. A row is placed by the line on which it begins."""
    reader, names, line = csv.reader(io.StringIO(text, newline=""), strict=True), None, 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{path}, line {line}: not valid CSV ({error})") from None
        if cells is None:
            return
        if cells and names is None:
            names = _distinct(cells, f"{path}, line {line}")
        elif cells:
            if len(cells) != len(names):
                raise ValueError(f"{path}, line {line}: {len(cells)} cells, but the header has {len(names)} "
                                 f"({', '.join(names)})")
            yield f"line {line}", dict(zip(names, cells, strict=True))
        line = reader.line_num + 1


def _parquet(path: Path) -> Iterator[tuple[str, dict]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ValueError(f"{path}: parquet needs the package pyarrow, which is not installed: "
                         "pip install pyarrow") from None
    from pyarrow import ArrowException
    try:
        table = parquet.read_table(path)
        rows = table.to_pylist()
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from None
    _distinct(table.column_names, str(path))
    yield from ((f"row {i}", row) for i, row in enumerate(rows, 1))


def _distinct(names: list[str], place: str) -> list[str]:
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ValueError(f"{place}: the header names {twice[0]!r} twice")
    return names


csv.field_size_limit(2 ** 31 - 1)  # by default, Python refuses cells of more than 131,072 characters
READERS = {".jsonl": _json_lines, ".json": _json, ".csv": _csv}
