"""Files of JSON objects, one a line, that grow: metrics.jsonl, kept answers, judgements; and predictions.jsonl.

A line ends in the field `check`: the first 16 hexadecimal digits of the sha256 of the rest of its object. Lines of
older versions have none.

What an interruption leaves is told from damage. A last line without a line break was cut off. A line with NUL bytes was
never written to the disk before the power went. Both are dropped, and a message says so. Any other line that cannot be
read is damage: it is named with its number.
"""
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from model import durable
from model.durable import make_directory, naming
from model.files import Damaged, parse_json, read_bytes, say_once, write_bytes

CHECK = "check"


class Journal:
    """`path` need not exist yet."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, *records: dict) -> None:
        """Each call hands whole lines to the system: whoever kills the process then loses none of them. Only `flush`
        protects them from a power loss."""
        with naming(self.path):
            make_directory(self.path.parent)
            descriptor = durable.open_to_append(self.path)
            try:
                durable.append(descriptor, b"".join(map(line_of, records)))
            finally:
                os.close(descriptor)

    def flush(self) -> None:
        """All lines so far are on the disk."""
        if not self.path.is_file():
            return
        with naming(self.path):
            descriptor = durable.open_to_append(self.path)
            try:
                durable.flush(descriptor)
            finally:
                os.close(descriptor)
            durable.flush_directory(self.path.parent)

    def rewrite(self, records: Iterable[dict]) -> None:
        """These lines and no others, flushed."""
        write_bytes(self.path, b"".join(map(line_of, records)))

    def __iter__(self) -> Iterator[dict]:
        """The object of every line; none without a file. The file stays as it is, so that a run that cannot be written
        to can be read. Raises ValueError, naming the line, when it comes to a damaged one."""
        *lines, rest = self._content().split(b"\n")
        for number, line in enumerate(lines, 1):
            if b"\0" in line:
                say_once(f"{self.path}, line {number}: dropped, since its writing was cut off (it holds NUL bytes)")
            elif line.strip():
                yield record_of(line, f"{self.path}, line {number}")
        if rest:
            say_once(f"{self.path}, line {len(lines) + 1}: dropped, since its writing was cut off")

    def keep(self, records: list[dict]) -> list[dict]:
        """`rewrite` if the file holds anything else, such as a line that was cut off. Whoever appends next calls it
        first."""
        if self._content() != b"".join(map(line_of, records)):
            self.rewrite(records)
        return records

    def _content(self) -> bytes:
        return read_bytes(self.path) if self.path.is_file() else b""


def line_of(record: dict) -> bytes:
    text = json.dumps(record)
    joint = ", " if record else ""
    return f'{text[:-1]}{joint}"{CHECK}": "{check_of(text)}"}}\n'.encode()


def check_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def record_of(line: bytes, place: str) -> dict:
    """The object of a line. Raises ValueError, naming its place, for a line that is damaged."""
    try:
        record = parse_json(line.decode("utf-8"))
    except ValueError as error:
        raise Damaged(f"{place}: {error}. {REMEDY}") from None
    return checked(record, place)


def checked(record: dict, place: str) -> dict:
    """The object of a line, without its checksum. Raises ValueError if it is not what was written."""
    rest = {key: value for key, value in record.items() if key != CHECK}
    stated = record.get(CHECK)
    if stated is not None and (found := check_of(json.dumps(rest))) != stated:
        raise Damaged(f"{place}: changed after it was written: its {CHECK} is {found}, but the line states "
                         f"{stated}. {REMEDY}")
    return rest


REMEDY = "Remove the line, so that what it held is made again; or, if you changed it on purpose, delete its check"
