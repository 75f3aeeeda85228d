"""Tasks that are answered in writing: their prompts, splits and scores, by hand."""
import json
import re
import resource
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import eval as eval_script
import train as train_script
from finetune.config import EMBEDDED_BASE
from model.checkpoint import load_model
from model.directory import load_config, weight_files
from model.tokenizer import load_tokenizer
from tasks import TASKS, free_text
from tasks import sql_create_context as sql
from tasks.alpaca import Alpaca, alpaca_prompt
from tasks.bitext import Bitext, BitextResponse
from tasks.flan import Flan, final_answer
from tasks.free_text import FreeTextTask, rouge
from tasks.generative import EMPTY, EMPTY_GOLD, TRUNCATED
from tasks.gsm8k import Gsm8k, Gsm8kZeroShot, bare, read_problems, with_shots
from tasks.labels import macro_f1, micro_f1
from tasks.sql_create_context import (
    GOLD_DOES_NOT_COMPILE,
    SqlCreateContext,
    SqlExample,
    compiles,
    schema_of,
    statements,
    whole_schemas,
)
from tasks.task import Asking, Example
from tests.cli import call, rows_of


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def marks(task, gold, text, *more):
    kind = SqlExample if more else Example
    return task.marks(kind("", gold, *more), {"text": text})


# ---- GSM8K -----------------------------------------------------------------------------------------------------------

# What lm-evaluation-harness 0.4.13 gives these texts beside the gold answer 18: strict, flexible
JUDGED_BY_THE_HARNESS = [
    (" so #### 18", 1, 1), (" #### 18. and #### 99999", 1, 0), (" the answer is 18", 0, 1), (" $18.", 0, 1),
    (" is $ 18.00", 0, 0), ("", 0, 0),
    (" 18 then 5", 0, 0), ("#### $18", 0, 1), ("####18", 0, 1), (" #### 18\n#### 7", 1, 0), (" it is 18, .", 0, 1),
    (" #### -18", 0, 0),
    (" #### 18,000 $1,18", 0, 0), (" 18 ... $,", 0, 0)]


@pytest.mark.parametrize("text,strict,flexible", JUDGED_BY_THE_HARNESS)
def test_gsm8k_scores_are_those_of_the_harness(text, strict, flexible):
    scores = marks(Gsm8k(), "She has 9 * 2 = <<9*2=18>>18.\n#### 18", text)
    assert scores == {"strict_match": strict, "flexible_extract": flexible}


def test_gold_numbers_lose_commas_dollars_and_the_working():
    assert bare("It is 7.\n#### $1,200.") == "1200" and bare("-3") == "-3"
    assert marks(Gsm8k(), "#### 1,200", "#### 1200")["strict_match"] == 1


def problems(n):
    return [{"question": f"What is {i} + 1?", "answer": f"{i} + 1 = {i + 1}\n#### {i + 1}"} for i in range(n)]


def test_the_shots_are_those_that_the_harness_draws(tmp_path):
    """Of a training file of 30 rows it took these five for each of the first three test rows."""
    pool = read_problems(write(tmp_path / "train.jsonl", problems(30)))
    test = with_shots(pool[:3], pool, 5)
    asked = [[int(n) for n in re.findall(r"What is (\d+)", example.prompt)] for example in test]
    assert asked == [[24, 14, 3, 0, 2, 0], [29, 25, 18, 1, 21, 1], [22, 2, 3, 24, 11, 2]]
    assert test[0].prompt.startswith(
        "Question: What is 24 + 1?\nAnswer: 24 + 1 = 25\n#### 25\n\nQuestion: What is 14 + 1?\nAnswer: ")
    assert test[0].prompt.endswith("#### 3\n\nQuestion: What is 0 + 1?\nAnswer:")
    assert test[0].answer == "0 + 1 = 1\n#### 1"


