"""The forward pass equals the published implementation, and has the properties of a decoder."""
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.checkpoint import load_model, random_model
from model.config import LlamaConfig
from model.config_json import config_from_json, config_to_json
from model.directory import load_config, weight_files
from model.generate import generate
from model.llama import KVCache, Llama
from model.rotary import rotary_frequencies

FIXTURES = Path(__file__).parent.parent / "fixtures"
CASES = ["grouped_tied", "multi_head_untied_bias", "llama3_rope", "linear_rope_sharded", "llama1", "mistral_window",
         "mistral_sharded", "qwen2", "qwen2_window_bf16", "gemma2", "qwen2_yarn", "qwen3", "qwen3_yarn_sharded",
         "gemma3", "gemma3_untied_sharded", "gemma3_with_images", "smollm3", "smollm3_yarn_sharded", "phi3",
         "phi3_longrope_sharded", "granite", "granite_sharded"]
TINY = LlamaConfig(vocab_size=40, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
                   num_key_value_heads=2, head_dim=6, max_position_embeddings=64, eos_token_ids=(2,))


def tiny(**changes) -> Llama:
    """A float64 model whose weights are so large that attention is far from uniform."""
    model = random_model(replace(TINY, **changes), torch.float64, seed=0).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(15 if p.ndim == 2 else 1)
    return model.requires_grad_(False)


def tokens(B, T, seed=0):
    return torch.randint(3, 40, (B, T), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_published_implementation(case):
    """Within 1e-5 in float32: unpadded, padded on the left, padded on the right."""
    golden = load_file(FIXTURES / case / "golden.safetensors")
    model = load_model(weight_files(FIXTURES / case), load_config(FIXTURES / case), torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(model(golden["tokens"]), golden["logits"], rtol=0, atol=1e-5)
        for side in ("left", "right"):
            mask = golden[side].bool()
            logits = model(golden["tokens"], mask)
            torch.testing.assert_close(logits[mask], golden[f"logits_{side}"][mask], rtol=0, atol=1e-5)
    assert golden["logits"].std() > 0.1  # not a comparison of zeros


@pytest.mark.parametrize("case", CASES)
def test_greedy_generation_equals_the_published_implementation(case):
    golden = load_file(FIXTURES / case / "golden.safetensors")
    model = load_model(weight_files(FIXTURES / case), load_config(FIXTURES / case), torch.float32)
    prompt, expected = golden["tokens"][0, :8].tolist(), golden["generated"][0, 8:].tolist()
    assert generate(model, [prompt], 24, (), batch_size=1) == [expected]


def test_the_llama3_fixture_keeps_blends_and_divides_frequencies():
    """Otherwise the golden comparison would leave part of the formula untested."""
    config = load_config(FIXTURES / "llama3_rope")
    plain, scaled = rotary_frequencies(replace(config, rope_scaling=None)), rotary_frequencies(config)
    ratio = scaled / plain
    assert ratio.max() == 1 and ratio.min() == 1 / 8 and ((ratio > 1 / 8) & (ratio < 1)).sum() == 2


def test_a_config_survives_being_written_and_read():
    for case in CASES:
        config = load_config(FIXTURES / case)
        assert config_from_json(config_to_json(config), "again") == config
    assert load_config(FIXTURES / "grouped_tied").rms_norm_eps == 1e-2  # the golden logits depend on it


def test_classic_and_newer_config_keys_mean_the_same():
    newer = json.loads((FIXTURES / "llama3_rope" / "config.json").read_text())
    classic = {k: v for k, v in newer.items() if k not in ("rope_parameters", "dtype")}
    rope = dict(newer["rope_parameters"])
    classic |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "torch_dtype": "float32"}
    assert config_from_json(newer, "newer") == config_from_json(classic, "classic")


def test_absent_keys_take_the_first_llamas_values():
    raw = dict(vocab_size=8, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=4)
    config = config_from_json(raw, "x")
    assert (config.num_key_value_heads, config.head_dim) == (4, 4)
    assert (config.rope_theta, config.rope_scaling) == (10000.0, None)


@pytest.mark.parametrize("changes,message", [
    ({"model_type": "gpt2"}, "model_type 'gpt2'"), ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "rotary scaling 'dynamic'"),
    ({"num_key_value_heads": 3}, "not a multiple"), ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 2}}, "needs low_freq_factor"),
    ({"hidden_size": "32"}, "hidden_size is '32', but must be a positive integer")])
def test_a_config_that_this_forward_cannot_compute_is_refused(changes, message):
    raw = dict(vocab_size=8, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=4)
    with pytest.raises(ValueError, match=message):
        config_from_json({**raw, **changes}, "somewhere")


def test_a_token_never_sees_what_comes_after_it():
    model, a = tiny(), tokens(2, 12)
    b = a.clone()
    b[:, 7:] = tokens(2, 5, seed=1)
    difference = (model(a) - model(b)).abs().amax(dim=(0, 2))
    assert difference[:7].max() == 0 and difference[7:].min() > 1e-3


