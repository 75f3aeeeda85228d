"""Hugging Face `config.json` -> `LlamaConfig`.

Two spellings are read: the classic one (`rope_theta`, `rope_scaling`, `torch_dtype`) and the newer one
(`rope_parameters` holding `rope_theta` and `rope_type`, `dtype`). Absent keys take the values of the first published
Llama (LLaMA-1 files carry no `rope_theta` and no `num_key_value_heads`).
"""
import json
from dataclasses import asdict, dataclass
from pathlib import Path

REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class LlamaConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None  # {"rope_type": "linear" | "llama3", "factor": ..., ...}
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def to_json(self) -> dict:
        """The same configuration in the classic Hugging Face spelling, so that other tools read it."""
        fields = asdict(self)
        eos = list(fields.pop("eos_token_ids"))
        return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", **fields,
                "eos_token_id": eos[0] if len(eos) == 1 else eos or None}


def config_from_json(raw: dict, where: str) -> LlamaConfig:
    """Raises ValueError, naming `where`, for a missing key, another architecture or an unknown rotary scaling."""
    missing = [key for key in REQUIRED if key not in raw]
    if missing:
        raise ValueError(f"{where}: config lacks {', '.join(missing)}")
    for key in (*REQUIRED, "num_key_value_heads", "head_dim", "max_position_embeddings"):
        value = raw.get(key)
        if (value is not None or key in REQUIRED) and not (isinstance(value, int) and value > 0):
            raise ValueError(f"{where}: {key} is {value!r}, not a positive integer")
    if raw.get("model_type", "llama") != "llama":
        raise ValueError(f"{where}: model_type {raw['model_type']!r} is not supported; only 'llama' is")
    if raw.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{where}: hidden_act {raw['hidden_act']!r} is not supported; a Llama uses 'silu'")
    heads = raw["num_attention_heads"]
    kv_heads = raw.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise ValueError(f"{where}: num_attention_heads={heads} is not a multiple of num_key_value_heads={kv_heads}")
    theta, scaling = _rope(raw, where)
    eos = raw.get("eos_token_id")
    return LlamaConfig(
        **{key: raw[key] for key in REQUIRED},
        num_key_value_heads=kv_heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        max_position_embeddings=raw.get("max_position_embeddings", 2048),
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
        attention_bias=raw.get("attention_bias", False),
        mlp_bias=raw.get("mlp_bias", False),
        bos_token_id=raw.get("bos_token_id"),
        eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
    )


def _rope(raw: dict, where: str) -> tuple[float, dict | None]:
    """Base frequency and scaling, from either spelling."""
    newer = raw.get("rope_parameters") or {}
    theta = newer.get("rope_theta", raw.get("rope_theta", 10000.0))
    scaling = newer or raw.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise ValueError(f"{where}: rotary scaling {kind!r} is not supported; supported: {', '.join(ROPE_TYPES)}")
    if kind == "default":
        return theta, None
    needed = ("factor",) if kind == "linear" else (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    missing = [key for key in needed if key not in scaling]
    if missing:
        raise ValueError(f"{where}: rotary scaling {kind!r} lacks {', '.join(missing)}")
    return theta, {"rope_type": kind, **{key: scaling[key] for key in needed}}


def read_json(path: Path) -> dict:
    """A JSON object from a file; ValueError naming the file when it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return value
