"""The configuration of a run: frozen, written and read back, and read from runs of the older format."""
import json
import re
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from pathlib import Path

import pytest

from adapters.lam import Lam
from finetune.command_line import train_parser
from finetune.config import BaseConfig, RunConfig, flag, flat
from finetune.config_json import FORMAT, config_json, run_config
from finetune.methods import METHODS
from finetune.resolve import resolve_run, with_values
from finetune.values import SaveEvery, StoredCodes
from model.hub import HubModel
from quant.grid import Block
from quant.spec import QuantSpec

PLACE = "/somewhere/base"


def resolved(*words) -> RunConfig:
    return resolve_run(train_parser().given([str(word) for word in words]))


def read_back(config: RunConfig) -> RunConfig:
    return run_config(json.loads(json.dumps({"format": FORMAT, "config": config_json(config)})), "x")


# ---- format 2 -------------------------------------------------------------------------------------------------------

VARIANTS = [
    *(["--method", method] for method in METHODS),
    ["--quantizer", "gptq", "--grid", "nf", "--double-quant", "--act-order", "--calibration", "text.txt", "--bits",
     "3"],
    ["--method", "qlora", "--requantize", "gptq:nf@16x2-3bit+act-order", "--calibration-rows", "9", "--targets", "mlp"],
    ["--method", "qlora", "--requantize", "minmax", "--bits", "2", "--block", "rowx1", "--quantized-layers", "all"],
    ["--method", "full", "--from-scratch", "--save-dtype", "bfloat16", "--model", PLACE, "--steps", "7", "--seed", "3"],
    ["--method", "qblora", "--lam", "4", "--operators", "interval", "--rank", "2", "--lora-alpha", "0.5", "--dropout",
     "0.1", "--scaling", "rslora"],
    ["--method", "qlora", "--merge-into", "codes", "--shard-base"],
    ["--method", "qlora", "--merge-into", "codes", "--keep-residual"],
    ["--method", "lota", "--omega", "9.5", "--rank", "12"],
    ["--method", "scaleoffset", "--distill"],
    ["--method", "peqa", "--distill", "0.25", "--distill-from", "org/name@main"],
    ["--quantizer", "none", "--lam", "32x8", "--model", "org/name@main", "--data", "org/rows@v1:a/b.csv"],
    ["--method", "lora", "--data", "a.jsonl", "--test-data", "b.jsonl", "--limit", "5", "--max-length", "9",
     "--max-new-tokens",
     "3", "--test-limit", "4", "--eval-batch-size", "1", "--batch-size", "9", "--micro-batch", "2", "--lr", "1e-7",
     "--epochs",
     "1", "--warmup", "0", "--clip", "2", "--weight-decay", "0.5", "--beta2", "0.9", "--save-every", "1",
     "--lr-schedule", "linear", "--eval-every", "50", "--patience", "3",
     "--gradient-checkpointing", "--dtype",
     "bfloat16"],
    ["--task", "gsm8k", "--protocol", "any", "--device", "cpu"]]


@pytest.mark.parametrize("words", VARIANTS, ids=" ".join)
def test_what_is_written_is_read_back(words):
    config = resolved(*words)
    assert read_back(config) == config
    assert len(set(f.name for f, _ in flat(config))) == len(list(flat(config)))  # names are unique over all parts
    before, after = ({f.name: value for f, value in flat(c)}
                     for c in (config, with_values(config, {"seed": 99, "rank": 7})))
    assert after == {**before, "seed": 99, "rank": 7}


def test_codes_of_a_base_are_written_and_read_back():
    config = with_values(resolved("--quantizer", "none", "--lam", "2"), {"codes": StoredCodes(8, Block(32, 1))})
    assert read_back(config) == config
    assert (config.base.bits, config.base.block, config.base.by_gptq) == (8, Block(32, 1), False)
    assert BaseConfig().bits == 16 and BaseConfig().block is None


