"""What cannot score, scores too well, or was cut is counted; special tokens are looked at before they are dropped."""
import json
import shutil
import statistics

import pytest
import tokenizers
import torch
from tokenizers import models, processors

import eval as eval_script
import train as train_script
from finetune.config import EMBEDDED_BASE
from model.checkpoint import random_model, save_model
from model.config_json import config_to_json
from model.files import write_json
from model.tokenizer import continuation, load_tokenizer
from tasks.banking77 import Banking77
from tasks.choices import SAME_CHOICE, Question, holds_itself, unusual
from tasks.free_text import NO_WORD, FreeTextTask
from tasks.generative import ALSO_TRAINED, CUT_ANSWER, CUT_GOLD, LONG_GOLD, OWN_SHOT, GenerativeTask
from tasks.gsm8k import Gsm8k, Gsm8kZeroShot, read_problems
from tasks.labels import NO_LABEL
from tasks.mmlu import Mmlu, pooled_error
from tasks.sql_create_context import SqlCreateContext, one_line
from tasks.task import Asking, Example, encode_example, prompt_ids
from tests.cli import SMALL, call, rows_of

BASE = load_tokenizer(EMBEDDED_BASE)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ---- a tokenizer of words, with what tokenizers do at the ends -------------------------------------------------------

WORDS = ["<s>", "</s>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyz:\n.#0123456789 ", "ab", " a", " b", "<", ">", "/"]


