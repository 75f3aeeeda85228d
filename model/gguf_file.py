"""The layout of a GGUF file: metadata, and where each tensor lies. Every number is checked before it is used.

    magic, version, number of tensors, number of metadata
    metadata: key, type, value                            (a value is a number, a text, or a list of one type)
    tensors:  name, dimensions, type, offset
    padding to general.alignment, then the tensors' bytes

Counts and lengths are compared with the bytes that are left in the file, so no file makes this reader loop or allocate
beyond its own size. Raises ValueError, naming the file, for anything that is not right.
"""
import math
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy
import torch
from torch import Tensor

from model.durable import naming
from model.gguf_architectures import ARCHITECTURES
from model.gguf_layout import CODE_TYPES, PACKAGE_TYPES, PLAIN_TYPES, block_size, gguf_package

# Type of a metadata value, by number -> its name, and how it is packed.
SCALARS = {0: ("UINT8", "B"), 1: ("INT8", "b"), 2: ("UINT16", "H"), 3: ("INT16", "h"), 4: ("UINT32", "I"),
           5: ("INT32", "i"), 6: ("FLOAT32", "f"), 7: ("BOOL", "?"), 10: ("UINT64", "Q"), 11: ("INT64", "q"),
           12: ("FLOAT64", "d")}
STRING, ARRAY = 8, 9
# Type of a tensor, by number. Only those that are read have a size here; the others are named in errors.
TENSOR_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K",
                11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
                19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32",
                27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4"}
