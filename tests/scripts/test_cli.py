"""train.py and eval.py as a user runs them, on a very small model."""
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import eval as eval_script
import train as train_script
from finetune import adapted_model
from finetune.methods import METHODS
from model.checkpoint import load_model, random_model, save_model
from model.config_json import config_to_json
from model.directory import load_config, weight_files
from model.files import write_json
from quant.linear import QuantLinear
from tests.cli import FEW, SMALL, call, few, interrupted_after, rows_of, train_once

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.mark.parametrize("method,states", [
    ("full", ["base", "trained"]), ("lora", ["base", "trained", "merged-16bit"]),
    ("blora", ["base", "trained", "merged-16bit"]),
    ("qlora", ["base", "quantized", "trained", "merged-16bit"]),
    ("qblora", ["base", "quantized", "trained", "merged-16bit"]),
    ("irqlora", ["base", "quantized", "trained", "merged-16bit"]),
    ("qalora", ["base", "quantized", "trained", "merged-4bit"]),
    ("qablora", ["base", "quantized", "trained", "merged-4bit"]),
    ("peqa", ["base", "quantized", "trained", "merged-4bit"]),
    ("lota", ["base", "quantized", "trained", "merged-4bit"]),
    ("scaleoffset", ["base", "quantized", "trained", "merged-4bit"])])
def test_a_run_of_every_method_ends_with_its_table(small_base, tmp_path, capsys, method, states):
    rate = ("--lr", "0.01") if METHODS[method].lr else ()
    assert call(train_script, "--method", method, "--model", small_base, *rate, *few(method), "--out", "x") is None
    run = tmp_path / "x"
    rows = rows_of(run)
    assert list(rows) == states
    assert rows["trained"]["validation_loss"] != rows["base"]["validation_loss"]
    printed = capsys.readouterr().out
    assert all(rows[state]["title"] in printed for state in states) and "accuracy" in printed
    assert {"base": "base", "quantized": "quantized base", "trained": "as trained", "merged-4bit": "merged, 4 bits",
            "merged-16bit": "merged, 16 bits (float16)"}.items() >= {state: rows[state]["title"]
                                                                     for state in states}.items()
    assert (run / ("model" if method == "full" else "adapter")).with_suffix(".safetensors").is_file()
    assert len([line for line in (run / "metrics.jsonl").read_text().splitlines() if "gradient_norm" in line]) == 3
    if "merged-4bit" in rows:
        assert rows["merged-4bit"]["logit_difference"] < 1e-5
        assert rows["merged-4bit"]["scores"] == rows["trained"]["scores"]
    call(eval_script, "x")
    again = rows_of(run, "eval.json")
    for state in states:
        assert {k: v for k, v in again[state].items() if k != "seconds"} == {k: v for k, v in rows[state].items()
                                                                             if k != "seconds"}


@pytest.mark.slow
def test_the_same_command_twice_gives_the_next_free_name_and_the_same_numbers(small_base, tmp_path):
    for _ in range(2):
        assert call(train_script, "--model", small_base, *FEW) is None
    first, second = (tmp_path / "runs" / f"qablora-4bit-banking77-{i}" for i in (1, 2))
    assert (first / "adapter.safetensors").read_bytes() == (second / "adapter.safetensors").read_bytes()
    assert (first / "merged" / "model.safetensors").read_bytes() == (second / "merged"
                                                                     / "model.safetensors").read_bytes()


def test_the_merged_model_is_a_model_directory_with_the_bases_own_codes(small_base, tmp_path):
    train_once(small_base, *FEW)
    merged = load_model(weight_files(tmp_path / "x" / "merged"), load_config(tmp_path / "x" / "merged"), torch.float32)
    base, tensors = load_file(tmp_path / "x" / "base.safetensors"), merged.state_dict()
    codes = [name for name in base if name.endswith((".codes", ".scale", ".levels"))]
    assert len(codes) == 3 * 7 and all(torch.equal(base[name], tensors[name]) for name in codes)
    assert all(isinstance(merged.get_submodule(n[:-6]), QuantLinear) for n in codes if n.endswith(".codes"))
    assert call(eval_script, "--model", "x/merged", "--limit", "40", "--test-limit", "4", "--max-new-tokens",
                "2") is None
    assert call(train_script, "--model", "x/merged", "--quantizer", "none", *few("full"), "--out", "y") is None
    assert "merged-4bit" in rows_of(tmp_path / "y")  # QA-BLoRA on codes as they are, with the block they bring