def word_tokenizer(directory, begin=True, end=False, joins=()):
    """Characters as tokens, and the merges of `joins`. begin, end: what the post-processor puts around a text."""
    vocab = {word: i for i, word in enumerate([*WORDS, *(w for w in joins if w not in WORDS)])}
    merges = [(w[:-1], w[-1]) for w in joins]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges, fuse_unk=False))
    tokenizer.decoder = tokenizers.decoders.Fuse()
    tokenizer.add_special_tokens(["<s>", "</s>", "<|im_end|>"])
    around = " ".join((["<s>"] if begin else []) + ["$A"] + (["</s>"] if end else []))
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=[("<s>", 0), ("</s>", 1)])
    directory.mkdir(exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(directory / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"})
    return load_tokenizer(directory)


ENDS = [(True, False), (True, True), (False, True), (False, False)]


@pytest.mark.parametrize("begin,end", ENDS)
@pytest.mark.parametrize("prompt", ["a question:", "<s>a question:", "<s><s>a question:", "a question:</s>"])
@pytest.mark.parametrize("answer", ["ab", "ab</s>", "ab</s></s>"])
def test_one_begin_token_no_end_before_the_answer_and_one_behind_it(tmp_path, begin, end, prompt, answer):
    """Whatever the tokenizer and the row put there. The whole answer is learned, its first token too."""
    tokenizer = word_tokenizer(tmp_path, begin, end)
    row = encode_example(Example(prompt, answer), tokenizer, 1)
    read, learned = row.tokens[:row.prompt_length], row.tokens[row.prompt_length:]
    assert read.count(0) == int(begin) + (not begin) * prompt.count("<s>") and 1 not in read
    assert tokenizer.decode(read) == "a question:" and tokenizer.decode(learned) == " ab"
    assert learned[-1] == 1 and learned.count(1) == 1
    assert read == prompt_ids(prompt, tokenizer, 1)  # what generation starts from


@pytest.mark.parametrize("answer", ["ab<|im_end|>", "ab<|im_end|>\n", "ab<|im_end|> <|im_end|>\n\n", "ab"])
def test_white_space_behind_an_end_token_is_not_learned(tmp_path, answer):
    tokenizer = word_tokenizer(tmp_path)
    tokens = encode_example(Example("q:", answer), tokenizer, 2).tokens
    assert tokenizer.decode(tokens, special=True) == "<s>q: ab<|im_end|>"


def test_an_end_token_between_turns_stays(tmp_path):
    tokenizer = word_tokenizer(tmp_path)
    for answer in ("ab<|im_end|>\nc", "ab<|im_end|>\n<s>"):
        tokens = encode_example(Example("q:", answer), tokenizer, 2).tokens
        assert tokenizer.decode(tokens, special=True) == f"<s>q: {answer}<|im_end|>"


def test_a_begin_token_that_is_the_end_token_stays(tmp_path):
    class Both:
        def encode(self, text):
            return [1, *map(ord, text)]

        def decode(self, ids):
            return "".join(chr(i) for i in ids if i > 9)
    row = encode_example(Example("q:", "a"), Both(), 1)
    assert row.tokens == [1, *map(ord, "q: a"), 1] and row.prompt_length == 3


def test_a_tokenizer_that_joins_prompt_and_answer_loses_no_token_of_the_answer(tmp_path):
    """The whole text has ': a' as one token: cut at the prompt's length it would begin with 'b' (control)."""
    tokenizer = word_tokenizer(tmp_path, joins=(": ", ": a"))
    prompt, whole = tokenizer.encode("q:"), tokenizer.encode("q: ab")
    assert whole[:len(prompt)] != prompt and continuation(tokenizer, prompt, whole[len(prompt):]) != " ab"
    row = encode_example(Example("q:", "ab"), tokenizer, 1)
    assert row.tokens[:row.prompt_length] == prompt
    assert continuation(tokenizer, prompt, row.tokens[row.prompt_length:-1]) == " ab"


def test_an_answer_that_no_ids_give_is_refused():
    class Lossy:
        def encode(self, text):
            return [9] if not text else [9, len(text)]

        def decode(self, ids):
            return "?" * len(ids)
    with pytest.raises(ValueError, match="the answer 'ab' cannot be told from its prompt 'q:'"):
        encode_example(Example("q:", "ab"), Lossy(), 1)


# ---- stop texts ------------------------------------------------------------------------------------------------------

class Scripted:
    """Writes the given ids whatever it reads."""
    def __init__(self, tokens, positions=64):
        self.tokens, self.config = tokens, type("Config", (), {"max_position_embeddings": positions})


def answered(monkeypatch, task, tokenizer, tokens, limit):
    def generate_each(model, prompts, max_new_tokens, stop_ids, batch_size, desc, stopped):
        for i, _ in enumerate(prompts):
            ids = []
            for token in tokens[:max_new_tokens]:
                if token in stop_ids:
                    break
                ids.append(token)
                if stopped(ids):
                    break
            yield i, ids
    monkeypatch.setattr("tasks.generative.generate_each", generate_each)
    return next(task.answers(Scripted(tokens), [Example("q:", "ab")], Asking(tokenizer, (1,), limit, 1)))[1]


def of_stops(*stops):
    task = GenerativeTask()
    task.name, task.stop_texts = "t", stops
    return task


@pytest.mark.parametrize("stops,text", [(("<|im_end|>",), "ab"), (("im_end",), "ab"), (("\n",), "abc"),
                                        (("</s>", "<|im_end|>"), "ab"), (("b",), "a"), ((), "abc\n12")])
def test_a_stop_text_stops_whether_it_is_a_special_token_or_letters(tmp_path, monkeypatch, stops, text):
    tokenizer = word_tokenizer(tmp_path)
    ids = [*tokenizer.encode("ab")[1:], 2, *tokenizer.encode("c\n12")[1:]]
    line = answered(monkeypatch, of_stops(*stops), tokenizer, ids, 30)
    assert line["text"] == text


def test_an_id_that_the_tokenizer_does_not_have_stops_nothing(tmp_path, monkeypatch):
    for tokenizer in (word_tokenizer(tmp_path), BASE):
        line = answered(monkeypatch, of_stops("\n"), tokenizer, [5, 6], 30)
        assert line["text"]


# ---- what is counted -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("tokens,limit,cut", [("abc", 3, True), ("abc", 4, False), ("ab\n", 3, False),
                                              ("abc\n", 3, True)])
def test_an_answer_that_ran_into_the_limit_is_flagged(tmp_path, monkeypatch, tokens, limit, cut):
    """One that ends with its last allowed token, by a stop text or an end token, is not."""
    tokenizer = word_tokenizer(tmp_path)
    ids = [*tokenizer.encode(tokens)[1:], 1]
    line = answered(monkeypatch, of_stops("\n"), tokenizer, ids, limit)
    assert (CUT_ANSWER in line.get("flags", [])) == cut


@pytest.mark.parametrize("gold,stops,flags", [
    ("ab", ("\n",), []), ("a\nb", ("\n",), [CUT_GOLD]), ("a\nb", (), []), ("\na", ("\n",), []), ("ab\n", ("\n",), []),
    ("abcabcabc", ("\n",), [LONG_GOLD]), ("abcde", ("\n",), []), ("abcdef", ("\n",), [LONG_GOLD]),
    ("a Question: b", ("Question:",), [CUT_GOLD, LONG_GOLD]), ("a\r\nb", ("\n",), [CUT_GOLD])])
