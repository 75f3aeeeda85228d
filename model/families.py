"""The model families: what each has that the first Llama has not, as data.

| `model_type` | differs from the first Llama in |
|---|---|
| llama | 3.1 and later scale the rotary frequencies; all linear layers may have biases |
| mistral | every layer has a window of `sliding_window` tokens, unless it is null |
| qwen2 | q, k, v have biases, o has none; `use_sliding_window: true` gives layers >= `max_window_layers` a window |
| qwen3 | qwen2's windows; a norm of each head of q and of k; biases only if stated |
| gemma2 | see below |
| gemma3_text | gemma2 with a norm of each head of q and of k, without caps of scores; see below |
| smollm3 | layers where `no_rope_layers` holds 0, every fourth one if absent, have no rotary positions |
| phi3 | mistral's windows; q, k, v are one tensor in the files, gate and up another; part of a head may not rotate |
| granite | embeddings, scores, and what each half of a block adds are multiplied; logits are divided |

Gemma 2 differs in five ways. Norms multiply by 1 + weight, and stand before and after attention and MLP. The MLP is a
GeGLU. Scores are scaled by `query_pre_attn_scalar`, and scores and logits are soft-capped. Every other layer has a
window. Embeddings are scaled by sqrt(hidden_size). In Gemma 3, five layers with a window follow each other before one
without. They have another rotary base, and a rotary scaling is of the layers without a window alone.

`defaults` replace absent keys. They are those of the families' published configuration classes (transformers 5.24).
For Mistral they are a window of 4096 and 8 key-value heads, so a Mistral without a window must say
`sliding_window: null`, as published ones do. Begin and end tokens have no defaults here: if the config names none, the
tokenizer does.
"""
from collections.abc import Callable
from dataclasses import dataclass, field

from model.config import LlamaConfig

WINDOWED, FULL = "sliding_attention", "full_attention"


# ---- which layers have a window, and which rotary positions ----------------------------------------------------------

@dataclass(frozen=True)
class Layers:
    """How a family states what only some of its layers have."""
    read: Callable[[dict], dict]          # config.json -> fields of LlamaConfig
    write: Callable[[LlamaConfig], dict]  # the inverse


def read_none(raw: dict) -> dict:
    check_types(raw, [FULL] * raw["num_hidden_layers"],
                f"a {raw.get('model_type', 'llama').capitalize()} has no windows")
    return {}


def read_every(raw: dict) -> dict:
    window = raw["sliding_window"]
    check_types(raw, [FULL if window is None else WINDOWED] * raw["num_hidden_layers"],
                f"sliding_window is {window}, which holds for all layers of this family")
    return windows(window, [WINDOWED] * raw["num_hidden_layers"])


def write_every(config: LlamaConfig) -> dict:
    return {"sliding_window": config.sliding_window}


def read_from_a_depth(raw: dict) -> dict:
    by_depth = [WINDOWED if i >= raw["max_window_layers"] else FULL for i in range(raw["num_hidden_layers"])]
    return switched_windows(raw, by_depth)


def write_from_a_depth(config: LlamaConfig) -> dict:
    # Some tools read only the older key, max_window_layers. It is exact if all layers from one depth on have a window.
    first = min(config.windowed_layers, default=config.num_hidden_layers)
    return {"use_sliding_window": config.sliding_window is not None, "sliding_window": config.sliding_window,
            "max_window_layers": first, "layer_types": layer_types(config)}


def read_pattern(raw: dict) -> dict:
    """Of `sliding_window_pattern` layers the last has no window."""
    if raw["sliding_window"] is None:
        check_types(raw, [FULL] * raw["num_hidden_layers"], "sliding_window is null")
    every = raw["sliding_window_pattern"]
    by_pattern = [WINDOWED if (i + 1) % every else FULL for i in range(raw["num_hidden_layers"])]
    return windows(raw["sliding_window"], stated_types(raw) or by_pattern)


def write_pattern(config: LlamaConfig) -> dict:
    local = {} if config.rope_local_theta is None else {"rope_local_base_freq": config.rope_local_theta}
    return {"sliding_window": config.sliding_window, "layer_types": layer_types(config), **local}


