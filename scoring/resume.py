"""What a model has answered so far, so that an interrupted scoring goes on where it stopped.

DIR/answers-KEY.part.jsonl (a journal, model/journal.py) holds one line an answer, written as soon as the answer is
known. Its first line says what is being scored. The file is removed when the scoring is done and predictions.jsonl is
written. Each command has its own file. Several processes have one each: answers-KEY.1.part.jsonl is that of the second.
"""
import hashlib
import json
from pathlib import Path

from model import processes
from model.journal import Journal


class KeptAnswers:
    """The answers of one command. `key`: all that they depend on (JSON). Answers of another key are not used.

    Raises ValueError, naming the line, for a damaged one."""

    def __init__(self, directory: Path, key: dict):
        self.key = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.directory, self.name = directory, f"answers-{self.key[:12]}"
        of_rank = f".{processes.rank()}" if processes.rank() else ""
        self.file = directory / f"{self.name}{of_rank}.part.jsonl"
        self.journal = Journal(self.file)
        answers = [answer for file in self.files() if file != self.file for answer in self.read(Journal(file))]
        own = self.read(self.journal)
        processes.wait()  # until all have read
        self.journal.keep([{"key": self.key}, *own])
        self.lines = {(answer["state"], answer["row"]): answer["line"] for answer in (*answers, *own)}
        if self.lines:
            print(f"{self.file}: {len(self.lines)} answers of an interrupted scoring are taken up")

    def files(self) -> list[Path]:
        """Of all processes, those of an earlier start too."""
        return sorted(self.directory.glob(f"{self.name}*.part.jsonl"))

    def read(self, journal: Journal) -> list[dict]:
        first, *kept = list(journal) or [{}]
        return kept if first.get("key") == self.key else []

    def of(self, state: str) -> dict[int, dict]:
        """Row -> line, of the state with this key."""
        return {row: line for (of_state, row), line in self.lines.items() if of_state == state}

    def add(self, state: str, row: int, line: dict) -> None:
        self.journal.append({"state": state, "row": row, "line": line})

    def forget(self) -> None:
        for file in self.files():
            file.unlink(missing_ok=True)
