"""The states of a model that are scored. A state has a key for files and commands, and a title for people."""
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

TITLES = {"quantized": "quantized base", "trained": "as trained"}


@dataclass(frozen=True)
class State:
    """| kind | what it is | example of key and title |
    |---|---|---|
    | base | the model before quantization and training | `base`, "base" |
    | quantized | the base as codes | `quantized`, "quantized base" |
    | trained | base and adapter side by side, or all trained weights | `trained`, "as trained" |
    | merged | the adapter folded in | `merged-4bit`, "merged, 4 bits" |
    | requantized | merged to 16 bits, then quantized again: lossy | `requantized-4bit-gptq-minmax-32x1` |
    | restored | the adapter beside a base of other bits | `restored-8bit`, "restored, 8 bits" |
    """
    kind: str
    bits: int | None = None
    how: str = ""   # tells the state from others of its kind and bits; part of the key
    note: str = ""  # for people only

    @property
    def key(self) -> str:
        """`restored-8bit`"""
        how = re.sub(r"[^\w.]+", "-", self.how).strip("-")
        return "-".join(filter(None, (self.kind, f"{self.bits}bit" if self.bits else "", how)))

    @property
    def title(self) -> str:
        """`restored, 8 bits`"""
        bits = f", {self.bits} bits" if self.bits else ""
        more = ", ".join(filter(None, (self.how, self.note)))
        return f"{TITLES.get(self.kind, self.kind)}{bits}{f' ({more})' if more else ''}"


BASE, QUANTIZED, TRAINED = State("base"), State("quantized"), State("trained")
OLDER_KEYS = {"quantized base": QUANTIZED.key, "as trained": TRAINED.key}  # of files that kept titles in place of keys


def merged_state(bits: Sequence[int], storage: torch.dtype) -> State:
    """bits: of the codes that the adapter went into; none if it went into weights of type `storage`."""
    if not bits:
        return State("merged", 16, note=str(storage).removeprefix("torch."))
    return State("merged", max(bits), note="" if len(bits) == 1 else f"layers of {' and '.join(map(str, bits))} bits")
