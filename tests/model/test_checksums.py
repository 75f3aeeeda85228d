"""Files without a checksum of their own, in what is written here: SHA256SUMS, x.gguf.sha256, a run's tokenizer."""
import shutil
import subprocess

import pytest
import torch

from finetune.adapted_model import save_beside
from finetune.run import Run
from model.checkpoint import load_model
from model.checksums import check_sums, write_sums
from model.directory import load_config, weight_files
from model.files import Damaged, write_json
from model.tokenizer import load_tokenizer
from tests.export_runs import export, made_run


def changed(path, before: bytes, after: bytes) -> None:
    content = path.read_bytes()
    assert before in content
    path.write_bytes(content.replace(before, after, 1))


@pytest.fixture
def merged(small_base, tmp_path):
    """A merged model, as a run keeps it."""
    run = Run(tmp_path / "run")
    shutil.copytree(small_base, run.path)
    model = load_model(weight_files(small_base), load_config(small_base), torch.float32)
    save_beside(model, run, run.merged)
    return run.merged


def test_a_merged_model_is_checked_by_sha256sum(merged):
    assert subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=merged).returncode == 0
    changed(merged / "config.json", b'"rope_theta": 1', b'"rope_theta": 3')  # control
    assert subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=merged).returncode == 1


def test_a_changed_file_of_a_merged_model_is_named(merged):
    load_config(merged), load_tokenizer(merged)
    changed(merged / "config.json", b'"rope_theta": 1', b'"rope_theta": 3')
    with pytest.raises(Damaged, match=r"config.json: changed after it was written: .*SHA256SUMS states .* on purpose"):
        load_config(merged)
    changed(merged / "tokenizer.model", b"the", b"teh")
    with pytest.raises(Damaged, match="tokenizer.model: changed after it was written"):
        load_tokenizer(merged)
    (merged / "SHA256SUMS").unlink()  # as the message says: what states nothing is not checked
    assert load_config(merged).rope_theta > 3000


def test_a_bit_of_its_weights_is_named_with_its_tensor(merged):
    content = bytearray((merged / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (merged / "model.safetensors").write_bytes(content)
    with pytest.raises(Damaged, match=r"model.safetensors: tensor model\.\S+ is damaged: its sha256 is"):
        load_model(weight_files(merged), load_config(merged), torch.float32)


def test_exports_carry_checksums(small_base, tmp_path):
    run = made_run(tmp_path / "run", small_base, "--method", "lora")
    export(run, "safetensors", tmp_path / "out")
    export(run, "peft", tmp_path / "peft")
    for place in ("out", "peft"):
        assert subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=tmp_path / place).returncode == 0
        assert "export.json" in (tmp_path / place / "SHA256SUMS").read_text()


def test_a_gguf_export_has_its_checksum_beside_it(small_base, tmp_path):
    pytest.importorskip("gguf", reason="pip install -r requirements-extra.txt")
    run = made_run(tmp_path / "run", small_base, "--method", "lora")
    export(run, "gguf", tmp_path / "x.gguf", "--dtype", "float32")
    assert subprocess.run(["sha256sum", "--strict", "-c", "x.gguf.sha256"], cwd=tmp_path).returncode == 0
    load_model([tmp_path / "x.gguf"], load_config(tmp_path / "x.gguf"), torch.float32)
    content = bytearray((tmp_path / "x.gguf").read_bytes())
    content[-1] ^= 1
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(Damaged, match=r"x.gguf: changed after it was written: .*x.gguf.sha256 states"):
        load_model([tmp_path / "x.gguf"], load_config(tmp_path / "x.gguf"), torch.float32)


def test_what_is_not_a_list_of_checksums_states_nothing(tmp_path):
    write_json(tmp_path / "config.json", {"a": 1})
    for text in ("", "no checksums\n", f"{'0' * 64}  another.json\n", "\xff\n"):
        (tmp_path / "SHA256SUMS").write_bytes(text.encode("latin-1"))
        check_sums([tmp_path / "config.json", tmp_path / "missing.json"])
    write_sums(tmp_path)
    check_sums([tmp_path / "config.json"])