def test_gsm8k_splits(tmp_path):
    train, test = write(tmp_path / "train.jsonl", problems(50)), write(tmp_path / "test.jsonl", problems(4))
    splits = Gsm8k().splits(train, test, None, 0)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [45, 5, 4]
    assert all(example.prompt.count("Question:") == 1 for example in splits.train)
    assert all(e.prompt.count("Question:") == 6 for e in splits.test)
    assert [e.prompt for e in Gsm8kZeroShot().splits(train, test, None, 0).test] == [
        f"Question: What is {i} + 1?\nAnswer:" for i in range(4)]
    with pytest.raises(ValueError, match="found 3 rows; at least 5 are needed as shots"):
        Gsm8k().splits(write(tmp_path / "few.jsonl", problems(3)), test, None, 0)
    for answer in ("it is 4", "#### four", "#### ,"):
        with pytest.raises(ValueError, match="bad.jsonl, line 2: the answer does not end with '#### ' and a number"):
            read_problems(write(tmp_path / "bad.jsonl", [*problems(1), {"question": "q", "answer": answer}]))


# ---- SQL -------------------------------------------------------------------------------------------------------------

CONTEXT = "CREATE TABLE head (age INTEGER, name VARCHAR); CREATE TABLE town (name VARCHAR, size INTEGER)"


@pytest.mark.parametrize("query,expected", [
    ("SELECT COUNT(*) FROM head WHERE age > 56", True), ('SELECT name FROM head WHERE name = "X"', True),
    ("SELECT T1.age FROM head AS T1 JOIN town AS T2 ON T1.name = T2.name GROUP BY T1.age "
     "HAVING MAX(T2.size) > 3 ORDER BY 1 LIMIT 2;", True),
    # for ever, if it were run
    ("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n", True),
    ("SELECT height FROM head", False), ("SELECT age FROM heads", False), ("SELECT age FROM head WHERE", False),
    ("SELEC age FROM head", False),
    ("SELECT NOFUNCTION(age) FROM head", False), ("", False), (";", False), ("I do not know", False),
    ("SELECT age FROM head; SELECT age FROM head", False),
    ("SELECT age FROM head; DROP TABLE head", False), ("DROP TABLE head", False),
    ("INSERT INTO head VALUES (1, 'a')", False), ("DELETE FROM head", False),
    ("PRAGMA journal_mode = DELETE", False), ("ATTACH DATABASE 'written.db' AS x", False),
    ("VACUUM INTO 'written.db'", False),
    ("CREATE TABLE x (a INTEGER)", False), ("SELECT '\0'", False), ("SELECT '\ud800'", False),
    ("SELECT " + "(" * 2000 + "1" + ")" * 2000, False)])
def test_a_query_compiles_or_does_not(query, expected):
    assert compiles(query, CONTEXT) is expected


def test_the_compiler_itself_refuses_what_does_not_read(monkeypatch):
    """Were the first word not looked at, and without the authorizer as a control."""
    monkeypatch.setattr(sql, "QUERY", re.compile(""))
    hostile = ("DROP TABLE head", "INSERT INTO head VALUES (1, 'a')", "PRAGMA journal_mode = DELETE",
               "ATTACH DATABASE 'x' AS y", "CREATE TABLE x (a INTEGER)")
    assert not any(compiles(query, CONTEXT) for query in hostile)
    monkeypatch.setattr(sql, "only", lambda allowed: None)
    assert all(compiles(query, CONTEXT) for query in hostile)


@pytest.mark.parametrize("hostile", ["ATTACH DATABASE 'written.db' AS x", "VACUUM INTO 'written.db'",
                                     "CREATE TABLE x.y (a INTEGER)",
                                     "PRAGMA temp_store_directory = '.'", "SELECT load_extension('./written')",
                                     "CREATE TABLE endless AS WITH RECURSIVE n(i) AS "
                                     "(SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"])
def test_nothing_that_is_written_reaches_the_disk(hostile, tmp_path, elsewhere):
    for query, context in ((hostile, CONTEXT), ("SELECT age FROM head", f"{hostile}; {CONTEXT}"),
                           (f"SELECT 1; {hostile}", CONTEXT)):
        compiles(query, context)
    assert compiles("SELECT age FROM head", f"{hostile}; {CONTEXT}") and not list(tmp_path.iterdir())


