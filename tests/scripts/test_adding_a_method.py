"""A new method is a class of a few lines and two entries: all the rest of the program takes it as it is."""
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import eval as eval_script
import export as export_script
import train as train_script
from adapters import ADAPTERS
from adapters.adapter import AdditiveAdapter
from adapters.lam import Lam
from adapters.peft_in import attach_peft, read_peft
from experiments.methods_table import describe
from finetune.config import EMBEDDED_BASE
from finetune.methods import METHODS, Method
from finetune.run import open_run
from finetune.source import Source, load_trained
from model.checkpoint import load_model
from model.directory import load_config, weight_files
from tests.cli import call, few, rows_of

ROOT = Path(__file__).parents[2]
PARTS = ("quant", "adapters", "model", "tasks", "finetune", "scoring", "interop", "judging", "tests", "pyproject.toml",
         "train.py", "eval.py", "sample.py", "export.py", "judge.py", "threads.py")
pytestmark = pytest.mark.usefixtures("elsewhere", "toy")
TOKENS = torch.randint(3, 4000, (2, 9), generator=torch.Generator().manual_seed(0))


class Toy(AdditiveAdapter):
    """delta_W = scaling / lam_in * kron(B A, ones(lam_out, lam_in)); A starts as part of an identity."""
    name = "toy"
    options = ("lam", "rank", "lora_alpha")

    def __init__(self, D_out: int, D_in: int, lam: Lam, rank: int, lora_alpha: float):
        super().__init__()
        self.lam, self.scaling = lam, lora_alpha / rank
        self.A = nn.Parameter(torch.eye(rank, D_in // lam.lam_in))
        self.B = nn.Parameter(torch.zeros(D_out // lam.lam_out, rank))

    def core_factors(self) -> tuple[Tensor, Tensor]:
        return self.A, self.B


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(ADAPTERS, "toy", Toy)
    monkeypatch.setitem(METHODS, "toy", Method("Toy", "toy", "minmax", 1e-2, lam="block", block="16x1"))


def trained(small_base, *flags) -> None:
    assert call(train_script, "--method", "toy", "--rank", "2", "--model", small_base, *few("lora"), "--lr", "0.05",
                *flags,
                "--out", "x") is None


@torch.no_grad()
def logits_of(model) -> Tensor:
    return model(TOKENS)


def of_run(tmp_path) -> Tensor:
    run = open_run(tmp_path / "x")
    return logits_of(load_trained(run, run.config, torch.float32, "cpu"))


def test_the_toy_is_as_small_as_the_claim():
    assert len(inspect.getsource(Toy).splitlines()) <= 16


def test_it_trains_and_merges_into_k_bits(small_base, tmp_path, capsys):
    assert call(train_script, "--method", "toy", "--rank", "2", "--model", small_base, *few("lora"), "--lr", "0.05",
                "--out", "x") is None
    assert "Toy on" in capsys.readouterr().out
    rows = rows_of(tmp_path / "x")
    assert list(rows) == ["base", "quantized", "trained", "merged-4bit"]
    assert rows["trained"]["validation_loss"] != rows["quantized"]["validation_loss"]
    assert rows["merged-4bit"]["logit_difference"] < 1e-5 and rows["merged-4bit"]["scores"] == rows["trained"]["scores"]
    config = open_run(tmp_path / "x").config
    assert (config.adapter.lam, str(config.base.quantization)) == (Lam(16, 1), "minmax@16x1-4bit")
    base, merged = (load_file(tmp_path / "x" / f"{name}.safetensors") for name in ("base", "merged/model"))
    changed = {name.rpartition(".")[2] for name in base if not torch.equal(base[name].float(), merged[name].float())}
    assert changed == {"offset"}


def test_a_lam_that_does_not_fit_the_block_merges_to_16_bits_and_says_the_rule(small_base, tmp_path, capsys):
    trained(small_base, "--lam", "1x1")
    rule = ("an adapter merges into k bits only if each quantization block lies inside one of its tiles, "
            "lam_in % n_in == 0 and lam_out % n_out == 0; here the tile is lam_in=1 x lam_out=1, "
            "the block n_in=16 x n_out=1")
    assert rule in capsys.readouterr().out and "merged-16bit" in rows_of(tmp_path / "x")
    said = call(eval_script, "x", "--restore", "8", "--merge")
    assert f"--merge with --restore 8: layer model.layers.0.self_attn.q_proj: {rule}" in said
    said = call(train_script, "--method", "toy", "--model", small_base, "--lam", "5")
    assert "D_in=32 is not a multiple of lam_in=5" in said
    assert "--operators does not go with --method toy" in call(train_script, "--method", "toy", "--operators",
                                                               "interval")


def test_it_is_restored_and_merged_at_other_widths(small_base, tmp_path):
    trained(small_base)
    assert call(eval_script, "x", "--restore", "8", "16", "--merge") is None
    rows = rows_of(tmp_path / "x", "eval.json")
    assert rows["restored-8bit-merged"]["logit_difference"] < 1e-5 and rows["restored-8bit"]["restoration_ratio"] > 0
    assert {"restored-16bit", "restored-16bit-merged"} <= set(rows)
    assert (tmp_path / "x" / "restored-8bit" / "model.safetensors").is_file()


def test_it_leaves_as_a_dense_model_and_as_a_plain_lora(small_base, tmp_path):
    trained(small_base)
    expected = of_run(tmp_path)
    assert call(export_script, "x", "--format", "safetensors", "--dtype", "float32", "--to", "dense") is None
    dense = load_model(weight_files(tmp_path / "dense"), load_config(tmp_path / "dense"), torch.float32)
    assert (logits_of(dense) - expected).abs().max() < 1e-4
    assert call(export_script, "x", "--format", "peft", "--to", "peft") is None
    beside = load_model(weight_files(tmp_path / "peft/base"), load_config(tmp_path / "peft/base"), torch.float32)
    assert (logits_of(beside) - expected).abs().max() > 1e-3  # control: the adapter counts
    attach_peft(beside, read_peft(tmp_path / "peft", beside.config))
    assert (logits_of(beside) - expected).abs().max() < 1e-4
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["r"] == 2


def test_it_has_its_row_in_the_table_of_methods():
    shapes = [(t.shape[0], t.shape[1]) for name, t in Source(EMBEDDED_BASE).load(torch.float32,
                                                                                 "cpu").state_dict().items()
              if name.endswith("_proj.weight")]
    count = sum(16 * (D_in // 16) + D_out * 16 for D_out, D_in in shapes)
    assert describe(["toy"]) == ["Toy", "`toy`", "minmax@16x1", "A 16x16, B 256x16", f"{count:,}",
                                 "k bits, into `offset`"]
    assert describe(["toy", "--lam", "1x1"])[-1] == "16 bits"


# ---- the page, followed to the letter -------------------------------------------------------------------------------

def inserted(file: Path, pattern: str, added: str) -> None:
    """`added` behind the only match of `pattern`."""
    (match,) = re.finditer(pattern, text := file.read_text())
    file.write_text(text[:match.end()] + added + text[match.end():])


def following_the_page(tree: Path) -> None:
    """Steps 1 to 3 of docs/adding-a-method.md: its class, its entry in ADAPTERS and its row in METHODS."""
    page = (ROOT / "docs" / "adding-a-method.md").read_text()
    (source,) = re.findall(r"```python\n(.*?)```", page, re.S)
    (row,) = re.findall(r"^    \"\w+\": Method\(.*\),$", page, re.M)
    (kind,) = re.findall(r"^class (\w+)\(AdditiveAdapter\)", source, re.M)
    (tree / "adapters" / "mean_lora.py").write_text(source)
    inserted(tree / "adapters" / "__init__.py", r"from adapters\.lora import LoRA\n",
             f"from adapters.mean_lora import {kind}\n")
    inserted(tree / "adapters" / "__init__.py", r"ADAPTERS\b.*\n? .* for kind in \([\w, ]+", f", {kind}")
    inserted(tree / "finetune" / "methods.py", r"\nMETHODS\b.* = \{\n", row + "\n")


@pytest.fixture
def tree(tmp_path) -> Path:
    """The packages and the tests, copied, with the page's method in them."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree / name)
    following_the_page(tree)
    return tree


def suite_of(tree: Path, *words: str) -> subprocess.CompletedProcess:
    """The page's step 4, on the fast tests."""
    fast_tests = sys.executable, "-m", "pytest", "tests/adapters", "tests/finetune", "-m", "not slow"
    return subprocess.run([*fast_tests, *words], cwd=tree, capture_output=True, text=True, timeout=600,
                          env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_the_tests_take_the_pages_method_with_no_other_line_changed(tree):
    done = suite_of(tree, "-v", "-v")
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    passed = [line for line in done.stdout.splitlines() if "PASSED" in line and "mean" in line.lower()]
    for test in ("test_the_layer_is_one_matrix_and_its_merge_is_exact_or_refused",
                 "test_restoring_is_one_assignment_and_leaves_the_adapter_as_it_was",
                 "test_a_restored_layer_merges_into_the_l_bit_offsets_exactly_or_is_refused",
                 "test_merging_into_a_base_that_was_never_quantized_is_exact_as_well",
                 "test_a_fresh_adapter_leaves_the_base_model_as_it_is",
                 "test_an_adapter_saved_and_loaded_has_the_same_bits", "test_nothing_is_assigned_to_a_configuration"):
        assert any(f"::{test}[" in line for line in passed), test


@pytest.mark.slow
def test_a_wrong_method_fails_them(tree):
    """Control: the page's class with a path of training that is not its dense matrix. (Into codes, that path is not
    used.)"""
    with (tree / "adapters" / "mean_lora.py").open("a") as file:
        file.write("\n    def core(self, x):\n        return 2 * super().core(x)\n")
    done = suite_of(tree, "-k", "one_matrix and meanlora and not codes")
    assert done.returncode == 1 and "passed" not in done.stdout and "MeanLoRA" in done.stdout, done.stdout[-3000:]
