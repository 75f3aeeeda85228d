"""Files of one JSON object a line: what an interruption left is dropped and said, and damage is named."""
import json
import os
from pathlib import Path

import pytest

from model import durable, files
from model.files import Damaged
from model.journal import Journal

RECORDS = [{"step": 1, "loss": 0.1}, {"step": 2, "text": "é \ud83d \n"}, {},
           {"step": 4, "nested": [1, None, {"a": 1e-7}]}]


@pytest.fixture
def journal(tmp_path) -> Journal:
    files.say_once.cache_clear()
    journal = Journal(tmp_path / "new" / "metrics.jsonl")
    journal.append(*RECORDS[:2])
    journal.append(RECORDS[2])
    journal.append(RECORDS[3])
    return journal


def test_what_was_appended_is_read(journal):
    assert list(journal) == RECORDS
    assert list(Journal(journal.path.with_name("nothing.jsonl"))) == []
    journal.rewrite(RECORDS[1:])
    assert list(journal) == RECORDS[1:]


@pytest.mark.parametrize("torn", [b'{"step": 5, "lo', b"\0" * 500, b'{"text": "caf\xc3', b'{"step": 5}', b"\0\n",
                                  b'{"step": 5, "l\0\0\0\0\0ss": 3}\n'])
def test_a_line_that_was_cut_off_is_dropped_and_said(journal, torn, capsys):
    """Cut, zeros where nothing was written before the power went, half a character."""
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + torn)
    assert list(journal) == RECORDS and journal.path.read_bytes() == whole + torn
    assert f"{journal.path}, line 5: dropped, since its writing was cut off" in capsys.readouterr().err
    assert journal.keep(list(journal)) == RECORDS and journal.path.read_bytes() == whole
    journal.append({"step": 5})
    assert list(journal) == [*RECORDS, {"step": 5}]


def test_zeros_in_the_middle_are_dropped_too(journal, capsys):
    """Pages of a file reach the disk in any order."""
    lines = journal.path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1][:9] + b"\0" * 20 + lines[1][29:]
    journal.path.write_bytes(b"".join(lines))
    assert list(journal) == [RECORDS[0], *RECORDS[2:]]
    assert "line 2: dropped" in capsys.readouterr().err


@pytest.mark.parametrize("change,message", [
    (lambda line: line.replace(b"1", b"3", 1), "line 1: changed after it was written: its check is"),
    (lambda line: line.replace(b"{", b"", 1), "line 1: not valid JSON"),
    (lambda line: line.replace(b"step", b"st\xffp"), "line 1: 'utf-8' codec"),
    (lambda line: b"[]\n", "line 1: holds JSON, but not an object")])
def test_a_damaged_line_is_named_with_its_number(journal, change, message):
    first, rest = journal.path.read_bytes().split(b"\n", 1)
    journal.path.write_bytes(change(first + b"\n") + rest)
    with pytest.raises(Damaged, match=f"metrics.jsonl, {message}.*Remove the line"):
        list(journal)


def test_every_flipped_bit_is_found(journal):
    """One bit of every byte. What is not found changes no value: it ends a line too early, or is no part of one."""
    whole = journal.path.read_bytes()
    for i in range(len(whole)):
        damaged = bytearray(whole)
        damaged[i] ^= 1 << i % 7
        journal.path.write_bytes(damaged)
        try:
            assert list(journal) == RECORDS or damaged[i] in b"\0\n" or whole[i:i + 1] == b"\n"
        except Damaged as error:
            assert "metrics.jsonl, line " in str(error)
        except AssertionError:
            # the name of the checksum's own field: the line is then one of an older version, with one field more
            assert [{k: r[k] for k in list(r)[:len(whole_r)]} for r, whole_r in zip(journal, RECORDS, strict=True)
                    ] == RECORDS


def test_lines_of_older_versions_have_no_checksum(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"step": 1}) + "\n\n" + json.dumps({"step": 2}) + "\n")
    assert list(Journal(tmp_path / "x.jsonl")) == [{"step": 1}, {"step": 2}]


def test_each_call_hands_whole_lines_to_the_system(journal):
    """A process that is killed after `append` loses nothing: another one reads the line at once."""
    before = journal.path.read_bytes()
    journal.append({"a": 1}, {"b": 2})
    assert journal.path.read_bytes()[len(before):].count(b"\n") == 2


def test_flush_flushes_the_file_and_its_name(journal, monkeypatch):
    flushed = []
    monkeypatch.setattr(durable, "flush", lambda fd: flushed.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name))
    journal.flush()
    assert flushed == ["metrics.jsonl", "new"]
    Journal(journal.path.with_name("nothing.jsonl")).flush()
    assert not journal.path.with_name("nothing.jsonl").exists()


def test_a_planted_link_is_not_appended_to(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="metrics.jsonl"):
        Journal(tmp_path / "metrics.jsonl").append({"a": 1})
    assert (tmp_path / "victim").read_text() == "mine"