@pytest.mark.slow
def test_a_run_is_a_model(small_base, tmp_path):
    """SFT, then quantized fine-tuning from it; then a start from that adapter run, merged."""
    call(train_script, "--method", "full", "--model", small_base, *few("full"), "--out", "sft")
    assert call(train_script, "--method", "qlora", "--model", "sft", *FEW, "--out", "q") is None
    assert rows_of(tmp_path / "q")["base"]["validation_loss"] == pytest.approx(
        rows_of(tmp_path / "sft")["trained"]["validation_loss"], abs=1e-6)
    assert call(train_script, "--method", "lora", "--model", "q", *few("lora"), "--out", "l") is None
    assert rows_of(tmp_path / "l")["base"]["validation_loss"] == pytest.approx(
        rows_of(tmp_path / "q")["merged-16bit"]["validation_loss"], abs=1e-6)


def test_a_q_blora_run_whose_lam_is_a_multiple_of_the_block_merges_into_k_bits(small_base, tmp_path):
    arguments = [a if a != "16x1" else "4x8" for a in FEW]
    assert call(train_script, "--method", "qblora", "--lam", "8", "--model", small_base, *arguments, "--out",
                "x") is None
    assert rows_of(tmp_path / "x")["merged-4bit"]["logit_difference"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "qablora"])
def test_an_interrupted_run_is_resumed_by_name(small_base, tmp_path, monkeypatch, method):
    arguments = ["--method", method, "--model", small_base, *few(method), "--steps", "5", "--save-every", "2"]
    call(train_script, *arguments, "--out", "whole")
    with interrupted_after(3, monkeypatch):
        assert "train.py --resume cut" in call(train_script, *arguments, "--out", "cut")
    assert call(train_script, "--resume", "cut") is None
    name = "model.safetensors" if method == "full" else "adapter.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 5]  # no step twice; the last line is the epoch's


