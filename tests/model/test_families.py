"""The families other than Llama: every field matters, configs are read and written, and the models train and merge."""
import json
import math
from dataclasses import replace
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters import ADAPTERS, adapted_layer
from adapters.adapted import replace_layers
from adapters.lam import Lam
from adapters.merge import merge_into_codes, merge_to_dense
from finetune.adapted_model import linear_names
from finetune.gptq_model import gptq_model
from finetune.quantize import quantized_layer
from model.checkpoint import load_model, random_model, save_model
from model.config import LlamaConfig
from model.config_json import config_from_json, config_to_json
from model.directory import load_config, weight_files
from model.llama import RMSNorm, ZeroCenteredRMSNorm, fused_attention, softcap, softcapped_attention
from model.rotary import attention_factor, rotary_frequencies
from model.stored_names import joined
from quant.grid import Block
from quant.linear import QuantLinear
from quant.minmax import MinMax
from tests.model.test_model import CASES, FIXTURES, TINY, tiny, tokens
from tests.strategies import nonzero_adapter, random

OF_FAMILIES = CASES[4:]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 8.0,
        "truncate": False, "mscale": 1.4, "mscale_all_dim": 0.7}  # that of the fixture qwen3_yarn_sharded
WINDOWED = {"model_type": "mistral", "sliding_window": 4, "windowed_layers": (0, 1)}
GEMMA2 = {"model_type": "gemma2", "activation": "gelu_pytorch_tanh", "sliding_window": 4, "windowed_layers": (0,),
          "query_pre_attn_scalar": 20, "attention_softcap": 5.0, "final_softcap": 4.0,
          "zero_centered_norms": True, "norms_after": True, "embedding_scale": 24 ** 0.5, "tie_word_embeddings": True}
QWEN3 = {"model_type": "qwen3", "qk_norm": True, "head_dim": 8}
GEMMA3 = {**GEMMA2, "model_type": "gemma3_text", "attention_softcap": None, "final_softcap": None, "qk_norm": True,
          "rope_local_theta": 100.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
SMOLLM3 = {"model_type": "smollm3", "unrotated_layers": (1,)}
PHI3 = {"model_type": "phi3", "head_dim": 8, "partial_rotary_factor": 0.5, "sliding_window": 4,
        "windowed_layers": (0, 1)}
GRANITE = {"model_type": "granite", "embedding_scale": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5,
           "logits_divisor": 0.4}
VARIANTS = [WINDOWED, GEMMA2, {"model_type": "qwen2", "attention_bias": True}, QWEN3, GEMMA3, SMOLLM3, PHI3, GRANITE]


def published(case, **changes):
    """The float32 model of a fixture, with `changes` to its config, and the golden tensors."""
    directory = FIXTURES / case
    model = load_model(weight_files(directory), replace(load_config(directory), **changes), torch.float32)
    return model, load_file(directory / "golden.safetensors")


# ---- the forward --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("case,changes", [
    ("mistral_window", {"sliding_window": None}), ("mistral_window", {"sliding_window": 7}),
    ("mistral_window", {"sliding_window": 5}),
    ("mistral_window", {"windowed_layers": (0,)}), ("mistral_window", {"rope_theta": 10000.0}),
    ("qwen2", {"rope_theta": 10000.0}), ("qwen2_window_bf16", {"sliding_window": None}),
    ("qwen2_window_bf16", {"windowed_layers": (0,)}), ("qwen2_window_bf16", {"windowed_layers": (0, 1)}),
    ("gemma2", {"windowed_layers": (1,)}), ("gemma2", {"windowed_layers": (0, 1)}),
    ("gemma2", {"sliding_window": None}), ("gemma2", {"attention_softcap": None}), ("gemma2", {"final_softcap": None}),
    ("gemma2", {"query_pre_attn_scalar": None}), ("gemma2", {"zero_centered_norms": False}),
    ("gemma2", {"embedding_scale": 1.0}), ("gemma2", {"activation": "silu"}),
    ("qwen2_yarn", {"rope_scaling": None}), ("qwen3_yarn_sharded", {"rope_theta": 10000.0}),
    *[("qwen3_yarn_sharded", {"rope_scaling": {**YARN, **changed}}) for changed in (
        {"mscale": 1.0, "mscale_all_dim": 1.0}, {"truncate": True}, {"beta_fast": 32.0})],
    ("gemma3", {"rope_local_theta": None}), ("gemma3", {"rope_scaling": None}), ("gemma3", {"rope_theta": 100.0}),
    ("gemma3", {"query_pre_attn_scalar": None}), ("gemma3", {"windowed_layers": (0, 1, 2, 3, 5)}),
    ("gemma3_untied_sharded", {"final_softcap": None}),
    ("smollm3", {"unrotated_layers": ()}), ("smollm3", {"unrotated_layers": (0,)}),
    ("smollm3_yarn_sharded", {"sliding_window": None}),
    ("phi3_longrope_sharded", {"sliding_window": None}), ("phi3_longrope_sharded", {"rope_scaling": None}),
    ("phi3_longrope_sharded", {"max_position_embeddings": 16}),
    ("granite", {"embedding_scale": 1.0}), ("granite", {"attention_multiplier": None}),
    ("granite", {"residual_multiplier": 1.0}), ("granite", {"logits_divisor": 1.0})])
