"""Alpaca (Taori et al. 2023; CC BY-NC 4.0, not for commercial use): an instruction -> the output.

Some instructions have an input; rows of the others may leave it out. The two prompts are those of Stanford
Alpaca's README (tatsu-lab/stanford_alpaca, "Data Release"), word for word.
Differs from its training code: one space stands between prompt and output, as in all tasks here.
"""
from pathlib import Path

from tasks.free_text import FreeTextTask
from tasks.rows import read_rows
from tasks.task import Example, Splits, one_tenth, shuffled

WITH_INPUT = ("Below is an instruction that describes a task, paired with an input that provides further context. "
              "Write a response that appropriately completes the request.\n\n"
              "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:")
WITHOUT_INPUT = ("Below is an instruction that describes a task. "
                 "Write a response that appropriately completes the request.\n\n"
                 "### Instruction:\n{instruction}\n\n### Response:")


class Alpaca(FreeTextTask):
    name, needs_data = "alpaca", True
    title, licence = "instructions, some with an input", "CC BY-NC 4.0"
    rows = "instruction, output, input (may be left out)"

    def splits(self, data: Path, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        """A tenth of the rows is for validation. The data set has no test rows: --test-data gives them, if any."""
        validation, train = one_tenth(shuffled(self._examples(data), seed)[:limit])
        return self.checked(Splits(train, validation, self._examples(test_data) if test_data else []))

    def _examples(self, path: Path) -> list[Example]:
        return [Example(alpaca_prompt(row["instruction"], row["input"]), row["output"])
                for row in read_rows(path, ("instruction", "output"), optional=("input",))]


def alpaca_prompt(instruction: str, input: str) -> str:
    template = WITH_INPUT if input else WITHOUT_INPUT
    return template.format(instruction=instruction, input=input)
