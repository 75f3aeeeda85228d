"""Rows of a data file: .jsonl (an object a line), .json, .csv, .tsv, .parquet. Also whole texts, such as --calibration.

A .json file is a list of objects, an object a line, or one object that holds such a list, as in `{"data": [...]}`.

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
from functools import partial
from pathlib import Path

from model.files import read_utf8

Kind = type | list | dict
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
CELLS = (".csv", ".tsv")  # every value is text
TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
HALF = re.compile("[\ud800-\udfff]")


class NotText(ValueError):
    """Characters that no tokenizer reads as what they are."""


def read_rows(path: Path, fields: Sequence[str] | Mapping[str, Kind], optional: Sequence[str] = ()) -> list[dict]:
    """Every row. Each holds `fields`: text, if they are a sequence of names, else the kind that the mapping gives.
    Each also holds the `optional` fields: text, empty where the file has none or null.

    Further fields are returned unchanged. Raises FileNotFoundError, or ValueError naming the file, the line (the row in
    .json and .parquet) and the problem."""
    return [row for _, row in placed_rows(path, fields, optional)]


def placed_rows(path: Path, fields: Sequence[str] | Mapping[str, Kind],
                optional: Sequence[str] = ()) -> list[tuple[str, dict]]:
    """(place, row) for each row of `read_rows`. A place reads `data/train.jsonl, line 4`; later checks name it."""
    is_cells = path.suffix.lower() in CELLS
    rows = [(place, checked_row(place, row, fields, optional, is_cells)) for place, row in _raw_rows(path)]
    if not rows:
        raise ValueError(f"{path}: holds no rows")
    return rows


def first_row(path: Path) -> tuple[str, object]:
    """(place, row), the row unchecked. Lines behind it are not parsed."""
    row = next(iter(_raw_rows(path)), None)
    if row is None:
        raise ValueError(f"{path}: holds no rows")
    return row


def _raw_rows(path: Path) -> Iterator[tuple[str, object]]:
    """(place, row) for each row, unchecked."""
    if not path.is_file():
        problem = "is a directory, not a data file" if path.is_dir() else "no such data file"
        raise FileNotFoundError(f"{path}: {problem}")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: the name of a data file must end in one of {', '.join(SUFFIXES)}")
    raw = _parquet(path) if suffix == ".parquet" else READERS[suffix](path, read_text(path))
    return ((f"{path}, {place}", row) for place, row in raw)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, line breaks unchanged. Raises ValueError, naming the file, for another encoding, and
    with the line for a NUL."""
    text = read_utf8(path)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path}, line {line}: holds a NUL character; if every second byte is one, the file is "
                         "UTF-16, not UTF-8 text")
    return text


def read_prose(path: Path) -> str:
    """`read_text` with every line break as one \\n, as Python reads text files."""
    return read_text(path).replace("\r\n", "\n").replace("\r", "\n")


def check_text(text: str) -> str:
    """The text. Raises NotText for a NUL and for half a surrogate pair, which no encoding has."""
    if "\0" in text:
        raise NotText(f"holds a NUL character (at {text.index(chr(0))})")
    if half := HALF.search(text):
        raise NotText(f"holds half of a surrogate pair, U+{ord(half[0]):04X} (at {half.start()}), such as of an emoji "
                      "that was cut in two; it is no text")
    return text


def checked_row(place: str, row: object, fields: Sequence[str] | Mapping[str, Kind], optional: Sequence[str] = (),
                is_csv: bool = False) -> dict:
    """The row, whose fields are of the kinds that `read_rows` describes. Raises ValueError, naming the place."""
    kinds = fields if isinstance(fields, Mapping) else dict.fromkeys(fields, str)
    if not isinstance(row, dict):
        raise ValueError(f"{place}: expected a JSON object, found {type(row).__name__}")
    fitting = {}
    for name, kind in {**kinds, **dict.fromkeys(optional, str)}.items():
        value = row.get(name)
        try:
            fitting[name] = "" if name in optional and value is None else _fitted(value, kind, is_csv)
        except NotText as error:
            raise ValueError(f"{place}: field {name!r} {error}") from None
        except ValueError:
            found = ", ".join(map(str, row)) or "nothing"
            raise ValueError(f"{place}: field {name!r} is missing or not {in_words(kind)} "
                             f"(fields of the row: {found})") from None
    return {**row, **fitting}