def test_each_field_of_a_family_changes_its_logits(case, changes):
    """Controls of the golden comparison: each of these changes fails it."""
    model, golden = published(case, **changes)
    assert (model(golden["tokens"]) - golden["logits"]).abs().max() > 0.1


def test_qwen2s_biases_change_its_logits():
    model, golden = published("qwen2")
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.zero_()
    assert model.model.layers[0].self_attn.o_proj.bias is None
    assert (model(golden["tokens"]) - golden["logits"]).abs().max() > 0.1


@pytest.mark.parametrize("case", OF_FAMILIES)
def test_windows_are_shorter_than_what_the_golden_files_compare(case):
    """A window as long as the sequence would prove nothing; greedy text of one repeated token, little."""
    golden, window = load_file(FIXTURES / case / "golden.safetensors"), load_config(FIXTURES / case).sliding_window
    prompt, written = golden["generated"][0, :8].tolist(), golden["generated"][0, 8:].tolist()
    assert (window is not None) == (case in (
        "mistral_window", "qwen2_window_bf16", "gemma2", "qwen3_yarn_sharded", "gemma3", "gemma3_untied_sharded",
        "gemma3_with_images", "smollm3_yarn_sharded", "phi3_longrope_sharded"))
    assert window is None or window < min(len(prompt + written), golden["tokens"].shape[1])
    assert len(set(written)) > 5


def test_bfloat16_embeddings_are_scaled_by_the_rounded_root_as_published():
    """sqrt(24) = 4.899 is 4.906 in bfloat16."""
    directory = FIXTURES / "gemma2"
    golden = load_file(directory / "golden.safetensors")
    model = load_model(weight_files(directory), load_config(directory), torch.bfloat16)
    assert torch.equal(model.embed(golden["tokens"])[0], golden["embedded_bf16"])
    unrounded = model.model.embed_tokens.weight[golden["tokens"]].bfloat16().float() * 24 ** 0.5
    assert not torch.equal(unrounded.bfloat16(), golden["embedded_bf16"])


def test_zero_centered_norms_are_rounded_once_in_bfloat16():
    """Gemma multiplies before it rounds, Llama rounds before it multiplies."""
    x, weight = random(64, 24).bfloat16(), 0.3 * random(24, seed=1).float()
    centered, plain = ZeroCenteredRMSNorm(24, 1e-6), RMSNorm(24, 1e-6)
    centered.weight.data, plain.weight.data = weight, 1 + weight
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + weight.double())
    assert torch.equal(centered(x), exact.bfloat16())
    assert not torch.equal(plain(x), exact.bfloat16())
    centered.weight.data, plain.weight.data = weight.double(), 1 + weight.double()
    torch.testing.assert_close(centered(x.double()), plain(x.double()), rtol=0, atol=1e-10)


def test_a_cap_far_above_every_score_changes_nothing_and_a_low_one_bounds():
    q, k, v = (random(2, 3, 7, 8, seed=seed) for seed in range(3))
    allowed = torch.rand(2, 1, 7, 7, generator=torch.Generator().manual_seed(0)) > 0.4
    allowed |= torch.eye(7, dtype=torch.bool)
    for mask in (None, allowed):
        fused = fused_attention(q, k, v, mask, 0.3)
        torch.testing.assert_close(softcapped_attention(q, k, v, mask, 0.3, 1e6), fused, rtol=0, atol=1e-10)
        assert (softcapped_attention(q, k, v, mask, 0.3, 0.5) - fused).abs().max() > 1e-2  # control
    assert softcap(torch.tensor([-1e9, 0.0, 1e9]), 30.0).tolist() == [-30, 0, 30]


