"""A user's own rows through train.py and eval.py."""
import json

import pytest

import eval as eval_script
import train as train_script
from tasks import hub_data
from tests.cli import call, rows_of, train_once
from tests.model.test_hub import FIRST
from tests.tasks.test_hub_data import FakeHub
from tests.tasks.test_own_rows import OWN, TALK

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.mark.parametrize("file,task,scores", [
    ("conversations.jsonl", "messages", {"exact_match", "rougeL", "loss", "perplexity"}),
    ("instructions.jsonl", "instruction", {"exact_match", "rougeL", "loss", "perplexity"}),
    ("texts.jsonl", "text", {"nats_per_token", "perplexity"}),
    ("labels.csv", "classification", {"accuracy", "micro_f1", "macro_f1"})])
def test_the_files_of_the_page_train_and_are_scored(tmp_path, wide_base, file, task, scores):
    train_once(wide_base, "--method", "lora", "--data", OWN / file, "--test-data", OWN / file, "--steps", "1",
               "--max-new-tokens", "2", "--test-limit", "2", out="x")
    saved = json.loads((tmp_path / "x" / "config.json").read_text())["config"]["data"]
    assert saved["task"] == task  # a run knows what was recognised
    assert scores <= set(rows_of(tmp_path / "x")["trained"]["scores"])
    assert call(eval_script, "x", "--max-new-tokens", "1") is None


def test_a_data_set_of_the_hub_is_recognised_too(tmp_path, tmp_path_factory, monkeypatch, wide_base, capsys):
    fake = FakeHub(tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("cache"))
    fake.put(FIRST, "data/train.jsonl", [{"prompt": "p", "messages": TALK, "category": "Open QA"}] * 6)
    for name in ("list_repo_files", "snapshot_download"):
        monkeypatch.setattr(f"huggingface_hub.{name}", getattr(fake, name))
    hub_data.fetch.cache_clear()
    assert call(train_script, "--model", wide_base, "--method", "lora", "--data", "HuggingFaceH4/no_robots",
                "--steps", "1", "--out", "x") is None
    saved = json.loads((tmp_path / "x" / "config.json").read_text())["config"]["data"]
    assert saved["task"] == "messages" and saved["data"] == f"HuggingFaceH4/no_robots@{FIRST}:data/train.jsonl"
    assert "6 rows of messages: --task messages (not read: prompt, category)" in capsys.readouterr().out
    hub_data.fetch.cache_clear()
