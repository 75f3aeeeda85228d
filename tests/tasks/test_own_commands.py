"""A user's own rows through train.py and eval.py."""
import io
import json

import pytest
import torch
from safetensors.torch import load_file

import eval as eval_script
import export as export_script
import sample as sample_script
import train as train_script
from finetune.source import Source
from model.chat_template import load_template
from model.checkpoint import random_model, save_model
from model.config_json import config_to_json
from model.files import write_json
from tasks import hub_data
from tests.cli import SMALL, call, interrupted_after, rows_of, train_once
from tests.fixtures.make_chat_templates import CONTROL, tokenizer
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


def test_test_rows_alone_are_those_of_the_usual_task_and_what_to_do_is_said(wide_base):
    """--data names their layout. Rows of the usual task need none."""
    own = ("--test-data", OWN / "conversations.jsonl")
    for command in ((eval_script, "--model", wide_base, *own),
                    (train_script, "--model", wide_base, "--method", "lora", *own, "--dry-run")):
        said = call(*command)
        assert "field 'text' is missing" in said and "--test-data without --data holds rows of --task banking77" in said
        assert "give also --data" in said
    few = ("--test-limit", "1", "--max-new-tokens", "1")
    assert call(eval_script, "--model", wide_base, *own, "--data", OWN / "conversations.jsonl", *few) is None
    said = call(eval_script, "--model", wide_base, "--data", OWN / "texts.jsonl", *own)
    assert "give --task messages" in said and "without --data" not in said


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


def test_a_run_of_conversations_goes_on_with_the_same_rows(wide_base, monkeypatch):
    """Its template is the run's own by then."""
    asked = ("--model", wide_base, "--method", "lora", "--data", OWN / "conversations.jsonl", "--steps", "4",
             "--save-every", "1", "--batch-size", "2")
    with interrupted_after(3, monkeypatch):
        assert "train.py --resume cut" in call(train_script, *asked, "--out", "cut")
    assert call(train_script, "--resume", "cut") is None
    assert call(train_script, *asked, "--out", "whole") is None
    cut, whole = (load_file(f"{run}/adapter.safetensors") for run in ("cut", "whole"))
    assert all(torch.equal(cut[name], whole[name]) for name in whole)


def test_the_end_of_a_turn_is_an_end_token_of_the_run_and_of_its_export(tmp_path, capsys, monkeypatch):
    """The base ends texts with another token, and has no template."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "tokenizer.json").write_text(tokenizer().to_str())
    end, end_of_turn = 256 + CONTROL.index("<|endoftext|>"), 256 + CONTROL.index("<|im_end|>")
    write_json(base / "tokenizer_config.json", {"eos_token": "<|endoftext|>"})
    write_json(base / "generation_config.json", {"eos_token_id": end, "top_k": 3})
    write_json(base / "config.json", {**config_to_json(SMALL), "bos_token_id": None, "eos_token_id": end,
                                      "max_position_embeddings": 512})
    save_model(random_model(SMALL, torch.float32, seed=1), base / "model.safetensors")
    data = OWN / "conversations.jsonl"
    assert call(train_script, "--model", base, "--method", "lora", "--data", data, "--steps", "1", "--out", "x") is None
    out = capsys.readouterr().out
    assert f"{base}: the model has no chat template, so ChatML is used, and kept with the run; a turn ends with" in out
    run = Source(tmp_path / "x")
    assert run.stop_ids() == (end, end_of_turn)
    assert json.loads((tmp_path / "x" / "generation_config.json").read_text()) == {"eos_token_id": [end, end_of_turn],
                                                                                  "top_k": 3}
    assert load_template(run.path, run.tokenizer).own  # it is the run's now
    assert call(export_script, "x", "--format", "safetensors", "--to", "out") is None
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == [end, end_of_turn]
    for name in ("chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "out" / name).read_text() == (tmp_path / "x" / name).read_text()
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    assert call(sample_script, "--chat", "x", "--max-new-tokens", "3") is None
    assert "a turn ends with <|im_end|>\n" in capsys.readouterr().err
