"""Configurations as transformers 5 writes them, and in the older spelling: the logits are transformers' own. Skipped if
transformers is not installed (tests/interop/requirements.txt).

    python -m pytest tests/interop/test_configurations.py
"""
import itertools
import json
from pathlib import Path

import pytest
import torch

from model.checkpoint import load_model
from model.directory import load_config, weight_files

pytestmark = pytest.mark.slow
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2}
LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 64, "rope_theta": 5e5}
ROPES = [None, {"rope_type": "default", "rope_theta": 1e6}, {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
         LLAMA_3, {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 32},
         {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32, "factor": 4.0,
          "short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [1.0, 2.0, 4.0, 9.0]}]
OWN = {  # what each family's configuration varies beside head size, tied embeddings and rotary scaling
    "Llama": [{}, {"attention_bias": True, "mlp_bias": True}],
    "Mistral": [{"sliding_window": None}, {"sliding_window": 8}, {"sliding_window": 4096}],
    "Qwen2": [{"use_sliding_window": False},
              *({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": first} for first in (0, 1))],
    "Gemma2": [{"sliding_window": 8, "head_dim": 8}, {"sliding_window": 8, "head_dim": 16}],
    "Qwen3": [{"head_dim": 16, "attention_bias": True},
              {"head_dim": 8, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}],
    "SmolLM3": [{"no_rope_layer_interval": 2}, {"no_rope_layers": [1, 0, 0], "use_sliding_window": True,
                                                "sliding_window": 8}],
    "Granite": [{"embedding_multiplier": 2.0, "attention_multiplier": 0.1, "residual_multiplier": 0.5,
                 "logits_scaling": 3.0, "mlp_bias": True}]}
CASES = [(family, {**own, "tie_word_embeddings": tie, **({"rope_parameters": rope} if rope else {}),
                   **({"head_dim": head_dim} if head_dim else {})})
         for family, owns in OWN.items() for own, tie, rope, head_dim in
         itertools.product(owns, (False, True), ROPES, (None, 16) if family in ("Llama", "Mistral") else (None,))
         if (rope or {}).get("rope_type") != "longrope" or (head_dim or own.get("head_dim", 8)) == 8]
# Families whose rotary positions are stated otherwise.
LOCAL = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e3}}
CASES += [("Gemma3Text", {"head_dim": 8, "sliding_window": 8, "layer_types": types, "rope_parameters": {
    **LOCAL, "full_attention": rope or {"rope_type": "default", "rope_theta": 1e5}}})
    for rope in ROPES[:-1] for types in (None, ["sliding_attention", "full_attention", "sliding_attention"])]
CASES += [("Phi3", {"sliding_window": window, "tie_word_embeddings": tie, **rope}) for window in (None, 8)
          for tie in (False, True) for rope in (
              {}, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
              {"original_max_position_embeddings": 32, "rope_parameters": {
                  "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75,
                  "short_factor": [1.0, 1.5, 2.0], "long_factor": [1.0, 2.0, 4.0]}})]
TOKENS = torch.randint(3, 60, (2, 40), generator=torch.Generator().manual_seed(0))


def published(family: str, options: dict, directory: Path) -> torch.Tensor:
    """A random model of this configuration, saved by transformers; its logits."""
    transformers = pytest.importorskip("transformers", reason="pip install -r tests/interop/requirements.txt")
    config = getattr(transformers, f"{family}Config")(**SIZES, pad_token_id=0, **options)
    model = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.3 if p.ndim > 1 else 0.5, generator=generator)
        model.save_pretrained(directory)
        return model(TOKENS).logits


def difference(logits: torch.Tensor, directory: Path) -> float:
    """Of ours to these, as a share of the largest."""
    model = load_model(weight_files(directory), load_config(directory), torch.float32)
    with torch.no_grad():
        return ((model(TOKENS) - logits).abs().max() / logits.abs().max()).item()


def in_the_older_spelling(path: Path) -> None:
    """config.json as transformers 4 wrote it: `rope_theta` at the top, `rope_scaling` beside it."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters", {})
    if "sliding_attention" in rope:
        config["rope_local_base_freq"], rope = rope["sliding_attention"]["rope_theta"], rope["full_attention"]
    config["rope_theta"] = rope.pop("rope_theta", 10000.0)
    config["partial_rotary_factor"] = rope.pop("partial_rotary_factor", None)
    config["rope_scaling"] = rope if rope.get("rope_type", "default") != "default" else None
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("family,options", CASES)
def test_every_configuration_that_transformers_writes_gives_its_logits(family, options, tmp_path):
    logits = published(family, options, tmp_path)
    assert difference(logits, tmp_path) < 1e-4
    in_the_older_spelling(tmp_path / "config.json")
    assert difference(logits, tmp_path) < 1e-4


@pytest.mark.parametrize("key,value", [("rope_theta", 2e4), ("rope_scaling", {"rope_type": "linear", "factor": 3.0})])
def test_another_rotary_setting_would_be_noticed(key, value, tmp_path):
    logits = published("Llama", {"rope_parameters": ROPES[2]}, tmp_path)
    in_the_older_spelling(tmp_path / "config.json")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    assert difference(logits, tmp_path) > 1e-2