BAD = [
    (["--method", "qlra"], "argument --method: invalid choice: 'qlra'"),
    (["--bits", "7"], "bits=7 is not possible with quantizer minmax; allowed: 2, 3, 4, 5, 6, 8"),
    (["--method", "qlora", "--bits", "8"], "bits=8 is not possible with quantizer nf; allowed: 2, 3, 4"),
    (["--method", "lora", "--bits", "4"], "use --method qlora"),
    (["--method", "full", "--lam", "2"], "--lam does not go with --method full, which has no adapter"),
    (["--block", "5x8"], "block 5x8 .* does not divide layer model.layers.0.self_attn.q_proj with D_in=32, D_out=32"),
    (["--block", "4x3"], "block 4x3 .* does not divide layer"),
    (["--block", "four"], "block 'four' is not of the form"),
    (["--method", "qblora", "--block", "16x1", "--lam", "24"],
     r"D_in=32 is not a multiple of lam_in=24 \(layer model.layers.0.self_attn.q_proj"),
    (["--method", "qlora", "--block", "16x1", "--lam", "2"], "use blora"), (["--lam", "0"], "lam '0'"),
    (["--model", "nowhere"], "nowhere: no such model directory"),
    (["--model", __file__], "test_cli.py: is a file; give the model directory that holds it, or a GGUF file"),
    (["--data", "nowhere.jsonl"], "nowhere.jsonl: no such data file"),
    (["--task", "sql-create-context"], "--task sql-create-context needs --data"),
    (["--resume", "nowhere"], "no run there"),
    (["--from-scratch"], "--from-scratch does not go with --method qablora"),
    (["--max-length", "3"], "rows to train on"),
    (["--save-dtype", "float16"], "--save-dtype does not go with"),
    (["--method", "full", "--rank", "4"], "--rank does not go with"),
    (["--max-new-tokens", "500"], "has 160 positions: too few"),
    (["--max-length", "161"], "has 160 positions: too few"),
    (["--seed", "99999999999999999999"], "--seed: 99999999999999999999 is not in"),
    (["--resume", "x", "--lr", "1"], "--lr too: give it alone"),
    (["--rank", "0"], "--rank: 0 is not above 0"), (["--lr", "nan"], "--lr: nan is not above 0"),
    (["--dropout", "1"], r"--dropout: 1 is not in \[0, 1\)"),
    (["--device", "nonsense"], "nonsense is not available here"),
    (["--operators", "average"], "--operators: invalid choice"), (["--method", "lora", "--operators", "interval"],
                                                                  "--operators does not go with --method lora"),
    (["--method", "peqa", "--rank", "4"], "--rank does not go with --method peqa"),
    (["--method", "peqa", "--dropout", "0.1"], "--dropout does not go with"),
    (["--method", "peqa", "--quantizer", "nf"], "integer zero points, which nf is not"),
    (["--method", "irqlora", "--block", "16x1", "--rank", "12"],
     "layer model.layers.0.self_attn.q_proj: rank 12 does not divide both D_in=32 and D_out=32"),
    (["--method", "qalora", "--block", "4x8"], "layer .*lam 4x8 is not possible with qalora"),
    (["--double-quant"], "quantizer minmax does not keep: use nf or icq"),
    (["--grid", "nf"], "--grid nf is for --quantizer gptq only; minmax is a grid itself"),
    (["--act-order"], "--act-order is for gptq only, and the quantizer is minmax"),
    (["--quantizer", "gptq", "--grid", "nf", "--bits", "8"], "bits=8 is not possible with quantizer nf"),
    (["--quantizer", "gptq", "--calibration", "nowhere.txt"], "--calibration .*nowhere.txt: no such text file"),
    (["--quantized-layers", "mlp"], "--targets all adapts layers that --quantized-layers mlp leaves in 16 bits"),
    (["--method", "lora", "--quantized-layers", "mlp"],
     "--act-order and --quantized-layers do not go with it; use --method qlora"),
    (["--method", "full", "--requantize", "gptq"], "--requantize does not go with --method full"),
    (["--requantize-grid", "nf"], "unrecognized arguments: --requantize-grid nf"),
    (["--method", "qlora", "--requantize", "rounding"],
     "--requantize: 'rounding' is not a way to quantize; the form is "),
    (["--method", "qlora", "--requantize", "minmax+act-order"],
     "--requantize: --act-order is for gptq only, and the quantizer is minmax"),
    (["--method", "qlora", "--block", "16x1", "--requantize", "gptq-7bit"],
     "bits=7 is not possible with quantizer minmax"),
    (["--method", "qlora", "--block", "16x1", "--requantize", "gptq@5x1"], "block 5x1 .* does not divide layer"),
    (["--block", "rowx1"], "give --lam"),
    (["--method", "lora", "--double-quant"],
     "--act-order and --quantized-layers do not go with it; use --method qlora"),
    (["--method", "peqa", "--quantizer", "none"], "has no integer zero points"),
    (["--quantizer", "none", "--grid", "nf"], "--grid does not go with it"),
    (["--limit", "many"], "--limit: 'many' is not a whole number"),
    (["--quantizer", "none", "--block", "4x8"], "keeps the base as it is: --block does not go with it")]


