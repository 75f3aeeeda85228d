"""The model families: the keys of `config.json` that not all families share, read and written.

| `model_type` | differs from the first Llama in |
|---|---|
| llama | 3.1 and later scale the rotary frequencies; all linear layers may have biases |
| mistral | every layer has a window of `sliding_window` tokens, unless it is null |
| qwen2 | q, k, v have biases, o has none; `use_sliding_window: true` gives layers >= `max_window_layers` a window |
| gemma2 | see below |

Gemma 2 differs in five ways. Norms multiply by 1 + weight, and stand before and after attention and MLP. The MLP is a
GeGLU. Scores are scaled by `query_pre_attn_scalar`, and scores and logits are soft-capped. Every other layer has a
window. Embeddings are scaled by sqrt(hidden_size).

`defaults` replace absent keys. They are those of the families' published configuration classes (transformers 5.23).
For Mistral they are a window of 4096 and 8 key-value heads, so a Mistral without a window must say
`sliding_window: null`, as published ones do. Begin and end tokens have no defaults here: if the config names none, the
tokenizer does.
"""
from collections.abc import Callable
from dataclasses import dataclass

from model.config import LlamaConfig

WINDOWED, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Family:
    architecture: str                     # the class in transformers; other tools need it to read a saved model
    activation: tuple[str, str]           # the config key that names it, and the only value that the family uses
    defaults: dict                        # for absent keys
    read: Callable[[dict], dict]          # config.json -> the fields of LlamaConfig that not every family has
    write: Callable[[LlamaConfig], dict]  # the inverse of read


def read_llama(raw: dict) -> dict:
    check_types(raw, [FULL] * raw["num_hidden_layers"], "a Llama has no windows")
    return {"attention_bias": raw["attention_bias"], "o_bias": raw["attention_bias"], "mlp_bias": raw["mlp_bias"]}


def write_llama(config: LlamaConfig) -> dict:
    return {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}


def read_mistral(raw: dict) -> dict:
    window = raw["sliding_window"]
    check_types(raw, [FULL if window is None else WINDOWED] * raw["num_hidden_layers"],
                f"sliding_window is {window}, which holds for all layers of a Mistral")
    return windows(window, [WINDOWED] * raw["num_hidden_layers"])


def write_mistral(config: LlamaConfig) -> dict:
    return {"sliding_window": config.sliding_window}


def read_qwen2(raw: dict) -> dict:
    by_depth = [WINDOWED if i >= raw["max_window_layers"] else FULL for i in range(raw["num_hidden_layers"])]
    window = raw["sliding_window"] if raw["use_sliding_window"] else None
    if window is None:
        check_types(raw, [FULL] * raw["num_hidden_layers"],
                    f"use_sliding_window is {raw['use_sliding_window']} and sliding_window {raw['sliding_window']}")
    return {"attention_bias": True, **windows(window, stated_types(raw) or by_depth)}


def write_qwen2(config: LlamaConfig) -> dict:
    # Some tools read only the older key, max_window_layers. It is exact if all layers from one depth on have a window.
    first = min(config.windowed_layers, default=config.num_hidden_layers)
    return {"use_sliding_window": config.sliding_window is not None, "sliding_window": config.sliding_window,
            "max_window_layers": first, "layer_types": layer_types(config)}


def read_gemma2(raw: dict) -> dict:
    if raw.get("use_bidirectional_attention"):
        raise ValueError("use_bidirectional_attention is true, but this decoder only looks back")
    if raw["sliding_window"] is None:
        check_types(raw, [FULL] * raw["num_hidden_layers"], "sliding_window is null")
    alternating = [FULL if i % 2 else WINDOWED for i in range(raw["num_hidden_layers"])]
    return {**windows(raw["sliding_window"], stated_types(raw) or alternating),
            "attention_bias": raw["attention_bias"], "o_bias": raw["attention_bias"],
            "zero_centered_norms": True, "norms_after": True, "embedding_scale": raw["hidden_size"] ** 0.5,
            "query_pre_attn_scalar": raw["query_pre_attn_scalar"],
            "attention_softcap": raw["attn_logit_softcapping"], "final_softcap": raw["final_logit_softcapping"]}


def write_gemma2(config: LlamaConfig) -> dict:
    return {"attention_bias": config.attention_bias,
            "query_pre_attn_scalar": config.query_pre_attn_scalar, "attn_logit_softcapping": config.attention_softcap,
            "final_logit_softcapping": config.final_softcap, "sliding_window": config.sliding_window,
            "layer_types": layer_types(config)}


def windows(window: int | None, types: list[str]) -> dict:
    """The two fields of `LlamaConfig` that say which layers have a window. Without a window there are none."""
    windowed = tuple(i for i, kind in enumerate(types) if kind == WINDOWED and window is not None)
    return {"sliding_window": window, "windowed_layers": windowed}


def stated_types(raw: dict) -> list[str] | None:
    """The key `layer_types`, which only newer files have. Raises ValueError for other kinds of attention, and for a
    wrong number of layers."""
    types = raw.get("layer_types")
    if types is None or types == []:
        return None
    if not (isinstance(types, list) and all(isinstance(kind, str) for kind in types)):
        raise ValueError("layer_types must be a list of texts, one for each layer")
    if unknown := sorted(set(types) - {WINDOWED, FULL}):
        raise ValueError(f"layer_types names {', '.join(map(repr, unknown[:4]))}; supported: {WINDOWED!r}, {FULL!r}")
    if len(types) != raw["num_hidden_layers"]:
        raise ValueError(f"layer_types names {len(types)} layers, but num_hidden_layers is {raw['num_hidden_layers']}")
    return types


def check_types(raw: dict, implied: list[str], because: str) -> None:
    """Raises ValueError if `layer_types` is there and differs from what another key implies."""
    stated = stated_types(raw)
    if stated and stated != implied:
        layer = next(i for i, kind in enumerate(stated) if kind != implied[i])
        raise ValueError(f"layer_types names {stated[layer]!r} for layer {layer}, but {because}: make the two agree")


def layer_types(config: LlamaConfig) -> list[str]:
    return [WINDOWED if i in config.windowed_layers else FULL for i in range(config.num_hidden_layers)]


DEFAULTS = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False}
FAMILIES = {
    "llama": Family("LlamaForCausalLM", ("hidden_act", "silu"),
                    {**DEFAULTS, "max_position_embeddings": 2048, "attention_bias": False, "mlp_bias": False},
                    read_llama, write_llama),
    "mistral": Family("MistralForCausalLM", ("hidden_act", "silu"),
                      {**DEFAULTS, "max_position_embeddings": 4096 * 32, "num_key_value_heads": 8,
                       "sliding_window": 4096},
                      read_mistral, write_mistral),
    "qwen2": Family("Qwen2ForCausalLM", ("hidden_act", "silu"),
                    {**DEFAULTS, "max_position_embeddings": 32768, "num_key_value_heads": 32,
                     "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28},
                    read_qwen2, write_qwen2),
    "gemma2": Family("Gemma2ForCausalLM", ("hidden_activation", "gelu_pytorch_tanh"),
                     {**DEFAULTS, "tie_word_embeddings": True, "max_position_embeddings": 8192,
                      "num_key_value_heads": 4, "head_dim": 256, "attention_bias": False,
                      "query_pre_attn_scalar": 256, "sliding_window": 4096,
                      "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
                     read_gemma2, write_gemma2),
}
