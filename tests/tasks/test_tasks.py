"""Data sets, prompts, masking by length, batches and scores."""
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.config import EMBEDDED_BASE
from model.tokenizer import load_tokenizer
from tasks.banking77 import Banking77
from tasks.batching import collate, epoch_batches, split_list
from tasks.generative import before
from tasks.labels import macro_f1
from tasks.pretrain import RECIPE, WINDOW, Pretrain
from tasks.rows import read_rows
from tasks.sql_create_context import SqlCreateContext, normalise_sql
from tasks.task import Encoded, Example, encode_example

TOKENIZER = load_tokenizer(EMBEDDED_BASE)


def scores_of(task, texts, examples):
    """What these answers score, standard errors left out."""
    return task.scores(examples, [{"text": text} for text in texts])[0]


EOS = TOKENIZER.eos_id


def sql_file(path: Path, n=40) -> Path:
    path.write_text("".join(json.dumps({"question": f"how many {i}?", "context": f"CREATE TABLE t{i} (a INTEGER)",
                                        "answer": f"SELECT COUNT(*) FROM t{i}"}) + "\n" for i in range(n)))
    return path


def test_banking77_is_whole_and_its_splits_share_no_row():
    splits = Banking77().splits(None, None, None, seed=0)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (9003, 1000, 3080)
    assert len({e.answer for e in splits.test}) == 77
    assert not {id(e) for e in splits.train} & {id(e) for e in splits.validation}
    assert splits.fingerprints() == Banking77().splits(None, None, None, seed=0).fingerprints()
    assert splits.fingerprints()["train"] != Banking77().splits(None, None, None, seed=1).fingerprints()["train"]


def test_banking77_scores_by_hand():
    examples = [Example("", a) for a in ("card arrival", "card arrival", "age limit", "age limit")]
    scores = scores_of(Banking77(), ["card arrival", "Card_Arrival", "card arrival", "nonsense"], examples)
    # card arrival: written 3, gold 2, right 2 -> 4/5; age limit: written 0, gold 2 -> 0
    assert scores == {"accuracy": 0.5, "micro_f1": pytest.approx(4 / 7), "macro_f1": pytest.approx(0.4),
                      "invalid": 0.25}


def test_a_perfect_and_an_empty_answer_score_one_and_zero():
    examples = Banking77().splits(None, None, None, 0).test
    right = scores_of(Banking77(), [e.answer for e in examples], examples)
    assert right == {"accuracy": 1, "micro_f1": 1, "macro_f1": 1, "invalid": 0}
    empty = scores_of(Banking77(), [""] * len(examples), examples)
    assert empty == {"accuracy": 0, "micro_f1": 0, "macro_f1": 0, "invalid": 1}


def test_macro_f1_counts_each_class_once_however_many_rows_it_has():
    assert macro_f1(["a"] * 9 + ["a"], ["a"] * 9 + ["b"]) == pytest.approx((2 * 9 / 19 + 0) / 2)


@pytest.mark.parametrize("written", ["select  a from T where b = 'x' ;", 'SELECT a FROM t WHERE b = "X"',
                                     "SELECT a\nFROM t WHERE b=`X`;"])
def test_sql_case_space_quotes_and_a_final_semicolon_do_not_count(written):
    gold = 'SELECT a FROM t WHERE b = "X"' if "b = " in written else 'SELECT a FROM t WHERE b="X"'
    assert normalise_sql(written) == normalise_sql(gold)


def test_another_query_is_another_query():
    assert normalise_sql("SELECT a FROM t") != normalise_sql("SELECT b FROM t")
    assert normalise_sql("SELECT a; FROM t") != normalise_sql("SELECT a FROM t")


def test_sql_splits_share_no_row_and_keep_all(tmp_path):
    splits = SqlCreateContext().splits(sql_file(tmp_path / "train.jsonl"), None, None, seed=0)
    parts = [set(e.prompt for e in part) for part in (splits.train, splits.validation, splits.test)]
    assert [len(p) for p in parts] == [32, 4, 4] and len(set.union(*parts)) == 40


def test_a_row_without_its_field_is_named_with_file_and_line(tmp_path):
    path = sql_file(tmp_path / "train.jsonl", 3)
    path.write_text(path.read_text() + '{"question": "q", "context": "c"}\n')
    with pytest.raises(ValueError, match=r"train.jsonl, line 4: field 'answer' is missing or not text "
                                         r"\(fields of the row: question, context\)"):
        SqlCreateContext().splits(path, None, None, 0)


def test_a_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(ValueError, match="x.jsonl: not UTF-8 text"):
        read_rows(tmp_path / "x.jsonl", ("a",))


@pytest.mark.parametrize("text,message", [("{", "line 1: not valid JSON"), ("[1]\n", "line 1: expected a JSON object"),
                                          ("\n", "holds no rows")])
