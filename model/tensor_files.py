"""safetensors files with checksums, in and out.

    __metadata__.sha256 = {"header": HEX, "tensors": {NAME: HEX}}

The checksums stand in the file's own header, so that a file and its checksums cannot part. That of a tensor covers its
bytes; that of the header covers everything else: names, types, shapes, places and the other metadata. A file from
elsewhere has none and is read unchecked: a run records the sha256 of such a file as a whole.

This module writes the format itself, because `safetensors.save_file` writes to a temporary file of its own, which it
does not flush, leaves behind when it is killed, and gives the mode 0600. The bytes are those of the library
(https://github.com/huggingface/safetensors#format), except that several keys of the metadata keep their order: the
library shuffles them, and equal runs should give equal bytes.
"""
import hashlib
import json
import os
import re
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.durable import is_still_there, naming, replace_file
from model.files import Damaged, parse_json

# The types in the library's order: the largest first, so that every tensor is aligned.
TYPES = {torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.uint32: "U32", torch.int32: "I32",
         torch.bfloat16: "BF16", torch.float16: "F16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
         torch.bool: "BOOL"}
RANK = {dtype: place for place, dtype in enumerate(TYPES)}
SHA256 = "sha256"
LONGEST_HEADER = 100_000_000  # bytes; the library refuses longer ones
PART = 1 << 20  # bytes that are read and hashed at a time
OS_ERROR = re.compile(r"\(os error (\d+)\)")


def name_of(dtype: torch.dtype) -> str:
    """`name_of(torch.float16) == "float16"`, as flags and messages name a type."""
    return str(dtype).removeprefix("torch.")


# ---- writing --------------------------------------------------------------------------------------------------------

def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None,
                      keep: Path | None = None) -> None:
    """Tensors that share memory (tied weights) must appear under one name only. `format: pt` joins the metadata:
    transformers requires it of a dense checkpoint. keep: that of `replace_file`. Raises OSError, naming the file, if
    the disk is full."""
    write_in_turn(path, tensors, tensors.__getitem__, metadata, keep)


def write_in_turn(path: Path, described: Mapping[str, Tensor], content: Callable[[str], Tensor],
                  metadata: Mapping[str, str] | None = None, keep: Path | None = None) -> None:
    """As `write_safetensors`, for tensors that do not fit into memory together. described: their types and shapes, on
    the meta device. content: gives one of them, when it is its turn."""
    ordered = sorted(described, key=lambda name: (RANK[described[name].dtype], name))
    replace_file(path, lambda file: _write(file, {name: described[name] for name in ordered}, content, metadata or {}),
                 keep)


