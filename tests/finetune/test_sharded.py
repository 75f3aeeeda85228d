"""--shard-base: two processes that share the base compute what two with a whole base compute, to the last bit, and what
one process computes, to rounding. No process ever holds the whole model."""
import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import train as train_script
from finetune.config_json import run_config
from finetune.data import prepare_data
from finetune.run import Run
from finetune.sharded import Parts, codes_as_parameters, quantize_part_by_part
from finetune.source import Source
from finetune.together import beside
from model.checkpoint import random_model, save_model
from model.config import LlamaConfig
from model.config_json import config_to_json
from model.files import write_json
from quant.linear import QuantLinear
from quant.spec import QuantSpec
from tests.cli import call

ROOT = Path(__file__).parents[2]
DEEP = LlamaConfig(vocab_size=4096, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
                   num_key_value_heads=1, head_dim=16, max_position_embeddings=160, tie_word_embeddings=True,
                   bos_token_id=1, eos_token_ids=(2,))
# Five rows a step, two at a time: the first process has two micro-batches, the second one has one.
USUAL = ("--task", "bitext", "--data", "rows.jsonl", "--batch-size", "5", "--micro-batch", "2", "--steps", "4",
         "--eval-every", "3", "--test-limit", "1", "--max-new-tokens", "1", "--dtype", "float32", "--lr", "5e-3")
METHODS = {"qlora": ("--method", "qlora", "--block", "16x1", "--double-quant", "--dropout", "0.1"),
           "qablora": ("--method", "qablora", "--gradient-checkpointing"),
           "peqa": ("--method", "peqa", "--block", "16x1"),
           "qlora by gptq": ("--method", "qlora", "--quantizer", "gptq", "--block", "16x1", "--bits", "3",
                             "--calibration-rows", "20"),
           "lora": ("--method", "lora")}
SHARED, WHOLE, ONE = (2, ("--shard-base",)), (2, ()), (1, ())


@dataclass
class Made:
    path: Path
    out: str
    status: int

    @property
    def trained(self) -> dict[str, torch.Tensor]:
        return load_file(self.path / "adapter.safetensors")

    @property
    def losses(self) -> list[float]:
        lines = (self.path / "metrics.jsonl").read_text().splitlines()
        return [value for line in map(json.loads, lines) for name, value in line.items() if name.endswith("loss")]


