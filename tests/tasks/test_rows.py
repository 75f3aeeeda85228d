"""Rows of .jsonl, .json, .csv and .parquet files: every format gives the same rows, and errors name the line."""
import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import rows
from tasks.rows import in_words, placed_rows, read_rows

KINDS = {"question": str, "gold": int, "easy": bool, "endings": [str], "choices": {"text": [str], "label": [str]}}
ROWS = [{"question": "Two\nlines, a \"quote\" and é?", "gold": 2, "easy": True, "endings": ["a", "b, c"],
         "choices": {"text": ["x"], "label": ["A"]}},
        {"question": "", "gold": 0, "easy": False, "endings": [], "choices": {"text": [], "label": []}}]


def write_csv(path, table):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows({name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()}
                         for row in table)


def write_parquet(path, table):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(table), path)


WRITERS = {
    "x.jsonl": lambda path, table: path.write_text("".join(json.dumps(row) + "\n" for row in table)),
    "x.json": lambda path, table: path.write_text(json.dumps(table, indent=1)),
    "lines.json": lambda path, table: path.write_text("".join(json.dumps(row) + "\n" for row in table)),
    "X.CSV": write_csv, "x.parquet": write_parquet}


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_rows_come_out_of_every_format_in_their_kinds(tmp_path, name):
    WRITERS[name](tmp_path / name, ROWS)
    read = read_rows(tmp_path / name, KINDS)
    assert read == ROWS and type(read[0]["gold"]) is int and type(read[0]["easy"]) is bool


texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)


@given(st.lists(st.tuples(texts, texts, st.integers()), min_size=1, max_size=8))
def test_any_text_survives_csv_and_json(tmp_path_factory, table):
    folder = tmp_path_factory.mktemp("rows")
    table = [{"a": a, "b": b, "n": n} for a, b, n in table]
    for name in ("x.jsonl", "x.json", "X.CSV"):
        WRITERS[name](folder / name, table)
        assert read_rows(folder / name, {"a": str, "b": str, "n": int}) == table


def test_a_cell_of_csv_may_be_as_long_as_a_book(tmp_path):
    WRITERS["X.CSV"](tmp_path / "X.CSV", [{"a": "x" * 200_000}])
    assert read_rows(tmp_path / "X.CSV", ("a",)) == [{"a": "x" * 200_000}]


def test_a_row_of_csv_is_on_the_line_where_it_begins(tmp_path):
    # a byte order mark, a line break in quotes, an empty line
    (tmp_path / "x.csv").write_bytes(b'\xef\xbb\xbfa,b\r\n1,"two\r\nlines"\r\n\r\n3,four\r\n')
    assert placed_rows(tmp_path / "x.csv", ("a", "b")) == [
        (f"{tmp_path}/x.csv, line 2", {"a": "1", "b": "two\r\nlines"}),
        (f"{tmp_path}/x.csv, line 5", {"a": "3", "b": "four"})]


def test_a_byte_order_mark_is_no_part_of_the_first_field(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"a": "1"}\r\n{"a": "2"}')
    assert read_rows(tmp_path / "x.jsonl", ("a",)) == [{"a": "1"}, {"a": "2"}]


@pytest.mark.parametrize("name,content,message", [
    ("x.csv", b"", "x.csv: holds no rows"), ("x.csv", b"a,b\n", "x.csv: holds no rows"),
    ("x.json", b"", "x.json: holds no rows"),
    ("x.json", b"[]", "x.json: holds no rows"), ("x.jsonl", b"", "x.jsonl: holds no rows"),
    ("x.csv", b"a,b,a\n1,2,3\n", "x.csv, line 1: the header names 'a' twice"),
    ("x.csv", b'a,b\n1,"2\n3"\n4\n', r"x.csv, line 4: 1 cells, but the header has 2 \(a, b\)"),
    ("x.csv", b'a,b\n1,2\n3,"open\n\n', "x.csv, line 3: not valid CSV"),
    ("x.csv", b"a,b\n1,\xff\n", "x.csv: not UTF-8 text"),
    ("x.csv", b"a,c\n1,2\n", r"x.csv, line 2: field 'b' is missing or not text \(fields of the row: a, c\)"),
    ("x.json", b'{"a": "1"}\n{"a": "1", "b": 2}\n', "x.json, line 1: field 'b' is missing or not text"),
    ("x.json", b"3", "expected a JSON list of rows"),
    ("x.json", b"[1]", "x.json, row 1: expected a JSON object, found int"),
    ("x.txt", b"a", r"x.txt: the name of a data file must end in one of .jsonl, .json, .csv, .tsv")])
def test_what_is_wrong_is_named_with_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path / name, ("a", "b"))


@pytest.mark.parametrize("kind,good,bad,words", [
    (int, [3, "3", " -3 "], [3.0, "3.5", True, "three", None, [3]], "an integer"),
    (bool, [True], [1, "true", None], "true or false"),
    ([str], [[], ["a"]], ["a", [1], None, {"a": "b"}], "a list of text"), (str, ["", "3"], [3, None, ["a"]], "text"),
    ({"text": [str]}, [{"text": ["a"], "more": 1}], [{"text": "a"}, {}, ["a"], None],
     r"an object of text \(a list of text\)")])
def test_a_value_of_another_kind_is_refused_in_words(tmp_path, kind, good, bad, words):
    for value in good:
        (tmp_path / "x.jsonl").write_text(json.dumps({"f": value}))
        read_rows(tmp_path / "x.jsonl", {"f": kind})
    for value in bad:
        (tmp_path / "x.jsonl").write_text(json.dumps({"f": value}))
        with pytest.raises(ValueError, match=f"line 1: field 'f' is missing or not {words}"):
            read_rows(tmp_path / "x.jsonl", {"f": kind})


@pytest.mark.parametrize("kind,cell", [(int, "1.0"), (int, ""), (bool, "1"), ([str], "a"), ([str], "{}"),
                                       ({"text": [str]}, '{"text": 1}')])
def test_a_cell_of_csv_that_does_not_read_as_its_kind_is_refused(tmp_path, kind, cell):
    write_csv(tmp_path / "x.csv", [{"f": cell, "g": "1"}])
    with pytest.raises(ValueError, match=r"x.csv, line 2: field 'f' is missing or not"):
        read_rows(tmp_path / "x.csv", {"f": kind})


def test_a_null_of_parquet_and_a_damaged_file_are_named(tmp_path):
    write_parquet(tmp_path / "x.parquet", [{"a": "1"}, {"a": None}])
    with pytest.raises(ValueError, match="x.parquet, row 2: field 'a' is missing or not text"):
        read_rows(tmp_path / "x.parquet", ("a",))
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not so")
    with pytest.raises(ValueError, match="x.parquet: not a readable parquet file"):
        read_rows(tmp_path / "x.parquet", ("a",))


def test_without_pyarrow_the_line_to_run_is_said(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(rows.importlib, "import_module", missing)
    with pytest.raises(ValueError, match="x.parquet: .* pip install pyarrow$"):
        read_rows(tmp_path / "x.parquet", ("a",))


def test_a_directory_is_no_data_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="is a directory, not a data file"):
        read_rows(tmp_path, ("a",))


def test_kinds_have_words():
    words = in_words({"text": [str], "label": [int]})
    assert words == "an object of text (a list of text) and label (a list of an integer)"
