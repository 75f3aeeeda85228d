"""--model org/name without a network: a Hub of local folders, with huggingface_hub's own exceptions and cache."""
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants, errors
from huggingface_hub.utils import filter_repo_objects

import eval as eval_script
import train as train_script
from finetune.run import open_run
from finetune.source import Source
from finetune.values import model_place
from model import hub
from model.checkpoint import random_model, save_model
from model.config_json import config_to_json
from model.files import sha256_of
from model.hub import HubModel
from tests.cli import FEW, SMALL, call, few, rows_of

pytestmark = pytest.mark.usefixtures("elsewhere")
FIRST, SECOND = "1" * 40, "2" * 40  # commits
UNWANTED = ("pytorch_model.bin", "model.fp16.safetensors", "consolidated.safetensors", "original/consolidated.00.pth",
            "original/config.json", "onnx/model.onnx", "onnx/README.md", "onnx/model.safetensors")
FEWER = ["--limit", "40", "--test-limit", "2", "--max-new-tokens", "1"]


class FakeHub:
    """snapshot_download from local folders. revisions: branch or tag -> commit."""

    def __init__(self, cache: Path):
        self.cache, self.folders, self.revisions, self.asked, self.fails = cache, {}, {None: FIRST}, [], None

    def snapshot_download(self, repo, revision=None, allow_patterns=None, local_files_only=False):
        if local_files_only and not (self.cache / f"models--{repo.replace('/', '--')}").is_dir():
            raise errors.LocalEntryNotFoundError("not in the cache")
        self.asked.append((repo, revision))
        if self.fails:
            raise self.fails
        commit = self.revisions.get(revision, revision)
        folder = self.folders[repo, commit]
        snapshot = self.cache / f"models--{repo.replace('/', '--')}" / "snapshots" / commit
        names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        snapshot.mkdir(parents=True, exist_ok=True)
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name, snapshot / name)
        return str(snapshot)


@pytest.fixture
def fake(small_base, tmp_path_factory, monkeypatch) -> FakeHub:
    """org/small, with the needless files that repositories hold too."""
    fake = FakeHub(tmp_path_factory.mktemp("cache"))
    folder = tmp_path_factory.mktemp("hub") / "small"
    shutil.copytree(small_base, folder)
    (folder / "generation_config.json").write_text("{}")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    for name in UNWANTED:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("large")
    fake.folders["org/small", FIRST] = folder
    monkeypatch.setattr("huggingface_hub.snapshot_download", fake.snapshot_download)
    hub.fetch.cache_clear()
    yield fake
    hub.fetch.cache_clear()


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def put_other_weights(folder: Path) -> None:
    save_model(random_model(SMALL, torch.float32, seed=2), folder / "model.safetensors", torch.float16)


def commit_other_weights(fake: FakeHub, commit: str) -> None:
    first = fake.folders["org/small", FIRST]
    fake.folders["org/small", commit] = shutil.copytree(first, first.parent / commit)
    put_other_weights(fake.folders["org/small", commit])


def test_only_the_files_that_are_needed_are_fetched_and_they_are_used_where_the_cache_has_them(fake):
    source = Source(HubModel("org/small"))
    assert files_in(source.path) == {"config.json", "generation_config.json", "tokenizer.model", "model.safetensors",
                                     "README.md"}
    assert source.path.is_relative_to(fake.cache)
    assert files_in(fake.folders["org/small", FIRST]) >= set(UNWANTED)  # control: they were there to be fetched
    assert source.fingerprint == sha256_of(fake.folders["org/small", FIRST] / "model.safetensors")
    assert source.config == SMALL


def test_the_shards_that_the_index_names_are_fetched(fake):
    folder = fake.folders["org/small", FIRST]
    shutil.move(folder / "model.safetensors", folder / "part-a.safetensors")
    shutil.copy(folder / "part-a.safetensors", folder / "part-b.safetensors")
    shutil.copy(folder / "part-a.safetensors", folder / "part-c.safetensors")
    (folder / hub.INDEX).write_text(json.dumps({"weight_map": {"x": "part-b.safetensors", "y": "part-a.safetensors"}}))
    fetched = files_in(hub.fetch(HubModel("org/small")))
    assert {name for name in fetched if name.endswith(".safetensors")} == {"part-a.safetensors", "part-b.safetensors"}


def test_one_file_goes_before_shards_and_only_it_is_fetched(fake):
    folder = fake.folders["org/small", FIRST]
    shutil.copy(folder / "model.safetensors", folder / "part-a.safetensors")
    (folder / hub.INDEX).write_text(json.dumps({"weight_map": {"x": "part-a.safetensors"}}))
    fetched = files_in(hub.fetch(HubModel("org/small")))
    assert {name for name in fetched if name.endswith(".safetensors")} == {"model.safetensors"}