def test_a_gold_answer_that_cannot_be_reached_is_flagged(tmp_path, gold, stops, flags):
    """The limit is 6 tokens, of which the space before an answer is one."""
    asking = Asking(word_tokenizer(tmp_path), (1,), 6, 1)
    assert of_stops(*stops).row_flags(Example("q:", gold), asking) == flags


@pytest.mark.parametrize("answer", ["so #### 5", "so #### 5\n", "so #### 5 ", "#### 1,000.", "#### -5"])
def test_a_gsm8k_solution_that_is_read_scores_if_it_is_the_answer(tmp_path, answer):
    row = read_problems(write(tmp_path / "g.jsonl", [{"question": "q", "answer": answer}]))[0]
    assert Gsm8kZeroShot().marks(row, {"text": answer.strip()}) == {"strict_match": 1, "flexible_extract": 1}


@pytest.mark.parametrize("answer", ["so #### 5 apples", "#### 3 then #### 5", "#### 1/2", "#### 5%", "#### 5\nDone."])
def test_a_gsm8k_solution_that_could_never_score_is_refused(tmp_path, answer):
    rows = [{"question": "q", "answer": "#### 1"}, {"question": "q", "answer": answer}]
    with pytest.raises(ValueError, match="g.jsonl, line 2: the answer does not end with '#### ' and a number, or"):
        read_problems(write(tmp_path / "g.jsonl", rows))


@pytest.mark.parametrize("gold,flagged", [("card arrival", False), ("card arival", True)])
def test_a_gold_label_that_is_none_is_flagged(gold, flagged):
    assert Banking77().row_flags(Example("q", gold), Asking(BASE, (2,), 99, 1)) == [NO_LABEL] * flagged


@pytest.mark.parametrize("gold,flagged", [("\u4f60\u597d", True), ("...", True), ("caf\u00e9", False), ("7", False)])
def test_a_gold_text_without_words_for_rouge_is_flagged(gold, flagged):
    assert FreeTextTask().row_flags(Example("q", gold), Asking(BASE, (2,), 99, 1)) == [NO_WORD] * flagged


@pytest.mark.parametrize("contexts,choices,gold,flagged", [
    (("c",), ("a", "a"), 1, True), (("c",), ("a", "a"), 0, False), (("c",), ("a", "b"), 1, False),
    (("c", "d"), ("a", "a"), 1, False), (("c", "c"), ("a", "a"), 1, True)])
def test_a_gold_choice_that_an_earlier_one_equals_is_flagged(contexts, choices, gold, flagged):
    assert unusual(Question(contexts, choices, gold)) == [SAME_CHOICE] * flagged


QUERY = "SELECT a FROM t WHERE b = 'x  y'"


@pytest.mark.parametrize("laid_out", [QUERY, "SELECT a\nFROM t\nWHERE b = 'x  y'",
                                      "SELECT a\r\n  FROM t\r\n\tWHERE b = 'x  y'",
                                      "\nSELECT a \n\n FROM t WHERE b = 'x  y'\n"])
def test_a_query_of_several_lines_is_read_on_one(laid_out):
    assert one_line(laid_out) == QUERY


@pytest.mark.parametrize("query", ["SELECT a -- the name\nFROM t", "SELECT 'two\nlines' FROM t",
                                   'SELECT "a\nb" FROM t'])
def test_a_line_break_that_means_something_stays_and_is_counted(tmp_path, query):
    assert one_line(query) == query
    rows = [{"question": str(i), "context": f"CREATE TABLE t{i} (a INTEGER)", "answer": query} for i in range(10)]
    splits = SqlCreateContext().splits(write(tmp_path / "x.jsonl", rows), None, None, 0)
    assert SqlCreateContext().row_flags(splits.test[0], Asking(BASE, (2,), 99, 1)) == [CUT_GOLD]


def problems(numbers):
    return [{"question": f"What is {i} + 1?", "answer": f"#### {i + 1}"} for i in numbers]


