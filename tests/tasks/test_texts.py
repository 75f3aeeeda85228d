"""Files of rows and of text: byte order marks, other encodings, characters that are no text, and keys named twice."""
import json

import pytest

import eval as eval_script
import train as train_script
from tasks.alpaca import Alpaca, alpaca_prompt
from tasks.hellaswag import HellaSwag
from tasks.rows import placed_rows, read_prose, read_rows
from tests.cli import call, rows_of

ROW = {"text": "lost my card", "category": "lost_or_stolen_card"}
GOOD = json.dumps(ROW)
DEEP = "[" * 100_000 + "]" * 100_000
FAULTS = {  # a line of .jsonl -> what the error says
    '{"text": "half \\ud83d", "category": "x"}': r"field 'text' holds half of a surrogate pair, U\+D83D \(at 5\)",
    '{"text": "x", "category": "\\ude00 other half"}': r"field 'category' holds half of a surrogate pair, U\+DE00",
    '{"text": "swapped \\ude00\\ud83d", "category": "x"}': r"half of a surrogate pair, U\+DE00 \(at 8\)",
    '{"text": "nul \\u0000", "category": "x"}': r"field 'text' holds a NUL character \(at 4\)",
    '{"text": "x", "category": "y", "text": "z"}': "an object names 'text' twice",
    '{"text": "x", "category": "y", "more": {"a": 1, "b": 2, "a": 1}}': "an object names 'a' twice",
    f'{{"text": "x", "category": "y", "more": {DEEP}}}': "nested too deep",
    f'{{"text": "x", "category": "y", "more": {"9" * 5000}}}': "not valid JSON",
}


@pytest.mark.parametrize("line", FAULTS, ids=[f.split("{")[0] for f in FAULTS.values()])
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_what_is_no_text_or_not_clear_is_refused_with_file_and_line(tmp_path, line, suffix):
    (tmp_path / f"x{suffix}").write_text(f"{GOOD}\n{GOOD}\n{line}\n")
    with pytest.raises(ValueError, match=f"x{suffix}, line 3: .*{FAULTS[line]}"):
        read_rows(tmp_path / f"x{suffix}", ("text", "category"))


@pytest.mark.parametrize("line", FAULTS, ids=[f.split("{")[0] for f in FAULTS.values()])
@pytest.mark.parametrize("before,after", [("[", "]"), ('{"data": [', "]}")])
def test_in_a_list_the_row_or_its_line_is_named(tmp_path, line, before, after):
    (tmp_path / "x.json").write_text(f"{before}{GOOD},\n{GOOD},\n{line}{after}\n")
    with pytest.raises(ValueError, match=f"x.json, (line|row) 3: .*{FAULTS[line]}"):
        read_rows(tmp_path / "x.json", ("text", "category"))


def test_whole_pairs_and_faults_in_fields_that_are_not_used_are_read(tmp_path):
    """Control: an emoji in two escapes is one character."""
    (tmp_path / "x.jsonl").write_text('{"text": "\\ud83d\\ude00", "category": "x", "more": "\\ud83d"}\n')
    assert read_rows(tmp_path / "x.jsonl", ("text", "category"))[0]["text"] == "\U0001f600"


def test_half_a_pair_in_a_list_of_choices_and_in_a_field_that_a_task_picks(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"activity_label": "a", "ctx": "c", "endings": ["x", "\\ud83d"], "label": 0}\n')
    with pytest.raises(ValueError, match="x.jsonl, line 1: field 'endings' holds half of a surrogate pair"):
        HellaSwag().splits(None, tmp_path / "x.jsonl", None, 0)
    (tmp_path / "x.jsonl").write_text('{"activity_label": "a", "ctx": "\\ud83d", "endings": ["x", "y"], "label": 0}\n')
    with pytest.raises(ValueError, match="x.jsonl, line 1: holds half of a surrogate pair"):
        HellaSwag().splits(None, tmp_path / "x.jsonl", None, 0)


def test_training_refuses_such_a_row_before_anything_is_made(small_base, tmp_path, elsewhere):
    (tmp_path / "x.jsonl").write_text(f'{GOOD}\n' * 7 + '{"text": "cut \\ud83d", "category": "age_limit"}\n')
    message = call(train_script, "--method", "lora", "--model", small_base, "--data", "x.jsonl", "--out", "run")
    assert "x.jsonl, line 8: field 'text' holds half" in message and not (tmp_path / "run").exists()


# ---- encodings -------------------------------------------------------------------------------------------------------

TEXT = "One line of text, as a sentence is.\nThe second line of it says no more than the first one did.\n" * 4
ENCODED = {"plain": "utf-8", "marked": "utf-8-sig"}
OTHERS = {"utf-16": "UTF-16", "utf-16-le": "NUL", "utf-16-be": "NUL", "utf-32": "UTF-32"}