def test_a_table_that_stands_twice_in_the_schema_leaves_the_others_be():
    doubled = (f"{CONTEXT}; CREATE TABLE head (age INTEGER); CREATE TABLE bad (a INTEGER, a INTEGER); "
               "CREATE TABLE late (a VARCHAR)")
    assert compiles("SELECT a FROM late", doubled) and not compiles("SELECT a FROM bad", doubled)
    assert statements("CREATE TABLE a (b TEXT DEFAULT ';'); \nCREATE TABLE c (d TEXT)") == [
        "CREATE TABLE a (b TEXT DEFAULT ';');", " \nCREATE TABLE c (d TEXT);"]


def doubling(levels):
    """Each table expression names the one before twice, so the last one stands for 2^levels."""
    return "WITH c0(x) AS (SELECT 1)" + "".join(
        f", c{i}(x) AS (SELECT x FROM c{i - 1} UNION ALL SELECT x FROM c{i - 1})" for i in range(1, levels + 1)
    ) + f" SELECT x FROM c{levels}"


HOSTILE = {
    "doubling": doubling(24), "tripling": "SELECT * FROM " + "(SELECT x||x||x AS x FROM " * 12
    + "(SELECT age AS x FROM head)" + ")" * 12 + " WHERE x > 1",
    "windows": "SELECT " + ", ".join(f"sum(age) OVER (ORDER BY age + {i})" for i in range(1500)) + " FROM head",
    "a long list": "SELECT 1 WHERE 1 IN (" + ",".join(["1"] * 200_000) + ")", "a long text": f"SELECT '{'x' * 10**7}'",
    "many rows": "VALUES " + ",".join(["(1)"] * 20_000), "open quotes": "SELECT '" + "';" * 40_000 + "'",
    "many tables": "SELECT 1 FROM " + ", ".join(f"head h{i}" for i in range(1000)),
    "a table of pragmas": "SELECT * FROM pragma_database_list", "a file": "SELECT readfile('/etc/passwd')"}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_query_takes_long_to_compile_or_much_memory(name):
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert not compiles(HOSTILE[name], CONTEXT)
    assert time.perf_counter() - start < 4  # 25 s or more without bounds, 0.5 s with them
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize("context", ["CREATE TABLE q (a TEXT DEFAULT '" + ";" * 90_000, "CREATE TABLE t (a);" * 5_000,
                                     "CREATE TABLE q (a DEFAULT (hex(zeroblob(900000000))));", "/*" * 40_000,
                                     "CREATE TABLE q (" + ", ".join(f"c{i} UNIQUE" for i in range(1900)) + ");"])
def test_no_schema_takes_long(context):
    start = time.perf_counter()
    assert compiles("SELECT age FROM head", f"{CONTEXT}; {context}") and time.perf_counter() - start < 2


def test_what_only_its_run_would_make_large_is_compiled():
    """A query is explained, never run: no text, pattern or row of it is ever made."""
    for query in ("SELECT zeroblob(1000000000)", "SELECT printf('%1000000000d', 1)",
                  "SELECT replace(hex(zeroblob(500000000)), '0', hex(zeroblob(1000)))",
                  "SELECT '" + "a" * 40_000 + "' LIKE '" + "%a" * 20_000 + "b'", doubling(8)):
        assert compiles(query, CONTEXT)


def test_the_bounds_are_what_refuses(monkeypatch):
    query = "SELECT " + ", ".join(["age"] * 500) + " FROM head"
    assert compiles(query, CONTEXT)
    with monkeypatch.context() as inside:
        inside.setattr(sql, "MOST_CHECKS", 400)
        assert not compiles(query, CONTEXT)
    monkeypatch.setattr(sql, "LONGEST_SQL", len(query))
    assert compiles(query, CONTEXT) and not compiles(query + " ", CONTEXT)