@pytest.fixture(scope="module")
def runs(small_base, tmp_path_factory) -> dict[tuple[str, str], Made]:
    """Each method in each way, and one that is killed and resumed; all by one process that forks."""
    place = tmp_path_factory.mktemp("shared")
    rows = [{"instruction": f"{'my card ' * (1 + i % 4)}{i}, where is it", "intent": f"intent_{i % 3}"}
            for i in range(40)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = place / "base"
    base.mkdir()
    write_json(base / "config.json", config_to_json(DEEP))
    save_model(random_model(DEEP, torch.float32, seed=1), base / "model.safetensors", torch.float16)
    (base / "tokenizer.model").write_bytes((small_base / "tokenizer.model").read_bytes())
    ways = {"shared": SHARED, "whole": WHOLE, "one": ONE}
    asked = [(method, way) for method in METHODS for way in ways if method != "lora" or way != "whole"]
    commands = [{"cwd": str(place), "processes": ways[way][0], "script": "train.py",
                 "signal": (0, 0, 0),  # none
                 "arguments": ["--model", "base", *USUAL, *METHODS[method], *ways[way][1], "--out",
                               f"{method}-{way}".replace(" ", "-")]} for method, way in asked]
    cut = {**commands[0], "signal": (1, signal.SIGKILL, 5),  # two passes a step, of which one does not count: in step 3
           "arguments": [*commands[0]["arguments"][:-1], "cut", "--save-every", "2"]}
    asked += [("qlora", "cut"), ("qlora", "resumed")]
    commands += [cut, {**commands[0], "arguments": ["--resume", "cut"]}]
    done = subprocess.run([sys.executable, "-m", "tests.several"], input=json.dumps(commands), text=True, cwd=ROOT,
                          capture_output=True, timeout=300)
    ended = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(ended) == len(commands), done.stderr
    return {key: Made(place / ("cut" if "cut" in command["arguments"] else command["arguments"][-1]), end["out"],
                      end["status"])
            for key, command, end in zip(asked, commands, ended, strict=True)}


@pytest.mark.parametrize("method", METHODS)
def test_a_shared_base_changes_no_number(runs, method):
    shared, one = runs[method, "shared"], runs[method, "one"]
    assert shared.status == one.status == 0, shared.out
    assert len(shared.losses) == len(one.losses) > 4
    if method != "lora":
        whole = runs[method, "whole"]
        assert shared.losses == whole.losses
        assert all(torch.equal(a, b) for a, b in zip(shared.trained.values(), whole.trained.values(), strict=True))
        assert (shared.path / "base.safetensors").read_bytes() == (whole.path / "base.safetensors").read_bytes()
    if "--dropout" in METHODS[method] or "gptq" in METHODS[method]:
        return  # processes draw masks of their own; a sum over processes may round one code the other way
    torch.testing.assert_close(torch.tensor(shared.losses), torch.tensor(one.losses), rtol=1e-4, atol=1e-5)
    if method != "lora":
        assert (shared.path / "base.safetensors").read_bytes() == (one.path / "base.safetensors").read_bytes()


def test_a_killed_run_goes_on_to_the_last_bit(runs):
    """By -9 in one of two processes. With dropout, whose masks each process draws, and a double-quantized base."""
    whole, cut, resumed = runs["qlora", "shared"], runs["qlora", "cut"], runs["qlora", "resumed"]
    assert (cut.status, resumed.status) == (1, 0), cut.out + resumed.out
    assert "saved at step 2" in cut.out and "goes on at step 3 of 4" in resumed.out
    assert resumed.losses == whole.losses
    for name in ("adapter.safetensors", "base.safetensors"):
        assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes(), name


def test_other_rows_would_be_noticed(runs):
    """The losses of two methods differ by more than the tolerance."""
    assert abs(runs["qablora", "shared"].losses[-1] - runs["qlora", "shared"].losses[-1]) > 1e-3


def test_memory_is_told_process_by_process_and_scoring_is_not_done(runs):
    shared = runs["qablora", "shared"]
    told = json.loads((shared.path / "training.json").read_text())["processes"]
    assert len(told) == 2 and all(one["peak_memory_mb"] > 50 for one in told)
    assert "peak memory by process: " in shared.out and "--shard-base trains, and does not score" in shared.out
    assert not (shared.path / "results.json").exists() and (runs["qablora", "whole"].path / "results.json").is_file()


def test_a_run_that_shared_its_base_is_scored_by_one_process(runs, monkeypatch):
    import eval as eval_script
    shared = runs["qablora", "shared"]
    monkeypatch.chdir(shared.path.parent)
    assert call(eval_script, shared.path) is None
    scores, others = (json.loads((made.path / name).read_text())["rows"] for made, name in
                      ((shared, "eval.json"), (runs["qablora", "whole"], "results.json")))
    assert [row["validation_loss"] for row in scores] == [row["validation_loss"] for row in others]


@pytest.mark.parametrize("more, message", [
    (("--method", "qablora", "--shard-base"), "there is one: start them by torchrun"),
    (("--method", "full", "--shard-base"), "trains all of it"),
    (("--method", "qablora", "--shard-base", "--find-lr"), "--find-lr does not go with --shard-base"),
])
def test_what_cannot_be_shared_is_refused(small_base, tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"instruction": "a b", "intent": "c"}\n' * 20)
    assert message in call(train_script, "--model", small_base, *USUAL, *more)
    assert not Path("runs").exists()


# ---- never the whole model ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", ["qablora", "qlora by gptq"])
def test_quantizing_holds_one_decoder_layer(runs, monkeypatch, method):
    """When a layer goes to disk, no other one holds numbers; and the file is that of the whole model."""
    made = runs[method, "one"]
    run, held = Run(made.path.parent / f"parts of {method}"), []
    run.path.mkdir()
    take = Parts.take

    def watched(parts, model, prefix):
        held.append({name.split(".")[2] for name, t in model.state_dict().items()
                     if name.startswith("model.layers.") and not t.is_meta})
        take(parts, model, prefix)
    monkeypatch.setattr(Parts, "take", watched)
    config = run_config(json.loads((made.path / "config.json").read_text()), "")
    monkeypatch.chdir(made.path.parent)
    data = prepare_data(Source(config.base.model), config, config.base.by_gptq)
    quantize_part_by_part(run, config, data.calibration)
    assert held == [{"0"}, {"1"}, {"2"}, set(), set(), set()]
    assert (run.path / "base.safetensors").read_bytes() == (made.path / "base.safetensors").read_bytes()
    left = {path.name for path in run.path.iterdir()}
    assert left == {"base.safetensors"} | ({"quantization.json"} if config.base.by_gptq else set())


@pytest.mark.parametrize("spec", ["nf@16x1-4bit+double-quant", "minmax@4x8-3bit", "intminmax@16x1-4bit"])
def test_codes_and_factors_become_parameters_and_compute_the_same(spec):
    torch.manual_seed(0)
    weight = torch.randn(32, 64)
    layer = QuantLinear.from_weight(QuantSpec.parse(spec).new_quantizer().quantize(weight), torch.randn(32))
    before, x = layer.state_dict(), torch.randn(3, 64)
    y = layer(x)
    codes_as_parameters(nn.Sequential(layer))
    assert {name for name, _ in layer.named_buffers()} == {"levels"}
    assert not any(p.requires_grad for p in layer.parameters())
    assert torch.equal(layer(x), y) and before.keys() == layer.state_dict().keys()


def test_a_process_without_rows_computes_along():
    assert beside(["a"], 2, "z", shared=True) == [("a", True), ("z", False)]
    assert beside(["a", "b"], 2, "z", shared=True) == [("a", True), ("b", True)]
    assert beside(["a"], 2, "z", shared=False) == [("a", True)]
