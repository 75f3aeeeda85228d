"""Multiple-choice benchmarks: prompts, log-likelihoods and scores equal lm-evaluation-harness'; bad rows are named."""
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import eval as eval_script
import train
from experiments import benchmarks
from finetune.config import EMBEDDED_BASE
from model.checkpoint import load_model
from model.directory import load_config, weight_files
from model.tokenizer import load_tokenizer
from scoring.scores import TAKEN_UP
from tasks import TASKS
from tasks.choices import prompts
from tasks.generative import TRUNCATED
from tasks.mmlu import CATEGORIES, CATEGORY_OF, FEW_SHOTS, HendrycksMmlu, Mmlu
from tasks.task import Asking
from tests.cli import FEW, call, rows_of

HARNESS = Path(__file__).parent.parent / "fixtures" / "lm_eval"
GOLDEN = json.loads((HARNESS / "golden.json").read_text(encoding="utf-8"))
ZERO_SHOT = ("piqa", "arc_easy", "arc_challenge", "openbookqa", "boolq", "hellaswag", "winogrande")
TOKENIZER = load_tokenizer(EMBEDDED_BASE)


@pytest.fixture(scope="module")
def base():
    return load_model(weight_files(EMBEDDED_BASE), load_config(EMBEDDED_BASE), torch.float32)


def questions(name):
    if name.startswith("mmlu"):
        return TASKS["mmlu"]().splits(HARNESS / "mmlu_dev.jsonl", HARNESS / "mmlu_test.jsonl", None, 0).test
    name = name.split(",")[0]
    return TASKS[name]().splits(None, HARNESS / f"{name}.jsonl", None, 0).test


def answered(model, name, rows, batch_size=4):
    lines = dict(TASKS[name.split(",")[0]]().answers(model, rows, Asking(TOKENIZER, (2,), 1, batch_size)))
    return [lines[i] for i in range(len(rows))]


@pytest.mark.parametrize("name", GOLDEN)
def test_prompts_and_choices_are_the_harness_own(name):
    for question, golden in zip(questions(name), GOLDEN[name]["rows"], strict=True):
        assert prompts(question) == golden["contexts"]
        assert [f" {choice}" for choice in question.choices] == golden["continuations"]


@pytest.mark.slow
@pytest.mark.parametrize("name,batch_size", [(name, batch_size) for name in GOLDEN for batch_size in (1, 4)
                                             if batch_size == 4 or "mmlu" not in name])
def test_log_likelihoods_and_scores_are_the_harness_own(name, batch_size, base, monkeypatch):
    monkeypatch.setattr(TOKENIZER, "begin", TOKENIZER.begin if GOLDEN[name]["begins"] else [])
    monkeypatch.setattr(base, "config", replace(base.config, max_position_embeddings=GOLDEN[name]["positions"]))
    rows, golden = questions(name), GOLDEN[name]["rows"]
    lines = answered(base, name, rows, batch_size)
    task = TASKS[name.split(",")[0]]()
    for row, line, expected in zip(rows, lines, golden, strict=True):
        assert line["log_likelihoods"] == pytest.approx(expected["log_likelihoods"], abs=1e-3)
        marks = task.marks(row, line)
        assert all(marks[metric] == expected[metric] for metric in ("acc", "acc_norm") if metric in expected)
    scores, errors = task.scores(rows, lines)
    for metric, value in GOLDEN[name].get("scores", {}).items():
        kind, _, stderr = metric.partition("_stderr")
        assert (errors if metric.endswith("_stderr") else scores)[kind] == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("damage", ["another choice", "no delimiter", "a question later", "characters of the prompt"])