@pytest.mark.parametrize("text,exact,compiled", [
    ("select COUNT(*)  from head where age > 56 ;", 1, 1), ("SELECT COUNT(age) FROM head WHERE age > 56", 0, 1),
    ("SELECT COUNT(*) FROM heads", 0, 0), ("", 0, 0)])
def test_sql_marks_by_hand(text, exact, compiled):
    assert marks(SqlCreateContext(), "SELECT COUNT(*) FROM head WHERE age > 56", text,
                 CONTEXT) == {"exact_match": exact, "compiles": compiled}


schemas = st.lists(st.integers(0, 12), min_size=3, max_size=60)


def sql_rows(numbers):
    return [{"question": f"how many {i}?", "context": f"CREATE  TABLE t{n} (a INTEGER)" if i % 2
             else f"create table T{n} (a INTEGER)",
             "answer": f"SELECT COUNT(*) FROM t{n}"} for i, n in enumerate(numbers)]


@given(schemas, st.integers(0, 3))
def test_no_schema_is_in_two_splits_and_no_row_is_lost(tmp_path_factory, numbers, seed):
    file = write(tmp_path_factory.mktemp("sql") / "train.jsonl", sql_rows(numbers))
    splits = SqlCreateContext().splits(file, None, None, seed)
    parts = [{schema_of(e) for e in part} for part in (splits.train, splits.validation, splits.test)]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert len(splits.train) + len(splits.validation) + len(splits.test) == len(numbers) and splits.left_out == {}
    assert splits.fingerprints() == SqlCreateContext().splits(file, None, None, seed).fingerprints()


def test_splitting_by_rows_would_share_schemas(tmp_path):
    """Negative control: the property above is one that rows drawn one by one do not have."""
    rows = SqlCreateContext()._examples(write(tmp_path / "x.jsonl", sql_rows([i % 5 for i in range(40)])))
    assert {schema_of(e) for e in rows[:4]} & {schema_of(e) for e in rows[4:]}
    chosen, rest = whole_schemas(rows, 9)
    assert len(chosen) == 8 and len(rest) == 32 and not {schema_of(e) for e in chosen} & {schema_of(e) for e in rest}


def test_training_rows_of_a_schema_in_the_test_file_are_left_out_and_counted(tmp_path):
    data = write(tmp_path / "train.jsonl", sql_rows(range(30)))
    test = write(tmp_path / "test.jsonl", sql_rows([3, 3, 17, 99]))
    splits = SqlCreateContext().splits(data, test, None, 0)
    assert splits.left_out == {"their schema is in the test file": 2} and len(splits.test) == 4
    assert len(splits.train) + len(splits.validation) == 28
    assert not {schema_of(e) for e in splits.train + splits.validation} & {schema_of(e) for e in splits.test}


# ---- labels and free text --------------------------------------------------------------------------------------------

def test_f1_micro_and_macro_by_hand():
    gold, labels = ["a", "a", "b", "b"], {"a", "b", "c"}
    assert micro_f1(["a", "b", "b", "none"], gold, labels) == pytest.approx(2 * 2 / (4 + 3))
    assert micro_f1(["a", "b", "b", "c"], gold, labels) == 0.5  # every answer a label: the accuracy
    assert macro_f1(["a", "b", "b", "c"], gold) == pytest.approx((2 * 1 / (1 + 2) + 2 * 1 / (2 + 2)) / 2)


letters = st.sampled_from("abc")


@given(st.lists(st.tuples(letters, letters), min_size=1, max_size=20))
def test_f1_micro_is_the_accuracy_where_every_answer_is_a_label(pairs):
    written, gold = zip(*pairs, strict=True)
    assert micro_f1(written, gold, set("abc")) == pytest.approx(sum(w == g for w, g in pairs) / len(pairs))


def bitext_rows(n):
    return [{"flags": "B", "instruction": f" where is order {i}? ", "category": "ORDER",
             "intent": ("track_order", "cancel_order")[i % 2],
             "response": f"Order {i}\nis on its way."} for i in range(n)]


