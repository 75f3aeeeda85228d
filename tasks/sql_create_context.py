"""sql-create-context (b-mc2; CC BY 4.0): a table's schema and a question -> the SQL query.

Read from a local file in its original schema: rows of `question`, `context` (CREATE TABLE ...), `answer`.
"""
import re
from pathlib import Path

from tasks.generative import GenerativeTask
from tasks.rows import read_rows
from tasks.task import Example, Splits, shuffled


def sql_prompt(context: str, question: str) -> str:
    return f"{context.strip()}\nQuestion: {question.strip()}\nSQL:"


def normalise_sql(query: str) -> str:
    """Case, white space, quotes and a final semicolon make no difference:
    `SELECT a  FROM t WHERE b = 'X';` -> `select a from t where b = "x"`."""
    query = re.sub(r"[\"'`]", '"', query.lower())
    return re.sub(r"\s+", " ", query).strip().rstrip(";").rstrip()


class SqlCreateContext(GenerativeTask):
    name, metric = "sql-create-context", "exact_match"
    protocol = "greedy, first line; case, white space, quotes and a final semicolon do not count"
    needs_data = True

    def splits(self, data: Path | None, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        """A tenth for validation; a further tenth for test (plr.txt Sec. 3.1) where no test file is given."""
        rows = shuffled(self._examples(data), seed)[:limit]
        tenth = max(1, len(rows) // 10)
        validation, rest = rows[:tenth], rows[tenth:]
        if test_data:
            return Splits(train=rest, validation=validation, test=self._examples(test_data))
        return Splits(train=rest[tenth:], validation=validation, test=rest[:tenth])

    def _examples(self, path: Path) -> list[Example]:
        return [Example(sql_prompt(row["context"], row["question"]), row["answer"].strip())
                for row in read_rows(path, ("question", "context", "answer"))]

    def marks(self, row: Example, line: dict) -> dict[str, float]:
        return {"exact_match": float(normalise_sql(line["text"]) == normalise_sql(row.answer))}
