"""Hugging Face `config.json` -> `LlamaConfig`, and back. `families.py` holds the keys that only some families have,
and `rotary_json.py` those of rotary positions.

Two spellings are read. The classic one has `rope_theta`, `rope_scaling` and `torch_dtype`. The newer one has
`rope_parameters` (with `rope_theta` and `rope_type`), `layer_types` and `dtype`. Absent keys take the family's
published defaults: LLaMA-1 files, for example, have no `rope_theta` and no `num_key_value_heads`. An absent
`model_type` means `llama`.
"""
import re

from model.config import LlamaConfig
from model.families import FAMILIES
from model.other_models import text_part, why_not
from model.rotary_json import check_lengths, read_rope
from model.values import check_number, is_int, short
from quant.formats import FORMATS, format_of

REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# Fields that have the same name in every family's config.json.
SHARED = (*REQUIRED, "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "rope_scaling",
          "max_position_embeddings", "tie_word_embeddings", "bos_token_id")
# The largest allowed value of each size. It is far above every published model, and far below what overflows.
LARGEST = {"vocab_size": 1 << 24, "hidden_size": 1 << 18, "intermediate_size": 1 << 22, "num_hidden_layers": 1024,
           "num_attention_heads": 1 << 14, "num_key_value_heads": 1 << 14, "head_dim": 1 << 14,
           "max_position_embeddings": 1 << 40, "sliding_window": 1 << 40, "sliding_window_pattern": 1024,
           "no_rope_layer_interval": 1024}
# Numbers that must lie above the first value, up to the second.
RANGES = {"rms_norm_eps": (0, 0.1), "query_pre_attn_scalar": (0, 1e9), "attn_logit_softcapping": (0, 1e9),
          "final_logit_softcapping": (0, 1e9), "embedding_multiplier": (0, 1e9), "residual_multiplier": (0, 1e9),
          "attention_multiplier": (0, 1e9), "logits_scaling": (0, 1e9)}
OPTIONAL = ("attn_logit_softcapping", "final_logit_softcapping")
FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")


def config_to_json(config: LlamaConfig) -> dict:
    """The configuration with the family's own keys, in the classic spelling, so that other tools can read it."""
    family, eos = FAMILIES[config.model_type], list(config.eos_token_ids)
    key, activation = family.activation
    return {"architectures": [family.architecture], "model_type": config.model_type, key: activation,
            **{name: getattr(config, name) for name in SHARED}, **family.write(config),
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None}


def config_from_json(raw: object, where: str) -> LlamaConfig:
    """`where` is named in errors. Raises ValueError for a missing key, for a value of a wrong type or out of range, for
    two keys that disagree, for a quantized model, and for an architecture or a rotary scaling that is not supported."""
    try:
        if not isinstance(raw, dict):
            raise ValueError(f"the model's configuration is {short(raw)}, but must be a JSON object")
        return _config(raw)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _config(raw: dict) -> LlamaConfig:
    if format_of(raw) is None and (stated := quantized_by(raw)):
        raise ValueError(f"quantized by {stated}: weights in this format are not read, those of "
                         f"{', '.join(kind.name for kind in FORMATS)} are; give the model that it was made from, in 16 "
                         f"bits")
    raw = text_part(raw)
    model_type = raw.get("model_type", "llama")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(f"model_type {short(model_type)} is not supported{why_not(model_type)}; supported: "
                         f"{', '.join(FAMILIES)}")
    family = FAMILIES[model_type]
    check_architectures(raw, model_type)
    raw = {**family.defaults, **raw}
    _check(raw, family.activation)
    heads = raw["num_attention_heads"]
    kv_heads = raw.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise ValueError(f"num_attention_heads={heads} is not a multiple of num_key_value_heads={kv_heads}")
    head_dim = raw.get("head_dim") or raw["hidden_size"] // heads
    if head_dim % 2 or not head_dim:
        raise ValueError(f"head_dim is {head_dim}, but rotary positions need an even number above 0")
    begin = raw.get("bos_token_id")
    config = LlamaConfig(
        **{key: raw[key] for key in (*REQUIRED, "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings")},
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        **read_rope(raw, family),
        bos_token_id=None if begin is None else check_token("bos_token_id", begin, raw["vocab_size"]),
        eos_token_ids=token_ids(raw.get("eos_token_id"), raw["vocab_size"]),
        model_type=model_type,
        activation=family.activation[1],
        **family.read(raw),
    )
    if config.rotary_dim % 2 or not config.rotary_dim:
        raise ValueError(f"partial_rotary_factor is {config.partial_rotary_factor}, so that {config.rotary_dim} of "
                         f"{head_dim} dimensions of a head rotate, but rotary positions need an even number above 0")
    check_lengths(config.rope_scaling, config.rotary_dim)
    return config