def test_gsm8k_counts_prompts_that_hold_their_own_answer(tmp_path):
    """Of six rows five are shots: nearly every row is among its own. Control: other rows."""
    train = write(tmp_path / "train.jsonl", problems(range(6)))
    same = [{"question": "what  is 3 + 1?", "answer": "#### 4"}]
    for test, at_least in ((problems(range(6)), 4), (problems(range(90, 96)), 0), (same * 6, 4)):
        task = Gsm8k()
        splits = task.splits(train, write(tmp_path / "test.jsonl", test), None, 0)
        asking = Asking(BASE, (2,), 64, 1)
        held = sum(OWN_SHOT in task.row_flags(row, asking) for row in splits.test)
        assert held >= at_least and bool(held) == bool(at_least)
        by_hand = [row.prompt.lower().replace("  ", " ").count(
            task.question_of(row).lower().replace("  ", " ").removesuffix("answer:").strip()) for row in splits.test]
        assert held == sum(n > 1 for n in by_hand)


def mmlu_rows(n, subject="anatomy"):
    return [{"question": f"Question {i}?", "choices": ["a", "b", "c", "d"], "answer": i % 4, "subject": subject}
            for i in range(n)]


@pytest.mark.parametrize("protocol", [[], ["--protocol", "hendrycks"]])
def test_mmlu_counts_prompts_that_hold_their_own_answer(small_base, tmp_path, elsewhere, capsys, protocol):
    data = write(tmp_path / "x.jsonl", mmlu_rows(8))
    assert call(eval_script, "--model", small_base, "--task", "mmlu", "--data", data, "--test-data", data, "--out", "m",
                *protocol) is None
    lines = [json.loads(line) for line in (tmp_path / "m" / "predictions.jsonl").read_text().splitlines()]
    held = [line["prompt"].count(f"Question {i}?\nA. a") > 1 for i, line in enumerate(lines)]
    assert [OWN_SHOT in line["flags"] for line in lines] == held and any(held)
    assert rows_of(tmp_path / "m")["base"]["counts"][OWN_SHOT] == sum(held)
    assert f"base: {sum(held)} of 8 test rows with {OWN_SHOT}\n" in capsys.readouterr().out


def test_another_question_that_begins_alike_is_not_the_same():
    shot = "What is it?\nA. a\nB. b\nAnswer: A\n\n"
    assert holds_itself(Question(("what is it?\nA. a\nB. b\nAnswer:",), ("A", "B"), 0, (shot,)))
    assert holds_itself(Question(("What is it?\nA. b\nB. a\nAnswer:",), ("A", "B"), 0, (shot,)))
    assert not holds_itself(Question(("What is it?\nA. a\nB. c\nAnswer:",), ("A", "B"), 0, (shot,)))


def test_the_same_row_in_train_and_test_is_counted_and_said(small_base, tmp_path, elsewhere, capsys):
    rows = [{"text": f"where is card {i}", "category": "card_arrival"} for i in range(30)]
    train = write(tmp_path / "train.jsonl", rows)
    test = write(tmp_path / "test.jsonl", [{**rows[3], "text": "Where is  card 3"},
                                           {**rows[4], "category": "age_limit"},
                                           {"text": "another", "category": "card_arrival"}])
    assert call(train_script, "--method", "lora", "--model", small_base, "--task", "banking77", "--data", train,
                "--test-data", test, "--steps", "1", "--batch-size", "8", "--max-new-tokens", "3", "--out",
                "run") is None
    out = capsys.readouterr().out
    assert f"--task banking77: 1 of 3 test rows with {ALSO_TRAINED}\n" in out
    assert f"every state: 1 of 3 test rows with {ALSO_TRAINED}\n" in out
    assert rows_of(tmp_path / "run")["trained"]["counts"][ALSO_TRAINED] == 1


def test_ids_beyond_the_vocabulary_in_test_rows_are_refused_before_training(tmp_path, elsewhere):
    """The rows that train have none."""
    directory = tmp_path / "model"
    word_tokenizer(directory, joins=("qz",))
    config = config_to_json(SMALL) | {"vocab_size": len(WORDS), "bos_token_id": 0, "eos_token_id": 1}
    write_json(directory / "config.json", config)
    from model.directory import load_config
    save_model(random_model(load_config(directory), torch.float32, seed=1), directory / "model.safetensors")
    train = write(tmp_path / "train.jsonl", [{"text": f"card {i}", "category": "age_limit"} for i in range(30)])
    asked = ["--method", "lora", "--model", directory, "--data", train, "--steps", "1", "--max-new-tokens", "2",
             "--batch-size", "8"]
    good = write(tmp_path / "good.jsonl", [{"text": "card", "category": "age_limit"}])
    bad = write(tmp_path / "bad.jsonl", [{"text": "qz", "category": "age_limit"}])
    message = call(train_script, *asked, "--test-data", bad, "--out", "bad")
    assert f"gives token id {len(WORDS)}, but config.json says vocab_size {len(WORDS)}" in message
    assert not (tmp_path / "bad").exists()
    assert call(train_script, *asked, "--test-data", good, "--out", "good") is None  # control


