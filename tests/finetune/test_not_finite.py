"""NaN and infinity are refused on every path, by the name of the tensor or layer; what was trained is kept."""
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import eval as eval_script
import sample as sample_script
import train as train_script
from finetune import loop
from model.checkpoint import load_model, save_model
from model.directory import load_config, weight_files
from model.finite import NotFinite, check_weights, damaged_weights, why_not_finite
from model.generate import Sampling, generate
from tests.cli import call, rows_of

NAN, INF = float("nan"), float("inf")
UP = "model.layers.0.mlp.up_proj.weight"


def load(path):
    return load_model(weight_files(path), load_config(path), torch.float32, "cpu")


def damaged(base, to, name, place=(0, 0), value=NAN, tied=True):
    shutil.copytree(base, to)
    if not tied:
        config = json.loads((to / "config.json").read_text())
        model = load(base)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.config = load_config(base).__class__(**{**vars(load_config(base)), "tie_word_embeddings": False})
        (to / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    else:
        model = load(base)
    with torch.no_grad():
        model.get_parameter(name)[place if model.get_parameter(name).ndim > 1 else place[0]] = value
    save_model(model, to / "model.safetensors", torch.float32)
    return to


def rows(tmp_path, texts=("lost my card",) * 30):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text, "category": "card_arrival"}) + "\n" for text in texts))
    return path


TEXT = "A text of some words that fills a window or two, and then goes on. " * 8
PIQA = {"goal": "open a jar", "sol1": "turn the lid", "sol2": "eat the lid", "label": 0}
ASKED = {
    "choices": ["--task", "piqa", "--test-data", "piqa.jsonl"],
    "generation": ["--task", "banking77", "--data", "rows.jsonl", "--test-data", "rows.jsonl", "--max-new-tokens", "2"],
    "perplexity": ["--task", "perplexity", "--test-data", "text.txt", "--max-length", "32"]}


@pytest.mark.parametrize("name", [UP, "model.norm.weight", "model.layers.0.self_attn.v_proj.weight",
                                  "model.layers.0.input_layernorm.weight"])
@pytest.mark.parametrize("value", [NAN, INF])
def test_every_path_refuses_a_damaged_model_by_its_tensor(small_base, tmp_path, elsewhere, name, value):
    model = damaged(small_base, tmp_path / "model", name, value=value)
    rows(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "piqa.jsonl").write_text(json.dumps(PIQA) + "\n")
    for kind, flags in ASKED.items():
        message = call(eval_script, "--model", model, *flags, "--out", kind)
        assert message.startswith("error: ") and name in message and "not finite" in message, kind
    assert name in call(sample_script, "--model", model, "--prompt", "x", "--max-new-tokens", "2")
    assert name in call(sample_script, "--model", model, "--prompt", "x", "--temperature", "1")
    for method in ("lora", "full"):
        message = call(train_script, "--method", method, "--model", model, "--data", "rows.jsonl", "--test-data",
                       "rows.jsonl", "--steps", "2", "--batch-size", "8", "--max-new-tokens", "2", "--out", "run")
        assert name in message and "the model is damaged" in message and "--lr" not in message
        assert not (tmp_path / "run").exists()


def test_a_whole_model_passes_every_path(small_base, tmp_path, elsewhere):
    """Control."""
    rows(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "piqa.jsonl").write_text(json.dumps(PIQA) + "\n")
    for kind, flags in ASKED.items():
        assert call(eval_script, "--model", small_base, *flags, "--out", kind) is None, kind


UNUSED = 4000


def test_an_embedding_that_no_row_reads_may_be_anything_and_one_that_is_read_may_not(small_base, tmp_path, elsewhere):
    model = load(damaged(small_base, tmp_path / "own", "model.embed_tokens.weight", (UNUSED, 3), tied=False))
    check_weights(model, {1, 2}, "x")
    with pytest.raises(NotFinite, match=f"x: model.embed_tokens.weight is not finite in the row of token {UNUSED}: "):
        check_weights(model, {1, UNUSED}, "x")
    tied = load(damaged(small_base, tmp_path / "tied", "model.embed_tokens.weight", (UNUSED, 3)))
    with pytest.raises(NotFinite, match="in the row of token 4000"):
        check_weights(tied, {1, 2}, "x")


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_damaged_token_of_held_out_rows_is_found_before_training(small_base, tmp_path, elsewhere, part, monkeypatch):
    """As of a token that was added and never trained, in a row that no training step reads."""
    from model.tokenizer import load_tokenizer
    used = load_tokenizer(small_base).encode("xylophone")[-1]
    model = damaged(small_base, tmp_path / "model", "model.embed_tokens.weight", (used, 0), tied=False)
    texts = ["lost my card"] * 29 + ["xylophone" if part == "validation" else "lost my card"]
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": "xylophone" if part == "test" else "a",
                                                     "category": "card_arrival"}) + "\n")
    message = call(train_script, "--method", "lora", "--model", model, "--data", rows(tmp_path, texts), "--test-data",
                   "test.jsonl", "--epochs", "3", "--batch-size", "8", "--max-new-tokens", "2", "--out", "run")
    assert f"model.embed_tokens.weight is not finite in the row of token {used}" in message
    assert not (tmp_path / "run").exists()


