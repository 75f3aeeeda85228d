"""One's own rows of prompt and completion, and of instruction, input and output."""
from pathlib import Path

from tasks.alpaca import alpaca_prompt
from tasks.measured import MeasuredTask
from tasks.own_rows import LeftOut, own_rows, own_splits, whole
from tasks.rows import checked_row
from tasks.task import Example, Splits


class AsWritten(Example):
    """Prompt and answer follow each other as they are."""
    seam = ""


class Completion(MeasuredTask):
    """The text of a row is prompt + completion, as it stands in the file. If neither has white space where they meet,
    one space comes between them."""
    name, needs_data = "completion", True
    title, licence = "your own prompts and completions", "yours"
    rows = "prompt, completion"

    def splits(self, data: Path, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        return self.checked(own_splits(self._read, data, test_data, limit, seed))

    def _read(self, path: Path, left_out: LeftOut) -> list[Example]:
        rows, layout = own_rows(path, self.name)
        fitting = [(place, checked_row(place, row, layout.fields)) for place, row in rows]
        return [as_written(row["prompt"], row["completion"]) for _, row in whole(fitting, layout.fields, left_out)]


def as_written(prompt: str, completion: str) -> Example:
    """`as_written("2 + 2 =", "4").answer == " 4"`"""
    apart = prompt[-1:].isspace() or completion[:1].isspace()
    return AsWritten(prompt, completion if apart else f" {completion}")


class Instruction(MeasuredTask):
    """The prompts are those of --task alpaca."""
    name, needs_data = "instruction", True
    title, licence = "your own instructions", "yours"
    rows = "instruction, output, input (may be left out)"

    def splits(self, data: Path, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        return self.checked(own_splits(self._read, data, test_data, limit, seed))

    def _read(self, path: Path, left_out: LeftOut) -> list[Example]:
        rows, layout = own_rows(path, self.name)
        fitting = [(place, checked_row(place, row, layout.fields, layout.optional)) for place, row in rows]
        return [Example(alpaca_prompt(row["instruction"], row["input"]), row["output"])
                for _, row in whole(fitting, layout.fields, left_out)]