def test_every_flag_of_a_part_is_in_the_variants():
    """A new field that no variant sets is read back as its default, which proves nothing."""
    given = {name for words in VARIANTS for name in train_parser().given(list(map(str, words)))}
    settable = {f.name for f, _ in flat(RunConfig()) if f.metadata.get("flag",
                                                                       True)} | {f.name for f in fields(QuantSpec)}
    assert settable == given | {"cuda_graphs"}  # which needs a GPU: the next test


def test_a_flag_for_gpus_is_read_back():
    config = with_values(resolved("--method", "lora"), {"cuda_graphs": True})
    assert read_back(config) == config and config.training.cuda_graphs


def test_fields_that_a_run_is_older_than_take_their_defaults():
    saved = config_json(resolved("--method", "blora"))
    del saved["adapter"]["operators"], saved["data"]["protocol"], saved["base"]["codes"]
    assert run_config({"format": FORMAT, "config": saved}, "x") == resolved("--method", "blora")


def test_a_newer_format_is_refused_by_name():
    with pytest.raises(ValueError,
                       match="runs/x: config.json has format 3, and this version reads up to 2: use a newer"):
        run_config({"format": 3, "config": config_json(RunConfig())}, "runs/x")


def test_a_device_that_is_not_here_gives_way_to_one_that_is(capsys):
    saved = config_json(resolved())
    saved["compute"]["device"] = "nonsense"
    assert run_config({"format": FORMAT, "config": saved}, "x").compute.device in ("cpu", "cuda")
    assert re.search(r"nonsense is not available here .*: (cpu|cuda) instead", capsys.readouterr().out)


@pytest.mark.parametrize("text,every", [("200", SaveEvery(200)), ("10m", SaveEvery(None, 10.0)),
                                        ("200,10m", SaveEvery(200, 10.0)), ("0.5m, 7", SaveEvery(7, 0.5))])
def test_save_every_takes_steps_minutes_or_both_and_is_read_back(text, every):
    config = resolved("--save-every", text)
    assert config.training.save_every == every == SaveEvery.parse(str(every))
    assert run_config({"format": FORMAT, "config": config_json(config)}, "x") == config


@pytest.mark.parametrize("text,message", [("0", "0 is not above 0"), ("10s", "'10s' is not a whole number"),
                                          ("m", "'' is not a number"), ("2,3", "2,3 says the same twice"),
                                          ("", "'' is")])
def test_a_wrong_save_every_is_refused(text, message):
    with pytest.raises(ValueError, match=rf"{message}.*: give steps \(200\), minutes \(10m\), or both"):
        SaveEvery.parse(text)


def test_a_run_that_saved_every_so_many_steps_still_does():
    saved = config_json(resolved())
    saved["training"]["save_every"] = 7
    assert run_config({"format": FORMAT, "config": saved}, "x").training.save_every == SaveEvery(7)
    assert resolved().training.save_every == SaveEvery(200, 10.0)


# ---- format 1 -------------------------------------------------------------------------------------------------------

COMMON = {"double_quant": False, "act_order": False, "calibration": None, "calibration_rows": 500, "requantize": None,
          "requantize_grid": None, "requantize_bits": None, "requantize_block": None, "targets": "all",
          "quantized_layers": "all", "task": "banking77", "protocol": None, "data": None, "test_data": None,
          "limit": None,
          "test_limit": 100, "eval_batch_size": 128, "max_new_tokens": None, "max_length": None, "dtype": "float32",
          "device": "cpu", "seed": 1, "from_scratch": False, "rank": 16, "lora_alpha": 16.0, "operators": "avgpool",
          "dropout": 0.0, "batch_size": 64, "micro_batch": 64, "epochs": 2, "steps": 20, "warmup": 0.05, "clip": 1.0,
          "weight_decay": 0.0, "beta2": 0.999, "save_every": 200, "save_dtype": None, "show_example": False,
          "resume": None}
