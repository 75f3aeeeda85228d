"""What a run has kept of its training, and at which step it was kept.

    RUN/kept.json   sha256 of the adapter or model, its step, steps of the whole training, validation loss; `writing`,
                    the step of the last one that was begun to be written; for method full, the type in which the base
                    stores its weights

Training replaces what it has kept whenever the validation loss is lower. Whoever scores or exports a run meanwhile
reads one version of the file, and records that version's sha256.
"""
import hashlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from model.durable import is_still_there
from model.files import read_json, sha256_of, write_record
from model.tensor_files import TensorFile, open_safetensors


class Kept:
    """One version of a run's adapter or model. It stays readable though training puts another one in its place."""

    def __init__(self, file: Path, record: Path, ended: bool):
        """Reads the header. `ended`: whether training has. Raises FileNotFoundError, ValueError for a damaged file."""
        self.file, self.record, self.ended = file, record, ended
        self.tensors: TensorFile
        while True:
            self._held = open(file, "rb")
            try:
                self.tensors, self._record = open_safetensors(file), facts_of(record)
                if self.is_still_there():
                    break
            except ValueError:
                if self.is_still_there():  # else the header was read in parts, of two versions
                    raise

    def is_still_there(self) -> bool:
        return is_still_there(self._held.fileno(), self.file)

    @cached_property
    def sha256(self) -> str:
        if self.is_still_there():
            digest = sha256_of(self.file)  # it remembers what it has read
            if self.is_still_there():
                return digest
        self._held.seek(0)
        return hashlib.file_digest(self._held, "sha256").hexdigest()

    @property
    def step(self) -> int | None:
        """None: not known. So it is for runs of earlier versions, and for the moment between file and record."""
        return self._record["step"] if self._record.get("sha256") == self.sha256 else None

    @property
    def unfinished(self) -> str | None:
        """`step 12 of 21`. None once training has ended."""
        if self.ended:
            return None
        return "training has not ended" if self.step is None else f"step {self.step} of {self._record['steps']}"

    def to_json(self) -> dict:
        return {"sha256": self.sha256, "step": self.step, "unfinished": self.unfinished}


def facts_of(record: Path) -> dict:
    """Empty before anything is kept, and for a run of an earlier version."""
    return read_json(record) if record.is_file() else {}


def keep_anew(file: Path, record: Path, save: Callable[[], None], step: int, **facts) -> None:
    """`save` writes the file. The record says before that it comes, and afterwards which it is. So a file that is not
    the recorded one is known to be another's, unless a kill came between."""
    add_facts(record, writing=step)
    save()
    add_facts(record, sha256=sha256_of(file), step=step, **facts)


def is_another(kept: Kept) -> str:
    """How a file differs from the one that was kept; nothing if it is that one, or if nobody can tell: it was just
    being written, or an earlier version did not record it."""
    stated = facts_of(kept.record)
    if "sha256" not in stated or stated["sha256"] == kept.sha256 or stated.get("writing") != stated["step"]:
        return ""
    return (f"{kept.file} is not what training kept: its sha256 is {kept.sha256}, but {kept.record} states "
            f"{stated['sha256']}")


def add_facts(record: Path, **facts) -> None:
    """Beside the facts that are there already."""
    write_record(record, {**facts_of(record), **facts})