def test_a_piece_of_text_without_tokens_is_no_fault(small_base, tmp_path, elsewhere):
    """A question may be empty, and a tokenizer may put no begin token before it."""
    directory = tmp_path / "model"
    shutil.copytree(small_base, directory)
    write_json(directory / "tokenizer_config.json", {"add_bos_token": False})
    rows = write(tmp_path / "test.jsonl", [{"question_stem": "", "choices": {"text": ["a", "b"], "label": ["A", "B"]},
                                            "answerKey": "A"}])
    assert call(eval_script, "--model", directory, "--task", "openbookqa", "--test-data", rows) is None


def test_show_example_names_every_token_and_what_is_learned(small_base, tmp_path, elsewhere, capsys):
    train = write(tmp_path / "train.jsonl", [{"text": f"lost card {i} </s>", "category": "age_limit"}
                                             for i in range(30)])
    assert call(train_script, "--method", "lora", "--model", small_base, "--data", train, "--show-example") is None
    out = capsys.readouterr().out
    listed = out.split("what it is\n")[1].split("\n---")[0].splitlines()
    assert listed[0].split() == ["1", "'<s>'", "read,", "special"]
    assert listed[-1].split() == ["2", "'</s>'", "learned,", "special"]
    assert sum("special" in line for line in listed) == 2  # the letters of </s> in the row are none
    roles = [line.split()[2].strip(",") for line in listed]
    assert roles == sorted(roles, reverse=True) and "read" in roles and "learned" in roles
    assert "rows hold the text </s>, which this tokenizer reads as letters, not as the end token" in out


# ---- MMLU's standard errors ------------------------------------------------------------------------------------------

def test_pooled_errors_by_hand():
    """lm-evaluation-harness: sqrt(sum (n - 1) n e^2 / (N - groups) / N) for the standard errors e of the groups."""
    groups = {"a": [1, 0, 0, 1], "b": [1, 1, 1, 0, 1, 1], "c": [0, 0]}
    values = [v for g in groups.values() for v in g]
    names = [name for name, g in groups.items() for _ in g]
    errors = {name: statistics.stdev(g) / len(g) ** 0.5 for name, g in groups.items()}
    squares = sum((len(g) - 1) * errors[name] ** 2 * len(g) for name, g in groups.items())
    assert pooled_error(values, names) == pytest.approx((squares / (12 - 3) / 12) ** 0.5, rel=1e-12)
    assert pooled_error(values, ["a"] * 12) == pytest.approx(statistics.stdev(values) / 12 ** 0.5, rel=1e-12)
    assert pooled_error([1.0, 0.0], ["a", "b"]) is None


def test_mmlu_prints_pooled_errors_of_all_and_of_categories():
    task = Mmlu()
    rows = [task.question(row) for subject in ("anatomy", "sociology", "astronomy") for row in mmlu_rows(6, subject)]
    lines = [{"log_likelihoods": [0.0 if i == (k < 3 * (k // 6)) else -1.0 for i in range(4)]}
             for k in range(len(rows))]
    scores, errors = task.scores(rows, lines)
    marks = [task.marks(row, line)["acc"] for row, line in zip(rows, lines, strict=True)]
    assert errors["acc"] == pooled_error(marks, [row.subject for row in rows])
    stem = [i for i, row in enumerate(rows) if row.subject != "sociology"]
    assert errors["STEM"] == pooled_error([marks[i] for i in stem], [rows[i].subject for i in stem])
    assert scores["acc"] == pytest.approx(statistics.fmean(marks)) and "other" not in errors


def test_validation_rows_that_are_trained_on_are_counted(small_base, tmp_path, elsewhere, capsys):
    rows = [{"text": f"lost card {i % 20}", "category": "age_limit"} for i in range(60)]
    path = write(tmp_path / "rows.jsonl", rows)
    flags = ["--model", small_base, "--method", "lora", "--show-example", "--data"]
    assert call(train_script, *flags, path) is None
    assert "different validation rows are training rows too" in capsys.readouterr().out
    distinct = write(tmp_path / "other.jsonl", [{**row, "text": f"row {i}"} for i, row in enumerate(rows)])
    assert call(train_script, *flags, distinct) is None
    assert "are training rows too" not in capsys.readouterr().out
