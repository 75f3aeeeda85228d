"""A user's own rows: recognised by their fields, checked row by row, and said."""
import csv
import json

import pytest
import torch

from finetune.command_line import train_parser
from finetune.config import DataConfig
from finetune.data import check_needs, task_of
from finetune.source import Source
from model.tokenizer import load_tokenizer
from tasks.classification import Classification
from tasks.completion import Completion, Instruction, as_written
from tasks.measured import log_likelihood
from tasks.messages import Messages
from tasks.own_rows import recognised
from tasks.task import encode_example
from tasks.text import OwnText
from tasks.turns import fault, turns_of
from tests.docs.pages import ROOT

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
SHARED = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
LAYOUTS = {"messages": {"messages": TALK}, "messages ": {"conversations": SHARED},
           "instruction": {"instruction": "a", "output": "b"}, "completion": {"prompt": "a", "completion": "b"},
           "classification": {"text": "a", "label": "b"},
           "text": {"text": "a"}}
KINDS = {kind.name: kind for kind in (Messages, Instruction, Completion, Classification, OwnText)}
OWN = ROOT / "docs" / "own-data"


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def splits(task, path, test=None, seed=0):
    return task.splits(path, test, None, seed)


# ---- recognised -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("task,row", LAYOUTS.items())
def test_a_layout_is_recognised_and_said_with_what_is_not_read(tmp_path, capsys, task, row):
    path = write(tmp_path / "my.jsonl", *[{**row, "id": 7, "none": None}] * 3)
    assert recognised(path) == task.strip()
    found = splits(KINDS[task.strip()](), path)
    assert len(found.train + found.validation + found.test) == 3
    assert capsys.readouterr().out.startswith(f"{path}: 3 rows of {', '.join(row)}: --task {task.strip()} (not read: "
                                              f"id, none)\n")


@pytest.mark.parametrize("fields,task", [
    ({"prompt": "p", "messages": TALK, "category": "Open QA"}, "messages"),                # no_robots
    ({"instruction": "a", "input": "", "output": "b", "text": "made of them"}, "instruction"),  # alpaca
    ({"prompt": "p", "completion": None, "text": "t"}, "text"),
    ({"text": "a", "category": "b"}, "banking77")])
def test_what_is_structured_goes_before_what_was_made_of_it(tmp_path, fields, task):
    assert recognised(write(tmp_path / "my.jsonl", fields)) == task


def test_a_row_without_a_layout_is_named_with_those_that_are_known(tmp_path):
    path = write(tmp_path / "my.jsonl", {"question": "a", "answer": "b", "text": None})
    with pytest.raises(ValueError, match=r"my.jsonl, line 1: the row has question, answer, which is none of .* messages"
                                         r"; conversations; instruction, output; prompt, completion; text, label; .*"
                                         r"--task"):
        recognised(path)
    with pytest.raises(ValueError, match="my.jsonl: holds no rows"):
        recognised(write(tmp_path / "my.jsonl"))


@pytest.mark.parametrize("second,message", [
    ({"prompt": "a", "completion": "b"}, "line 2: the row has no messages, but line 1 has messages and so must every"),
    ({"text": "a"}, "line 2: the row has no messages"),
    ({"messages": None, "text": "a"}, "line 2: the row has no messages"),
    ({"other": 1}, "line 2: the row has other, which is none of the layouts")])
def test_a_file_of_two_layouts_is_refused_with_the_line(tmp_path, second, message):
    path = write(tmp_path / "my.jsonl", {"messages": TALK}, second)
    with pytest.raises(ValueError, match=f"my.jsonl, {message}"):
        splits(Messages(), path)


def test_a_row_that_has_more_than_the_first_is_refused(tmp_path):
    path = write(tmp_path / "my.jsonl", {"text": "a"}, {"text": "a", "label": "b"})
    with pytest.raises(ValueError, match="line 2: the row has text, label as well, but line 1 has text and so must"):
        splits(OwnText(), path)


def test_a_task_that_is_named_reads_no_other_layout(tmp_path):
    path = write(tmp_path / "my.jsonl", {"prompt": "a", "completion": "b"})
    with pytest.raises(ValueError, match="line 1: the row has prompt, completion, but --task messages reads messages "
                                         "or conversations: give --task completion, or leave --task out"):
        splits(Messages(), path)


@pytest.mark.parametrize("task,row", [("instruction", {"instruction": 3, "output": "b"}),
                                      ("completion", {"prompt": "a", "completion": ["b"]}),
                                      ("text", {"text": {"a": 1}}), ("classification", {"text": "a", "label": 1.5}),
                                      ("classification", {"text": "a", "label": True}),
                                      ("text", {"text": "a\0b"})])