# As the last version before format 2 wrote them, out of its runs of `train.py --method METHOD --steps 20 --seed 1 ...`.
OLD = {"qalora": {**COMMON, "method": "qalora", "model": PLACE, "quantizer": "gptq", "bits": 4, "block": "32x1",
                  "grid": "minmax", "lam": "32x1", "lr": 0.02, "out": "/somewhere/qalora"},
       "peqa": {**COMMON, "method": "peqa", "model": PLACE, "quantizer": "intminmax", "bits": 4, "block": "32x1",
                "grid": None, "lam": None, "lr": 0.03, "out": "/somewhere/peqa"},
       "full": {**COMMON, "method": "full", "model": PLACE, "quantizer": "none", "bits": 16, "block": None,
                "grid": None, "lam": None, "lr": 0.001, "out": "/somewhere/full"}}


def from_old(name, *unknown, **changed) -> RunConfig:
    flags = {key: value for key, value in {**OLD[name], **changed}.items() if key not in unknown}
    return run_config({"arguments": flags, "model_config": {}, "fingerprints": {"base": "0"}}, "x")


def as_asked(*words, **changed) -> RunConfig:
    """What the same command makes today."""
    return with_values(resolved("--model", PLACE, "--steps", 20, "--seed", 1, "--test-limit", 100, "--dtype", "float32",
                                "--device", "cpu", "--save-every", 200, *words), changed)


@pytest.mark.parametrize("name", OLD)
def test_a_run_of_format_1_is_what_its_command_makes_today(name):
    assert from_old(name) == as_asked("--method", name)


OLDER = {"method": "qlora", "quantizer": "nf", "block": "64x1", "grid": None, "lam": "1x1", "lr": 0.005}


@pytest.mark.parametrize("flags,words", [
    ({**OLDER, "double_quant": True, "bits": 3}, ["--method", "qlora", "--bits", 3, "--double-quant"]),
    ({**OLDER, "targets": "attention", "rank": 4, "lora_alpha": 8.0}, ["--method", "qlora", "--targets", "attention",
                                                                       "--rank", 4,
                                                                      "--lora-alpha", 8]),
    ({"act_order": True, "grid": "nf", "calibration": "/a/text.txt", "calibration_rows": 7},
     ["--method", "qalora", "--grid", "nf", "--act-order", "--calibration", "/a/text.txt", "--calibration-rows", 7]),
    ({**OLDER, "requantize": "gptq", "requantize_grid": "minmax", "requantize_bits": 4, "requantize_block": "32x1"},
     ["--method", "qlora", "--requantize", "gptq"]),
    ({**OLDER, "requantize": "gptq", "requantize_grid": "nf", "requantize_bits": 3, "requantize_block": "16x2",
      "act_order": True},
     ["--method", "qlora", "--requantize", "gptq:nf@16x2-3bit+act-order"]),
    ({**OLDER, "requantize": "rounding", "requantize_grid": "minmax", "requantize_bits": 4, "requantize_block": "32x1"},
     ["--method", "qlora", "--requantize", "minmax@32x1"]),
    ({**OLDER, "requantize": "rounding", "requantize_grid": None, "requantize_bits": None, "requantize_block": None,
      "bits": 2},
     ["--method", "qlora", "--requantize", "minmax@32x1", "--bits", 2]),
    ({"method": "qablora", "quantizer": "minmax", "block": "4x8", "grid": None, "lam": "4x8", "data": "/a/rows.jsonl",
      "test_data": "org/name@0123:test.csv", "model": "org/name@0123"},
     ["--method", "qablora", "--task", "banking77", "--data", "/a/rows.jsonl", "--test-data", "org/name@0123:test.csv",
      "--model", "org/name@0123"])])
def test_flags_of_format_1_are_the_flags_of_today(flags, words):
    assert from_old("qalora", **flags) == as_asked(*words)


def test_an_older_16_bit_run_requantizes_to_4_bits():
    old = from_old("full", method="lora", lam="1x1", lr=0.005, requantize="gptq", requantize_grid="minmax",
                   requantize_bits=None, requantize_block="32x1")
    assert old == as_asked("--method", "lora", "--requantize", "gptq")
    assert old.evaluation.requantize == QuantSpec.of("gptq", 4)