def _check(raw: dict, activation: tuple[str, str]) -> None:
    """Raises ValueError for a missing key, a value of a wrong type or out of range, or another family's activation."""
    missing = [key for key in REQUIRED if key not in raw]
    if missing:
        raise ValueError(f"required keys are missing: {', '.join(missing)}")
    for key, largest in LARGEST.items():
        value = raw.get(key)
        if (value is not None or key in REQUIRED) and not (is_int(value) and 0 < value <= largest):
            raise ValueError(f"{key} is {short(value)}, but must be a positive integer up to {largest}")
    if not (is_int(raw.get("max_window_layers", 0)) and raw.get("max_window_layers", 0) >= 0):
        raise ValueError(f"max_window_layers is {short(raw['max_window_layers'])}, but must be an integer from 0 on")
    for key, (low, high) in RANGES.items():
        value = raw.get(key)
        if key in raw and not (key in OPTIONAL and value is None):
            check_number(key, value, low, high)
    for key in FLAGS:
        if key in raw and not isinstance(raw[key], bool):
            raise ValueError(f"{key} is {short(raw[key])}, but must be true or false")
    key, usual = activation
    if (raw.get(key) or usual) != usual:
        raise ValueError(f"{key} {short(raw[key])} is not supported; this family uses {usual!r}")


def check_architectures(raw: dict, model_type: str) -> None:
    """Raises ValueError if `architectures` names a class of another family than `model_type`.

    A family is the word before a class's purpose, case apart: `LLaMAForCausalLM` and `LlamaModel` are Llamas."""
    def family_in(name: str) -> str:
        return re.split(r"For[A-Z]|Model|LMHead", name)[0].lower()
    stated = raw.get("architectures") or []
    if not (isinstance(stated, list) and all(isinstance(name, str) for name in stated)):
        raise ValueError(f"architectures is {short(stated)}, but must be a list of names")
    for name in stated:
        if family_in(name) != family_in(FAMILIES[model_type].architecture):
            source = "model_type is" if "model_type" in raw else "no model_type is there, which means"
            raise ValueError(f"architectures names {short(name)}, but {source} {model_type!r}: make the two agree")


# ---- token ids ----------------------------------------------------------------------------------------------------

def token_ids(ids: object, vocab_size: int) -> tuple[int, ...]:
    """A config holds one id, a list of ids, or none. `token_ids(2, 9) -> (2,)`. Raises ValueError for anything else,
    and for ids beyond the vocabulary."""
    listed = ids if isinstance(ids, list) else () if ids is None else (ids,)
    return tuple(dict.fromkeys(check_token("eos_token_id", i, vocab_size) for i in listed))


def check_token(key: str, token: object, vocab_size: int) -> int:
    """The token id. Raises ValueError if the vocabulary has no such id."""
    if not (is_int(token) and 0 <= token < vocab_size):
        raise ValueError(f"{key} is {short(token)}, but must be an id of the vocabulary, 0 to {vocab_size - 1}")
    return token


# ---- quantized models ---------------------------------------------------------------------------------------------

def quantized_by(raw: dict) -> str | None:
    """Who quantized the model, in words, or None. Reads `quantization_config`, and MLX's `quantization`.

    `{"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} -> "bitsandbytes nf4"`"""
    for key in ("quantization_config", "quantization"):
        stated = raw.get(key)
        if stated is None or stated == {}:
            continue
        if not isinstance(stated, dict):
            raise ValueError(f"{key} is {short(stated)}, but must be a JSON object")
        if words := _quantizer_in_words(stated, "mlx" if key == "quantization" else "another tool"):
            return f"{words} ({key})"
    return None


def _quantizer_in_words(stated: dict, usual: str) -> str | None:
    bitsandbytes = {"load_in_4bit", "load_in_8bit"} & set(stated)
    method = stated.get("quant_method") or ("bitsandbytes" if bitsandbytes else usual)
    if bitsandbytes:
        if stated.get("load_in_4bit"):
            return f"{method} {stated.get('bnb_4bit_quant_type', 'fp4')}"
        return f"{method} int8" if stated.get("load_in_8bit") else None
    facts = [f"{stated['bits']} bits"] if stated.get("bits") else []
    facts += [f"{name} {stated[name]}" for name in ("group_size", "format", "fmt", "activation_scheme")
              if stated.get(name)]
    return short(" ".join([str(method), ", ".join(facts)]).strip(), 200).strip("'\"")