def test_bitext_reads_both_schemas_and_both_answers(tmp_path):
    splits = Bitext().splits(write(tmp_path / "a.jsonl", bitext_rows(30)), None, None, 0)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [25, 3, 2]
    read = {(e.prompt.partition("order ")[0], e.answer) for e in splits.train}
    assert read == {("where is ", "track order"), ("where is ", "cancel order")}
    other = write(tmp_path / "b.jsonl", [{"utterance": "stop it", "intent": "cancel_order"}])
    assert Bitext().splits(tmp_path / "a.jsonl", other, None, 0).test == [Example("stop it\nIntent:", "cancel order")]
    pytest.importorskip("rouge_score")
    replies = BitextResponse().splits(tmp_path / "a.jsonl", None, None, 0)
    assert replies.test[0].prompt.endswith("?\nReply:") and "\nis on its way." in replies.test[0].answer
    with pytest.raises(ValueError, match="b.jsonl, line 1: field 'instruction' is missing"):
        BitextResponse().splits(other, None, None, 0)


def test_bitext_scores_by_hand(tmp_path):
    task = Bitext()
    task.splits(write(tmp_path / "a.jsonl", bitext_rows(30)), None, None, 0)
    rows = [Example("", "track order"), Example("", "cancel order"), Example("", "cancel order")]
    scores, errors = task.scores(rows, [{"text": "Track_Order"}, {"text": "track order"}, {"text": "hello"}])
    assert scores == {"accuracy": pytest.approx(1 / 3), "invalid": pytest.approx(1 / 3),
                      "micro_f1": pytest.approx(2 / 5), "macro_f1": pytest.approx(1 / 3)}
    assert errors["accuracy"] == pytest.approx((1 / 3) ** 0.5 / 3 ** 0.5)  # sample variance of 1, 0, 0 is 1/3


def test_rouge_by_hand():
    pytest.importorskip("rouge_score")
    scores = rouge("The cat sat on the mat.", "the cat on mat")
    assert scores == {"rouge1": pytest.approx(0.8), "rouge2": pytest.approx(0.25), "rougeL": pytest.approx(0.8)}
    assert rouge("The cat sat", "sat cat the")["rougeL"] == pytest.approx(1 / 3)
    assert rouge("The cat sat", "sat cat the")["rouge1"] == 1
    assert set(rouge("a b c", "").values()) == {0} and set(rouge("one two", "one two").values()) == {1}


def test_without_rouge_score_the_line_to_run_is_said_before_a_weight_is_read(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)
    file = write(tmp_path / "a.jsonl", [{"instruction": "i", "input": "", "output": "o"}] * 20)
    free_text.scorer.cache_clear()
    monkeypatch.setattr(free_text.importlib, "import_module", missing)
    with pytest.raises(ValueError, match="pip install rouge-score"):
        Alpaca().splits(file, file, None, 0)
    assert Alpaca().splits(file, None, None, 0).test == []  # nothing to score, nothing to install


def test_the_alpaca_prompts_are_the_published_ones():
    assert alpaca_prompt("Say {x}.", "") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nSay {x}.\n\n### Response:")
    assert alpaca_prompt("Add.", "1 2") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request."
        "\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:")


def test_flan_reads_both_schemas(tmp_path):
    own = write(tmp_path / "a.jsonl",
                [{"inputs": f"Is {i} even? ", "targets": "yes", "task_source": "Flan2021", "n": 3} for i in range(20)])
    splits = Flan().splits(own, None, None, 0)
    assert len(splits.train) == 18 and len(splits.validation) == 2 and splits.test == []
    assert splits.train[0].prompt.endswith("even?")
    cot = write(tmp_path / "b.jsonl",
                [{"task": "aqua", "question": "q?", "answer": "(B)", "chain_of_thought": "since"}])
    assert Flan()._examples(cot) == [Example("Question: q?\nReasoning:", "since\nAnswer: (B)")]
    with pytest.raises(ValueError, match="c.jsonl, line 1: field 'question' is missing"):
        Flan()._examples(write(tmp_path / "c.jsonl", [{"text": "t"}]))


