"""Files that are either whole or absent: each is written under a temporary name, then renamed. safetensors and JSON."""
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

LARGEST_JSON = 1 << 28  # bytes; the largest published tokenizer.json has 35 MB


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """`write` gets a temporary path in the same directory. The file is renamed to `path` once it is complete.

    Raises OSError, naming `path` and not the temporary file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(beside)
        os.replace(beside, path)
    except OSError as error:
        if error.filename is None:
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from None
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    replace_file(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict:
    """The JSON object in a file. Raises ValueError, naming the file, for anything else."""
    if (size := path.stat().st_size) > LARGEST_JSON:
        raise ValueError(f"{path}: {size} bytes are too many for a JSON file; at most {LARGEST_JSON} are read")
    try:
        return parse_json(path.read_text(encoding="utf-8"))
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


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Tensors that share memory (tied weights) must appear under one name only.

    Give at most one key of `metadata`: the library writes several keys in random order, and equal runs should give
    equal bytes. transformers requires `format: pt` of a dense checkpoint. Raises OSError if the disk is full."""
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    try:
        replace_file(path, lambda beside: save_file(whole, beside, metadata=metadata or {"format": "pt"}))
    except SafetensorError as error:  # the library raises this for a full disk
        raise OSError(f"{path}: {error}") from None


def sha256_of(*paths: Path) -> str:
    """One checksum over the bytes of all files, in the order given.

    The result is cached while size and time of change stay the same: a run asks for its base's checksum when it starts,
    loads and scores."""
    return _sha256(*((path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths))


@cache
def _sha256(*files: tuple[Path, int, int]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in files:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()