def _write(file: BinaryIO, tensors: Mapping[str, Tensor], content: Callable[[str], Tensor],
           metadata: Mapping[str, str]) -> None:
    """One tensor after the other, hashed as it is written. The header comes first and holds the checksums: it is
    written twice, at first with zeros in their place."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    sums = dict.fromkeys(tensors, "0" * 64)
    file.write(_header_bytes(header, sums))
    for name in tensors:
        held = bytes_of(content(name))
        sums[name] = hashlib.sha256(held).hexdigest()
        file.write(held)
    file.seek(0)
    file.write(_header_bytes(header, sums))


def _header_bytes(header: dict[str, Any], sums: dict[str, str]) -> bytes:
    """The length of the header as 8 bytes, and the header, padded to a multiple of 8 bytes."""
    stated = {**header["__metadata__"], SHA256: json.dumps({"header": sum_of_header(header), "tensors": sums})}
    text = json.dumps({**header, "__metadata__": stated}, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def bytes_of(tensor: Tensor) -> memoryview:
    """The tensor's bytes in row order, without a copy if it is contiguous and on the CPU."""
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def sum_of_header(header: dict[str, Any]) -> str:
    """sha256 of a header without its checksums, keys sorted."""
    rest = {key: value for key, value in header["__metadata__"].items() if key != SHA256}
    text = json.dumps({**header, "__metadata__": rest}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


# ---- reading --------------------------------------------------------------------------------------------------------

class TensorFile:
    """An open safetensors file, as the library's `safe_open`. Tensors are checked as they are read.

    Raises Damaged for a file whose header is not what was written, and OSError, naming the file, for one that cannot be
    opened or read: the library calls every failure to open "No such file", and an input/output error in its memory map
    ends the process (SIGBUS). So the header, and each tensor with a checksum, is first read as any other file is."""

    def __init__(self, path: Path):
        self.path = path
        while True:
            with naming(path):
                opened = open(path, "rb", buffering=0)
                self._close = weakref.finalize(self, opened.close)
                self._descriptor, self._size = opened.fileno(), os.fstat(opened.fileno()).st_size
                header = self._header_bytes()
            self._file = self._mapped()
            if is_still_there(self._descriptor, path):
                break  # else another version came between the two openings
            self._close()
        self._begin = 8 + len(header)
        self._header, self._sums = self._stated_sums(header) if SHA256 in self.metadata() else ({}, None)

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *exception) -> None:
        self._file.__exit__(*exception)
        self._close()

    def metadata(self) -> dict[str, str]:
        return self._file.metadata() or {}

    def keys(self) -> list[str]:
        return self._file.keys()

    def get_slice(self, name: str) -> Any:
        """Shape, type, and parts of the tensor, which are not checked."""
        return self._file.get_slice(name)

    def get_tensor(self, name: str) -> Tensor:
        """Raises Damaged if the tensor is missing, or is not what was written."""
        if self._sums is not None and name in self._header:
            found = self._sum_of(*self._header[name]["data_offsets"])
            if found != self._sums.get(name):
                raise Damaged(f"{self.path}: tensor {name} is damaged: its sha256 is {found}, but the file was written "
                              f"with {self._sums.get(name)}")
        try:
            return self._file.get_tensor(name)
        except SafetensorError as error:
            raise Damaged(f"{self.path}: tensor {name} cannot be read ({error})") from None

    def check(self) -> None:
        """Reads every tensor. Raises Damaged, naming the first that is not what was written."""
        for name in self.keys():
            self.get_tensor(name)

    def _header_bytes(self) -> bytes:
        """Empty for a length that no header has; the library says what is wrong."""
        length = int.from_bytes(os.pread(self._descriptor, 8, 0), "little") if self._size > 8 else 0
        return os.pread(self._descriptor, length, 8) if length <= min(LONGEST_HEADER, self._size) else b""

    def _mapped(self) -> Any:
        try:
            return safe_open(self.path, "pt")
        except SafetensorError as error:
            raise Damaged(f"{self.path}: damaged, or not a safetensors file ({error})") from None
        except OSError as error:  # of the memory map: `Cannot allocate memory (os error 12)`
            number = OS_ERROR.search(str(error))
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(self.path)) if number else error from None

    def _sum_of(self, start: int, end: int) -> str:
        digest, buffer, place = hashlib.sha256(), memoryview(bytearray(min(PART, end - start))), self._begin + start
        with naming(self.path):
            while left := self._begin + end - place:
                n = os.preadv(self._descriptor, [buffer[:left]], place)
                if not n:
                    raise Damaged(f"{self.path}: ends at byte {place}: it was cut off while it was read")
                digest.update(buffer[:n])
                place += n
        return digest.hexdigest()

    def _stated_sums(self, text: bytes) -> tuple[dict[str, Any], dict[str, str]]:
        """The header, and tensor -> sha256. Files from elsewhere and of older versions state none."""
        try:
            stated = parse_json(self.metadata()[SHA256])
            whole, sums = stated["header"], dict(stated["tensors"])
        except (KeyError, TypeError, ValueError):
            raise Damaged(f"{self.path}: damaged header: its checksums cannot be read") from None
        header = json.loads(text)
        if (found := sum_of_header(header)) != whole:
            raise Damaged(f"{self.path}: damaged header: its sha256 is {found}, but the file was written with {whole}")
        return header, sums


def open_safetensors(path: Path) -> TensorFile:
    return TensorFile(path)
