"""FLAN v2 (Longpre et al. 2023; Apache-2.0, each task under its source's licence): inputs -> targets.

Two schemas are read. FLAN v2's own files have `inputs` and `targets`; further fields such as `task_source` are
ignored. Its chain-of-thought files have `question`, `chain_of_thought` and `answer`. Their template is ours: the model
writes the reasoning first, then the answer.
"""
from pathlib import Path

from tasks.free_text import FreeTextTask
from tasks.rows import placed_rows, read_rows
from tasks.task import Example, Splits, one_tenth, shuffled

ANSWER = "Answer:"


class Flan(FreeTextTask):
    name, metric, needs_data = "flan", "exact_match", True
    title, licence = "instructions of many tasks", "Apache-2.0"
    rows = "inputs, targets; or question, chain_of_thought, answer"
    protocol = (f"{FreeTextTask.protocol}; exact match of what follows the last '{ANSWER}', else of the whole text, "
                "case and white space apart")

    def splits(self, data: Path, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        """A tenth of the rows is for validation. Test rows come from --test-data, if given."""
        validation, train = one_tenth(shuffled(self._examples(data), seed)[:limit])
        return self.checked(Splits(train, validation, self._examples(test_data) if test_data else []))

    def _examples(self, path: Path) -> list[Example]:
        """Raises ValueError, naming the line, where `inputs` is empty: the model needs a token to start from."""
        if "inputs" in read_rows(path, ())[0]:
            rows = placed_rows(path, ("inputs", "targets"))
            if empty := [place for place, row in rows if not row["inputs"].strip()]:
                raise ValueError(f"{empty[0]}: inputs is empty")
            return [Example(row["inputs"].strip(), row["targets"].strip()) for _, row in rows]
        return [Example(f"Question: {row['question'].strip()}\nReasoning:",
                        f"{row['chain_of_thought'].strip()}\n{ANSWER} {row['answer'].strip()}")
                for row in read_rows(path, ("question", "chain_of_thought", "answer"))]

    def marks(self, row: Example, line: dict) -> dict[str, float]:
        exact = final_answer(line["text"]) == final_answer(row.answer)
        return {"exact_match": float(exact), **super().marks(row, line)}


def final_answer(text: str) -> str:
    """`final_answer("2 and 2 make 4.\\nAnswer: (B) ") == "(b)"`"""
    return " ".join(text.rpartition(ANSWER)[2].lower().split())
