"""Files that are either whole or not there: written beside, then renamed into place. safetensors and JSON only."""
import hashlib
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """`write` gets a name beside `path`; what it wrote takes the place of `path` when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    replace_file(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict:
    """A JSON object from a file; ValueError naming the file when it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return value


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Tensors that share memory (tied weights) must come under one name only.

    `metadata` of at most one key: the library writes several in random order, and equal runs should give equal bytes.
    `format: pt` is what transformers asks of a dense checkpoint. Raises OSError where the disk is full."""
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    try:
        replace_file(path, lambda beside: save_file(whole, beside, metadata=metadata or {"format": "pt"}))
    except SafetensorError as error:  # a full disk, by a name of the library's own
        raise OSError(f"{path}: {error}") from None


def sha256_of(*paths: Path) -> str:
    """One fingerprint over the files' bytes, in the order given. Files that have not changed since are not read again: a run
    asks for its base's fingerprint when it starts, loads and scores it."""
    return _sha256(*((path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths))


@cache
def _sha256(*files: tuple[Path, int, int]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in files:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()