def test_flan_names_a_row_without_a_prompt(tmp_path):
    (tmp_path / "flan.jsonl").write_text('{"inputs": "a", "targets": "b"}\n{"inputs": " ", "targets": "b"}\n')
    with pytest.raises(ValueError, match="flan.jsonl, line 2: inputs is empty"):
        TASKS["flan"]().splits(tmp_path / "flan.jsonl", None, None, 0)


def test_flan_compares_the_final_answer():
    pytest.importorskip("rouge_score")
    assert final_answer("Answer: 3, so\nAnswer:  (B)\n x ") == "(b) x" and final_answer(" Yes ") == "yes"
    assert marks(Flan(), "since\nAnswer: (B)", "for another reason\nAnswer: (b)")["exact_match"] == 1
    assert marks(Flan(), "since\nAnswer: (B)", "since\nAnswer: (C)")["exact_match"] == 0


# ---- by the commands -------------------------------------------------------------------------------------------------

FILES = {
    "gsm8k": problems(40), "gsm8k-zero-shot": problems(40),
    "alpaca": [{"instruction": f"Count {i}.", "input": "", "output": f"one\n{i}"} for i in range(40)],
    "flan": [{"inputs": f"Is {i} even?", "targets": "yes"} for i in range(40)], "bitext": bitext_rows(40),
    "bitext-response": bitext_rows(40),
    "sql-create-context": sql_rows(range(40))}