@pytest.mark.parametrize("arguments,message", BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_clear_line_before_anything_is_written(small_base, tmp_path, arguments, message):
    model = [] if "--model" in arguments or "--resume" in arguments else ["--model", small_base]
    said = call(train_script, *model, *arguments)
    assert said and "\n" not in said
    assert re.search(message, said)
    assert not list(tmp_path.iterdir())


def spoil(base: Path, to: Path, file: str, text: str) -> Path:
    shutil.copytree(base, to)
    (to / file).write_text(text)
    return to


def test_a_tokenizer_of_another_vocabulary_is_refused_before_anything_is_written(small_base, tmp_path):
    config = json.dumps({**config_to_json(SMALL), "vocab_size": 100})
    base = spoil(small_base, tmp_path / "base", "config.json", config)
    save_model(random_model(load_config(base), torch.float32, seed=1), base / "model.safetensors", torch.float16)
    assert "but config.json says vocab_size 100" in call(train_script, "--model", base, *FEW, "--out", "x")
    assert not (tmp_path / "x").exists()


def test_weights_that_cannot_be_quantized_leave_no_directory_behind(small_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    model = random_model(SMALL, torch.float32, seed=1)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 3] = float("nan")
    save_model(model, base / "model.safetensors", torch.float16)
    assert "layer model.layers.0.mlp.up_proj" in call(train_script, "--model", base, *FEW, "--out", "x")
    assert not (tmp_path / "x").exists()


def test_codes_do_not_train(small_base, tmp_path):
    train_once(small_base, *FEW)
    assert "needs a dense base" in call(train_script, "--model", "x/merged", "--method", "full", "--out", "y")
    assert "is quantized already" in call(train_script, "--model", "x/merged", "--method", "qlora", "--out", "y")


@pytest.mark.slow
def test_layers_that_stay_codes_after_a_merge_are_noticed(small_base, tmp_path):
    train_once(small_base, *FEW)
    call(train_script, "--method", "lora", "--model", "x/merged", "--targets", "attention", *few("lora"), "--out", "y")
    said = call(train_script, "--method", "qlora", "--model", "y", *FEW, "--out", "z")
    assert "is quantized already (model.layers.0.mlp" in said


@pytest.mark.slow
@pytest.mark.parametrize("flags,quantized", [([], 7), (["--quantized-layers", "attention"], 4)])
@pytest.mark.parametrize("quantizer", ["minmax", "gptq"])
def test_targets_get_adapters_and_quantized_layers_get_codes(small_base, tmp_path, quantizer, flags, quantized):
    assert call(train_script, "--model", small_base, *FEW, "--quantizer", quantizer, "--targets", "attention", *flags,
                "--out", "x") is None
    names = {n.rpartition(".")[0] for n in load_file(tmp_path / "x" / "adapter.safetensors")}
    assert names == {f"model.layers.0.self_attn.{p}_proj" for p in "qkvo"}
    codes = {n.removesuffix(".codes") for n in load_file(tmp_path / "x" / "base.safetensors") if n.endswith(".codes")}
    assert names <= codes and len(codes) == quantized
    assert "merged-4bit" in rows_of(tmp_path / "x")


def test_bits_a_weight_and_megabytes_are_what_is_stored(small_base, tmp_path):
    """Block 4x8: 4 + 16/32 + 16/32 = 5; with H beside it 32/32 more; merged, the offset in float32, 5.5. The levels of
    each layer (16 of 4 bytes) come on top, which shows in layers as small as these."""
    arguments = [a if a != "16x1" else "4x8" for a in FEW]
    train_once(small_base, *arguments)
    rows = rows_of(tmp_path / "x")
    weights = sum(p.numel() for n, p in random_model(SMALL, torch.float32, 1).named_parameters() if "_proj" in n)
    levels = 7 * 16 * 32 / weights
    for state, bits in (("base", 16), ("quantized", 5 + levels), ("trained", 6 + levels),
                        ("merged-4bit", 5.5 + levels)):
        assert rows[state]["bits_per_weight"] == pytest.approx(bits)
    rest = 2 * (4096 * 32 + 3 * 32)
    assert rows["base"]["megabytes"] == pytest.approx((2 * weights + rest) / 1e6)
    assert rows["quantized"]["megabytes"] == pytest.approx(((5 + levels) * weights / 8 + rest) / 1e6)


def test_the_logit_difference_is_measured_not_assumed(small_base, tmp_path, monkeypatch):
    """A merge to float16 rounds, and shows; a merge that goes wrong shows plainly."""
    train_once(small_base, "--method", "qlora", *FEW)
    assert 1e-6 < rows_of(tmp_path / "x")["merged-16bit"]["logit_difference"] < 1e-2
    right = adapted_model.merge_into_codes

    def wrong(adapted, layer):
        merged = right(adapted, layer)
        merged.offset = merged.offset + 0.1
        return merged
    monkeypatch.setattr(adapted_model, "merge_into_codes", wrong)
    call(train_script, "--model", small_base, *FEW, "--out", "y")
    assert rows_of(tmp_path / "y")["merged-4bit"]["logit_difference"] > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "qablora"])