def test_what_says_how_the_model_is_used_comes_with_it(fake):
    names = {"chat_template.jinja", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"}
    for name in names:
        (fake.folders["org/small", FIRST] / name).write_text("{}")
    assert files_in(hub.fetch(HubModel("org/small"))) >= names


def test_a_quantized_model_is_refused_before_its_weights_are_fetched(fake):
    stated = {**config_to_json(SMALL), "quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}}
    (fake.folders["org/small", FIRST] / "config.json").write_text(json.dumps(stated))
    assert "fp4" in call(train_script, "--model", "org/small", *FEW)
    assert len(fake.asked) == 1


def test_weights_that_are_not_in_the_format_that_the_config_states_are_refused(fake):
    stated = {**config_to_json(SMALL), "quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
    (fake.folders["org/small", FIRST] / "config.json").write_text(json.dumps(stated))
    message = call(train_script, "--model", "org/small", *FEW)
    assert "config.json says that weights are in the format" in message
    assert "no layer in model.safetensors is" in message


def test_a_directory_here_goes_before_a_model_of_the_hub(fake, small_base, tmp_path):
    assert model_place("org/small") == HubModel("org/small")
    shutil.copytree(small_base, tmp_path / "org" / "small")
    assert model_place("org/small") == Path("org/small")
    assert call(eval_script, "--model", "org/small", *FEWER) is None
    assert not fake.asked


@pytest.mark.slow
def test_a_run_remembers_the_commit_and_is_scored_and_resumed_on_it(fake, tmp_path):
    assert call(train_script, "--method", "lora", "--model", "org/small", *few("lora"), "--out", "x") is None
    saved = json.loads((tmp_path / "x" / "config.json").read_text())
    assert saved["config"]["base"]["model"] == f"org/small@{FIRST}"
    assert str(fake.cache) not in (tmp_path / "x" / "config.json").read_text()
    commit_other_weights(fake, SECOND)
    fake.revisions[None], fake.asked = SECOND, []  # main has moved
    shutil.rmtree(fake.cache)  # and this is another machine
    hub.fetch.cache_clear()
    assert call(eval_script, "x") is None and call(train_script, "--resume", "x") is None
    assert {revision for _, revision in fake.asked} == {FIRST}
    again, rows = ({state: row["validation_loss"] for state, row in found.items()}
                   for found in (rows_of(tmp_path / "x", "eval.json"), rows_of(tmp_path / "x")))
    assert again == rows
    assert Source(HubModel("org/small")).fingerprint != saved["fingerprints"]["base"]  # control: main is another model


@pytest.mark.slow
def test_a_run_whose_commit_holds_other_weights_is_not_scored(fake):
    call(train_script, "--method", "lora", "--model", "org/small", *few("lora"), "--out", "x")
    put_other_weights(fake.folders["org/small", FIRST])
    hub.fetch.cache_clear()
    assert "is not what the run was trained from: its sha256 is" in call(eval_script, "x")


def test_a_quantized_run_is_scored_without_its_base_where_the_hub_is_out_of_reach(fake, tmp_path, capsys):
    call(train_script, "--model", "org/small", *FEW, "--out", "x")
    hub.fetch.cache_clear()
    fake.fails = errors.LocalEntryNotFoundError("Got: ConnectError: no route")
    assert call(eval_script, "x") is None
    assert f"no row for the base: org/small@{FIRST}" in capsys.readouterr().out
    assert list(rows_of(tmp_path / "x", "eval.json")) == ["quantized", "trained", "merged-4bit"]


@pytest.mark.slow
def test_runs_from_before_hub_models_are_read_as_they_were(small_base, tmp_path):
    call(train_script, "--model", small_base, *FEW, "--out", "x")
    assert open_run(tmp_path / "x").config.base.model == small_base
    shutil.copytree(small_base, tmp_path / "gone")
    call(train_script, "--model", "gone", *FEW, "--out", "y")
    shutil.rmtree(tmp_path / "gone")
    assert open_run(tmp_path / "y").config.base.model == tmp_path / "gone"  # a missing directory stays one


def test_what_is_in_the_cache_is_here_and_nothing_is_fetched(tmp_path, monkeypatch):
    """huggingface_hub's own function and the layout of its cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    kept = tmp_path / "models--org--small" / "snapshots" / FIRST
    kept.mkdir(parents=True)
    assert hub.directory_here(HubModel("org/small", FIRST)) == kept
    with pytest.raises(hub.NotFetched, match="org/small@2+ is not in the cache of the hub on this machine"):
        hub.directory_here(HubModel("org/small", SECOND))
    assert hub.directory_here(Path("here")) == Path("here")


def test_a_revision_is_asked_for(fake):
    commit_other_weights(fake, SECOND)
    fake.revisions["dev/branch"] = SECOND
    assert hub.pinned(HubModel.parse("org/small@dev/branch")) == HubModel("org/small", SECOND)
    assert hub.pinned(HubModel.parse("org/small")) == HubModel("org/small", FIRST)
    assert hub.pinned(Path("here")) == Path("here")


def test_a_model_is_fetched_once_in_a_process(fake):
    for _ in range(3):
        assert Source(HubModel("org/small")).path.is_dir()
    assert len(fake.asked) == 2  # small files, weights


def http(kind, message="403 Client Error.\n\nsecond line"):
    return kind(message, response=SimpleNamespace(headers={}, request=None))


FAILURES = [
    (http(errors.GatedRepoError),
     r"org/small@v1 is gated: accept its licence at https://.*/org/small, then log in .* or set HF_TOKEN"),
    (http(errors.RepositoryNotFoundError), "org/small@v1: neither a directory here nor a model at https://"),
    (http(errors.RevisionNotFoundError), "org/small has no revision v1"),
    (errors.LocalEntryNotFoundError("Got: ConnectError: no route\nmore"),
     r"was not reached \(.*no route\); without network, give a local directory"),
    (errors.OfflineModeIsEnabled("offline mode"), "could not be fetched .*offline mode.*local directory"),
    (http(errors.HfHubHTTPError, "502 Bad Gateway"), "could not be fetched .*502 Bad Gateway"),
    (OSError(28, "No space left on device"), "No space left on device")]


@pytest.mark.slow
@pytest.mark.parametrize("script", [train_script, eval_script])
@pytest.mark.parametrize("error,message", FAILURES, ids=[type(e).__name__ for e, _ in FAILURES])
def test_what_the_hub_refuses_is_one_line_that_says_what_to_do(fake, tmp_path, script, error, message):
    fake.fails = error
    said = call(script, "--model", "org/small@v1", *FEWER)
    assert said and "\n" not in said and re.search(message, said), said
    assert not list(tmp_path.iterdir())
    assert len(fake.asked) == 1
    fake.fails = None
    fake.revisions["v1"] = FIRST
    steps = ["--steps", "1"] if script is train_script else []
    assert call(script, "--model", "org/small@v1", *FEWER, *steps) is None  # control


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "org/", "org/name@", "org/na me", "./name", "org/..",
                                  "https://huggingface.co/org/name", "org--x/name"])
def test_what_is_neither_a_directory_nor_a_name_on_the_hub_is_refused_without_asking_the_hub(fake, name):
    said = call(train_script, "--model", name)
    assert f"{name}: no such model directory, and no model of the hub" in said and "\n" not in said
    assert not fake.asked


def test_an_absolute_path_is_never_a_name_on_the_hub(fake, tmp_path):
    assert model_place(str(tmp_path / "later")) == tmp_path / "later"
    assert f"{tmp_path}/later: no such model directory" in call(train_script, "--model", tmp_path / "later")
    assert not fake.asked


def test_a_repository_without_safetensors_is_named(fake, tmp_path):
    (fake.folders["org/small", FIRST] / "model.safetensors").unlink()
    said = call(train_script, "--model", "org/small", *FEW)
    assert f"org/small@{FIRST}: no safetensors in" in said and "\n" not in said and not list(tmp_path.iterdir())


def test_another_architecture_is_refused_before_its_weights_are_fetched(fake):
    folder = fake.folders["org/small", FIRST]
    (folder / "config.json").write_text(json.dumps({**config_to_json(SMALL), "model_type": "gpt2"}))
    assert "model_type 'gpt2'" in call(train_script, "--model", "org/small", *FEW)
    assert len(fake.asked) == 1


# ---- huggingface_hub itself, offline ---------------------------------------------------------------------------------

@pytest.fixture
def offline(tmp_path_factory, monkeypatch) -> Path:
    """An empty cache, and HF_HUB_OFFLINE=1."""
    cache = tmp_path_factory.mktemp("hf")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.fetch.cache_clear()
    yield cache
    hub.fetch.cache_clear()


def test_offline_the_cache_of_huggingface_hub_serves_by_name_and_by_commit(offline, small_base, capsys):
    said = call(eval_script, "--model", "org/small", *FEWER)
    assert str(offline) in said and "HF_HUB_OFFLINE" in said and "\n" not in said
    repository = offline / "models--org--small"
    shutil.copytree(small_base, repository / "snapshots" / FIRST)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(FIRST)
    assert call(eval_script, "--model", "org/small", *FEWER) is None
    assert f"org/small@{FIRST}: as it is, banking77, 2 test rows" in capsys.readouterr().out
    assert hub.pinned(HubModel("org/small")) == HubModel("org/small", FIRST)
    assert Source(HubModel("org/small", FIRST)).path == repository / "snapshots" / FIRST
    assert "is not (whole) in the cache" in call(eval_script, "--model", f"org/small@{SECOND}", *FEWER)