def cut_short(monkeypatch, fails_at_epoch):
    """Validation gives NaN from this epoch on."""
    real, calls = loop.mean_loss, []

    def mean_loss(*rest):
        calls.append(1)
        if len(calls) >= fails_at_epoch:
            raise NotFinite("the validation loss is not a number (nan): the output of somewhere is not finite")
        return real(*rest)
    monkeypatch.setattr(loop, "mean_loss", mean_loss)


ARGUMENTS = ["--method", "lora", "--epochs", "3", "--batch-size", "8", "--max-new-tokens", "2", "--out", "run"]


@pytest.mark.parametrize("epoch,kept", [(1, "what was trained in 4 steps; no validation loss of it is known"),
                                        (2, "what had the lowest validation loss so far")])
def test_a_validation_loss_that_is_no_number_stops_and_keeps_the_last_good(small_base, tmp_path, elsewhere, monkeypatch,
                                                                          epoch, kept):
    data = rows(tmp_path)
    with monkeypatch.context() as inside:
        cut_short(inside, epoch)
        message = call(train_script, *ARGUMENTS, "--model", small_base, "--data", data, "--test-data", data)
    assert message.startswith(f"error: after epoch {epoch}, step {4 * epoch}: the validation loss is not a number")
    assert f"Kept: {kept}" in message and "python eval.py run scores it, python export.py run" in message
    adapter = load_file("run/adapter.safetensors")
    assert all(t.isfinite().all() for t in adapter.values()) and any(t.abs().max() > 0 for t in adapter.values())
    assert call(eval_script, "run") is None
    assert "trained" in rows_of(tmp_path / "run", "eval.json")


def test_a_loss_that_becomes_nan_in_the_second_epoch_keeps_the_first(small_base, tmp_path, elsewhere, monkeypatch):
    data, real = rows(tmp_path), loop.summed_loss

    def summed_loss(model, examples):
        loss, n = real(model, examples)
        return (loss * NAN if model.training and len(steps) >= 6 else loss), n
    steps, one_step = [], loop.Trainer._one_step

    def counted(self, *rest):
        one_step(self, *rest)
        steps.append(1)
    with monkeypatch.context() as inside:
        inside.setattr(loop, "summed_loss", summed_loss)
        inside.setattr(loop.Trainer, "_one_step", counted)
        message = call(train_script, *ARGUMENTS, "--model", small_base, "--data", data, "--test-data", data)
    assert message.startswith("error: step 7: the gradient is not finite (loss nan)")
    assert "Kept: what had the lowest validation loss so far" in message and "eval.py run" in message


def test_a_learning_rate_that_is_too_large_names_what_overflows_and_the_remedy(small_base, tmp_path, elsewhere):
    data = rows(tmp_path)
    message = call(train_script, *ARGUMENTS, "--model", small_base, "--data", data, "--test-data", data, "--lr", "1e36",
                   "--warmup", "0")
    assert "not finite" in message and "model.layers.0." in message


def test_the_first_layer_that_overflows_is_named(small_base):
    """Finite weights, float16: 1e4 * 1e4 is above 65504. Control: float32 holds it."""
    model = load(small_base)
    with torch.no_grad():
        model.model.layers[0].mlp.gate_proj.weight.mul_(0).add_(1e2)
        model.model.layers[0].mlp.up_proj.weight.mul_(0).add_(1e2)
        model.model.layers[0].post_attention_layernorm.weight.fill_(60.0)
    prompt = [1, 5, 6]
    assert generate(model, [prompt], 2, [], 1)
    model.dtype = torch.float16
    for sampling in (None, Sampling()):
        with pytest.raises(NotFinite, match=r"model.layers.0.mlp.*: it overflows float16; try --dtype float32"):
            generate(model, [prompt], 2, [], 1, sampling=sampling)
    assert "model.layers.0.mlp" in why_not_finite(model, prompt)
    assert not list(damaged_weights(model, prompt))


def test_of_several_prompts_the_one_at_fault_is_named(small_base, tmp_path):
    model = load(damaged(small_base, tmp_path / "own", "model.embed_tokens.weight", (UNUSED, 3), tied=False))
    with pytest.raises(NotFinite, match=f"in the row of token {UNUSED}") as caught:
        generate(model, [[1, 5], [1, UNUSED, 6], [1, 7, 8, 9]], 2, [], 8)
    assert caught.value.row == 1
    assert len(generate(model, [[1, 5], [1, 7, 8, 9]], 2, [], 8)) == 2