def test_a_query_sees_exactly_the_last_window_of_keys():
    """With window 4, the first token reaches positions 0 to 3 through one layer, and 0 to 6 through two."""
    for layers, reach in ((1, 4), (2, 7)):
        model, a = tiny(**{**WINDOWED, "num_hidden_layers": layers}), tokens(1, 12)
        b = a.clone()
        b[:, 0] = (a[:, 0] + 1) % 40
        difference = (model(a) - model(b)).abs().amax(dim=(0, 2))
        assert difference[reach:].max() == 0 and difference[:reach].min() > 1e-6


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cut", [1, 3, 5, 11])
def test_cache_equals_no_cache_in_every_family(variant, cut):
    model, t = tiny(**variant), tokens(3, 12)
    cache = model.new_cache(3, 12)
    parts = [model(t[:, :cut], cache=cache), *(model(t[:, i:i + 2], cache=cache) for i in range(cut, 12, 2))]
    torch.testing.assert_close(torch.cat(parts, 1), model(t), rtol=0, atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_on_the_left_changes_nothing_in_any_family(variant):
    model, real = tiny(**variant), tokens(2, 9)
    padded = torch.cat((tokens(2, 4, seed=3), real), 1)
    mask = torch.arange(13).expand(2, 13) >= 4
    torch.testing.assert_close(model(padded, mask)[:, 4:], model(real), rtol=0, atol=1e-10)
    assert model(padded, mask).isfinite().all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_at_chosen_places_are_those_of_the_whole_in_every_family(variant):
    model, t = tiny(**variant), tokens(3, 7)
    at = torch.rand(3, 7, generator=torch.Generator().manual_seed(0)) > 0.5
    torch.testing.assert_close(model(t, at=at), model(t)[at], rtol=0, atol=1e-12)


# ---- configs ------------------------------------------------------------------------------------------------------

THETAS = {"gemma3_text": 1e6, "smollm3": 2e6}
LEAST = dict(vocab_size=8, hidden_size=64, intermediate_size=8, num_hidden_layers=3, num_attention_heads=32)


@pytest.mark.parametrize("model_type,expected", [
    ("llama", dict(num_key_value_heads=32, head_dim=2, max_position_embeddings=2048, attention_bias=False)),
    ("mistral", dict(num_key_value_heads=8, head_dim=2, max_position_embeddings=131072,
                     sliding_window=4096, windowed_layers=(0, 1, 2))),
    ("qwen2", dict(num_key_value_heads=32, head_dim=2, max_position_embeddings=32768,
                   sliding_window=None, windowed_layers=(), attention_bias=True, o_bias=False)),
    ("gemma2", dict(num_key_value_heads=4, head_dim=256, max_position_embeddings=8192,
                    sliding_window=4096, windowed_layers=(0, 2),
                    tie_word_embeddings=True, query_pre_attn_scalar=256, attention_softcap=50.0, final_softcap=30.0,
                    activation="gelu_pytorch_tanh", embedding_scale=8.0, zero_centered_norms=True, norms_after=True)),
    ("qwen3", dict(num_key_value_heads=32, head_dim=128, max_position_embeddings=32768, qk_norm=True,
                   sliding_window=None, attention_bias=False, o_bias=False)),
    ("gemma3_text", dict(num_key_value_heads=4, head_dim=256, max_position_embeddings=131072, sliding_window=4096,
                         windowed_layers=(0, 1, 2), tie_word_embeddings=True, query_pre_attn_scalar=256,
                         attention_softcap=None, final_softcap=None, rope_local_theta=1e4, qk_norm=True,
                         embedding_scale=8.0, zero_centered_norms=True, norms_after=True)),
    ("smollm3", dict(num_key_value_heads=4, head_dim=2, max_position_embeddings=32768, tie_word_embeddings=True,
                     unrotated_layers=(), sliding_window=None)),
    ("phi3", dict(num_key_value_heads=32, head_dim=2, max_position_embeddings=4096, partial_rotary_factor=1.0,
                  sliding_window=None)),
    ("granite", dict(num_key_value_heads=32, head_dim=2, max_position_embeddings=2048, embedding_scale=1.0,
                     attention_multiplier=1.0, residual_multiplier=1.0, logits_divisor=1.0, sliding_window=None))])
def test_absent_keys_take_the_familys_published_defaults(model_type, expected):
    config = config_from_json({**LEAST, "model_type": model_type}, "least")
    assert {key: getattr(config, key) for key in expected} == expected
    assert (config.rope_theta, config.rope_scaling) == (THETAS.get(model_type, 10000.0), None)
    assert config.rms_norm_eps == (1e-5 if model_type == "phi3" else 1e-6)


@pytest.mark.parametrize("raw,expected", [
    ({"model_type": "mistral", "sliding_window": None}, (None, ())),
    ({"model_type": "phi3", "sliding_window": 16}, (16, (0, 1, 2))),
    ({"model_type": "gemma3_text", "sliding_window": 16, "sliding_window_pattern": 2}, (16, (0, 2))),
    ({"model_type": "smollm3", "sliding_window": 16, "use_sliding_window": True, "no_rope_layer_interval": 3},
     (16, (2,))),
    ({"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 1},
     (None, ())),
    ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}, (16, (1, 2))),
    ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16,
      "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}, (16, (0, 2))),
    ({"model_type": "gemma2", "sliding_window": 16,
      "layer_types": ["full_attention", "full_attention", "sliding_attention"]}, (16, (2,)))])
