"""eval.py --restore as a user runs it, on a very small model: Post-LoRA Restoration (Kanda & Hatano)."""
import gc
import json
import re
import shutil
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

import eval as eval_script
import train as train_script
from adapters.adapted import adapted_layers
from finetune.adapted_model import attach_adapters, load_adapter
from finetune.run import open_run
from finetune.size import stored_bytes
from finetune.source import Source, load_trained
from model.checkpoint import Weights, load_model, random_model, save_model
from model.config import LlamaConfig
from model.config_json import config_to_json
from model.directory import load_config, weight_files
from model.files import read_json, write_json
from model.journal import CHECK, Journal
from quant.grid import Block
from quant.linear import QuantLinear
from quant.minmax import MinMax
from scoring import restore, score_run, scores
from scoring.restore import Restoration
from scoring.scores import Scoring
from scoring.state import State
from tests.cli import FEW, SMALL, as_an_older_version_wrote_it, call, few, forbid_loading, rows_of, train_once

pytestmark = pytest.mark.usefixtures("elsewhere")

QUANTIZED = {"qlora": ["--method", "qlora", *FEW], "qlora-gptq": ["--method", "qlora", *FEW, "--quantizer", "gptq",
                                                                  "--act-order"],
             "qlora-double": ["--method", "qlora", *FEW, "--double-quant"], "qblora": ["--method", "qblora", *FEW],
             "irqlora": ["--method", "irqlora", *FEW], "qalora": ["--method", "qalora", *few("qalora"), "--block",
                                                                  "16x1"],
             "qablora": ["--method", "qablora", *few("qablora"), "--block", "4x8"]}


def trained(base, name, *flags, out="x"):
    """A run of a few steps whose adapter is large enough to see."""
    words = QUANTIZED[name] if name in QUANTIZED else ["--method", name, *few("full")]
    train_once(base, *words, "--lr", "0.05", *flags, out=out)


def restored(path, bits, **asked):
    """The model and the rows of one restoration, by the functions that eval.py calls."""
    restoration = Restoration((bits,), **asked)
    prepared = eval_script.prepare_run(path, {}, restoration, None)
    run, config = prepared.run, prepared.config
    seen = {}
    original = restore.score_state
    try:
        restore.score_state = lambda state, model, *rest: seen.setdefault("model",
                                                                          model) and original(state, model, *rest)
        scoring = Scoring(prepared.data, config.evaluation.eval_batch_size, models=run)
        rows = restore.restored_states(run, config, scoring, restoration)
    finally:
        restore.score_state = original
    return seen["model"], rows


TOKENS = torch.randint(3, 4096, (2, 9), generator=torch.Generator().manual_seed(0))


def quick(names, *fast):
    """The others are marked slow."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", quick(QUANTIZED, "qlora-gptq", "qablora"))
def test_restoring_the_same_bits_changes_nothing(small_base, tmp_path, name):
    """Bit for bit: every tensor, every logit; GPTQ calibrated anew on the run's recorded rows."""
    trained(small_base, name)
    model, rows = restored(tmp_path / "x", 4)
    run = open_run(tmp_path / "x")
    before = load_trained(run, run.config, torch.float32, "cpu")
    assert before.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in before.state_dict().items())
    assert torch.equal(before(TOKENS), model(TOKENS))
    assert rows[0].state == State("restored", 4, note="the width it was trained on")
    assert rows[0].state.key == "restored-4bit"
    assert rows[0].state.title == "restored, 4 bits (the width it was trained on)" and rows[0].restoration_ratio == 0
    other, _ = restored(tmp_path / "x", 2)
    assert (other(TOKENS) - model(TOKENS)).abs().max() > 1e-4  # control


