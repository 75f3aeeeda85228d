"""The states that `--resume` starts from: the newest, and the one before it.

    state/state.safetensors            the newest
    state/state.previous.safetensors   the one before it
    state/state.damaged.safetensors    a newest one that was damaged, set aside

Each is whole at every instant. The new state is written and flushed under a temporary name first; then the newest
becomes the previous one; then the new one gets its name. For a moment three states are on the disk.
"""
import errno
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from model.durable import move_file
from model.files import Damaged
from model.tensor_files import TensorFile, open_safetensors, write_safetensors

SOON_READ = 1 << 28  # bytes; sha256 takes a fraction of a second
UNREADABLE = (errno.EIO, errno.ESTALE, errno.EUCLEAN, errno.EREMOTEIO)


class StateFiles:
    def __init__(self, newest: Path):
        self.newest = newest
        self.previous, self.damaged = (newest.with_name(f"{newest.stem}.{which}{newest.suffix}")
                                       for which in ("previous", "damaged"))

    def exist(self) -> bool:
        return self.newest.is_file() or self.previous.is_file()

    def save(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        write_safetensors(self.newest, tensors, metadata, keep=self.previous)

    def load(self, read: Callable[[TensorFile], None]) -> None:
        """`read` is called with the newest state. If that is missing or damaged, a line says so, `read` is called again
        with the one before it, and that one becomes the newest. A damaged one is set aside. Whatever a first call has
        set, a second one sets anew.

        Raises Damaged if neither is whole, and OSError for one that cannot be read: it may be whole, and stays."""
        if not (wrong := self._wrong(self.newest, read)):
            return
        if not self.previous.is_file():
            raise Damaged(f"{wrong}. {NO_OTHER}")
        print(f"{wrong}. Going on from the state before it, {self.previous}")
        if again := self._wrong(self.previous, read):
            raise Damaged(f"{again}. {NO_OTHER}")
        if self.newest.is_file():
            move_file(self.newest, self.damaged)
            print(f"{self.newest} is kept as {self.damaged}: delete it when you need it no more")
        move_file(self.previous, self.newest)

    def _wrong(self, path: Path, read: Callable[[TensorFile], None]) -> str:
        """What is wrong with a state; nothing after it was read."""
        if not path.is_file():
            return f"{path} is missing"
        try:
            with open_safetensors(path) as file:
                read(file)
        except Damaged as error:
            return str(error)
        except OSError as error:
            if error.errno in UNREADABLE:
                raise OSError(f"{path} cannot be read ({error.strerror}). It was left as it is: look after the disk "
                              f"and try again{self._without(path)}") from error
            raise
        return ""

    def _without(self, path: Path) -> str:
        return ("; or move this file away, to go on from the state before it"
                if path == self.newest and self.previous.is_file() else "")

    def stand(self) -> str:
        """From which state `load` would go on, for the last line of a command. Changes nothing. Of large states only
        the headers are read, since whoever stops a command does not want to wait."""
        steps: list[int] = []

        def read(file: TensorFile) -> None:
            if file.path.stat().st_size <= SOON_READ:
                file.check()
            steps.append(place_of(file)["step"])
        if not self.exist():
            return "no step is saved yet"
        if not (wrong := self._wrong(self.newest, read)):
            return f"saved at step {steps[-1]}"
        again = self._wrong(self.previous, read)
        if not again:
            return f"saved at step {steps[-1]}, in {self.previous} ({wrong})"
        return f"no saved state is whole ({wrong}; {again}): restore one from a copy first"


def place_of(file: TensorFile) -> dict:
    """Where a run was when the state was saved. Raises Damaged."""
    try:
        return json.loads(file.metadata()["place"])
    except (KeyError, ValueError) as error:
        raise Damaged(f"{file.path}: damaged header: it does not say at which step the run was ({error})") from None


NO_OTHER = "No other state is there. Restore the file from a copy, or start the run anew"