LEAST_METADATA = 8 + 4 + 1          # bytes of the shortest entry: an empty key, its type, one byte
LEAST_TENSOR = 8 + 4 + 8 + 4 + 8    # one dimension
MOST_ENTRIES, LONGEST_LIST, LONGEST_NAME = 1 << 16, 1 << 22, 1 << 16
READ_TYPES = (*PLAIN_TYPES, *CODE_TYPES, *PACKAGE_TYPES)
LEAST_BYTES = 0.19  # of a weight; IQ1_S has 50 bytes for 256
ROWS = 4096         # rows that are dequantized at a time


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in the file."""
    type: str
    shape: tuple[int, ...]  # rows first, as in torch
    start: int
    bytes: int


@dataclass(frozen=True)
class GGUFFile:
    path: Path
    metadata: dict[str, object]
    tensors: dict[str, StoredTensor]
    # Metadata key -> its GGUF type, and the type of its elements if it is a list.
    kinds: dict[str, tuple[str, str | None]] = field(default_factory=dict)

    def get(self, key: str, kind: type | tuple | None = None, default: object = None):
        """A metadata value of this Python type. Raises ValueError for another type, and, without a default, if the file
        has none."""
        if key not in self.metadata:
            if default is None:
                raise ValueError(f"{self.path}: metadata key {key} is missing")
            return default
        value = self.metadata[key]
        if kind and not (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
            raise ValueError(f"{self.path}: {key} is {str(value)[:60]!r}, but must be {NAMES[kind]}")
        return value

    def list_of(self, key: str, kind: type) -> list:
        """A metadata value that is a list of this Python type. Raises ValueError as `get` does."""
        values = self.get(key, list)
        if values and not isinstance(values[0], kind):  # all elements of a list have one type
            raise ValueError(f"{self.path}: {key} holds {str(values[0])[:60]!r}, but must hold {NAMES[kind]} each time")
        return values

    @property
    def architecture(self) -> str:
        name = self.get("general.architecture", str)
        if name not in ARCHITECTURES:
            supported = ", ".join(ARCHITECTURES)
            raise ValueError(f"{self.path}: architecture {name!r} is not supported; supported: {supported}")
        return name

    def read(self, name: str) -> Tensor:
        """The bytes of a tensor, uint8: (rows, bytes per row). A vector is one row."""
        stored = self.tensors[name]
        data = numpy.fromfile(self.path, numpy.uint8, stored.bytes, offset=stored.start)
        return torch.from_numpy(data).view(math.prod(stored.shape[:-1]), -1)

    def dense(self, name: str) -> Tensor:
        """A tensor in the type that the file has, or in float32 if that is a block type. Raises ValueError if the gguf
        package is needed and missing."""
        rows, stored = self.read(name), self.tensors[name]
        if plain := PLAIN_TYPES.get(stored.type):
            return rows.view(plain).view(stored.shape)
        return dense_rows(rows, stored.type, f"{self.path}: type {stored.type} of {name}").view(stored.shape)


def dense_rows(rows: Tensor, kind: str, place: str) -> Tensor:
    """The dequantized weight in float32, which loses nothing; float16 and bfloat16 would. Works on `ROWS` rows at a
    time, because an embedding has very many. `place` names the tensor in the error of a missing package."""
    if codes := CODE_TYPES.get(kind):
        def dequantize(part: Tensor) -> Tensor:
            return codes.quantized_weight(part).dequantize()
    else:
        gguf = gguf_package(place)

        def dequantize(part: Tensor) -> Tensor:
            return torch.from_numpy(gguf.quants.dequantize(part.numpy(), gguf.GGMLQuantizationType[kind]))
    weights, n_bytes = block_size(kind)
    dense = torch.empty(len(rows), rows.shape[1] // n_bytes * weights)
    for part, target in zip(rows.split(ROWS), dense.split(ROWS), strict=True):
        target.copy_(dequantize(part))
    return dense


NAMES = {int: "an integer", float: "a number", (int, float): "a number", str: "a text", bool: "true or false",
         list: "a list"}


class Reader:
    """Reads numbers, texts and lists from an open file, never past its end."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size, self.place = file, size, 0

    @property
    def left(self) -> int:
        return self.size - self.place

    def bytes(self, n: int, what: str) -> bytes:
        if n > self.left:
            raise ValueError(f"{what} at byte {self.place} needs {n} bytes, but {self.left} are left")
        data = self.file.read(n)
        if len(data) != n:
            raise ValueError(f"{what} at byte {self.place} could not be read")
        self.place += n
        return data

    def numbers(self, form: str, what: str) -> tuple:
        return struct.unpack(f"<{form}", self.bytes(struct.calcsize(f"<{form}"), what))

    def number(self, form: str, what: str):
        return self.numbers(form, what)[0]

    def text(self, what: str) -> str:
        data = self.bytes(self.number("Q", f"the length of {what}"), what)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{what} is not UTF-8: {data[:40]!r}") from None

    def name(self, what: str) -> str:
        name = self.text(what)
        if not 0 < len(name) <= LONGEST_NAME:
            raise ValueError(f"{what} has {len(name)} characters")
        return name

    def scalar(self, kind: int, what: str):
        if kind == STRING:
            return self.text(what)
        if kind not in SCALARS:
            raise ValueError(f"{what} is of type {kind}, which GGUF does not have")
        return self.scalars(kind, 1, what)[0]

    def scalars(self, kind: int, n: int, what: str) -> list:
        name, form = SCALARS[kind]
        data = self.bytes(n * struct.calcsize(f"<{form}"), what)
        if name == "BOOL" and data.strip(b"\0\1"):
            raise ValueError(f"{what} is true or false, but holds byte {data.strip(bytes(2) + bytes([1]))[0]}")
        return list(struct.unpack(f"<{n}{form}", data))

    def value(self, what: str) -> tuple[object, tuple[str, str | None]]:
        """A metadata value, and its type in words."""
        kind = self.number("I", f"the type of {what}")
        if kind != ARRAY:
            value = self.scalar(kind, what)
            return value, ("STRING" if kind == STRING else SCALARS[kind][0], None)
        kind, n = self.numbers("IQ", f"the type and the length of {what}")
        least = 8 if kind == STRING else struct.calcsize(f"<{SCALARS[kind][1]}") if kind in SCALARS else 0
        if not least:
            raise ValueError(f"{what} is a list of type {kind}, which is not supported")
        if n * least > self.left or n > LONGEST_LIST:
            raise ValueError(f"{what} is a list of {n} elements, but {self.left} bytes are left")
        if kind == STRING:
            return [self.text(what) for _ in range(n)], ("ARRAY", "STRING")
        return self.scalars(kind, n, what), ("ARRAY", SCALARS[kind][0])


def parse_gguf(path: Path) -> GGUFFile:
    """Metadata and the list of tensors; no tensor is read."""
    size = path.stat().st_size
    with naming(path), open(path, "rb") as file:
        try:
            return _parse(Reader(file, size), path)
        except ValueError as error:
            raise ValueError(f"{path}: damaged, cut off, or not a GGUF file ({error})") from None
        except Refused as error:
            raise ValueError(f"{path}: {error}") from None