def test_a_field_of_another_kind_is_refused_with_file_and_line(tmp_path, task, row):
    path = write(tmp_path / "my.jsonl", LAYOUTS[task], row)
    with pytest.raises(ValueError, match="my.jsonl, line 2: field '"):
        splits(KINDS[task](), path)


@pytest.mark.parametrize("suffix,delimiter", [(".csv", ","), (".tsv", "\t")])
def test_cells_of_a_table_are_read(tmp_path, suffix, delimiter):
    path = tmp_path / f"my{suffix}"
    with path.open("w", newline="") as file:
        table = csv.writer(file, delimiter=delimiter)
        table.writerows([["id", "messages"], [1, json.dumps(TALK)], [2, json.dumps(TALK[:1] + TALK[1:])]])
    found = splits(Messages(), path)
    assert recognised(path) == "messages" and found.train[0].turns == (("user", "hi"), ("assistant", "hello"))
    path.write_text(f'text{delimiter}label\n"one, two"{delimiter}3\n')
    assert splits(Classification(), path).validation[0].answer == "3"


def test_parquet_of_turns_is_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet
    parquet.write_table(pyarrow.table({"messages": [TALK, TALK]}), tmp_path / "my.parquet")
    assert recognised(tmp_path / "my.parquet") == "messages"
    assert splits(Messages(), tmp_path / "my.parquet").train[0].answer == "hello"


# ---- left out -------------------------------------------------------------------------------------------------------

def test_rows_without_an_answer_are_left_out_and_counted_with_the_first(tmp_path, capsys):
    rows = [{"prompt": f"{i}", "completion": "b" if i % 3 else " "} for i in range(9)]
    path = write(tmp_path / "my.jsonl", *rows)
    found = splits(Completion(), path, path)
    assert found.left_out == {f"empty completion (the first: {path}, line 1)": 3}
    assert len(found.train + found.validation) == 6 == len(found.test)
    assert f"{path}: 3 test rows are left out: empty completion (the first: {path}, line 1)" in capsys.readouterr().out
    with pytest.raises(ValueError, match="my.jsonl: no row is left: 1 with empty text"):
        splits(OwnText(), write(path, {"text": ""}))


def test_a_label_is_text_or_a_whole_number_and_spellings_are_one(tmp_path, capsys):
    path = write(tmp_path / "my.jsonl", *({"text": f"{i}", "label": label} for i, label in enumerate(
        ["Lost_card", "lost card", 3, "  ", "3"] * 5)))
    task = Classification()
    found = splits(task, path)
    assert task.labels() == {"lost card", "3"} and len(found.test) == 1 and len(found.validation) == 2
    assert "4 labels are 2: case, underscores and white space do not count" not in capsys.readouterr().out
    assert sum(found.left_out.values()) == 5


# ---- turns ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("value,message", [
    ("[1", "p: messages is not valid JSON"),
    ({"role": "user"}, "p: messages is an object, but must be a list of turns"),
    (["hi"], "p, turn 1 of messages: is text, but must be an object"),
    ([{"role": "tool", "content": "a"}], "p, turn 1 of messages: the role is 'tool'; allowed: system, user, human"),
    ([TALK[0], {"role": "assistant", "content": None, "tool_calls": [{}]}], "p, turn 2 of messages: has tool_calls"),
    ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "turn 1 of messages: the content is a list, but"),
    ([{"role": "user"}], "turn 1 of messages: the content is missing, but must be text"),
    ([{"content": "a"}], "turn 1 of messages: the role is 'None'"),
    ([{"role": "user", "content": "a\0"}], "turn 1 of messages: holds a NUL"),
    ([{"role": "user", "content": "\ud83d"}], "turn 1 of messages: holds half of a surrogate pair")])
def test_what_are_no_turns_is_refused_with_place_and_turn(value, message):
    with pytest.raises(ValueError, match=f"^{message}" if message.startswith("p") else message):
        turns_of("p", "messages", value)


def test_sharegpt_and_messages_are_the_same_turns():
    assert turns_of("p", "conversations", SHARED) == turns_of("p", "messages", TALK) == TALK
    assert turns_of("p", "conversations", [{"from": "system", "value": ""}]) == [{"role": "system", "content": ""}]


@pytest.mark.parametrize("roles,reason", [
    ("sua", None), ("ua", None), ("uaua", None), ("", "no turn of a user and an assistant"),
    ("s", "no turn of a user and an assistant"), ("aua", "an assistant's turn before any user's"),
    ("uua", "two turns of the user in a row"), ("uaa", "two turns of the assistant in a row"),
    ("usa", "a system's turn that is not the first"), ("uau", "a user's turn at the end, without an answer"),
    ("u", "a user's turn at the end, without an answer"), ("uE", "an empty turn of the assistant"),
    ("eaua", "an empty turn of the user")])