@pytest.mark.parametrize("name", quick([*QUANTIZED, "lora", "blora"], "qlora", "qablora", "lora"))
def test_restoring_16_bits_is_the_adapter_on_the_original_base(small_base, tmp_path, name):
    trained(small_base, name)
    model, rows = restored(tmp_path / "x", 16)
    run = open_run(tmp_path / "x")
    by_hand = load_model(weight_files(small_base), load_config(small_base), torch.float32)
    attach_adapters(by_hand, run.config)
    load_adapter(by_hand, run)
    assert torch.equal(by_hand(TOKENS), model(TOKENS))
    assert not any(isinstance(module, QuantLinear) for module in model.modules())
    bare = load_model(weight_files(small_base), load_config(small_base), torch.float32)
    assert (bare(TOKENS) - model(TOKENS)).abs().max() > 1e-4  # control: the adapter counts
    layer, adapted = bare.model.layers[0].mlp.up_proj, model.model.layers[0].mlp.up_proj
    assert torch.allclose(adapted.weight(), layer.weight + adapted.adapter.delta_weight(), rtol=0, atol=1e-7)
    assert (rows[0].restoration_ratio == 0) == (name in ("lora", "blora"))


def test_every_width_is_a_row_and_those_not_above_the_trained_one_say_so(small_base, tmp_path, capsys):
    trained(small_base, "qablora", "--bits", "3")
    assert call(eval_script, "x", "--restore", "2", "8", "16", "3", "8") is None
    rows = rows_of(tmp_path / "x", "eval.json")
    assert list(rows) == ["base", "quantized", "trained", "merged-3bit", "restored-2bit", "restored-8bit",
                          "restored-16bit",
                          "restored-3bit"]
    assert [row["title"] for row in rows.values()] == [
        "base", "quantized base", "as trained", "merged, 3 bits", "restored, 2 bits (below the 3 it was trained on)",
        "restored, 8 bits", "restored, 16 bits", "restored, 3 bits (the width it was trained on)"]
    bits = {state: row["bits_per_weight"] for state, row in rows.items()}
    weights = sum(p.numel() for name, p in random_model(SMALL, torch.float32, 1).named_parameters() if "_proj" in name)
    levels = {n: 7 * n * 32 / weights for n in (8, 256)}
    assert bits["restored-8bit"] - bits["trained"] == pytest.approx(5 + levels[256] - levels[8])
    ratios = [rows[state]["restoration_ratio"] for state in list(rows)[-4:]]
    assert ratios[3] == 0 < ratios[1] < ratios[2] * 1.01 and ratios[0] > ratios[2]
    report = json.loads((tmp_path / "x" / "restoration.json").read_text())["restored-8bit"]
    assert sum(layer["bytes"] for layer in report["layers"]) == pytest.approx(
        bits["restored-8bit"] / 8 * sum(layer["weights"] for layer in report["layers"]))
    assert len(report["layers"]) == 7
    assert all(layer["ratio"] == pytest.approx(layer["base"] / layer["adapter"]) for layer in report["layers"])
    printed = capsys.readouterr().out
    assert "restored, 8 bits: ||W_l - W_k|| / ||delta_W|| is" in printed and "||W_l - W_k|| / ||delta_W||\n" in printed


@pytest.mark.slow
def test_the_l_bit_base_comes_closer_to_the_original_as_l_rises(small_base, tmp_path):
    trained(small_base, "qablora", "--bits", "2")
    original = load_model(weight_files(small_base), load_config(small_base),
                          torch.float32).model.layers[0].mlp.up_proj.weight
    bases = [restored(tmp_path / "x", bits)[0].model.layers[0].mlp.up_proj.base for bits in (2, 3, 4, 8)]
    errors = [(base.dequantize() - original).norm().item() for base in bases]
    assert all(narrow > 1.5 * wide for narrow, wide in pairwise(errors))


@pytest.mark.slow
def test_the_ratio_is_of_the_weights_themselves(small_base, tmp_path):
    """From the files alone: codes on disk, the checkpoint's weights, the adapter's numbers."""
    trained(small_base, "qlora", "--targets", "attention")
    call(eval_script, "x", "--restore", "16")
    layers = {layer["layer"]: layer
              for layer in json.loads((tmp_path / "x" / "restoration.json").read_text())["restored-16bit"]["layers"]}
    assert len(layers) == 7
    original, adapter = load_file(small_base / "model.safetensors"), load_file(tmp_path / "x" / "adapter.safetensors")
    base = load_model([tmp_path / "x" / "base.safetensors"], load_config(tmp_path / "x"), torch.float32)
    for name, layer in layers.items():
        change = original[f"{name}.weight"].float() - base.get_submodule(name).dequantize()
        assert layer["base"] == pytest.approx(change.norm().item(), rel=1e-5)
        if "self_attn" in name:
            assert layer["adapter"] == pytest.approx((adapter[f"{name}.B"] @ adapter[f"{name}.A"]).norm().item(),
                                                     rel=1e-5)
        else:
            assert layer["adapter"] == 0 and layer["ratio"] is None  # quantized, and restored, without an adapter


