"""The states that `--resume` starts from: the newest, and the one before it.

    state/state.safetensors            the newest
    state/state.previous.safetensors   the one before it

Each is whole at every instant. The new state is written and flushed under a temporary name first; then the newest
becomes the previous one; then the new one gets its name. For a moment three states are on the disk.
"""
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from model.durable import move_file
from model.files import Damaged
from model.tensor_files import TensorFile, open_safetensors, write_safetensors


class StateFiles:
    def __init__(self, newest: Path):
        self.newest = newest
        self.previous = newest.with_name(f"{newest.stem}.previous{newest.suffix}")

    def exist(self) -> bool:
        return self.newest.is_file() or self.previous.is_file()

    def save(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        write_safetensors(self.newest, tensors, metadata, keep=self.previous)

    def load(self, read: Callable[[TensorFile], None]) -> None:
        """`read` is called with the newest state. If that is damaged, a line says so, `read` is called again with the
        one before it, and that one becomes the newest. Whatever a first call has set, a second one sets anew.

        Raises Damaged if neither is whole."""
        try:
            with open_safetensors(self.newest) as file:
                return read(file)
        except Damaged as error:
            if not self.previous.is_file():
                raise Damaged(f"{error}. {NO_OTHER}") from None
            print(f"{error}. Going on from the state before it, {self.previous}")
        try:
            with open_safetensors(self.previous) as file:
                read(file)
        except Damaged as error:
            raise Damaged(f"{error}. {NO_OTHER}") from None
        move_file(self.previous, self.newest)


NO_OTHER = "No other state is there. Restore the file from a copy, or start the run anew"
