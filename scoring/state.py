"""The states of a model that are scored. A state has a key for files and commands, and a title for people."""
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model.tensor_files import name_of

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
    merged: bool = False  # a restored state whose adapter is folded into its base

    @property
    def key(self) -> str:
        """`restored-8bit`"""
        how = re.sub(r"[^\w.]+", "-", ", ".join(filter(None, (self.how, "merged" * self.merged)))).strip("-")
        return "-".join(filter(None, (self.kind, f"{self.bits}bit" if self.bits else "", how)))

    @property
    def title(self) -> str:
        """`restored, 8 bits`"""
        bits = f", {self.bits} bits" if self.bits else ""
        more = ", ".join(filter(None, (self.how, "merged" * self.merged, self.note)))
        return f"{TITLES.get(self.kind, self.kind)}{bits}{f' ({more})' if more else ''}"


BASE, QUANTIZED, TRAINED = State("base"), State("quantized"), State("trained")


def merged_state(bits: Sequence[int], storage: torch.dtype) -> State:
    """bits: of the codes that the adapter went into; none if it went into weights of type `storage`."""
    if not bits:
        return State("merged", 16, note=name_of(storage))
    return State("merged", max(bits), note="" if len(bits) == 1 else f"layers of {' and '.join(map(str, bits))} bits")


# ---- files of older versions, which kept titles in place of keys ----------------------------------------------------

OLDER = re.compile(r"(merged|restored|requantized), ([\d/]+) bits(?:, ([^(]*?))?(?: \((.*)\))?")
OLDER_QUANTIZED = re.compile(r"((?:gptq on )?[a-z]+ \w+), (\d+) bits(.*)")
OLDER_HOW = re.compile(r"(gptq on )?([a-z]+)(?: (\w+x\d+))?")


def older_key(title: str) -> str:
    """`older_key("restored, 8 bits, merged, 8 bits") == "restored-8bit-merged"`. Any other text comes back as it is."""
    if title in ("quantized base", "as trained"):
        return QUANTIZED.key if title == "quantized base" else TRAINED.key
    if found := OLDER_QUANTIZED.fullmatch(title):
        return State("quantized", int(found[2]), older_how(found[1]) + found[3]).key
    first, merged, _ = title.partition(", merged, ")
    if not (found := OLDER.fullmatch(first)):
        return title
    kind, bits, way, note = found.groups()
    if kind == "restored":  # in brackets: how it was made, if not as the run's own base, and remarks
        way = next((part for part in (note or "").split(", ") if OLDER_HOW.fullmatch(part)), None)
    return State(kind, max(map(int, bits.split("/"))), older_how(way or ""), merged=bool(merged)).key


def older_how(how: str) -> str:
    """`older_how("gptq on minmax 32x1") == "gptq:minmax@32x1"`"""
    found = OLDER_HOW.fullmatch(how)
    return f"{'gptq:' * bool(found[1])}{found[2]}{f'@{found[3]}' if found[3] else ''}" if found else how
