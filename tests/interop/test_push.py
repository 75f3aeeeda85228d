"""export.py --push, against a stand-in for the hub on the loopback interface."""
import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

import export as export_script
from finetune.config import EMBEDDED_BASE
from interop import push
from tests.cli import call
from tests.export_runs import made_run
from tests.hub_server import TOKEN, Hub, serving

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
def hub(monkeypatch):
    """The site, and a token for it."""
    made = Hub()
    with serving(made) as made.address:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", made.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield made


@pytest.fixture(scope="module")
def lora(tmp_path_factory, small_base) -> Path:
    return made_run(tmp_path_factory.mktemp("private-directory") / "run", small_base, "--method", "lora")


@pytest.fixture(scope="module")
def qlora(tmp_path_factory, small_base) -> Path:
    return made_run(tmp_path_factory.mktemp("private-directory") / "run", small_base, "--method", "qlora", "--block",
                    "16x1")


def test_a_directory_goes_up_in_one_commit_and_its_sums_hold(hub, lora, tmp_path):
    assert call(export_script, lora, "--format", "safetensors", "--to", "out", "--push", "me/model") is None
    (repo, message, files), = hub.commits
    assert repo == "me/model" and message == "safetensors of run" and hub.repos == {"me/model": True}
    here = {str(path.relative_to("out")) for path in Path("out").rglob("*") if path.is_file()}
    assert set(files) == here - {"export.json"} >= {"README.md", "model.safetensors", "config.json", "SHA256SUMS"}
    assert all(files[name] == Path("out", name).read_bytes() for name in files if name != "SHA256SUMS")
    assert_sums(files)


def assert_sums(files: dict[str, bytes], folder: str = "") -> None:
    lines = files[f"{folder}SHA256SUMS"].decode().splitlines()
    stated = {f"{folder}{line.split('  ')[1]}": line.split("  ")[0] for line in lines}
    assert stated == {name: sha256(content).hexdigest() for name, content in files.items()
                      if not name.endswith("SHA256SUMS") and name.startswith(folder)}


def test_nothing_that_goes_up_names_a_directory_of_this_machine_or_the_token(hub, qlora, small_base, tmp_path):
    asked = ("--format", "peft", "--to", tmp_path / "out", "--push", "me/x", "--public")
    assert call(export_script, qlora, *asked) is None
    (_, _, files), = hub.commits
    assert hub.repos == {"me/x": False}
    secrets = [str(qlora.parent), str(tmp_path), str(small_base), str(Path.home()) + "/", TOKEN]
    assert not [(name, s) for name, content in files.items() for s in secrets if s.encode() in content]
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "base"
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "out" / "base")  # control: here it is the whole path
    assert_sums(files)
    assert_sums(files, "base/")


def test_a_gguf_file_goes_up_with_its_card_and_its_modelfile(hub, tmp_path):
    pytest.importorskip("gguf")
    assert call(export_script, EMBEDDED_BASE, "--format", "gguf", "--to", "x.gguf", "--push", "me/x") is None
    (_, _, files), = hub.commits
    assert set(files) == {"x.gguf", "x.gguf.sha256", "README.md", "Modelfile"}
    assert files["Modelfile"].startswith(b"FROM ./x.gguf\n") and files["README.md"].startswith(b"---\n")
    assert files["x.gguf"] == Path("x.gguf").read_bytes()


def refused(run, repo: str, monkeypatch, *flags) -> str:
    """The error. No weight was read, and nothing was written."""
    monkeypatch.setattr("interop.trained.Trained.load", lambda self: pytest.fail("weights were loaded"))
    message = call(export_script, run, "--format", "safetensors", "--to", "out", "--push", repo, *flags)
    assert message.startswith(f"error: --push {repo}: ") and "\n" not in message and not Path("out").exists()
    assert TOKEN not in message
    return message


def test_without_a_token_it_is_refused_before_any_work(hub, lora, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "there is no token" in refused(lora, "me/x", monkeypatch)
    assert hub.asked == []


def test_a_token_that_is_not_accepted_may_only_read_or_may_not_write_there(hub, lora, monkeypatch):
    hub.role = "read"
    assert "the token of me may only read" in refused(lora, "me/x", monkeypatch)
    hub.role, hub.may_write = "fineGrained", False
    assert "does not let this token write there" in refused(lora, "other/x", monkeypatch)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "does not accept the token" in refused(lora, "me/x", monkeypatch)
    assert hub.repos == {}


def test_offline_it_is_refused_before_any_work(hub, lora, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(lora, "me/x", monkeypatch)
    assert hub.asked == []


def test_a_site_that_is_not_there_is_named(lora, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "http://127.0.0.1:9 was not reached" in refused(lora, "me/x", monkeypatch)


@pytest.mark.parametrize("repo", ["model", "a/b/c", "me/bad name"])
def test_other_names_are_refused(hub, lora, monkeypatch, repo):
    refused(lora, repo, monkeypatch)
    assert hub.asked == []


def test_a_repository_that_is_there_is_used_as_it_is(hub):
    hub.repos["me/x"] = False
    assert push.Destination.prepared("me/x", public=False).repo == "me/x"
    assert hub.repos == {"me/x": False}


def test_a_push_that_fails_leaves_the_export(hub, lora):
    hub.fails_at = "/commit/"
    message = call(export_script, lora, "--format", "safetensors", "--to", "out", "--push", "me/x")
    assert message.startswith("error: --push me/x: ") and Path("out/export.json").is_file()
    assert "The export is complete in out; to push it by hand: hf upload me/x out" in message


@pytest.mark.slow
def test_the_command_reads_the_environment(hub, lora):
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, Path(export_script.__file__), lora, "--format", "safetensors", "--to", "out"]
    done = subprocess.run([*command, "--push", "me/x"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and f"pushed to {hub.address}/me/x" in done.stdout and len(hub.commits) == 1
    assert TOKEN not in done.stdout + done.stderr + Path("out/README.md").read_text()


def test_public_goes_with_push_only(lora):
    assert "--public goes with --push only" in call(export_script, lora, "--format", "safetensors", "--to", "out",
                                                    "--public")