def test_why_nothing_can_be_learned_from_turns(roles, reason):
    names = {"s": "system", "u": "user", "a": "assistant", "e": "user", "E": "assistant"}
    assert fault([{"role": names[r], "content": " " if r in "eE" else "x"} for r in roles]) == reason


def test_faulty_conversations_are_left_out_by_reason(tmp_path):
    rows = [{"messages": TALK}, {"messages": TALK + TALK[:1]}, {"messages": TALK}, {"messages": TALK[1:]}]
    path = write(tmp_path / "my.jsonl", *rows)
    found = splits(Messages(), path)
    assert found.left_out == {f"a user's turn at the end, without an answer (the first: {path}, line 2)": 1,
                              f"an assistant's turn before any user's (the first: {path}, line 4)": 1}
    assert len(found.train + found.validation) == 2


# ---- what is read and learned ---------------------------------------------------------------------------------------

def test_prompt_and_completion_follow_each_other_as_they_stand(small_base):
    tokenizer = load_tokenizer(small_base)
    for prompt, completion, whole in (("2 + 2 =", "4", "2 + 2 = 4"), ("Q:\n", "A", "Q:\nA"), ("a", "\nb", "a\nb"),
                                      ("where is my", "card now", "where is my card now")):
        row = as_written(prompt, completion)
        encoded = encode_example(row, tokenizer, 2)
        assert tokenizer.decode(encoded.tokens) == whole and encoded.tokens[-1] == 2
        assert encoded.tokens[:encoded.prompt_length] == tokenizer.encode(prompt)


def test_instructions_have_the_prompts_of_alpaca(tmp_path):
    from tasks.alpaca import Alpaca
    rows = [{"instruction": f"do {i}", "output": "b", **({"input": "in"} if i % 2 else {})} for i in range(8)]
    path = write(tmp_path / "my.jsonl", *rows)
    assert splits(Instruction(), path).fingerprints() == splits(Alpaca(), path).fingerprints()


def test_texts_are_windows_of_one_stream_in_which_every_token_is_learned_once(tmp_path, small_base):
    task, tokenizer = OwnText(), load_tokenizer(small_base)
    found = splits(task, write(tmp_path / "my.jsonl", *({"text": f"text number {i}"} for i in range(20))))
    task.meet(small_base, tokenizer, 2, 16)
    rows = task.encode(found.train, tokenizer, 2)
    stream = [t for example in found.train for t in [*tokenizer.encode(example.answer), 2]]
    assert [row.tokens[place] for row in rows for place in row.learned] == stream[1:]
    assert all(len(row.tokens) == 17 for row in rows[:-1])
    windows = task.test_rows(found.train, tokenizer, 16)
    assert [w.tokens for w in windows] == [stream[i:i + 16] for i in range(0, len(stream) - 15, 16)]
    assert "windows of 16 tokens" in task.protocol and task.test_rows([], tokenizer, 16) == []


def test_loss_is_that_of_the_learned_tokens(small_base):
    source = Source(small_base)
    model = source.load(torch.float32, "cpu")
    row = encode_example(as_written("where is", "my card"), source.tokenizer, 2)
    p = model(torch.tensor([row.tokens])).log_softmax(-1)[0]
    by_hand = sum(p[i - 1, row.tokens[i]].item() for i in range(row.prompt_length, len(row.tokens)))
    assert log_likelihood(model, row) == pytest.approx(by_hand, abs=1e-4)
    task = Completion()
    lines = [{"log_likelihood": -3.0, "learned": 2}, {"log_likelihood": -1.0, "learned": 6}, {}]
    assert task.other_scores([], lines) == {"loss": 0.5, "perplexity": pytest.approx(1.6487, abs=1e-4)}
    assert task.other_scores([], [{}]) == {}
    marks = [task.marks(as_written("q", " two  words"), {"text": text})["exact_match"]
             for text in ("two words", "Two words", "two words more")]
    assert marks == [1, 0, 0]


def test_data_without_a_task_are_ones_own_and_with_one_they_are_not():
    from finetune.resolve import resolve_run
    assert resolve_run(train_parser().given(["--data", "a.jsonl"])).data.task == "auto"
    assert resolve_run(train_parser().given(["--data", "a.jsonl", "--task", "banking77"])).data.task == "banking77"
    assert resolve_run(train_parser().given([])).data.task == "banking77"


@pytest.mark.parametrize("task,answers", [("auto", True), ("text", False)])
def test_whether_answers_are_written_is_said_once_the_task_is_known(tmp_path, capsys, task, answers):
    asked = DataConfig(task=task, data=tmp_path / "rows.jsonl", max_new_tokens=7777)
    check_needs(task_of(asked), asked)
    captured = capsys.readouterr()
    assert ("has no effect" not in captured.out + captured.err) == answers