def test_which_layers_have_windows(raw, expected):
    config = config_from_json({**LEAST, **raw}, "x")
    assert (config.sliding_window, config.windowed_layers) == expected
    assert config_from_json(config_to_json(config), "again") == config


def test_gemma2s_published_config_and_its_newer_spelling_mean_the_same():
    """google/gemma-2-2b has both names of the activation, and no layer_types."""
    newer = json.loads((FIXTURES / "gemma2" / "config.json").read_text())
    absent = ("rope_parameters", "dtype", "layer_types", "tie_word_embeddings")
    classic = {k: v for k, v in newer.items() if k not in absent}
    classic |= {"rope_theta": 10000.0, "torch_dtype": "float32", "hidden_act": "gelu_pytorch_tanh",
                "cache_implementation": "hybrid"}
    assert config_from_json(newer, "newer") == config_from_json(classic, "classic")


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_are_the_familys_own_keys_with_its_own_values(case):
    """transformers can then read it. Other keys: the classic rotary ones, and those that old files omit."""
    file = json.loads((FIXTURES / case / "config.json").read_text())
    written = config_to_json(load_config(FIXTURES / case))
    if case == "gemma3_with_images":  # it is written as its text part
        file = {**file["text_config"], "architectures": ["Gemma3ForCausalLM"]}
    added = {"rope_theta", "rope_scaling", "head_dim", "rope_local_base_freq", "partial_rotary_factor"}
    if case == "llama1":
        added |= {"num_key_value_heads", "tie_word_embeddings", "attention_bias", "mlp_bias"}
    assert set(written) - set(file) <= added
    differ = {key for key in set(written) & set(file) if written[key] != file[key]}
    # max_window_layers is 28 in the files, for 2 layers without a window
    # Padding has no meaning here, and transformers' default may lie beyond the vocabulary.
    assert differ <= ({"max_window_layers"} if case.startswith("qwen") else {"pad_token_id"})