def test_codes_of_a_gguf_base_stood_where_those_of_a_quantizer_stand():
    old = from_old("full", method="qablora", model="/a/x.gguf", bits=8, block="32x1", lam="32x1", lr=0.02)
    assert old.base.codes == StoredCodes(8, Block(32, 1)) and old.base.quantization is None
    assert (old.base.bits, old.base.block, old.adapter.lam, old.base.model) == (8, Block(32, 1), Lam(32, 1),
                                                                                Path("/a/x.gguf"))
    assert old == with_values(as_asked("--quantizer", "none", "--lam", "32x1"),
                              {"codes": old.base.codes, "model": old.base.model})


def test_before_quantized_layers_a_quantized_run_had_codes_in_its_targets_alone():
    assert from_old("qalora", "quantized_layers", targets="attention").base.quantized_layers == "attention"
    assert from_old("qalora", targets="attention").base.quantized_layers == "all"
    assert from_old("full", "quantized_layers", method="lora", lam="1x1", targets="mlp").base.quantized_layers == "all"


def test_a_run_without_the_newer_flags_has_their_defaults():
    newer = ("operators", "grid", "double_quant", "act_order", "calibration", "calibration_rows", "protocol",
             "requantize",
             "requantize_grid", "requantize_bits", "requantize_block", "quantized_layers")
    assert from_old("qalora", *newer) == as_asked("--method", "qalora")


def test_a_model_of_the_hub_stays_one():
    assert from_old("full", model="org/name@main").base.model == HubModel("org/name", "main")


# ---- frozen ---------------------------------------------------------------------------------------------------------

def parts(config) -> list:
    return [config, *(part for f in fields(config) for value in [getattr(config, f.name)]
                      if is_dataclass(value) for part in parts(value))]


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_assigned_to_a_configuration(method):
    config = resolved("--method", method)
    every = parts(config)
    assert len(every) >= 7
    for part in every:
        for f in fields(part):
            with pytest.raises(FrozenInstanceError):
                setattr(part, f.name, getattr(part, f.name))
    with pytest.raises(FrozenInstanceError):
        config.added = 1
    assert replace(config) == config and hash(config) == hash(replace(config))


# ---- --help ---------------------------------------------------------------------------------------------------------

def entries() -> dict[str, str]:
    """Flag -> its text in --help, without line breaks."""
    found, name = {}, None
    for line in train_parser().format_help().partition("\noptions:")[2].splitlines():
        if start := re.match(r"  (--[a-z0-9-]+)", line):
            name = start[1]
        if line and not line.startswith("  "):
            name = None  # the head of a group
        if name:
            found[name] = f"{found.get(name, '')} {line.strip()}"
    return {name: " ".join(text.split()) for name, text in found.items()}


def test_every_flag_has_a_help_text_and_one_default(monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    shown = entries()
    described = {f.name: f for f, _ in flat(RunConfig())
                 if f.metadata.get("flag", True)} | {f.name: f for f in fields(QuantSpec)}
    assert len(described) > 40 and len(shown) > len(described)
    assert max(text.count("default") for text in shown.values()) == 1
    for name, f in described.items():
        text = shown[flag(name)]
        assert len(f.metadata["help"].split()) >= 3 and f.metadata["help"] in text, name
        assert text.count("default:") == (f.default is not False), name
        assert re.search(r"\(default: [^\s)]", text) or f.default is False, f"{name} has no default in --help"
    for name in shown.keys() - set(map(flag, described)):
        assert len(shown[name].split()) > 3 and shown[name].count("default:") <= 1, name


def test_a_percent_sign_and_a_default_that_depends_are_written_out(monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    shown = entries()
    assert "(default: qablora)" in shown["--method"] and "(default: 500)" in shown["--calibration-rows"]
    assert "(default: that of method, tile, scaling and width)" in shown["--lr"]
    assert "(default: cuda if there is one, else cpu)" in shown["--device"]
    assert "None" not in " ".join(shown.values()) and "%%" not in " ".join(shown.values())


def test_steps_go_before_epochs_and_it_is_said(capsys):
    assert resolve_run(train_parser().given(["--steps", "4", "--epochs", "3"])).training.steps == 4
    assert "--epochs 3 has no effect: --steps 4 goes before it" in capsys.readouterr().err