def test_a_file_that_is_not_rows_is_named(tmp_path, text, message):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path / "x.jsonl", ("a",))


def test_a_json_list_is_read_as_well(tmp_path):
    (tmp_path / "x.json").write_text('[{"a": "1"}, {"b": "2"}]')
    with pytest.raises(ValueError, match="row 2: field 'a' is missing"):
        read_rows(tmp_path / "x.json", ("a",))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl: no such data file"):
        read_rows(tmp_path / "nowhere.jsonl", ("a",))


texts = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\x00"), max_size=30)


@given(texts, texts)
def test_masking_goes_by_length_and_the_end_token_is_learned(prompt, answer):
    encoded = encode_example(Example(prompt, answer), TOKENIZER, EOS)
    assert encoded.tokens[:encoded.prompt_length] == TOKENIZER.encode(prompt)  # what generation starts from
    assert encoded.tokens[-1] == EOS
    batch = collate([encoded])
    assert batch.targets.tolist() == encoded.tokens[encoded.prompt_length:]
    assert batch.at[0].nonzero().flatten().tolist() == list(range(encoded.prompt_length - 1, len(encoded.tokens) - 1))


@pytest.mark.parametrize("prompt,answer", [("a question?\nIntent:", "card arrival"),
                                           ("CREATE TABLE t (a INTEGER)\nSQL:", "SELECT a FROM t")])
def test_an_encoded_example_reads_as_prompt_space_answer(prompt, answer):
    encoded = encode_example(Example(prompt, answer), TOKENIZER, EOS)
    assert TOKENIZER.decode(encoded.tokens[1:-1]) == f"{prompt} {answer}"


def test_an_answer_is_what_stands_before_the_first_stop_text():
    assert before(" card arrival\nReply: we are sorry", ("\n",)) == " card arrival"
    assert before("a Question: b </s> c", ("</s>", "Question:")) == "a "
    assert before("no stop", ("\n",)) == "no stop"


def test_standard_errors_are_those_of_a_mean_and_only_means_have_one():
    examples = [Example("", a) for a in ("card arrival", "card arrival", "age limit", "age limit")]
    _, errors = Banking77().scores(examples, [{"text": t} for t in ("card arrival", "x", "x", "x")])
    # sd of 1, 0, 0, 0 is 1/2; / sqrt(4)
    assert errors == {"accuracy": pytest.approx(0.25), "invalid": pytest.approx(0.25)}


def test_an_end_token_inside_the_prompt_is_not_learned_and_one_inside_the_answer_is():
    """Masking by token id would get both wrong."""
    batch = collate([Encoded([1, EOS, 5, EOS, 7, EOS], prompt_length=3), Encoded([1, 4, EOS], prompt_length=2)])
    assert batch.tokens.tolist() == [[1, EOS, 5, EOS, 7], [1, 4, 0, 0, 0]]
    assert batch.at.tolist() == [[False, False, True, True, True], [False, True, False, False, False]]
    assert batch.targets.tolist() == [EOS, 7, EOS, EOS]


def test_the_tokenizer_gives_back_what_it_was_given():
    for text in ("a  b\n\n c", "SELECT * FROM t WHERE x >= 10.50", "£ é 你好 \t tab", " leading"):
        assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.lists(st.integers(2, 50), min_size=1, max_size=300), st.integers(1, 9), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_holds_every_example_once(lengths, batch_size, seed, epoch):
    batches = epoch_batches(lengths, batch_size, seed, epoch)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    assert batches == epoch_batches(lengths, batch_size, seed, epoch)
    assert len(batches) == -(-len(lengths) // batch_size)


def test_batches_differ_between_epochs_and_hold_similar_lengths():
    lengths = torch.randint(5, 100, (640,), generator=torch.Generator().manual_seed(0)).tolist()
    first, second = (epoch_batches(lengths, 16, 0, e) for e in (0, 1))
    assert first != second

    def waste(batches):
        return sum(max(lengths[i] for i in b) * len(b) for b in batches) / sum(lengths)
    assert waste(first) < 1.2 < waste(split_list(list(range(640)), 16))


def test_pretraining_never_sees_the_job_nor_non_commercial_text():
    assert not {"banking77", "alpaca"} & set(RECIPE)
    assert all(file == "train.jsonl" for file, _, _ in RECIPE.values())


def test_pretraining_windows_learn_every_token_of_the_stream_once():
    examples = [Example("", "some text " * n) for n in (40, 3, 90)]
    stream = [t for e in examples for t in [*TOKENIZER.encode(e.answer), EOS]]
    windows = Pretrain().encode(examples, TOKENIZER, EOS)
    learned = [t for w in windows for t in collate([w]).targets.tolist()]
    assert learned == stream[1:] and max(len(w.tokens) for w in windows) == WINDOW + 1 and len(windows) > 1