@pytest.mark.parametrize("changes,message", [
    ({"model_type": "olmo2"}, "somewhere: model_type 'olmo2' is not supported; supported: llama, mistral, qwen2, "
                              "qwen3, gemma2, gemma3_text, smollm3, phi3, granite"),
    ({"model_type": "gemma3"}, "'gemma3' has no text_config"),
    ({"model_type": "qwen3_moe"}, "model_type 'qwen3_moe' is not supported \\(a mixture of experts\\); supported"),
    ({"model_type": "qwen2_5_vl"}, "not supported \\(a model of images or of several kinds of input\\); supported"),
    ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "is 50.0, but this family caps no scores"),
    ({"model_type": "gemma3_text", "rope_parameters": {"rope_type": "default"}},
     "holds 'rope_type', but must hold one set for full_attention and one for sliding_attention"),
    ({"model_type": "gemma3_text", "rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
     "rope_parameters.sliding_attention is scaled"),
    ({"model_type": "gemma3_text", "rope_local_base_freq": 5e3,
      "rope_parameters": {"sliding_attention": {"rope_theta": 1e4}}}, "rope_local_base_freq is 5000.0 at the top"),
    ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, "no_rope_layers is .1, 0., but must be a list of 3"),
    ({"model_type": "smollm3", "no_rope_layers": [1, 0, 2]}, "no_rope_layers is"),
    ({"model_type": "phi3", "attention_bias": True}, "attention_bias is true, but this family has no biases here"),
    ({"model_type": "phi3", "partial_rotary_factor": 0.75}, "so that 1 of 2 dimensions of a head rotate"),
    ({"model_type": "phi3", "partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5, but must be a number"),
    ({"model_type": "phi3", "rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [1.0, 2.0]}},
     "long_factor of the rotary scaling holds 2 numbers, but 2 dimensions of a head rotate"),
    ({"model_type": "phi3", "rope_scaling": {"type": "longrope", "short_factor": [0], "long_factor": [1.0]}},
     r"short_factor.0. of the rotary scaling is 0"),
    ({"rope_scaling": {"type": "longrope", "short_factor": 1.0, "long_factor": [1.0]}}, "must be a list of numbers"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": 1}}, "truncate of the rotary scaling is 1, but must"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_slow": 40}}, "beta_slow is 40, but must be below beta_f"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0}}, "positive integer"),
    ({"model_type": "granite", "logits_scaling": 0}, "logits_scaling is 0, but must be a number above 0"),
    ({"model_type": "granite", "layer_types": ["sliding_attention"] * 3}, "a Granite has no windows"),
    ({"model_type": "gemma2", "hidden_activation": "gelu"},
     "hidden_activation 'gelu' is not supported; this family uses 'gelu_pytorch_tanh'"),
    ({"model_type": "gemma2", "use_bidirectional_attention": True}, "only looks back"),
    ({"model_type": "gemma2", "layer_types": ["chunked_attention"] * 3},
     "layer_types names 'chunked_attention'; supported:"),
    ({"model_type": "mistral", "sliding_window": 0}, "sliding_window is 0, but must be a positive integer"),
    ({"model_type": "gemma2", "layer_types": ["full_attention"]},
     "layer_types names 1 layers, but num_hidden_layers is 3")])
def test_a_family_that_this_forward_cannot_compute_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config_from_json({**LEAST, **changes}, "somewhere")