def test_the_comparison_notices(damage, base, monkeypatch):
    """Negative controls: what a slip in the protocol does to the log-likelihoods, or to acc_norm."""
    rows, golden = questions("piqa"), GOLDEN["piqa"]["rows"]
    if damage == "another choice":
        rows = [replace(row, choices=row.choices[::-1]) for row in rows]
    elif damage == "no delimiter":
        rows = [replace(row, contexts=(row.contexts[0] + "  ",)) for row in rows]
    elif damage == "a question later":
        rows = rows[1:] + rows[:1]
    lines = answered(base, "piqa", rows)
    if damage == "characters of the prompt":
        longer = [replace(row, choices=tuple(f"{choice}{'x' * 40 * i}" for i, choice in enumerate(row.choices)))
                  for row in rows]
        marks = [TASKS["piqa"]().marks(row, line)["acc_norm"] for row, line in zip(longer, lines, strict=True)]
        return pytest.fail("not noticed") if marks == [row["acc_norm"] for row in golden] else None
    assert max(abs(a - b) for line, row in zip(lines, golden, strict=True)
               for a, b in zip(line["log_likelihoods"], row["log_likelihoods"], strict=True)) > 0.1


def test_the_first_of_equal_choices_is_the_answer_and_lengths_are_unicode_characters():
    task = TASKS["piqa"]()
    row = replace(questions("piqa")[0], choices=("äöü", "abcdef"), gold=0)
    assert task.marks(row, {"log_likelihoods": [-6.0, -6.0]}) == {"acc": 1.0, "acc_norm": 0.0}
    # -2 a character both; six bytes would make it -1
    assert task.marks(row, {"log_likelihoods": [-6.0, -12.0]})["acc_norm"] == 1.0
    assert task.marks(row, {"log_likelihoods": [-6.1, -12.0]})["acc_norm"] == 0.0


