"""Text and JSON files, in and out. Writing goes through durable.py: a file is whole or absent."""
import codecs
import hashlib
import json
import re
import sys
from collections import Counter
from functools import cache
from itertools import islice
from pathlib import Path

from model.durable import naming, replace_file

LARGEST_JSON = 1 << 28  # bytes; the largest published tokenizer.json has 35 MB
# The marks that a text may begin with. UTF-32's little-endian mark begins with UTF-16's, so it is looked for first.
MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16",
         codecs.BOM_UTF16_BE: "UTF-16"}


class Damaged(ValueError):
    """A file is not what was written. The message names the file, and the tensor if it is known."""


def read_utf8(path: Path) -> str:
    """The text of a UTF-8 file, line breaks unchanged. A byte order mark is dropped: it is no part of the text.

    Raises ValueError, naming the file, for another encoding."""
    raw = read_bytes(path)
    if named := next((name for mark, name in MARKS.items() if raw.startswith(mark)), None):
        raise ValueError(f"{path}: not UTF-8 text but {named}, as its first bytes say; convert it first, e.g. "
                         f"iconv -f {named} -t UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from None


def read_bytes(path: Path) -> bytes:
    """Raises OSError with the file's name, which Python leaves out if the error comes while an open file is read."""
    with naming(path):
        return path.read_bytes()


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    replace_file(path, lambda file: file.write(content))


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


SEAL = "sha256_of_the_rest"


def write_record(path: Path, value: dict) -> None:
    """A JSON object with its own checksum as the last key. `read_json` checks it and leaves it out."""
    write_json(path, {**value, SEAL: seal(json.loads(json.dumps(value)))})


def seal(value: dict) -> str:
    """sha256 of a JSON object: its keys sorted, without spaces."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_json(path: Path) -> dict:
    """The JSON object in a file. Raises ValueError, naming the file, for anything else, and for an object with a
    checksum that is not what was written."""
    value = _read_json(path)
    stated = value.pop(SEAL, None)
    if stated is not None and (found := seal(value)) != stated:
        raise Damaged(f"{path}: changed after it was written: its {SEAL} is {found}, but the file states {stated}. "
                         f"If it was changed on purpose, delete the entry {SEAL}; if not, restore the file from a copy")
    return value


def _read_json(path: Path) -> dict:
    if (size := path.stat().st_size) > LARGEST_JSON:
        raise ValueError(f"{path}: {size} bytes are too many for a JSON file; at most {LARGEST_JSON} are read")
    text = read_utf8(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse_json(text: str) -> dict:
    """The JSON object in a text. Raises ValueError for anything else, and for a key that an object holds twice."""
    def unique(pairs: list[tuple[str, object]]) -> dict:
        found = dict(pairs)
        if len(found) < len(pairs):
            key = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
            raise Duplicate(f"an object holds the key {json.dumps(key)} twice ({lines_with(key, text)}): keep one")
        return found
    try:
        value = json.loads(text, object_pairs_hook=unique)
    except Duplicate:
        raise
    except RecursionError:
        raise ValueError("not valid JSON here: it is nested too deeply") from None
    except ValueError as error:  # also an integer of more than 4300 digits
        raise ValueError(f"not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError("holds JSON, but not an object")
    return value


class Duplicate(ValueError):
    """An object holds a key twice."""


def lines_with(key: str, text: str) -> str:
    """The lines of a JSON text that name this key: "lines 2, 5"."""
    named = re.compile(re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:")
    lines = [text.count("\n", 0, match.start()) + 1 for match in islice(named.finditer(text), 4)]
    return f"lines {', '.join(map(str, lines))}" if lines else "written with escapes"


@cache
def say_once(text: str) -> None:
    """A line for the user on stderr; once in a process, however often a file is opened."""
    print(text, file=sys.stderr)


def sha256_of(*paths: Path) -> str:
    """One checksum over the bytes of all files, in the order given.

    The result is cached while size and time of change stay the same: a run asks for its base's checksum when it starts,
    loads and scores."""
    return _sha256(*((path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths))


@cache
def _sha256(*files: tuple[Path, int, int]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in files:
        with naming(path), open(path, "rb") as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()


def some(names: list[str], most: int = 8, between: str = ", ") -> str:
    """`some(["a", "b", "c"], 2) == "a, b and 1 more"`"""
    return between.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
