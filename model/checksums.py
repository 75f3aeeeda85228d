"""sha256 of files that carry no checksum themselves: config.json of a model, tokenizer files, GGUF files.

    DIR/SHA256SUMS    of every file of a model directory that was written here: merged models and exports
    x.gguf.sha256     of an exported x.gguf
    a run's config.json, under fingerprints, tokenizer: of the tokenizer files in the run

`sha256sum -c` reads the first two. Whatever reads a model directory or a GGUF file here checks what is stated. Weights
in safetensors files are left to their own checksums, which name the tensor. Files from elsewhere state nothing.
"""
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from model.files import Damaged, read_bytes, read_json, sha256_of, write_text

SUMS = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def write_sums(place: Path) -> None:
    """SHA256SUMS in a directory, over all files below it; or `x.gguf.sha256` beside a file."""
    if place.is_dir():
        files = sorted(path for path in place.rglob("*") if path.is_file() and path.name != SUMS)
        write_text(place / SUMS, "".join(f"{sha256_of(path)}  {path.relative_to(place)}\n" for path in files))
    else:
        write_text(sum_file(place), f"{sha256_of(place)}  {place.name}\n")


def sum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def check_sums(files: Iterable[Path]) -> None:
    """Raises Damaged, naming the file, for one that is not what was written. Missing files are not looked at."""
    for path in filter(Path.is_file, files):
        for place, stated in stated_sums(path):
            if (found := sha256_of(path)) != stated:
                raise Damaged(f"{path}: changed after it was written: its sha256 is {found}, but {place} states "
                              f"{stated}. If it was changed on purpose, remove it from {place}; if not, restore the "
                              f"file from a copy")


def stated_sums(path: Path) -> Iterator[tuple[str, str]]:
    """(where it is stated, sha256) of a file."""
    for place in (path.with_name(SUMS), sum_file(path)):
        if place.is_file():
            lines = filter(None, map(LINE.fullmatch, read_bytes(place).decode("utf-8", "replace").splitlines()))
            yield from ((str(place), line[1]) for line in lines if line[2] == path.name)
    config = path.with_name("config.json")
    if path != config and path.name in (stated := of_a_run(config)):
        yield f"{config} (fingerprints, tokenizer)", stated[path.name]


def of_a_run(config: Path) -> dict[str, str]:
    """What a run's config.json states about its tokenizer files; nothing for any other file. Whoever reads the run
    finds what is wrong with config.json itself."""
    try:
        fingerprints = read_json(config).get("fingerprints") if config.is_file() else None
    except ValueError:
        return {}
    return (fingerprints.get("tokenizer") or {}) if isinstance(fingerprints, dict) else {}