def read_unrotated(raw: dict) -> dict:
    layers, every = range(raw["num_hidden_layers"]), raw["no_rope_layer_interval"]
    rotates = raw.get("no_rope_layers")
    if rotates is None:
        rotates = [int((i + 1) % every != 0) for i in layers]
    if not (isinstance(rotates, list) and len(rotates) >= len(layers)
            and all(value in (0, 1) and isinstance(value, int) for value in rotates)):
        raise ValueError(f"no_rope_layers is {str(rotates)[:60]}, but must be a list of {len(layers)} numbers, 1 for a "
                         f"layer with rotary positions and 0 for one without")
    still = tuple(i for i in layers if not rotates[i])
    return {"unrotated_layers": still, **switched_windows(raw, [WINDOWED if i in still else FULL for i in layers])}


def write_unrotated(config: LlamaConfig) -> dict:
    layers = range(config.num_hidden_layers)
    return {"use_sliding_window": config.sliding_window is not None, "sliding_window": config.sliding_window,
            "layer_types": layer_types(config),
            "no_rope_layers": [int(i not in config.unrotated_layers) for i in layers]}


def switched_windows(raw: dict, usual: list[str]) -> dict:
    """Windows that `use_sliding_window` turns on."""
    window = raw["sliding_window"] if raw["use_sliding_window"] else None
    if window is None:
        check_types(raw, [FULL] * raw["num_hidden_layers"],
                    f"use_sliding_window is {raw['use_sliding_window']} and sliding_window {raw['sliding_window']}")
    return windows(window, stated_types(raw) or usual)


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


NO_WINDOWS = Layers(read_none, lambda config: {})
EVERY_LAYER = Layers(read_every, write_every)
FROM_A_DEPTH = Layers(read_from_a_depth, write_from_a_depth)
PATTERN = Layers(read_pattern, write_pattern)
UNROTATED = Layers(read_unrotated, write_unrotated)


# ---- the families -------------------------------------------------------------------------------------------------

SILU, GELU = ("hidden_act", "silu"), ("hidden_activation", "gelu_pytorch_tanh")
BIAS = {"attention_bias": ("attention_bias", "o_bias")}
MLP_BIAS = {"mlp_bias": ("mlp_bias",)}
GEMMA = {"zero_centered_norms": True, "norms_after": True}
ONLY_BACK = {"use_bidirectional_attention": "but this decoder only looks back"}
NO_BIAS = dict.fromkeys(("attention_bias", "mlp_bias", "lm_head_bias"), "but this family has no biases here")


@dataclass(frozen=True)
class Family:
    architecture: str                 # the class in transformers; other tools need it to read a saved model
    layers: Layers = NO_WINDOWS
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict)  # key of config.json -> the fields that it sets
    fixed: dict = field(default_factory=dict)                       # fields that the family always has
    defaults: dict = field(default_factory=dict)                    # for absent keys
    activation: tuple[str, str] = SILU      # the config key that names it, and the only value that the family uses
    scaled_embeddings: bool = False         # by sqrt(hidden_size)
    theta: float = 10000.0                  # the rotary base, if none is stated
    local_theta: float | None = None        # that of windowed layers, if they have one of their own
    partial_rotary: bool = False            # `partial_rotary_factor` is read
    refused: dict[str, str] = field(default_factory=dict)           # keys that must be null or false, and why
    fused: dict[str, tuple[str, ...]] = field(default_factory=dict)  # layer of the files -> layers here, row after row
    no_pad: bool = False                    # transformers' default for padding lies beyond a small vocabulary

    def read(self, raw: dict) -> dict:
        """The fields of `LlamaConfig` that not every family has."""
        for key, why in self.refused.items():
            if raw.get(key):
                raise ValueError(f"{key} is {str(raw[key])[:60].lower()}, {why}")
        scale = {"embedding_scale": raw["hidden_size"] ** 0.5} if self.scaled_embeddings else {}
        stated = {name: raw[key] for key, names in self.keys.items() for name in names}
        return {**self.fixed, **scale, **stated, **self.layers.read(raw)}

    def write(self, config: LlamaConfig) -> dict:
        """The inverse of `read`, with what `rotary_json.py` reads of this family only."""
        partial = {"partial_rotary_factor": config.partial_rotary_factor} if self.partial_rotary else {}
        original = (config.rope_scaling or {}).get("original_max_position_embeddings")
        if self.partial_rotary and original:
            partial["original_max_position_embeddings"] = original  # transformers reads this one of the two
        return {**{key: getattr(config, names[0]) for key, names in self.keys.items()},
                **self.layers.write(config), **partial, **({"pad_token_id": None} if self.no_pad else {})}


