"""Rows of a data file: .jsonl (an object a line), .json (a list of objects, or an object a line), .csv, .parquet.

What a field must hold is written as the data are: `str`, `int`, `bool`, `[str]` for a list of text, `{"text": [str], "label": [str]}` for an
object of such lists. A .csv file has text alone, so that integers are read from it, `true` and `false`, and lists and objects in JSON. An
integer may be text in any file: data sets disagree over their own labels.
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
    """Every row, each holding `fields`: text where they are a sequence of names, else of the kind that the mapping gives. Further fields
    stay as they are.

    Raises FileNotFoundError, or ValueError naming the file, the line (in .json and .parquet the row) and what is wrong there."""
    return [row for _, row in placed_rows(path, fields)]


def placed_rows(path: Path, fields: Sequence[str] | Mapping[str, Kind]) -> list[tuple[str, dict]]:
    """As `read_rows`, each row behind its place, such as `data/train.jsonl, line 4`, for checks that come later."""
    kinds = fields if isinstance(fields, Mapping) else dict.fromkeys(fields, str)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'is a directory, not a data file' if path.is_dir() else 'no such data file'}")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: rows are read from {', '.join(SUFFIXES)} files, by the end of their name")
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
            raise ValueError(f"{place}: field {name!r} is missing or not {in_words(kind)} (fields there: {found})") from None
    return {**row, **fitting}


def _fitted(value: object, kind: Kind, is_csv: bool = False) -> object:
    """`value` as `kind`. Raises ValueError where it is of another."""
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


# ---- the formats: (place, row) for each row --------------------------------------------------------------------------

def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # with or without a byte order mark; line breaks inside quotes stay what they are
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
    """Many a .json file on the hub holds an object a line."""
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
    """The first line that is not empty names the fields. A row's line is the one that it begins on."""
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
                raise ValueError(f"{path}, line {line}: {len(cells)} cells, and the header has {len(names)} ({', '.join(names)})")
            yield f"line {line}", dict(zip(names, cells))
        line = reader.line_num + 1


def _parquet(path: Path) -> Iterator[tuple[str, dict]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ValueError(f"{path}: parquet files are read by pyarrow, which is not installed: pip install pyarrow") from None
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


csv.field_size_limit(2 ** 31 - 1)  # Python refuses cells of more than 131,072 characters by itself
READERS = {".jsonl": _json_lines, ".json": _json, ".csv": _csv}