def test_a_restored_merged_model_is_a_model_of_its_own(small_base, tmp_path):
    """The adapter in the 8-bit base's offsets: codes and scales are those of min-max at 8 bits."""
    trained(small_base, "qablora")
    assert call(eval_script, "x", "--restore", "8", "16", "--merge") is None
    rows = rows_of(tmp_path / "x", "eval.json")
    assert rows["restored-8bit-merged"]["logit_difference"] < 1e-5
    assert rows["restored-8bit-merged"]["scores"] == rows["restored-8bit"]["scores"]
    assert 1e-6 < rows["restored-16bit-merged"]["logit_difference"] < 1e-2
    merged, original = load_file(tmp_path / "x" / "restored-8bit"
                                 / "model.safetensors"), load_file(small_base / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    expected = QuantLinear.from_weight(MinMax(8, Block(4, 8)).quantize(original[f"{name}.weight"]))
    assert torch.equal(merged[f"{name}.codes"], expected.codes) and torch.equal(merged[f"{name}.scale"], expected.scale)
    assert not torch.equal(merged[f"{name}.offset"], expected.offset.float())
    for bits, loss in ((8, rows["restored-8bit-merged"]), (16, rows["restored-16bit-merged"])):
        how = ["--quantizer", "none"] if bits == 8 else ["--method", "lora"]
        assert call(train_script, *how, "--model", f"x/restored-{bits}bit", *few("full"), "--out", f"y{bits}") is None
        assert rows_of(tmp_path / f"y{bits}")["base"]["validation_loss"] == pytest.approx(loss["validation_loss"],
                                                                                          abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("flags,how", [
    (["gptq"], "gptq:minmax@16x1"), (["minmax@4x8"], "minmax@4x8"),
    (["gptq:intminmax", "--calibration-rows", "9"], "gptq:intminmax@16x1"),
    (["gptq+act-order"], "gptq:minmax@16x1+act-order")])
def test_the_l_bit_base_may_be_of_any_quantizer(small_base, tmp_path, flags, how):
    trained(small_base, "qlora")
    assert call(eval_script, "x", "--restore", "8", "--restore-quantizer", *flags) is None
    state, row = list(rows_of(tmp_path / "x", "eval.json").items())[-1]
    assert row["title"] == f"restored, 8 bits ({how})" and state == "restored-8bit-" + re.sub("[:@+]", "-", how)


def test_a_run_on_a_16_bit_base_goes_down_to_gptq_bases(small_base, tmp_path):
    trained(small_base, "lora")
    assert call(eval_script, "x", "--restore", "4", "--restore-quantizer", "gptq@16x1") is None
    row = rows_of(tmp_path / "x", "eval.json")["restored-4bit-gptq-minmax-16x1"]
    assert row["title"] == "restored, 4 bits (gptq:minmax@16x1, below the 16 it was trained on)"


REFUSED = [
    ("peqa", ["--restore", "8"], "peqa does not transfer to another base: it trained a factor on each scale"),
    ("full", ["--restore", "8"], "puts another base under an adapter, and x has none"),
    ("qlora", ["--restore", "8"],
     "--restore 8: bits=8 is not possible with quantizer nf; allowed: 2, 3, 4 .see --restore-quantizer"),
    ("qablora", ["--restore", "7"], "--restore 7: bits=7 is not possible with quantizer minmax"),
    ("qlora", ["--restore", "4", "--merge"],
     "--merge with --restore 4: layer model.layers.0.self_attn.q_proj: an adapter merges into k bits only if"),
    ("qablora", ["--restore", "8", "--restore-quantizer", "minmax@5x1"], "block 5x1 .* does not divide layer"),
    ("qablora", ["--restore", "8", "--restore-quantizer", "minmax@five"],
     "--restore-quantizer: block 'five' is not of the form"),
    ("qablora", ["--restore", "8", "--restore-quantizer", "minmax@16x1", "--merge"],
     "here the tile is lam_in=4 x lam_out=8, the block n_in=16 x n_out=1"),
    ("qablora", ["--restore", "8", "--restore-quantizer", "minmax:nf"],
     "'minmax:nf' is not a way to quantize; the form is "),
    ("qablora", ["--restore", "8", "--restore-quantizer", "nf"],
     "--restore 8: bits=8 is not possible with quantizer nf"),
    ("qablora", ["--restore", "8", "--restore-quantizer", "minmax-4bit"], "names 4 bits: leave them out"),
    ("qablora", ["--merge"], "--merge goes with --restore only"), ("qablora", ["--restore-quantizer", "nf"],
                                                                   "--restore-quantizer goes with --restore only"),
    ("qlora-gptq", ["--restore", "8", "--merge"],
     "--merge with --restore 8: layer .* an adapter merges into k bits only if"),
    ("qlora-gptq", ["--restore", "8", "--act-order"], "--act-order comes from the run and cannot be changed"),
    ("qlora-gptq", ["--restore", "8", "--calibration-rows", "9"], "--calibration-rows: a base restored by gptq"),
    ("qablora", ["--restore", "16", "--restore-quantizer", "nf"],
     "--restore-quantizer goes with a width below 16 only"),
    ("qablora", ["--plot", "x.png"], "goes with --restore only"),
    ("qablora", ["--restore", "8", "--calibration-rows", "5"], "goes with gptq only"),
    ("qablora", ["--restore", "8", "--json", "."], "--json . is a directory"),
    ("qablora", ["--json", "t.json"], "--json is for the joint table of several runs")]


@pytest.mark.slow
@pytest.mark.parametrize("name,flags,message", REFUSED, ids=[" ".join((n, *f)) for n, f, _ in REFUSED])
def test_what_cannot_be_restored_is_refused_before_anything_is_loaded(small_base, monkeypatch, name, flags, message):
    trained(small_base, name, *(["--block", "16x1"] if name == "peqa" else []))
    forbid_loading(monkeypatch)
    assert re.search(message, call(eval_script, "x", *flags))


def test_other_weights_than_the_run_was_trained_from_are_an_error_with_both_fingerprints(small_base, tmp_path):
    shutil.copytree(small_base, tmp_path / "base")
    trained(tmp_path / "base", "qablora")
    expected = json.loads((tmp_path / "x" / "config.json").read_text())["fingerprints"]["base"]
    save_model(random_model(SMALL, torch.float32, seed=2), tmp_path / "base" / "model.safetensors", torch.float16)
    said = call(eval_script, "x", "--restore", "8")
    assert "is not what the run was trained from" in said and expected in said
    assert Source(tmp_path / "base").fingerprint in said


@pytest.mark.slow
def test_a_base_that_came_as_codes_has_no_other_width(small_base):
    trained(small_base, "qablora")
    call(train_script, "--model", "x/merged", "--quantizer", "none", *few("full"), "--out", "y")
    assert "x/merged, which y was trained from, holds codes (model.layers.0.self_attn.q_proj: 4 bits)" in call(
        eval_script, "y", "--restore", "8")


@pytest.mark.slow
def test_gptq_is_calibrated_on_what_the_run_recorded_or_not_at_all(small_base, tmp_path):
    (tmp_path / "text.txt").write_text("Some words to calibrate on, and some more. " * 100)
    trained(small_base, "qlora-gptq", "--calibration", "text.txt")
    assert call(eval_script, "x", "--restore", "8") is None
    assert json.loads((tmp_path / "x" / "restoration.json").read_text())["restored-8bit"]["gptq"]["calibration"][
        "source"].endswith("text.txt")
    (tmp_path / "text.txt").write_text("Other words. " * 100)
    assert "text.txt is no longer what the run was calibrated on" in call(eval_script, "x", "--restore", "8")


@pytest.fixture
def set_aside():
    """What exists when it is called is neither counted nor walked through at each count."""
    yield lambda: (gc.collect(), gc.freeze())
    gc.unfreeze()


def live_bytes() -> int:
    """Memory of every new tensor that Python can still reach, shared storage counted once."""
    gc.collect()
    tensors = [t for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter) and not t.is_meta]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.slow
@pytest.mark.parametrize("keeps_another_base", [False, True], ids=["as it is", "control"])
def test_memory_holds_one_base_at_a_time(small_base, tmp_path, monkeypatch, set_aside, keeps_another_base):
    """Beside a model that is loading or being scored there are a few layers' worth of bytes, never a second base.
    While a merged model is scored, the logits that it is compared with are there too. In the control the trained model
    is kept, and the same bound is broken."""
    config = LlamaConfig(**{**vars(SMALL), "num_hidden_layers": 4})
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    write_json(base / "config.json", config_to_json(config))
    save_model(random_model(config, torch.float32, seed=1), base / "model.safetensors", torch.float16)
    trained(base, "qablora")
    command = (eval_script, "x", "--restore", "3", "8", "16")
    assert call(*command, "--out", "before") is None  # what is made once and kept, such as tables that unpack 3 bits
    set_aside()
    seen, kept = [], []
    score, tensors, attach = restore.score_state, Weights.tensors, score_run.attach_adapters

    def scored(state, model, *rest):
        seen.append((state.key, live_bytes(), stored_bytes([model])))
        return score(state, model, *rest)

    def loading(weights, prefix=""):
        for name, tensor in tensors(weights, prefix):
            seen.append(("loading", live_bytes(), 0))
            yield name, tensor
    for module in (score_run, restore, scores):
        monkeypatch.setattr(module, "score_state", scored)
    monkeypatch.setattr(Weights, "tensors", loading)
    if keeps_another_base:
        monkeypatch.setattr(score_run, "attach_adapters", lambda model, *rest: kept.append(model)
                            or attach(model, *rest))
    assert call(*command) is None
    states = [state for state, _, _ in seen if state != "loading"]
    assert len(states) == 7 and sum(state == "loading" for state, _, _ in seen) > 5 * 30
    layer = 4 * config.hidden_size * config.intermediate_size  # the largest, in float32
    largest = max(size for _, _, size in seen)
    one_base = all(live <= (size or largest) + 6 * layer for state, live, size in seen
                   if not state.startswith("merged"))
    assert one_base != keeps_another_base
    # a second base would show
    assert 12 * layer < stored_bytes([load_model([tmp_path / "x" / "base.safetensors"], config, torch.float32)])


@pytest.mark.slow
@pytest.mark.parametrize("flags,label", [
    (["--restore", "3"], "restored, 3 bits (below the 4 it was trained on)"),
    (["--restore", "3", "--restore-quantizer", "icq"],
     "restored, 3 bits (icq@16x1+double-quant, below the 4 it was trained on)"),
    (["--restore", "8", "--restore-quantizer", "minmax"], "restored, 8 bits (minmax@16x1)")])
def test_double_quantization_goes_along_or_the_label_says_that_it_does_not(small_base, tmp_path, flags, label):
    trained(small_base, "qlora-double")
    assert call(eval_script, "x", *flags, "--test-limit", "2") is None
    assert label in [row["title"] for row in rows_of(tmp_path / "x", "eval.json").values()]
    model, _ = restored(tmp_path / "x", int(flags[1]), quantizer=flags[3] if len(flags) > 3 else None)
    kept = {type(layer.base.scale).__name__ for layer in adapted_layers(model).values()}
    assert kept == ({"Tensor"} if "minmax" in label else {"DoubleQuantized"})


@pytest.mark.slow
def test_a_run_that_starts_from_a_run_with_an_adapter_is_restored_too(small_base, tmp_path, capsys):
    """The k-bit base of a quantized run is its own file. The base of a 16-bit run is nowhere, and none is made."""
    trained(small_base, "lora", out="l")
    trained("l", "qablora", out="q")
    trained("l", "lora", out="ll")
    for run, ratio in (("q", True), ("ll", False)):
        assert call(eval_script, run, "--restore", "16") is None
        rows, state = rows_of(tmp_path / run, "eval.json"), "restored-16bit"
        assert rows[state]["title"] == "restored, 16 bits" + " (the width it was trained on)" * (run == "ll")
        assert (rows[state]["restoration_ratio"] is not None) == ratio
    assert rows[state]["validation_loss"] == rows["trained"]["validation_loss"]
    assert "is a run with an adapter, which would have to be merged first" in capsys.readouterr().out


@pytest.mark.slow
def test_codes_that_are_lost_are_not_replaced_by_other_weights(small_base, tmp_path):
    """Nor are those of a run that another one started from: they are part of its fingerprint."""
    trained(small_base, "qlora", out="q")
    trained("q", "qablora", out="r")
    lost = tmp_path / "q" / "base.safetensors"
    kept = lost.read_bytes()
    lost.unlink()
    for command in (["q"], ["q", "--restore", "4"]):
        assert "base.safetensors: no such file; it holds the codes that the run was trained on" in call(eval_script,
                                                                                                        *command)
    assert "is not what the run was trained from" in call(eval_script, "r", "--restore", "16")
    lost.write_bytes(kept)
    config = read_json(tmp_path / "r" / "config.json")
    config["fingerprints"]["base"] = Source(tmp_path / "q").fingerprint_without_codes  # as earlier runs have it
    write_json(tmp_path / "r" / "config.json", config)
    assert call(eval_script, "r", "--restore", "16") is None


def test_a_base_that_has_moved_is_found_where_model_says(small_base, tmp_path):
    shutil.copytree(small_base, tmp_path / "base")
    trained(tmp_path / "base", "qablora")
    (tmp_path / "base").rename(tmp_path / "moved")
    assert "no such model directory" in call(eval_script, "x", "--restore", "8")
    assert call(eval_script, "x", "--restore", "8", "--model", "moved") is None


@pytest.mark.slow
def test_what_an_older_run_quantized_is_what_is_restored(small_base, tmp_path):
    """Before --quantized-layers, a quantized run had codes in its targets alone. One on a 16-bit base had none."""
    trained(small_base, "qablora", "--targets", "attention", "--quantized-layers", "attention", out="q")
    trained(small_base, "lora", "--targets", "attention", out="l")
    for run, layers in (("q", 4), ("l", 7)):
        as_an_older_version_wrote_it(tmp_path / run, "quantized_layers")
        model, _ = restored(tmp_path / run, 3, quantizer="gptq@16x1" if run == "l" else None)
        assert sum(isinstance(module, QuantLinear) for module in model.modules()) == layers


# ---- several runs -------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_several_runs_make_table_1_figure_2_and_their_json(small_base, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="pip install -r requirements-extra.txt")
    for bits, seed in ((2, 0), (2, 1), (4, 0)):
        trained(small_base, "qlora-gptq", "--bits", str(bits), "--seed", str(seed), out=f"q{bits}-{seed}")
    trained(small_base, "lora", out="l")
    capsys.readouterr()
    assert call(eval_script, "q2-0", "q2-1", "q4-0", "l", "--restore", "3", "16", "--restore-quantizer",
                "gptq@16x1+act-order", "--plot", "plr.png") is None
    printed = capsys.readouterr().out
    head = next(line for line in printed.splitlines() if "16-bit LoRA" in line)
    assert re.sub(r"\s\s+", "|",
                  head.strip()) == "16-bit LoRA|4-bit QLoRA|4-bit PLR16|2-bit QLoRA|2-bit PLR3|2-bit PLR16"
    saved = json.loads((tmp_path / "plr.json").read_text())
    assert len(saved["runs"]) == 4 * 3 and saved["metric"] == "accuracy"
    average = {(a["trained_bits"], a["restored"], a["bits"]): a for a in saved["averages"]}
    # l < k: scored and saved, not in Table 1
    assert average[2, True, 16]["runs"] == 2 and average[4, True, 3]["runs"] == 1
    scores = [p["score"] for p in saved["runs"] if (p["trained_bits"], p["restored"], p["bits"]) == (2, True, 16)]
    assert average[2, True, 16]["score"] == pytest.approx(sum(scores) / 2)
    for run in ("q2-0", "q4-0", "l"):
        assert list(rows_of(tmp_path / run, "eval.json"))[0] == "trained"
        assert len(rows_of(tmp_path / run, "eval.json")) == 3
    assert (tmp_path / "plr.png").read_bytes()[:4] == b"\x89PNG"


def test_a_picture_that_cannot_be_made_is_refused_first(small_base, monkeypatch):
    trained(small_base, "qablora")
    forbid_loading(monkeypatch)
    with monkeypatch.context() as without:
        without.setitem(__import__("sys").modules, "matplotlib", None)
        assert "pip install -r requirements-extra.txt" in call(eval_script, "x", "--restore", "8", "--plot", "x.png")
    pytest.importorskip("matplotlib", reason="pip install -r requirements-extra.txt")
    assert "--plot x.txt: the name of a picture ends in .png, .svg, .pdf" in call(eval_script, "x", "--restore", "8",
                                                                                  "--plot", "x.txt")


@pytest.mark.slow
def test_runs_that_are_no_seeds_of_one_another_are_not_averaged(small_base, monkeypatch):
    for out, flags in (("a", []), ("b", ["--seed", "1", "--rank", "2"]), ("c", ["--seed", "1"])):
        trained(small_base, "qlora-gptq", *flags, out=out)
    shutil.copytree("c", "d")
    forbid_loading(monkeypatch)
    assert "b and a would be averaged as seeds of one another, but differ in --rank" in call(eval_script, "a", "b",
                                                                                             "--restore", "8")
    assert "a and a are the same run" in call(eval_script, "a", "c", "a", "--restore", "8")
    assert "d and c are the same run, seed 1 included" in call(eval_script, "a", "c", "d", "--restore", "8")
    assert "--requantize makes a row of one run's own table" in call(eval_script, "a", "c", "--restore", "8",
                                                                     "--requantize", "gptq")


@pytest.mark.slow
def test_every_run_is_checked_before_the_first_is_scored(small_base, monkeypatch):
    trained(small_base, "qablora")
    trained(small_base, "peqa", "--block", "16x1", out="p")
    forbid_loading(monkeypatch)
    assert "peqa does not transfer" in call(eval_script, "x", "p", "--restore", "8")


# ---- predictions and paired tests ---------------------------------------------------------------------------------

@pytest.mark.slow
def test_sft_then_ptq_then_qlora_is_three_commands_whose_states_compare_row_by_row(small_base, tmp_path, capsys):
    trained(small_base, "full", "--lr", "0.01", out="sft")
    trained("sft", "full", "--lr", "0.01", out="sft-more")
    trained("sft", "qlora", out="sft-qlora")
    trained("sft", "qlora-gptq", out="sft-gptq")
    trained(small_base, "qlora", out="qlora")
    assert call(eval_script, "sft", "sft-more", "sft-qlora", "sft-gptq", "qlora", "--json", "all.json") is None
    joint = json.loads((tmp_path / "all.json").read_text())
    named = dict(zip(joint["names"], joint["rows"], strict=True))
    for state in ("sft: as trained", "sft-more: as trained", "sft-qlora: quantized base", "sft-qlora: as trained",
                  "sft-gptq: as trained",
                  "qlora: as trained"):
        assert named[state]["title"] == state.partition(": ")[2]
    losses = {name: row["validation_loss"] for name, row in named.items()}
    assert losses["sft-qlora: base"] == losses["sft: as trained"] != losses["sft-qlora: quantized base"] != losses[
        "sft-gptq: quantized base"]
    capsys.readouterr()
    assert call(eval_script, "--compare", "sft", "sft-more", "sft-qlora:quantized", "sft-qlora", "--json",
                "p.json") is None
    printed = capsys.readouterr().out
    assert "banking77, 6 rows, each beside sft:trained" in printed and "sft-qlora:quantized" in printed
    assert "McNemar, exact" in printed
    assert [c["name"] for c in json.loads((tmp_path / "p.json").read_text())["comparisons"]] == [
        "sft-more:trained", "sft-qlora:quantized", "sft-qlora:trained"]


def with_answers(run, right: list[bool], state="trained"):
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    of_state = [line for line in lines if line["state"] == state]
    for line, good in zip(of_state, right, strict=True):
        line["score"] = float(good)
    Journal(run / "predictions.jsonl").rewrite({k: v for k, v in line.items() if k != CHECK} for line in lines)


def test_the_p_value_is_that_of_the_rows_on_disk(small_base, tmp_path):
    trained(small_base, "qablora", "--test-limit", "12")
    shutil.copytree(tmp_path / "x", tmp_path / "y")
    with_answers(tmp_path / "x", [True] * 2 + [False] * 10)
    with_answers(tmp_path / "y", [True] * 2 + [True] * 9 + [False])
    assert call(eval_script, "--compare", "x", "y", "--json", "p.json") is None
    result = json.loads((tmp_path / "p.json").read_text())["comparisons"][0]
    assert (result["only_a"], result["only_b"], result["p_value"]) == (9, 0, pytest.approx(2 / 2 ** 9))
    assert result["difference"] == pytest.approx(9 / 12) and result["low"] > 0


def test_predictions_say_what_was_written_for_each_row_and_add_up_to_the_score(small_base, tmp_path):
    trained(small_base, "qablora")
    rows = rows_of(tmp_path / "x")
    lines = [json.loads(line) for line in (tmp_path / "x" / "predictions.jsonl").read_text().splitlines()]
    assert {line["state"] for line in lines} == set(rows) and len(lines) == 6 * len(rows)
    for state, row in rows.items():
        assert row["scores"]["accuracy"] == pytest.approx(sum(line["score"] for line in lines
                                                              if line["state"] == state) / 6)
    assert {"state", "task", "row", "prompt", "gold", "text", "score", "marks"} <= lines[0].keys()
    assert lines[0]["prompt"].endswith("\nIntent:")
    call(eval_script, "x", "--restore", "8", "--test-limit", "2")  # scored anew: replaced; others stay; none twice
    again = [json.loads(line)["state"] for line in (tmp_path / "x" / "predictions.jsonl").read_text().splitlines()]
    assert {state: again.count(state) for state in again} == {**dict.fromkeys(rows, 2), "restored-8bit": 2}


def test_damaged_predictions_are_named_before_anything_is_scored(small_base, tmp_path, monkeypatch):
    trained(small_base, "qablora")
    lines = (tmp_path / "x" / "predictions.jsonl").read_text().splitlines()
    (tmp_path / "x" / "predictions.jsonl").write_text("\n".join([*lines[:2], lines[2].replace('"score"', '"points"')]))
    forbid_loading(monkeypatch)
    for command in (["x"], ["--compare", "x", "x"]):
        assert "predictions.jsonl, line 3: score is None, not a number" in call(eval_script, *command)


@pytest.mark.parametrize("arguments,message", [
    (["x"], "--compare needs at least two runs, as RUN or RUN:KEY"),
    (["x", "nowhere"], "nowhere: no predictions.jsonl there; python eval.py nowhere makes it"),
    (["x", "x:merged"], "holds no state 'merged'; it holds: base, quantized, trained, merged-4bit"),
    (["x", "y"],
     r"x:trained \(6 rows\) and y:trained \(3 rows\) were not scored on the same test rows \(row 3 is the first"),
    (["x", "x", "--bits", "3"], "takes no other flag than --json")])
def test_what_cannot_be_compared_is_refused(small_base, arguments, message):
    trained(small_base, "qablora")
    trained(small_base, "qablora", "--test-limit", "3", out="y")
    assert re.search(message, call(eval_script, "--compare", *arguments))


@pytest.mark.slow
def test_a_task_without_a_score_is_restored_but_not_drawn(small_base, tmp_path):
    pytest.importorskip("matplotlib", reason="pip install -r requirements-extra.txt")
    from tasks.pretrain import RECIPE
    for folder, (file, fields, _) in RECIPE.items():
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / file).write_text((json.dumps(dict.fromkeys(fields, "some words")) + "\n") * 12)
    (tmp_path / "data" / "wikitext2").mkdir()
    (tmp_path / "data" / "wikitext2" / "valid.txt").write_text(" = Title = \n\n words \n" * 3)
    trained(small_base, "qablora", "--task", "pretrain", "--data", "data", "--max-length", "159")
    assert call(eval_script, "x", "--restore", "8") is None
    assert "--task pretrain has no score here (0 test rows)" in call(eval_script, "x", "--restore", "8", "--plot",
                                                                     "x.png")