def test_hellaswag_with_its_context_joined_is_rendered_as_it_stands():
    row = json.loads((HARNESS / "hellaswag.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    task = TASKS["hellaswag"]()
    assert task.question(row).contexts == (
        "Baking bread: How to bake bread. Mix the dough.  Flour first. The baker then",)
    del row["ctx_a"]
    assert task.question(row).contexts[0].endswith("Flour first. the baker then")


# ---- MMLU -----------------------------------------------------------------------------------------------------------

MMLU_FILES = ["--data", HARNESS / "mmlu_dev.jsonl", "--test-data", HARNESS / "mmlu_test.jsonl"]


def test_mmlus_categories_hold_57_subjects():
    sizes = {category: len(subjects.split()) for category, subjects in CATEGORIES.items()}
    assert sizes == {"humanities": 13, "STEM": 19, "social": 12, "other": 13} and len(CATEGORY_OF) == 57


def test_mmlu_averages_over_questions_not_over_subjects():
    task, rows = TASKS["mmlu"](), questions("mmlu")
    rows = [rows[0], rows[1], rows[1], rows[-1]]  # algebra three times, computer science: STEM
    rows.append(replace(rows[0], subject="us_foreign_policy"))
    right = [1, 0, 0, 1, 1]
    lines = [{"log_likelihoods": [0.0 if (i == row.gold) == bool(hit) else -1.0 for i in range(4)]}
             for row, hit in zip(rows, right, strict=True)]
    scores, errors = task.scores(rows, lines)
    assert scores["STEM"] == 0.5 and scores["social"] == 1 and scores["acc"] == 0.6 and "humanities" not in scores
    # sample deviation of 1, 0, 0, 1 over sqrt(4)
    assert errors["STEM"] == pytest.approx((1 / 3) ** 0.5 / 2) and "social" not in errors
    assert task.parts(rows, lines) == {"abstract_algebra": pytest.approx(1 / 3), "high_school_computer_science": 1.0,
                                       "us_foreign_policy": 1.0}


def test_the_authors_form_has_two_spaces_and_drops_the_first_shots_until_it_fits():
    task = HendrycksMmlu()
    rows = task.splits(HARNESS / "mmlu_dev.jsonl", HARNESS / "mmlu_test.jsonl", None, 0).test
    whole = prompts(rows[0])[0]
    assert whole == prompts(questions("mmlu")[0])[0].replace("about abstract algebra", "about  abstract algebra")
    assert task.test_rows(rows, TOKENIZER, 2048) == rows
    length = len(TOKENIZER.encode(whole))
    assert task.test_rows(rows[:1], TOKENIZER, length) == rows[:1]
    cut, = task.test_rows(rows[:1], TOKENIZER, length - 1)
    assert cut.shots == (rows[0].shots[0], *rows[0].shots[2:]) and cut.flags == (FEW_SHOTS,)
    none, = task.test_rows(rows[:1], TOKENIZER, 5)
    assert none.shots == rows[0].shots[:1] and none.flags == (FEW_SHOTS,)


def test_a_subject_with_fewer_shots_is_asked_with_those_and_counted(tmp_path, base):
    dev = (HARNESS / "mmlu_dev.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "dev.jsonl").write_text("\n".join(dev[2:]))
    rows = TASKS["mmlu"]().splits(tmp_path / "dev.jsonl", HARNESS / "mmlu_test.jsonl", None, 0).test
    assert [len(row.shots) for row in rows] == [4, 4, 6, 6, 6, 6]
    # 512 positions
    assert [line.get("flags") for line in answered(base, "mmlu", rows)][:3] == [[FEW_SHOTS], [FEW_SHOTS], [TRUNCATED]]


# ---- by the scripts -------------------------------------------------------------------------------------------------

def kept(path):
    return [json.loads(line) for line in (path / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ZERO_SHOT)
def test_eval_scores_every_task_and_keeps_each_row(name, small_base, tmp_path, elsewhere, capsys):
    assert call(eval_script, "--model", small_base, "--task", name, "--test-data", HARNESS / f"{name}.jsonl",
                "--eval-batch-size", "2") is None
    out = tmp_path / "evals" / f"{small_base.name}-{name}"
    row, lines = rows_of(out)["base"], kept(out)
    metric = "acc_norm" if name == "hellaswag" else "acc"
    assert set(row["scores"]) == {"acc", "acc_norm"} == set(row["standard_errors"]) and len(lines) == 5
    assert row["scores"][metric] == pytest.approx(sum(line["score"] for line in lines) / 5)
    assert all(len(line["log_likelihoods"]) == len(line["choices"]) and line["gold"] in line["choices"]
               for line in lines)
    assert f"the papers report {metric}\n" in capsys.readouterr().out


def test_a_run_is_scored_on_mmlu_by_either_protocol(small_base, tmp_path, elsewhere, capsys):
    assert call(train, "--model", small_base, "--method", "qablora", *FEW, "--out", "run") is None
    assert call(eval_script, "run", "--task", "mmlu", *MMLU_FILES) is None
    assert "abstract_algebra" in capsys.readouterr().out
    assert call(eval_script, "run", "--task", "mmlu", *MMLU_FILES, "--protocol", "hendrycks",
                "--test-limit", "4") is None
    rows = rows_of(tmp_path / "run" / "benchmarks" / "mmlu")
    assert list(rows) == ["base", "quantized", "trained", "merged-4bit"]
    assert set(rows["base"]["scores"]) == {"acc", "acc_norm", "STEM", "social"} and len(rows["base"]["parts"]) == 3
    assert rows["base"]["counts"] == {"rows": 6, TRUNCATED: 6}  # 160 positions
    assert rows["merged-4bit"]["scores"] == rows["trained"]["scores"]
    other = rows_of(tmp_path / "run" / "benchmarks" / "mmlu-hendrycks")["base"]
    assert other["counts"]["rows"] == other["counts"][FEW_SHOTS] == 4
    both = [json.loads((tmp_path / "run" / "benchmarks" / name / "results.json").read_text())["protocol"]
            for name in ("mmlu", "mmlu-hendrycks")]
    assert both == [Mmlu.protocol, HendrycksMmlu.protocol]


ROW = {"piqa": {"goal": "g", "sol1": "a", "sol2": "b", "label": 0},
       "boolq": {"question": "q", "passage": "p", "answer": True},
       "arc_easy": {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"},
       "openbookqa": {"question_stem": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"},
       "hellaswag": {"activity_label": "x", "ctx": "c", "endings": ["a", "b"], "label": "1"},
       "winogrande": {"sentence": "a _ b", "option1": "x", "option2": "y", "answer": "1"},
       "mmlu": {"question": "q", "choices": ["a", "b", "c", "d"], "answer": 0, "subject": "anatomy"}}


@pytest.mark.parametrize("name,change,message", [
    ("piqa", {"label": 2}, "label is 2, not one of 0, 1"),
    ("piqa", {"label": True}, "field 'label' is missing or not an integer"),
    ("piqa", {"sol2": " "}, "choice 2 is empty"),
    ("boolq", {"answer": 1}, "field 'answer' is missing or not true or false"),
    ("arc_easy", {"answerKey": "C"}, "answerKey is 'C', but must equal exactly one of the labels A, B"),
    ("arc_easy", {"choices": {"text": ["a"], "label": ["A", "B"]}}, "choices holds 1 texts and 2 labels"),
    ("openbookqa", {"choices": {"text": ["a", 3], "label": ["A", "B"]}},
     "field 'choices' is missing or not an object of text (a list of text) and label (a list of text)"),
    ("hellaswag", {"label": "x"}, "field 'label' is missing or not an integer"),
    ("hellaswag", {"endings": ["a", "[step]"]}, "choice 2 is empty"),
    ("hellaswag", {"ctx": None}, "no text in ctx, nor in both ctx_a and ctx_b"),
    ("hellaswag", {"endings": ["a"]}, "number of choices is 1; at least 2 are needed"),
    ("winogrande", {"sentence": "a b"}, "sentence has no _ with text after it"),
    ("winogrande", {"answer": "3"}, "answer is 3, not one of 1, 2"),
    ("mmlu", {"answer": 4}, "answer is 4, not one of 0, 1, 2, 3"),
    ("mmlu", {"choices": ["a"]}, "choices holds 1 texts, not 4"),
    ("mmlu", {"subject": "cooking"}, "subject 'cooking' is not one of MMLU's 57 subjects"),
    ("mmlu", {"subject": "virology"}, "dev.jsonl has no row of the subject 'virology' to use as a shot")])
def test_a_bad_row_is_named_before_a_weight_is_read(name, change, message, small_base, tmp_path, elsewhere,
                                                    monkeypatch):
    monkeypatch.setattr("scoring.score_model.load_base", lambda *rest: pytest.fail("weights were read"))
    good = json.dumps(ROW[name]) + "\n"
    (tmp_path / "dev.jsonl").write_text(good)
    (tmp_path / "test.jsonl").write_text(good + "\n" + json.dumps(ROW[name] | change) + "\n")
    data = ["--data", "dev.jsonl"] if name == "mmlu" else []
    said = call(eval_script, "--model", small_base, "--task", name, *data, "--test-data", "test.jsonl")
    assert said.startswith(f"error: test.jsonl, line 3: {message}")


@pytest.mark.parametrize("arguments,message", [
    (["--task", "piqa"], "--task piqa needs --test-data"),
    (["--task", "mmlu", *MMLU_FILES[2:]], "--task mmlu needs --data"),
    (["--task", "piqa", "--data", "x", "--test-data", HARNESS / "piqa.jsonl"],
     "--task piqa is zero-shot and takes no --data"),
    (["--task", "mmlu", *MMLU_FILES, "--protocol", "mine"], "--protocol mine: --task mmlu has lm-eval and hendrycks"),
    (["--task", "piqa", "--test-data", HARNESS / "piqa.jsonl", "--protocol", "hendrycks"],
     "--protocol hendrycks: --task piqa has one protocol only")])
def test_what_a_benchmark_lacks_is_said(arguments, message, small_base, elsewhere):
    assert message in call(eval_script, "--model", small_base, *arguments)


@pytest.mark.parametrize("name", ["piqa", "mmlu"])
def test_training_on_a_benchmark_is_refused(name, small_base, elsewhere):
    message = call(train, "--model", small_base, "--task", name, *MMLU_FILES)
    assert f"--task: {name} has test rows only: train on one of auto, messages" in message
    assert "eval.py RUN" in message


def test_a_choice_that_leaves_no_room_and_a_tokenizer_of_another_vocabulary_are_named(base, monkeypatch):
    row = replace(questions("piqa")[0], choices=("word " * 600, "b"))
    with pytest.raises(ValueError, match=r"--task piqa, question 'Question: Kill.*a continuation of \d+ tokens is "
                                         "longer than the model's 512 positions"):
        answered(base, "piqa", [row])
    monkeypatch.setattr(base, "config", replace(base.config, vocab_size=100))
    with pytest.raises(ValueError, match="gives token id .* vocab_size is 100"):
        answered(base, "piqa", questions("piqa"))


def test_a_model_that_computes_no_numbers_gets_no_score(base, monkeypatch):
    """Its first choice would be the largest of all, and right as often as the gold is the first."""
    weight = base.model.norm.weight
    monkeypatch.setattr(weight, "data", torch.full_like(weight, float("nan")))
    with pytest.raises(ValueError, match="--task piqa, question .* are not numbers"):
        answered(base, "piqa", questions("piqa"))


def test_two_states_are_compared_row_by_row(small_base, tmp_path, elsewhere, capsys):
    asked = ["--model", small_base, "--task", "winogrande", "--test-data", HARNESS / "winogrande.jsonl", "--bits", "2",
             "--block", "16x1", "--out", "w"]
    assert call(eval_script, *asked) is None
    states = list(rows_of(tmp_path / "w"))
    assert call(eval_script, "--compare", *(f"w:{state}" for state in states)) is None
    assert "McNemar" in capsys.readouterr().out


def test_rows_are_drawn_whole_and_seconds_say_of_how_many_rows(tmp_path):
    lines = [json.dumps({"q": f"{i}\u2028."}, ensure_ascii=False) for i in range(9)]  # a line separator inside a row
    (tmp_path / "all.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    file = benchmarks.draw(tmp_path / "all.jsonl", tmp_path / "drawn.jsonl", 4)
    drawn = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert len(drawn) == 4 and drawn == [line for line in lines if line in drawn]
    assert benchmarks.seconds({"seconds": 9.4, "counts": {"rows": 5}}) == "9"
    assert benchmarks.seconds({"seconds": 9.4, "counts": {"rows": 5, TAKEN_UP: 2}}) == "9 (3 rows)"


def test_the_experiment_makes_one_table_and_repeats_nothing(small_base, tmp_path, elsewhere, monkeypatch):
    """Its processes, here as calls; so many rows of each task, the same ones each time."""
    asked = []

    def python(arguments, log):
        asked.append(arguments[arguments.index("--task") + 1])
        assert call(eval_script, *arguments[1:], "--block", "16x1") is None
    monkeypatch.setattr(benchmarks, "python", python)
    for name, files in (("piqa", {"validation": "piqa"}), ("mmlu", {"dev": "mmlu_dev", "test": "mmlu_test"})):
        (tmp_path / "data" / name).mkdir(parents=True)
        for split, file in files.items():
            shutil.copy(HARNESS / f"{file}.jsonl", tmp_path / "data" / name / f"{split}.jsonl")
    for _ in range(2):
        assert call(benchmarks, "--model", small_base, "--data", "data", "--tasks", "piqa", "mmlu", "--test-limit", "3",
                    "--mmlu-limit", "4") is None
    assert asked == ["piqa", "mmlu"]
    table = (tmp_path / "runs" / "benchmarks" / "table.md").read_text().splitlines()
    assert table[2].startswith("| piqa | 3 | acc | ") and table[3].startswith("| mmlu | 4 | acc | ")
    assert "±" in table[2]
    saved = json.loads((tmp_path / "runs" / "benchmarks" / "benchmarks.json").read_text())
    assert len(saved["tasks"]["piqa"]["rows"]) == 2 and saved["settings"]["test_limit"] == 3
    other = call(benchmarks, "--model", small_base, "--data", "data", "--test-limit", "4")
    assert "give another --out" in other