DEFAULTS = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False}
QWEN = {**DEFAULTS, "max_position_embeddings": 32768, "num_key_value_heads": 32, "use_sliding_window": False,
        "sliding_window": 4096, "max_window_layers": 28}
GEMMA_DEFAULTS = {**DEFAULTS, "tie_word_embeddings": True, "num_key_value_heads": 4, "head_dim": 256,
                  "attention_bias": False, "query_pre_attn_scalar": 256, "sliding_window": 4096}
FAMILIES = {
    "llama": Family("LlamaForCausalLM", NO_WINDOWS, {**BIAS, **MLP_BIAS},
                    defaults={**DEFAULTS, "max_position_embeddings": 2048, "attention_bias": False, "mlp_bias": False}),
    "mistral": Family("MistralForCausalLM", EVERY_LAYER,
                      defaults={**DEFAULTS, "max_position_embeddings": 4096 * 32, "num_key_value_heads": 8,
                                "sliding_window": 4096}),
    "qwen2": Family("Qwen2ForCausalLM", FROM_A_DEPTH, fixed={"attention_bias": True}, defaults=QWEN),
    "qwen3": Family("Qwen3ForCausalLM", FROM_A_DEPTH, BIAS, {"qk_norm": True},
                    {**QWEN, "head_dim": 128, "attention_bias": False}),
    "gemma2": Family("Gemma2ForCausalLM", PATTERN,
                     {**BIAS, "query_pre_attn_scalar": ("query_pre_attn_scalar",),
                      "attn_logit_softcapping": ("attention_softcap",), "final_logit_softcapping": ("final_softcap",)},
                     GEMMA, {**GEMMA_DEFAULTS, "max_position_embeddings": 8192, "sliding_window_pattern": 2,
                             "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
                     GELU, scaled_embeddings=True, refused=ONLY_BACK),
    "gemma3_text": Family("Gemma3ForCausalLM", PATTERN,
                          {**BIAS, "query_pre_attn_scalar": ("query_pre_attn_scalar",),
                           "final_logit_softcapping": ("final_softcap",)},
                          {**GEMMA, "qk_norm": True},
                          {**GEMMA_DEFAULTS, "max_position_embeddings": 131072, "sliding_window_pattern": 6,
                           "final_logit_softcapping": None, "vocab_size": 262208, "hidden_size": 2304,
                           "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8},
                          GELU, scaled_embeddings=True, theta=1e6, local_theta=1e4,
                          refused={**ONLY_BACK, "attn_logit_softcapping": "but this family caps no scores"}),
    "smollm3": Family("SmolLM3ForCausalLM", UNROTATED, {**BIAS, **MLP_BIAS}, theta=2e6, no_pad=True,
                      defaults={**DEFAULTS, "tie_word_embeddings": True, "max_position_embeddings": 32768,
                                "num_key_value_heads": 4, "attention_bias": False, "mlp_bias": False,
                                "use_sliding_window": False, "sliding_window": None, "no_rope_layer_interval": 4}),
    "phi3": Family("Phi3ForCausalLM", EVERY_LAYER, partial_rotary=True, refused=NO_BIAS, no_pad=True,
                   defaults={**DEFAULTS, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
                             "original_max_position_embeddings": 4096, "sliding_window": None},
                   fused={"self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                          "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj")}),
    "granite": Family("GraniteForCausalLM", NO_WINDOWS,
                      {**BIAS, **MLP_BIAS, "embedding_multiplier": ("embedding_scale",),
                       "attention_multiplier": ("attention_multiplier",),
                       "residual_multiplier": ("residual_multiplier",), "logits_scaling": ("logits_divisor",)},
                      defaults={**DEFAULTS, "max_position_embeddings": 2048, "attention_bias": False,
                                "mlp_bias": False, **dict.fromkeys(("embedding_multiplier", "attention_multiplier",
                                                                    "residual_multiplier", "logits_scaling"), 1.0)}),
}