class Refused(Exception):
    """A whole file that is not supported."""


def _parse(reader: Reader, path: Path) -> GGUFFile:
    if reader.bytes(4, "the magic number") != b"GGUF":
        raise ValueError("GGUF magic invalid")
    version = reader.number("I", "the version")
    if version & 0xFFFF == 0 and version:
        raise Refused("byte order is big-endian; only little-endian files are supported")
    if version not in (2, 3):
        raise Refused(f"GGUF version {version} is not supported; supported: 2, 3")
    n_tensors, n_metadata = reader.numbers("QQ", "the number of tensors")
    for n, least, what in ((n_tensors, LEAST_TENSOR, "tensors"), (n_metadata, LEAST_METADATA, "metadata")):
        if n * least > reader.left or n > MOST_ENTRIES:
            raise ValueError(f"{n} {what}, but {reader.left} bytes are left")
    metadata, kinds = {}, {}
    for _ in range(n_metadata):
        key = reader.name("a metadata key")
        if key in metadata:
            raise ValueError(f"metadata key {key} is there twice")
        metadata[key], kinds[key] = reader.value(key)
    parts = metadata.get("split.count", 1)
    if not isinstance(parts, int) or parts > 1:
        raise Refused(f"one of {parts} parts; join them first with llama-gguf-split --merge")
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & alignment - 1:
        raise ValueError(f"general.alignment is {str(alignment)[:40]}, but must be a power of 2")
    stated = [_tensor(reader) for _ in range(n_tensors)]
    twice = [name for name, n in Counter(name for name, *_ in stated).items() if n > 1]
    if twice:
        raise ValueError(f"tensor {twice[0]} is there twice")
    if others := {kind: name for name, kind, *_ in stated if kind not in READ_TYPES}:
        found = ", ".join(f"{kind} ({name})" for kind, name in others.items())
        raise Refused(f"tensors of type {found} are not supported; supported: {', '.join(READ_TYPES)}")
    begin = -(-reader.place // alignment) * alignment
    tensors = {name: _stored(name, kind, shape, offset, begin, alignment, reader.size)
               for name, kind, shape, offset in stated}
    _check_overlap(tensors)
    return GGUFFile(path, metadata, tensors, kinds)


def _tensor(reader: Reader) -> tuple[str, str, tuple[int, ...], int]:
    """Name, type, shape and offset of the next tensor in the list."""
    name = reader.name("a tensor's name")
    n = reader.number("I", f"the number of dimensions of {name}")
    if not 1 <= n <= 4:
        raise ValueError(f"{name} has {n} dimensions, but must have 1 to 4")
    shape = tuple(reversed(reader.numbers(f"{n}Q", f"the dimensions of {name}")))
    kind, offset = reader.numbers("IQ", f"type and offset of {name}")
    return name, TENSOR_TYPES.get(kind, f"number {kind}"), shape, offset


def _stored(name: str, kind: str, shape: tuple[int, ...], offset: int, begin: int, alignment: int,
            size: int) -> StoredTensor:
    """Raises ValueError for a tensor that does not lie in the file, whole and aligned."""
    count, (weights, in_block) = math.prod(shape), block_size(kind)
    if not count or count * LEAST_BYTES > size:
        raise ValueError(f"{name} has the shape {list(shape)}, and the file {size} bytes")
    if shape[-1] % weights:
        raise ValueError(f"{name} has rows of {shape[-1]} weights, but {kind} has blocks of {weights}")
    n_bytes = count // weights * in_block
    if offset % alignment:
        raise ValueError(f"{name} is at offset {offset}, which is no multiple of {alignment}")
    if begin + offset + n_bytes > size:
        raise ValueError(f"{name} ends at byte {begin + offset + n_bytes}, but the file has {size}")
    return StoredTensor(kind, shape, begin + offset, n_bytes)


def _check_overlap(tensors: dict[str, StoredTensor]) -> None:
    ordered = sorted(tensors.items(), key=lambda item: item[1].start)
    for (first, one), (second, other) in zip(ordered, ordered[1:], strict=False):
        if one.start + one.bytes > other.start:
            raise ValueError(f"{first} and {second} overlap at byte {other.start}")