def test_only_relative_positions_matter():
    """All positions are shifted by the same amount. Padding on the left would not shift them."""
    model, t = tiny(), tokens(1, 10)
    import model.llama as llama
    original = llama.token_positions
    try:
        llama.token_positions = lambda *args: original(*args) + 17
        shifted = model(t)
    finally:
        llama.token_positions = original
    torch.testing.assert_close(shifted, model(t), rtol=0, atol=1e-6)  # the frequencies themselves are float32
    assert (model(t.flip(1)).flip(1) - model(t)).abs().max() > 1e-3  # and the order does matter


@pytest.mark.parametrize("cut", [1, 5, 11])
def test_cache_equals_no_cache(cut):
    model, t = tiny(), tokens(3, 12)
    cache = model.new_cache(3, 12)
    parts = [model(t[:, :cut], cache=cache), *(model(t[:, i:i + 1], cache=cache) for i in range(cut, 12))]
    torch.testing.assert_close(torch.cat(parts, 1), model(t), rtol=0, atol=1e-10)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_equals_unpadded(side):
    model, real, pad = tiny(), tokens(1, 9), tokens(1, 4, seed=3)
    padded = torch.cat((pad, real) if side == "left" else (real, pad), 1)
    mask = torch.ones_like(padded, dtype=torch.bool)
    place = slice(4, None) if side == "left" else slice(0, 9)
    mask[:, :4 if side == "left" else None] = side == "right"
    mask[:, 9:] = side == "left"
    mask[:, place] = True
    logits = model(padded, mask)
    torch.testing.assert_close(logits[:, place], model(real), rtol=0, atol=1e-10)
    assert logits.isfinite().all()
    if side == "left":  # control: without the mask the padding is read
        assert (model(padded)[:, place] - model(real)).abs().max() > 1e-3


def test_grouped_query_with_repeated_heads_is_multi_head():
    grouped = tiny()
    multi = tiny(num_key_value_heads=4)
    state = grouped.state_dict()
    for name in [n for n in state if "k_proj" in n or "v_proj" in n]:
        state[name] = state[name].unflatten(0, (2, 6)).repeat_interleave(2, 0).flatten(0, 1)
    multi.load_state_dict(state)
    torch.testing.assert_close(multi(tokens(2, 8)), grouped(tokens(2, 8)), rtol=0, atol=1e-10)


def test_tied_embeddings_are_one_tensor():
    model = tiny(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tiny().lm_head.weight is not tiny().model.embed_tokens.weight


def test_logits_at_chosen_places_are_those_of_the_whole():
    model, t = tiny(), tokens(3, 7)
    at = torch.rand(3, 7, generator=torch.Generator().manual_seed(0)) > 0.5
    torch.testing.assert_close(model(t, at=at), model(t)[at], rtol=0, atol=1e-12)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_last_mlp_reads_chosen_places_only_and_gradients_are_those_of_the_whole(checkpointing):
    model, t, places, seen = tiny(), tokens(3, 7), torch.tensor([2, 3, 8, 20]), []
    model.requires_grad_(True).checkpointing = checkpointing
    weights = [p for name, p in model.named_parameters() if name.startswith("model.layers.") and p.dim() == 2]
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[:-1])))
    chosen = model.hidden(t, places=places)
    assert seen == [(3, 7), (4,)]
    whole = model.hidden(t).flatten(0, 1)[places]
    torch.testing.assert_close(chosen, whole, rtol=0, atol=1e-12)
    grads = [torch.autograd.grad(x.square().sum(), weights) for x in (chosen, whole)]
    assert all(g.abs().max() > 1e-6 for g in grads[1])
    torch.testing.assert_close(*grads, rtol=0, atol=1e-10)


def test_generation_does_not_depend_on_the_batch_size():
    model = tiny()
    prompts = [tokens(1, n, seed=n)[0].tolist() for n in (3, 9, 5, 5, 12, 1)]
    alone = [generate(model, [p], 10, (7, 8), batch_size=1)[0] for p in prompts]
    for batch_size in (2, 4, 6):
        assert generate(model, prompts, 10, (7, 8), batch_size) == alone
    assert len({len(a) for a in alone}) > 1  # some stopped early, so the batch really shrank


def test_generation_is_the_argmax_of_the_full_forward():
    model, prompt = tiny(), tokens(1, 5)[0].tolist()
    written = generate(model, [prompt], 6, (), batch_size=1)[0]
    for i in range(6):
        assert model(torch.tensor([prompt + written[:i]]))[0, -1].argmax() == written[i]


def test_a_prompt_too_long_for_the_model_loses_its_left_end():
    model, prompt = tiny(), tokens(1, 100)[0].tolist()
    assert generate(model, [prompt], 4, (), 1) == generate(model, [prompt[-60:]], 4, (), 1)


def test_cache_rows_can_leave():
    cache = KVCache(TINY, 3, 4, torch.float32, torch.device("cpu"))
    cache.extend(0, torch.arange(3.0)[:, None, None, None].expand(3, 2, 1, 6), torch.zeros(3, 2, 1, 6))
    cache.keep_rows(torch.tensor([0, 2]))
    assert cache.keys[0, :, 0, 0, 0].tolist() == [0, 2]
