"""The model families: what each one's `config.json` says beyond what all share, in both directions.

| `model_type` | differs from the first Llama in |
|---|---|
| llama | (3.1 and later) rotary frequencies scaled; q, k, v, o, gate, up, down may have biases |
| mistral | every layer looks back `sliding_window` tokens only, where that is not null |
| qwen2 | q, k, v have biases, o has none; `use_sliding_window: true` gives the layers from `max_window_layers` on a window |
| gemma2 | norms multiply by 1 + weight and stand before and after each half of a block; GeGLU; scores and logits soft-capped; scores scaled by `query_pre_attn_scalar`; every other layer has a window; embeddings scaled by sqrt(hidden_size) |

`defaults` are those of the families' published configuration classes (transformers 5.23): they stand for keys that are absent.
Mistral's are a window of 4096 and 8 key-value heads, so that a Mistral without a window must say `sliding_window: null`, as
published ones do. Begin and end tokens have no defaults here: where the config names none, the tokenizer does.
"""
from collections.abc import Callable
from dataclasses import dataclass

from model.config import LlamaConfig

WINDOWED, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Family:
    architecture: str                        # transformers' class, so that other tools read what is saved here
    activation: tuple[str, str]              # the key that names it, and the only value that the family uses
    defaults: dict                           # of keys that are absent
    read: Callable[[dict], dict]             # config.json -> the fields of LlamaConfig that not every family has
    write: Callable[[LlamaConfig], dict]   # and back


def read_llama(raw: dict) -> dict:
    return {"attention_bias": raw["attention_bias"], "o_bias": raw["attention_bias"], "mlp_bias": raw["mlp_bias"]}


def write_llama(config: LlamaConfig) -> dict:
    return {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}


def read_mistral(raw: dict) -> dict:
    return windows(raw["sliding_window"], [WINDOWED] * raw["num_hidden_layers"])


def write_mistral(config: LlamaConfig) -> dict:
    return {"sliding_window": config.sliding_window}


def read_qwen2(raw: dict) -> dict:
    by_depth = [WINDOWED if i >= raw["max_window_layers"] else FULL for i in range(raw["num_hidden_layers"])]
    window = raw["sliding_window"] if raw["use_sliding_window"] else None
    return {"attention_bias": True, **windows(window, stated_types(raw) or by_depth)}


def write_qwen2(config: LlamaConfig) -> dict:
    # max_window_layers beside layer_types, for tools that read only the older key; exact where windows begin at one depth.
    first = min(config.windowed_layers, default=config.num_hidden_layers)
    return {"use_sliding_window": config.sliding_window is not None, "sliding_window": config.sliding_window,
            "max_window_layers": first, "layer_types": layer_types(config)}


def read_gemma2(raw: dict) -> dict:
    if raw.get("use_bidirectional_attention"):
        raise ValueError("use_bidirectional_attention is true: this decoder only looks back")
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
    """The two fields that say which layers look back `window` tokens only. No window, no such layers."""
    windowed = tuple(i for i, kind in enumerate(types) if kind == WINDOWED and window is not None)
    return {"sliding_window": window, "windowed_layers": windowed}


def stated_types(raw: dict) -> list[str] | None:
    """`layer_types`, which only newer files have. Raises ValueError for other kinds of attention, or another number of layers."""
    types = raw.get("layer_types")
    if unknown := sorted(set(types or ()) - {WINDOWED, FULL}):
        raise ValueError(f"layer_types names {', '.join(map(repr, unknown))}; supported: {WINDOWED!r}, {FULL!r}")
    if types and len(types) != raw["num_hidden_layers"]:
        raise ValueError(f"layer_types names {len(types)} layers, num_hidden_layers is {raw['num_hidden_layers']}")
    return types


def layer_types(config: LlamaConfig) -> list[str]:
    return [WINDOWED if i in config.windowed_layers else FULL for i in range(config.num_hidden_layers)]


SHARED = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False}
FAMILIES = {
    "llama": Family("LlamaForCausalLM", ("hidden_act", "silu"),
                    {**SHARED, "max_position_embeddings": 2048, "attention_bias": False, "mlp_bias": False},
                    read_llama, write_llama),
    "mistral": Family("MistralForCausalLM", ("hidden_act", "silu"),
                      {**SHARED, "max_position_embeddings": 4096 * 32, "num_key_value_heads": 8, "sliding_window": 4096},
                      read_mistral, write_mistral),
    "qwen2": Family("Qwen2ForCausalLM", ("hidden_act", "silu"),
                    {**SHARED, "max_position_embeddings": 32768, "num_key_value_heads": 32, "use_sliding_window": False,
                     "sliding_window": 4096, "max_window_layers": 28},
                    read_qwen2, write_qwen2),
    "gemma2": Family("Gemma2ForCausalLM", ("hidden_activation", "gelu_pytorch_tanh"),
                     {**SHARED, "tie_word_embeddings": True, "max_position_embeddings": 8192, "num_key_value_heads": 4,
                      "head_dim": 256, "attention_bias": False, "query_pre_attn_scalar": 256, "sliding_window": 4096,
                      "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
                     read_gemma2, write_gemma2),
}
