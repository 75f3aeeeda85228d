"""Hugging Face `config.json` -> `LlamaConfig`, and back. `families.py` holds the keys that only some families have.

Two spellings are read. The classic one has `rope_theta`, `rope_scaling` and `torch_dtype`. The newer one has
`rope_parameters` (with `rope_theta` and `rope_type`), `layer_types` and `dtype`. Absent keys take the family's
published defaults: LLaMA-1 files, for example, have no `rope_theta` and no `num_key_value_heads`. An absent
`model_type` means `llama`.
"""
from model.config import LlamaConfig
from model.families import FAMILIES

REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SIZES = (*REQUIRED, "num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window")
ROPE_TYPES = ("default", "linear", "llama3")
# Fields that have the same name in every family's config.json.
SHARED = (*REQUIRED, "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "rope_scaling",
          "max_position_embeddings", "tie_word_embeddings", "bos_token_id")


def config_to_json(config: LlamaConfig) -> dict:
    """The configuration with the family's own keys, in the classic spelling, so that other tools can read it."""
    family, eos = FAMILIES[config.model_type], list(config.eos_token_ids)
    key, activation = family.activation
    return {"architectures": [family.architecture], "model_type": config.model_type, key: activation,
            **{name: getattr(config, name) for name in SHARED}, **family.write(config),
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None}


def config_from_json(raw: dict, where: str) -> LlamaConfig:
    """`where` is named in errors. Raises ValueError for a missing key, and for an architecture or a rotary scaling that
    is not supported."""
    try:
        return _config(raw)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _config(raw: dict) -> LlamaConfig:
    model_type = raw.get("model_type", "llama")
    if model_type not in FAMILIES:
        raise ValueError(f"model_type {model_type!r} is not supported; supported: {', '.join(FAMILIES)}")
    family = FAMILIES[model_type]
    raw = {**family.defaults, **raw}
    _check(raw, family.activation)
    heads = raw["num_attention_heads"]
    kv_heads = raw.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise ValueError(f"num_attention_heads={heads} is not a multiple of num_key_value_heads={kv_heads}")
    theta, scaling = _rope(raw)
    return LlamaConfig(
        **{key: raw[key] for key in (*REQUIRED, "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings")},
        num_key_value_heads=kv_heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        rope_theta=theta,
        rope_scaling=scaling,
        bos_token_id=raw.get("bos_token_id"),
        eos_token_ids=token_ids(raw.get("eos_token_id")),
        model_type=model_type,
        activation=family.activation[1],
        **family.read(raw),
    )


def _check(raw: dict, activation: tuple[str, str]) -> None:
    """Raises ValueError for a missing key, a size that is no positive integer, or an activation of another family."""
    missing = [key for key in REQUIRED if key not in raw]
    if missing:
        raise ValueError(f"required keys are missing: {', '.join(missing)}")
    for key in SIZES:
        value = raw.get(key)
        if (value is not None or key in REQUIRED) and not (isinstance(value, int) and value > 0):
            raise ValueError(f"{key} is {value!r}, but must be a positive integer")
    key, usual = activation
    if (raw.get(key) or usual) != usual:
        raise ValueError(f"{key} {raw[key]!r} is not supported; this family uses {usual!r}")


def token_ids(ids: int | list[int] | None) -> tuple[int, ...]:
    """A config holds one id, a list of ids, or none. `token_ids(2) -> (2,)`"""
    return tuple(ids) if isinstance(ids, list) else () if ids is None else (ids,)


def _rope(raw: dict) -> tuple[float, dict | None]:
    """Base frequency and scaling, read from either spelling."""
    newer = raw.get("rope_parameters") or {}
    theta = newer.get("rope_theta", raw.get("rope_theta", 10000.0))
    scaling = newer or raw.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise ValueError(f"rotary scaling {kind!r} is not supported; supported: {', '.join(ROPE_TYPES)}")
    if kind == "default":
        return theta, None
    needed = ("factor",) if kind == "linear" else (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    missing = [key for key in needed if key not in scaling]
    if missing:
        raise ValueError(f"rotary scaling {kind!r} needs {', '.join(missing)}")
    return theta, {"rope_type": kind, **{key: scaling[key] for key in needed}}