def test_a_byte_order_mark_changes_no_perplexity(small_base, tmp_path, elsewhere):
    for name, encoding in ENCODED.items():
        (tmp_path / f"{name}.txt").write_text(TEXT, encoding=encoding)
        assert call(eval_script, "--model", small_base, "--task", "perplexity", "--test-data", f"{name}.txt",
                    "--max-length", "32", "--out", name) is None
    plain, marked = (rows_of(tmp_path / name)["base"]["scores"] for name in ENCODED)
    assert plain == marked


def test_windows_line_breaks_are_read_as_before(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"a\r\nb\rc\n")
    assert read_prose(tmp_path / "x.txt") == "a\nb\nc\n" == (tmp_path / "x.txt").read_text()


GPTQ = ["--task", "banking77", "--quantizer", "gptq", "--bits", "4", "--block", "16x1", "--calibration", "x.txt"]


# The fast suite has every encoding, and every flag: reading banking77's rows for --calibration takes a second.
@pytest.mark.parametrize("encoding,flags", [
    *((encoding, flags) for encoding in OTHERS for flags in (["--task", "perplexity", "--test-data", "x.txt"],
                                                             ["--task", "piqa", "--test-data", "x.jsonl"])),
    *(pytest.param(encoding, GPTQ, marks=[] if encoding == "utf-16" else pytest.mark.slow) for encoding in OTHERS)])
def test_another_encoding_is_named(small_base, tmp_path, elsewhere, flags, encoding):
    (tmp_path / flags[-1]).write_bytes('{"a": "b"}\n'.encode(encoding))
    message = call(eval_script, "--model", small_base, *flags)
    assert flags[-1] in message and OTHERS[encoding] in message and "UTF-8" in message


def test_files_with_too_little_in_them_are_named(small_base, tmp_path, elsewhere):
    (tmp_path / "empty.txt").touch()
    assert "--test-data empty.txt: the text has 1 tokens" in call(
        eval_script, "--model", small_base, "--task", "perplexity", "--test-data", "empty.txt")
    (tmp_path / "one.jsonl").write_text('{"question": "a", "context": "CREATE TABLE t (a INT)", "answer": "c"}\n')
    assert "one.jsonl: 0 rows to train on and 1 to validate on" in call(
        train_script, "--model", small_base, "--method", "lora", "--task", "sql-create-context", "--data", "one.jsonl")


def test_a_nul_in_a_text_is_refused_with_its_line(tmp_path):
    (tmp_path / "x.txt").write_text("one\ntwo\0\n")
    with pytest.raises(ValueError, match="x.txt, line 2: holds a NUL character"):
        read_prose(tmp_path / "x.txt")


# ---- forms of .json, and rows of alpaca ------------------------------------------------------------------------------

FORMS = {"a list": lambda rows: json.dumps(rows), "a line each": lambda rows: "\n".join(map(json.dumps, rows)),
         "data": lambda rows: json.dumps({"data": rows}),
         "data, indented": lambda rows: json.dumps({"data": rows}, indent=2),
         "beside a version": lambda rows: json.dumps({"version": "1.1", "notes": ["x"], "data": rows}),
         "data among other lists": lambda rows: json.dumps({"authors": [{"name": "x"}], "data": rows}),
         "under another name": lambda rows: json.dumps({"train": rows}, indent=1)}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_json_gives_the_same_rows(tmp_path, form):
    rows = [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}, {"a": "3", "b": "z"}]
    (tmp_path / "x.json").write_text(FORMS[form](rows))
    assert read_rows(tmp_path / "x.json", ("a", "b")) == rows


def test_an_indented_row_alone_is_one_row_and_other_objects_are_refused(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"a": "1"}, indent=2))
    assert [row for _, row in placed_rows(tmp_path / "x.json", ("a",))] == [{"a": "1"}]
    for value, message in (({"x": [{"a": "1"}], "y": [{"a": "1"}]}, "field 'a' is missing"),
                           ({"data": [1]}, "field 'a' is missing"), ({"data": [{"b": 1}]}, "row 1: field 'a'")):
        (tmp_path / "x.json").write_text(json.dumps(value))
        with pytest.raises(ValueError, match=message):
            read_rows(tmp_path / "x.json", ("a",))


@pytest.mark.parametrize("more", [{}, {"input": ""}, {"input": None}])
def test_alpaca_rows_without_input_are_those_with_an_empty_one(tmp_path, more):
    rows = [{"instruction": f"Say {i}.", "output": str(i), **more} for i in range(20)]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    splits = Alpaca().splits(tmp_path / "x.json", None, None, 0)
    assert {e.prompt for e in splits.train + splits.validation} == {alpaca_prompt(r["instruction"], "") for r in rows}
    rows[3]["input"] = 3
    (tmp_path / "x.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="row 4: field 'input' is missing or not text"):
        Alpaca().splits(tmp_path / "x.json", None, None, 0)




def test_what_is_probably_not_meant_is_said(small_base, tmp_path, elsewhere, capsys):
    (tmp_path / "x.jsonl").write_text('{"text": "some words that are long enough"}\n')
    flags = ["--task", "perplexity", "--test-data", "x.jsonl", "--out", "e"]
    assert call(eval_script, "--model", small_base, *flags) is None
    assert "x.jsonl: read as one text, with its brackets" in capsys.readouterr().err