FEW = ["--method", "lora", "--steps", "2", "--batch-size", "4", "--max-new-tokens", "4", "--test-limit", "3"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_each_task_trains_and_is_scored_per_row(name, small_base, tmp_path, elsewhere):
    if issubclass(TASKS[name], FreeTextTask):
        pytest.importorskip("rouge_score")
    data = ["--data", write(tmp_path / "train.jsonl", FILES[name][:36]),
            "--test-data", write(tmp_path / "test.jsonl", FILES[name][36:])]
    assert call(train_script, "--model", small_base, "--task", name, *data, *FEW, "--out", "x") is None
    row = rows_of(tmp_path / "x")["trained"]
    lines = [json.loads(line) for line in (tmp_path / "x" / "predictions.jsonl").read_text().splitlines()]
    of_state = [line for line in lines if line["state"] == "trained"]
    assert len(of_state) == 3 and row["counts"]["rows"] == 3
    metric = TASKS[name].metric
    assert row["scores"][metric] == pytest.approx(sum(line["score"] for line in of_state) / 3)
    assert set(of_state[0]["marks"]) <= set(row["scores"])
    assert json.loads((tmp_path / "x" / "results.json").read_text())["template_version"] == 1
    assert json.loads((tmp_path / "x" / "config.json").read_text())["data"]["template_version"] == 1
    if name == "gsm8k":
        assert row["counts"][TRUNCATED] == 3  # five shots do not fit 160 positions


def test_empty_answers_are_counted_among_the_training_and_the_test_rows(small_base, tmp_path, elsewhere, capsys):
    pytest.importorskip("rouge_score")
    rows = [{"inputs": f"Is {i} even?", "targets": " " if i % 4 == 0 else "yes"} for i in range(40)]
    data = ["--data", write(tmp_path / "train.jsonl", rows), "--test-data", write(tmp_path / "test.jsonl", rows)]
    assert call(train_script, "--model", small_base, "--task", "flan", *data, *FEW, "--out", "x") is None
    assert "10 training and validation rows have an empty answer" in capsys.readouterr().out
    assert json.loads((tmp_path / "x" / "config.json").read_text())["data"]["empty_answers"] == 10
    assert rows_of(tmp_path / "x")["trained"]["counts"][EMPTY_GOLD] == 1  # of rows 0, 1 and 2


def test_benchmark_rows_are_asked_for(small_base, tmp_path, elsewhere):
    data = write(tmp_path / "x.jsonl", problems(9))
    assert "--task gsm8k needs --test-data" in call(eval_script, "--model", small_base, "--task", "gsm8k",
                                                    "--data", data)
    assert "--task alpaca needs --data" in call(eval_script, "--model", small_base, "--task", "alpaca")


def test_show_example_prints_what_is_read_and_learned_and_stops(small_base, tmp_path, elsewhere, capsys, monkeypatch):
    pytest.importorskip("rouge_score")
    monkeypatch.setattr("finetune.source.load_model", None)
    files = ["--data", write(tmp_path / "a.jsonl", FILES["alpaca"]),
             "--test-data", write(tmp_path / "t.jsonl", FILES["alpaca"][:2])]
    assert call(train_script, "--model", small_base, "--method", "lora", "--task", "alpaca", *files,
                "--show-example") is None
    out, tokenizer = capsys.readouterr().out, load_tokenizer(small_base)
    first = Alpaca().splits(tmp_path / "a.jsonl", None, None, 0).train[0]
    n, whole = len(tokenizer.encode(first.prompt)), len(tokenizer.encode(f"{first.prompt} {first.answer}")) + 1
    assert (f"--- alpaca, template version 1: the first of 36 training rows, {whole} tokens; its prompt, {n} tokens\n"
            f"{first.prompt}\n") in out
    assert f"--- what is learned after it, {whole - n} tokens with the end token\n {first.answer}\n" in out
    n_test = len(tokenizer.encode(alpaca_prompt("Count 0.", "")))
    assert f"--- the first of 2 test prompts, {n_test} tokens; at most 80 are written" in out
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "t.jsonl"}


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_answers_flags_and_scores_do_not_depend_on_the_batch(batch_size):
    """By the embedded base, which writes words; in float32. The gold query of the second row does not compile."""
    model = load_model(weight_files(EMBEDDED_BASE), load_config(EMBEDDED_BASE), torch.float32)
    tokenizer = load_tokenizer(EMBEDDED_BASE)
    rows = [SqlExample(f"CREATE TABLE t{i} (a INTEGER, b VARCHAR)\nQuestion: {'how many ' * i}a?\nSQL:", gold,
                       f"CREATE TABLE t{i} (a INTEGER, b VARCHAR)")
            for i, gold in enumerate(["SELECT a FROM t0", "SELECT c FROM t1", "SELECT COUNT(a) FROM t2",
                                      "SELECT b FROM t3", "SELECT a FROM t4"])]
    lines = dict(SqlCreateContext().answers(model, rows, Asking(tokenizer, (tokenizer.eos_id,), 24, batch_size)))
    assert [GOLD_DOES_NOT_COMPILE in lines[i].get("flags", ()) for i in range(5)] == [False, True, False, False, False]
    texts = [lines[i]["text"] for i in range(5)]
    assert all(texts) and texts == one_by_one(model, tokenizer, rows)
    assert SqlCreateContext().scores(rows, [lines[i] for i in range(5)])[0].keys() == {"exact_match", "compiles"}


def one_by_one(model, tokenizer, rows):
    return [dict(SqlCreateContext().answers(model, [row], Asking(tokenizer, (tokenizer.eos_id,), 24, 1)))[0]["text"]
            for row in rows]


def test_an_empty_answer_is_counted(small_base):
    """A model that ends at once: whatever it would write is an end token."""
    model = load_model(weight_files(small_base), load_config(small_base), torch.float32)
    tokenizer = load_tokenizer(small_base)
    asking = Asking(tokenizer, tuple(range(4096)), 4, 2)
    line = dict(Gsm8k().answers(model, [Example("Question: 1?\nAnswer:", "#### 1")], asking))[0]
    assert line["text"] == "" and line["flags"] == [EMPTY]
    assert Gsm8k().marks(Example("", "#### 1"), line) == {"strict_match": 0, "flexible_extract": 0}