def test_yarn_and_longrope_state_what_the_published_files_leave_out():
    """Qwen2.5 and Qwen3 with YaRN, Phi-3.5 and Phi-4-mini, as their model cards and files have it."""
    qwen = config_from_json({**LEAST, "model_type": "qwen2", "max_position_embeddings": 32768, "rope_scaling": {
        "factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}}, "x")
    assert qwen.rope_scaling == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert attention_factor(qwen) == pytest.approx(0.1 * math.log(4) + 1)
    assert attention_factor(replace(qwen, rope_scaling={**qwen.rope_scaling, "attention_factor": 1.25})) == 1.25
    phi = config_from_json({**LEAST, "model_type": "phi3", "hidden_size": 256, "max_position_embeddings": 131072,
                            "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75,
                            "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 3, "long_factor": [2.0] * 3}},
                           "x")
    assert (phi.rotary_dim, phi.rope_scaling["original_max_position_embeddings"]) == (6, 4096)
    assert attention_factor(phi) == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))
    for config in (qwen, phi):
        assert config_from_json(config_to_json(config), "again") == config


def test_the_yarn_fixture_keeps_blends_and_divides_frequencies():
    config = load_config(FIXTURES / "qwen2_yarn")
    ratio = rotary_frequencies(config) / rotary_frequencies(replace(config, rope_scaling=None))
    assert ratio.max() == 1 and ratio.min() == 1 / 4 and len(ratio.unique()) == 3


def test_longrope_takes_the_long_factors_beyond_the_original_length_only():
    model, golden = published("phi3_longrope_sharded")
    other = {**model.config.rope_scaling, "long_factor": [9.0] * 3}
    changed, _ = published("phi3_longrope_sharded", rope_scaling=other)
    t = golden["tokens"]
    assert torch.equal(model(t[:, :16]), changed(t[:, :16]))
    assert (model(t[:, :17]) - changed(t[:, :17])).abs().max() > 0.1


def test_of_a_model_of_images_the_text_part_is_read_and_written_alone(tmp_path, capsys):
    golden, text = load_file(FIXTURES / "gemma3" / "golden.safetensors"), published("gemma3")[0]
    copytree(FIXTURES / "gemma3_with_images", tmp_path / "copy")
    model = load_model(weight_files(tmp_path / "copy"), load_config(tmp_path / "copy"), torch.float32)
    assert torch.equal(model(golden["tokens"]), text(golden["tokens"])) and model.config == text.config
    assert "its text part alone is read" in capsys.readouterr().err


def test_joined_tensors_are_split_by_rows_and_joined_again(tmp_path):
    model, _ = published("phi3")
    stored = load_file(FIXTURES / "phi3" / "model.safetensors")
    ours = {name: tensor for name, tensor in model.state_dict().items()}
    back = joined(ours, model.config)
    assert stored.keys() == back.keys() and all(torch.equal(stored[name], back[name]) for name in stored)
    name = "model.layers.1.self_attn.qkv_proj.weight"
    for change, message in ((stored | {name: stored[name][:-1]}, "qkv_proj.weight has shape .*but must have 48 rows"),
                            (stored | {"model.layers.0.mlp.up_proj.weight": torch.zeros(20, 24)},
                             "gate_up_proj.weight holds model.layers.0.mlp.up_proj.weight, which is also in")):
        save_file(change, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=message):
            load_model([tmp_path / "model.safetensors"], model.config, torch.float32)


def test_configs_of_runs_saved_before_there_were_families_are_read(tmp_path):
    saved = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 40,
             "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 6,
             "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "rope_scaling": None, "max_position_embeddings": 64,
             "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "bos_token_id": None,
             "eos_token_id": 2}
    (tmp_path / "config.json").write_text(json.dumps({"arguments": {}, "model_config": saved}))
    assert load_config(tmp_path) == TINY
    assert config_to_json(TINY) == saved  # and the same keys are still written


# ---- fine-tuning --------------------------------------------------------------------------------------------------

ROWS = [torch.randint(3, 48, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in range(5, 25)]


@pytest.mark.parametrize("case", ["mistral_window", "qwen2_window_bf16", "gemma2", "qwen3", "gemma3_untied_sharded",
                                  "smollm3_yarn_sharded", "phi3_longrope_sharded", "granite"])
def test_a_family_is_quantized_by_gptq_adapted_trained_and_merged(case, tmp_path):
    model, _ = published(case)
    names = linear_names(model, "all")
    reports = gptq_model(model, lambda prefix: None, names, MinMax(4, Block(4, 4)), False, ROWS,
                         lambda name, layer, weight: quantized_layer(layer, weight))
    assert len(reports) == len(names) == 14 and max(r.gptq_error for r in reports) < 0.05
    bias = model.model.layers[1].self_attn.q_proj.bias
    assert (bias is not None) == (case in ("qwen2_window_bf16", "smollm3_yarn_sharded"))

    def adapt(name, layer):
        adapter = nonzero_adapter(ADAPTERS["qablora"], layer.out_features, layer.in_features, Lam(4, 4),
                                  block=layer.block)
        return adapted_layer(layer, adapter.float())
    t = tokens(2, 20)
    base = model(t)
    replace_layers(model, names, adapt)
    trained = model(t)
    assert (trained - base).abs().max() > 0.1
    trained.logsumexp(-1).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert len(gradients) == 14 and all(g.isfinite().all() and g.abs().max() > 0 for g in gradients)

    dense = load_model(weight_files(FIXTURES / case), model.config, torch.float32)
    replace_layers(dense, names, lambda name, layer: merge_to_dense(model.get_submodule(name), torch.float32))
    torch.testing.assert_close(dense(t), trained.detach(), rtol=0, atol=1e-4)
    replace_layers(model, names, lambda name, layer: merge_into_codes(layer, name))
    assert all(isinstance(model.get_submodule(name), QuantLinear) for name in names)
    torch.testing.assert_close(model(t), trained.detach(), rtol=0, atol=1e-4)
    assert bias is None or torch.equal(model.model.layers[1].self_attn.q_proj.bias, bias)
    save_model(model, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config_to_json(model.config)))
    again = load_model(weight_files(tmp_path), load_config(tmp_path), torch.float32)
    assert torch.equal(again(t), model(t)) and again.config == model.config


def test_a_random_model_depends_on_its_seed_only():
    config = LlamaConfig(**{**vars(TINY), **GEMMA2, "attention_bias": True})
    first, second = (random_model(config, torch.float32, 3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["model.layers.0.self_attn.q_proj.bias"].abs().max() == 0
    assert first["model.norm.weight"].abs().max() == 0  # 1 + 0