def test_eval_computes_every_row_in_the_type_it_is_given(small_base, tmp_path, method):
    train_once(small_base, "--method", method, *few(method), "--dtype", "float32")
    call(eval_script, "x", "--dtype", "bfloat16")
    before, after = rows_of(tmp_path / "x"), rows_of(tmp_path / "x", "eval.json")
    assert all(before[state]["validation_loss"] != after[state]["validation_loss"] for state in before)


def test_eval_of_an_unfinished_run_says_so_at_once(small_base, tmp_path):
    train_once(small_base, *FEW)
    (tmp_path / "x" / "adapter.safetensors").unlink()
    assert "go on with python train.py --resume x" in call(eval_script, "x")


@pytest.mark.slow
def test_a_damaged_state_is_named(small_base, tmp_path):
    train_once(small_base, *FEW)
    (tmp_path / "x" / "state" / "state.safetensors").write_bytes(b"nothing")
    assert "state.safetensors: damaged" in call(train_script, "--resume", "x")
    assert (tmp_path / "x" / "adapter.safetensors").is_file()


@pytest.mark.slow
def test_pretraining_from_scratch_makes_a_base(small_base, tmp_path):
    from tasks.pretrain import RECIPE
    for folder, (file, fields, _) in RECIPE.items():
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / file).write_text((json.dumps(dict.fromkeys(fields, "some words")) + "\n") * 12)
    (tmp_path / "data" / "wikitext2").mkdir()
    (tmp_path / "data" / "wikitext2" / "valid.txt").write_text(" = Title = \n\n words \n" * 3)
    new = tmp_path / "new"
    write_json(new / "config.json", {**config_to_json(SMALL), "max_position_embeddings": 256})
    shutil.copy(small_base / "tokenizer.model", new / "tokenizer.model")
    assert call(train_script, "--method", "full", "--from-scratch", "--model", "new", "--task", "pretrain", "--data",
                "data",
                "--steps", "2", "--batch-size", "2", "--save-dtype", "float16", "--out", "x") is None
    saved = load_file(tmp_path / "x" / "model.safetensors")
    assert {t.dtype for t in saved.values()} == {torch.float16} and list(rows_of(tmp_path / "x")) == ["trained"]
    shutil.copy(tmp_path / "x" / "model.safetensors", new / "model.safetensors")
    assert call(train_script, "--model", "new", *FEW, "--out", "y") is None


def test_an_out_that_holds_another_run_is_left_alone(small_base, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "precious").write_text("mine")
    assert "already holds something" in call(train_script, "--model", small_base, *FEW, "--out", "x")
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["precious"]


def test_a_damaged_base_is_named_before_training(small_base, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(small_base, broken)
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[:5000])
    assert "model.safetensors: damaged, or not a safetensors file" in call(train_script, "--model", broken, *FEW,
                                                                           "--out", "x")
    assert not (tmp_path / "x").exists()


def test_a_base_that_is_no_longer_what_the_run_was_trained_from_is_not_used(small_base, tmp_path, capsys):
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    call(train_script, "--method", "lora", "--model", base, *few("lora"), "--out", "x")
    save_model(random_model(SMALL, torch.float32, seed=2), base / "model.safetensors", torch.float16)
    assert "is not what the run was trained from: its sha256 is" in call(eval_script, "x")


def test_a_base_that_model_names_is_the_runs_base_or_an_error(small_base, tmp_path, capsys):
    """Without --model, a base that is gone costs its row only."""
    base = shutil.copytree(small_base, tmp_path / "base")
    call(train_script, "--model", base, *FEW, "--out", "x")
    other = shutil.copytree(small_base, tmp_path / "other")
    save_model(random_model(SMALL, torch.float32, seed=2), other / "model.safetensors", torch.float16)
    base.rename(tmp_path / "moved")
    assert call(eval_script, "x") is None and "no row for the base" in capsys.readouterr().out
    assert "is not what the run was trained from: its sha256 is" in call(eval_script, "x", "--model", other)
    assert "no row for the base" not in capsys.readouterr().out
    assert "other/none: no such model directory" in call(eval_script, "x", "--model", other / "none")
    assert call(eval_script, "x", "--model", "moved") is None and "base" in rows_of(tmp_path / "x", "eval.json")


