"""What a model has answered so far, so that an interrupted scoring goes on where it stopped.

DIR/answers-KEY.part.jsonl holds one line an answer, written as soon as the answer is known. Its first line says what is
being scored. The file is removed when the scoring is done and predictions.jsonl is written. Each command has its own
file. """
import hashlib
import json
from pathlib import Path

from model.files import write_text


class KeptAnswers:
    """The answers of one command. `key`: all that they depend on (JSON). Answers of another key are not used."""

    def __init__(self, directory: Path, key: dict):
        self.key = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.file = directory / f"answers-{self.key[:12]}.part.jsonl"
        self.lines: dict[tuple[str, int], dict] = {}
        if not self._read():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps({"key": self.key}) + "\n", encoding="utf-8")
        elif self.lines:
            print(f"{self.file}: {len(self.lines)} answers of an interrupted scoring are taken up")

    def _read(self) -> bool:
        """Whether the file has this key. Reads its answers; a last line that was cut off is dropped."""
        if not self.file.is_file():
            return False
        first, *lines = self.file.read_text(encoding="utf-8").split("\n")
        if first != json.dumps({"key": self.key}):
            return False
        whole = lines[:-1]  # what follows the last line break is nothing, or cut off
        self.lines = {(kept["state"], kept["row"]): kept["line"] for kept in map(json.loads, whole)}
        write_text(self.file, "".join(line + "\n" for line in (first, *whole)))
        return True

    def of(self, state: str) -> dict[int, dict]:
        """Row -> line, of the state with this key."""
        return {row: line for (of_state, row), line in self.lines.items() if of_state == state}

    def add(self, state: str, row: int, line: dict) -> None:
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps({"state": state, "row": row, "line": line}) + "\n")

    def forget(self) -> None:
        self.file.unlink(missing_ok=True)
