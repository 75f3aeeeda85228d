"""Files that are either whole or absent: each is written under a temporary name, then renamed. safetensors and JSON."""
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
    """`write` gets a temporary path in the same directory. The file is renamed to `path` once it is complete."""
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
    """The JSON object in a file. Raises ValueError, naming the file, for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds JSON, but not an object")
    return value


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