@pytest.mark.slow
@pytest.mark.parametrize("limit,noted", [("6", False), ("5", True)])
def test_runs_that_were_scored_on_other_rows_are_not_side_by_side_without_a_word(small_base, tmp_path, capsys, limit,
                                                                                 noted):
    train_once(small_base, *FEW)
    train_once(small_base, *FEW, "--test-limit", limit, out="y")
    assert call(eval_script, "x", "y", "--without-base") is None
    assert ("note: y was not scored on the test rows of x" in capsys.readouterr().out) == noted


def test_eval_refuses_to_change_what_the_run_decides(small_base):
    train_once(small_base, *FEW)
    assert "--bits comes from the run" in call(eval_script, "x", "--bits", "3")


def test_eval_scores_a_model_and_its_quantized_twin(small_base, tmp_path, elsewhere, capsys):
    assert call(eval_script, "--model", small_base, "--quantizer", "nf", "--block", "16x1", "--bits", "2", "--limit",
                "40",
                "--test-limit", "4", "--max-new-tokens", "2") is None
    printed = capsys.readouterr().out
    assert "quantized base, 2 bits (nf@16x1)" in printed and "nf@16x1-2bit, banking77, 4 test rows" in printed
    kept = tmp_path / "evals" / f"{small_base.name}-banking77"
    assert list(rows_of(kept)) == ["base", "quantized-2bit-nf-16x1"]
    assert [row["counts"]["rows"] for row in rows_of(kept).values()] == [4, 4]
    assert len((kept / "predictions.jsonl").read_text().splitlines()) == 8 and not list(kept.glob("*.part.jsonl"))


@pytest.mark.slow
def test_a_tokenizer_json_model_and_sql_work_end_to_end(small_base, tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from tests.tasks.test_tasks import sql_file
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    (base / "tokenizer.model").unlink()
    vocabulary = {c: i + 3 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.save(str(base / "tokenizer.json"))
    sql_file(tmp_path / "train.jsonl")
    sql_file(tmp_path / "test.jsonl", 5)
    assert call(train_script, "--method", "qlora", "--model", base, "--task", "sql-create-context", "--data",
                "train.jsonl",
                "--test-data", "test.jsonl", *FEW, "--out", "x") is None
    assert "exact_match" in rows_of(tmp_path / "x")["trained"]["scores"]


@pytest.mark.slow
@pytest.mark.parametrize("config", [
    replace(SMALL, model_type="gemma2", activation="gelu_pytorch_tanh", sliding_window=16, windowed_layers=(0,),
            attention_softcap=50.0,
            final_softcap=30.0, query_pre_attn_scalar=16, zero_centered_norms=True, norms_after=True,
            embedding_scale=32 ** 0.5),
    replace(SMALL, model_type="qwen2", attention_bias=True), replace(SMALL, model_type="mistral", sliding_window=16,
                                                                     windowed_layers=(0,))],
    ids=lambda config: config.model_type)
def test_every_family_trains_and_its_merged_model_is_one_of_that_family(small_base, tmp_path, config):
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    write_json(base / "config.json", config_to_json(config))
    save_model(random_model(config, torch.float32, seed=1), base / "model.safetensors", torch.bfloat16)
    assert call(train_script, "--model", base, "--quantizer", "gptq", *FEW, "--out", "x") is None
    rows = rows_of(tmp_path / "x")
    assert rows["trained"]["validation_loss"] != rows["quantized"]["validation_loss"]
    assert rows["merged-4bit"]["logit_difference"] < 1e-5
    assert load_config(tmp_path / "x") == load_config(tmp_path / "x" / "merged") == config
    assert call(eval_script, "--model", "x/merged", "--limit", "40", "--test-limit", "4", "--max-new-tokens",
                "2") is None
