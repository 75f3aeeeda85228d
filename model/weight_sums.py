"""The sha256 of a model's weight files, and the tensor at which it parts from another one.

    whole          sha256 of all bytes, file after file
    marks[name]    its first 16 digits as they are behind the tensor `name`: of all bytes up to there

One pass gives both, since a sha256 can be asked for on the way. Files that differ in one bit have the same marks up to
the tensor that holds it. So a model from elsewhere, which has no checksums of its own, costs no more to check, and what
has changed in it is named.
"""
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from model.durable import naming
from model.gguf_reader import is_gguf, read_gguf
from model.tensor_files import LONGEST_HEADER

HEADER = "(header)"
PART = 1 << 24  # bytes that are read at a time
Marks = dict[str, dict[str, str]]  # file name -> tensor -> digits


@dataclass(frozen=True)
class WeightSums:
    whole: str
    marks: Marks

    def first_difference(self, then: Mapping[str, Mapping[str, str]]) -> str:
        """`tensor model.norm.weight of model.safetensors`: the first place at which `then` has another mark, or that is
        not there any more. Nothing if there is none."""
        for file, marks in then.items():
            for name, digits in marks.items():
                if self.marks.get(file, {}).get(name) != digits:
                    return f"the header of {file}" if name == HEADER else f"tensor {name} of {file}"
        return ""


def weight_sums(*files: Path) -> WeightSums:
    """The result is cached while size and time of change stay the same."""
    return _weight_sums(*((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@cache
def _weight_sums(*files: tuple[Path, int, int]) -> WeightSums:
    digest, marks = hashlib.sha256(), Marks()
    for path, size, _ in files:
        found, place = marks.setdefault(path.name, {}), 0
        with naming(path), open(path, "rb") as file:
            for name, end in (*ends_of(path), (None, size)):
                while chunk := file.read(max(0, min(PART, end - place))):
                    digest.update(chunk)
                    place += len(chunk)
                if name:
                    found[name] = digest.hexdigest()[:16]
    return WeightSums(digest.hexdigest(), marks)


def ends_of(path: Path) -> list[tuple[str, int]]:
    """(tensor, the byte behind it), in the order of the file; the header first. Empty for a damaged header: whoever
    reads the file says what is wrong with it."""
    try:
        places = list(_gguf_places(path) if is_gguf(path) else _safetensors_places(path))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []
    return sorted(places, key=lambda place: place[1])


def _safetensors_places(path: Path) -> Iterator[tuple[str, int]]:
    with naming(path), open(path, "rb") as file:
        begin = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(begin - 8)) if begin <= min(LONGEST_HEADER, path.stat().st_size) else {}
    yield HEADER, begin
    for name, stored in header.items():
        if name != "__metadata__" and stored["data_offsets"][1] > stored["data_offsets"][0]:
            yield name, begin + int(stored["data_offsets"][1])


def _gguf_places(path: Path) -> Iterator[tuple[str, int]]:
    tensors = read_gguf(path).tensors
    yield HEADER, min(stored.start for stored in tensors.values())
    for name, stored in tensors.items():
        yield name, stored.start + stored.bytes