def _fitted(value: object, kind: Kind, is_csv: bool = False) -> object:
    """`value` as `kind`. Raises ValueError where it is of another kind, NotText where it is no text."""
    if is_csv and isinstance(value, str) and kind is not str:
        return TRUTH[value.strip()] if kind is bool and value.strip() in TRUTH else _fitted(parsed(value), kind)
    if kind is int and isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]+\s*", value):
        return int(value)
    if isinstance(kind, list) and isinstance(value, list):
        return [_fitted(item, kind[0]) for item in value]
    if isinstance(kind, dict) and isinstance(value, dict):
        return {**value, **{name: _fitted(value.get(name), inner) for name, inner in kind.items()}}
    if kind is type(value):  # not isinstance: true is an int in Python
        return check_text(value) if kind is str else value
    raise ValueError


def in_words(kind: Kind) -> str:
    """`in_words({"text": [str], "label": [str]}) == "an object of text (a list of text) and label (a list of text)"`"""
    if isinstance(kind, list):
        return f"a list of {in_words(kind[0])}"
    if isinstance(kind, dict):
        return "an object of " + " and ".join(f"{name} ({in_words(inner)})" for name, inner in kind.items())
    return {str: "text", int: "an integer", bool: "true or false"}[kind]


# ---- the formats: (place, row) for each row -------------------------------------------------------------------------

def parsed(text: str) -> object:
    """What the JSON text says. Raises ValueError for what is not JSON, for a key that an object names twice, of which
    Python would keep the last, and for values that are nested too deep or too long to read."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _object(pairs: list[tuple[str, object]]) -> dict:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"an object names {next(n for i, n in enumerate(names) if n in names[:i])!r} twice")
    return made


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", parsed(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not valid JSON ({error})") from None


def _json(path: Path, text: str) -> Iterator[tuple[str, object]]:
    """A list of rows; an object a line, as in many .json files of the hub; or an object that holds a list of rows."""
    try:
        whole = parsed(text) if text.strip() else []
    except json.JSONDecodeError as error:
        if error.msg != "Extra data" or not text.lstrip().startswith("{"):
            raise ValueError(f"{path}, line {error.lineno}: not valid JSON ({error})") from None
        yield from _json_lines(path, text)
        return
    except ValueError as error:
        raise ValueError(f"{path}, {_place_of_fault(text)}: not valid JSON ({error})") from None
    rows = _list_in(whole) if isinstance(whole, dict) else whole
    if rows is None:
        yield "line 1", whole  # one row
    elif isinstance(rows, list):
        yield from ((f"row {i}", row) for i, row in enumerate(rows, 1))
    else:
        raise ValueError(f"{path}: expected a JSON list of rows")


def _place_of_fault(text: str) -> str:
    """The line on which the first object of a list begins that cannot be read, else line 1."""
    start, read = text.find("["), json.JSONDecoder(object_pairs_hook=_object).raw_decode
    while found := re.compile(r"[\[,\s]+").match(text, start):
        try:
            _, start = read(text, found.end())
        except (ValueError, RecursionError):
            return f"line {text.count(chr(10), 0, found.end()) + 1}"
    return "line 1"


def _list_in(whole: dict) -> list | None:
    """The rows of `{"data": [...]}`, or of an object with one list of objects only, under any name."""
    lists = {name: value for name, value in whole.items()
             if isinstance(value, list) and value and isinstance(value[0], dict)}
    return lists.get("data") or (next(iter(lists.values())) if len(lists) == 1 else None)


def _csv(path: Path, text: str, delimiter: str = ",") -> Iterator[tuple[str, dict[str, str]]]:
    """The first line that is not empty names the fields. A row is placed by the line on which it begins."""
    reader, names, line = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), None, 1
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
READERS = {".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".tsv": partial(_csv, delimiter="\t")}
