"""What the options of a run hold: text -> value. Each function raises ValueError with what is allowed.

Two classes stand for a value of several parts, and two defaults depend on the machine.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.gguf_reader import is_gguf
from model.hub import HubModel
from quant.grid import Block
from quant.spec import QuantSpec
from tasks.hub_data import HubData
from tasks.rows import SUFFIXES

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Place = Path | HubModel
DataPlace = Path | HubData


def number(kind: type, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{text!r} is not {'a whole number' if kind is int else 'a number'}") from None


def positive(kind: type) -> Callable[[str], Any]:
    """A parser of finite numbers above 0."""
    def parse(text: str):
        value = number(kind, text)
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{text} is not above 0")
        return value
    return parse


def share(text: str) -> float:
    value = number(float, text)
    if not 0 <= value < 1:
        raise ValueError(f"{text} is not in [0, 1)")
    return value


def share_above_0(text: str) -> float:
    value = number(float, text)
    if not 0 < value <= 1:
        raise ValueError(f"{text} is not in (0, 1]")
    return value


def seed(text: str) -> int:
    value = number(int, text)
    if not 0 <= value < 2 ** 63:
        raise ValueError(f"{text} is not in [0, 2^63)")
    return value


def spec_text(text: str) -> str:
    """A phrase of `QuantSpec`, checked. It stays text: the parts that it leaves out take defaults from the run."""
    QuantSpec.parse(text)
    return text


def model_place(text: str) -> Place:
    """A local path goes before a repository of the same name. An absolute path or the name of a GGUF file is never a
    repository."""
    if Path(text).is_absolute() or Path(text).exists() or is_gguf(Path(text)):
        return Path(text)
    try:
        return HubModel.parse(text)
    except ValueError as error:
        raise ValueError(f"{text}: no such model directory, and no model of the hub: {error}") from None


def data_place(text: str) -> DataPlace:
    """As `model_place`. A name without a slash, or the plain name of a data file, is never a data set of the hub."""
    plain_file = "/" not in text or ":" not in text and Path(text).suffix.lower() in (*SUFFIXES, ".txt")
    if Path(text).is_absolute() or Path(text).exists() or plain_file:
        return Path(text)
    try:
        return HubData.parse(text)
    except ValueError as error:
        raise ValueError(f"{text}: no such data file, and no data set of the hub: {error}") from None


def saved_place(of_the_hub: type) -> Callable[[str], Any]:
    """Reads a place back from a run. Paths are absolute there, so nothing else can be one."""
    return lambda text: Path(text) if Path(text).is_absolute() else of_the_hub.parse(text)


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_dtype() -> str:
    """bfloat16 if the processor multiplies it, else float32. Emulated bfloat16 takes several times as long as float32
    (measured on a Xeon without avx512_bf16: 26 against 110 GFLOP/s)."""
    native = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bfloat16" if torch.cuda.is_available() or native else "float32"


def device(text: str) -> str:
    """A device that this machine has."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"{text} is not available here ({str(error).splitlines()[0]})") from None
    return text


@dataclass(frozen=True)
class StoredCodes:
    """Codes that the model holds already: those of the first target layer."""
    bits: int
    block: Block

    @classmethod
    def parse(cls, text: str) -> "StoredCodes":
        bits, _, block = text.partition(" bits, block ")
        return cls(int(bits), Block.parse(block))

    def __str__(self) -> str:
        return f"{self.bits} bits, block {self.block}"


@dataclass(frozen=True)
class SaveEvery:
    """How often a state is saved: after so many steps or minutes, whichever comes first."""
    steps: int | None = None
    minutes: float | None = None

    @classmethod
    def parse(cls, text: str) -> "SaveEvery":
        """`200`, `10m`, or both: `200,10m`."""
        found: dict[str, Any] = {}
        try:
            for phrase in map(str.strip, text.split(",")):
                name = "minutes" if phrase.endswith("m") else "steps"
                if name in found:
                    raise ValueError(f"{text} says the same twice")
                found[name] = positive(float if name == "minutes" else int)(phrase.removesuffix("m"))
        except ValueError as error:
            raise ValueError(f"{error}: give steps (200), minutes (10m), or both (200,10m)") from None
        return cls(**found)

    def __str__(self) -> str:
        stated = (self.steps and str(self.steps), self.minutes and f"{self.minutes:.12g}m")
        return ",".join(filter(None, stated))
