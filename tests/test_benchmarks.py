"""Benchmarks of multiple choice: prompts, log-likelihoods and scores are lm-evaluation-harness' own; bad rows are named."""
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finetune.arguments import EMBEDDED_BASE
from model.checkpoint import load_config, load_model, weight_files
from model.tokenizer import load_tokenizer
from tasks import TASKS
from tasks.choices import prompts
from tasks.task import Asking

HARNESS = Path(__file__).parent / "fixtures" / "lm_eval"
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


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", GOLDEN)
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
