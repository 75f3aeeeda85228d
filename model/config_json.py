"""Hugging Face `config.json` -> `LlamaConfig`, and back. `families.py` holds the keys that only some families have.

Two spellings are read. The classic one has `rope_theta`, `rope_scaling` and `torch_dtype`. The newer one has
`rope_parameters` (with `rope_theta` and `rope_type`), `layer_types` and `dtype`. Absent keys take the family's
published defaults: LLaMA-1 files, for example, have no `rope_theta` and no `num_key_value_heads`. An absent
`model_type` means `llama`.
"""
import re

from model.config import LlamaConfig
from model.families import FAMILIES, FULL, WINDOWED
from quant.formats import FORMATS, format_of

REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# Fields that have the same name in every family's config.json.
SHARED = (*REQUIRED, "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "rope_scaling",
          "max_position_embeddings", "tie_word_embeddings", "bos_token_id")
# The largest allowed value of each size. It is far above every published model, and far below what overflows.
LARGEST = {"vocab_size": 1 << 24, "hidden_size": 1 << 18, "intermediate_size": 1 << 22, "num_hidden_layers": 1024,
           "num_attention_heads": 1 << 14, "num_key_value_heads": 1 << 14, "head_dim": 1 << 14,
           "max_position_embeddings": 1 << 40, "sliding_window": 1 << 40}
# Numbers that must lie above the first value, up to the second.
RANGES = {"rms_norm_eps": (0, 0.1), "query_pre_attn_scalar": (0, 1e9), "attn_logit_softcapping": (0, 1e9),
          "final_logit_softcapping": (0, 1e9)}
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
            raise ValueError(f"the model's configuration is {_short(raw)}, but must be a JSON object")
        return _config(raw)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _config(raw: dict) -> LlamaConfig:
    if format_of(raw) is None and (stated := quantized_by(raw)):
        raise ValueError(f"quantized by {stated}: weights in this format are not read, those of "
                         f"{', '.join(kind.name for kind in FORMATS)} are; give the model that it was made from, in 16 "
                         f"bits")
    model_type = raw.get("model_type", "llama")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(f"model_type {_short(model_type)} is not supported; supported: {', '.join(FAMILIES)}")
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
    (theta, scaling), begin = read_rope(raw), raw.get("bos_token_id")
    return LlamaConfig(
        **{key: raw[key] for key in (*REQUIRED, "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings")},
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rope_theta=theta,
        rope_scaling=scaling,
        bos_token_id=None if begin is None else check_token("bos_token_id", begin, raw["vocab_size"]),
        eos_token_ids=token_ids(raw.get("eos_token_id"), raw["vocab_size"]),
        model_type=model_type,
        activation=family.activation[1],
        **family.read(raw),
    )


def _check(raw: dict, activation: tuple[str, str]) -> None:
    """Raises ValueError for a missing key, a value of a wrong type or out of range, or another family's activation."""
    missing = [key for key in REQUIRED if key not in raw]
    if missing:
        raise ValueError(f"required keys are missing: {', '.join(missing)}")
    for key, largest in LARGEST.items():
        value = raw.get(key)
        if (value is not None or key in REQUIRED) and not (is_int(value) and 0 < value <= largest):
            raise ValueError(f"{key} is {_short(value)}, but must be a positive integer up to {largest}")
    if not (is_int(raw.get("max_window_layers", 0)) and raw.get("max_window_layers", 0) >= 0):
        raise ValueError(f"max_window_layers is {_short(raw['max_window_layers'])}, but must be an integer from 0 on")
    for key, (low, high) in RANGES.items():
        value = raw.get(key)
        if key in raw and not (key in OPTIONAL and value is None):
            check_number(key, value, low, high)
    for key in FLAGS:
        if key in raw and not isinstance(raw[key], bool):
            raise ValueError(f"{key} is {_short(raw[key])}, but must be true or false")
    key, usual = activation
    if (raw.get(key) or usual) != usual:
        raise ValueError(f"{key} {_short(raw[key])} is not supported; this family uses {usual!r}")


def check_architectures(raw: dict, model_type: str) -> None:
    """Raises ValueError if `architectures` names a class of another family than `model_type`.

    A family is the word before a class's purpose, case apart: `LLaMAForCausalLM` and `LlamaModel` are Llamas."""
    def family_in(name: str) -> str:
        return re.split(r"For[A-Z]|Model|LMHead", name)[0].lower()
    stated = raw.get("architectures") or []
    if not (isinstance(stated, list) and all(isinstance(name, str) for name in stated)):
        raise ValueError(f"architectures is {_short(stated)}, but must be a list of names")
    for name in stated:
        if family_in(name) != family_in(FAMILIES[model_type].architecture):
            source = "model_type is" if "model_type" in raw else "no model_type is there, which means"
            raise ValueError(f"architectures names {_short(name)}, but {source} {model_type!r}: make the two agree")


def is_int(value: object) -> bool:
    """JSON's `true` is no integer, but Python's `True` is one."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_number(key: str, value: object, low: float, high: float) -> None:
    """Raises ValueError unless low < value <= high. NaN, infinity, text and booleans are refused too."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and low < value <= high):
        raise ValueError(f"{key} is {_short(value)}, but must be a number above {low:g}, up to {high:g}")


def _short(value: object, most: int = 60) -> str:
    """The value as Python writes it, cut to a length that fits into a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more than 4300 digits, or very deep nesting
        text = f"a {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}..."


# ---- token ids ----------------------------------------------------------------------------------------------------

def token_ids(ids: object, vocab_size: int) -> tuple[int, ...]:
    """A config holds one id, a list of ids, or none. `token_ids(2, 9) -> (2,)`. Raises ValueError for anything else,
    and for ids beyond the vocabulary."""
    listed = ids if isinstance(ids, list) else () if ids is None else (ids,)
    return tuple(dict.fromkeys(check_token("eos_token_id", i, vocab_size) for i in listed))


def check_token(key: str, token: object, vocab_size: int) -> int:
    """The token id. Raises ValueError if the vocabulary has no such id."""
    if not (is_int(token) and 0 <= token < vocab_size):
        raise ValueError(f"{key} is {_short(token)}, but must be an id of the vocabulary, 0 to {vocab_size - 1}")
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
            raise ValueError(f"{key} is {_short(stated)}, but must be a JSON object")
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
    return _short(" ".join([str(method), ", ".join(facts)]).strip(), 200).strip("'\"")


# ---- rotary positions ---------------------------------------------------------------------------------------------

ROPE_TYPES = ("default", "linear", "llama3")
FACTORS = {"linear": ("factor",),
           "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")}
LAYER_KINDS = (WINDOWED, FULL, "chunked_attention", "linear_attention")


def read_rope(raw: dict) -> tuple[float, dict | None]:
    """Base frequency and scaling. Both spellings are read: `rope_theta` and `rope_scaling`, or `rope_parameters`.

    Raises ValueError if two places state different values."""
    places = [(key, _of_all_layers(key, raw[key])) for key in ("rope_parameters", "rope_scaling")
              if raw.get(key) not in (None, {})]
    kinds = [stated.get("rope_type", stated.get("type", "default")) for _, stated in places]
    scalings = [] if kinds[1:] and kinds[0] != kinds[1] else [(key, _scaling(key, stated)) for key, stated in places]
    if len(places) == 2 and (not scalings or scalings[0][1] != scalings[1][1]):
        raise ValueError(f"rope_parameters ({_short(raw['rope_parameters'], 150)}) and rope_scaling "
                         f"({_short(raw['rope_scaling'], 150)}) disagree: keep the one that the model was trained with")
    scaling = scalings[0][1] if scalings else None
    if scaling and scaling["rope_type"] == "llama3":
        _agree("original_max_position_embeddings", [
            ("the top level", raw.get("original_max_position_embeddings")),
            (scalings[0][0], scaling["original_max_position_embeddings"])])
    theta = _agree("rope_theta", [("the top level", raw.get("rope_theta")),
                                  *((key, stated.get("rope_theta")) for key, stated in places)])
    theta = 10000.0 if theta is None else theta
    check_number("rope_theta", theta, 1, 1e15)
    partial = _agree("partial_rotary_factor", [("the top level", raw.get("partial_rotary_factor")),
                                               *((key, stated.get("partial_rotary_factor")) for key, stated in places)])
    if partial not in (None, 1):
        raise ValueError(f"partial_rotary_factor is {_short(partial)}, but all dimensions of a head must rotate "
                         f"(1, or no such key)")
    return theta, scaling


def _agree(key: str, stated: list[tuple[str, object]]) -> object:
    """The value that all places state; None if none does. Raises ValueError, with both, if two of them differ."""
    found = [(place, value) for place, value in stated if value is not None]
    for place, value in found[1:]:
        if value != found[0][1]:
            raise ValueError(f"{key} is {_short(found[0][1])} at {found[0][0]}, but {_short(value)} in {place}: keep "
                             f"the one that the model was trained with")
    return found[0][1] if found else None


def _of_all_layers(key: str, stated: object) -> dict:
    """The parameters of every layer. Newer files may nest them by kind of layer: {"full_attention": {...}, ...}.

    Raises ValueError if two kinds of layers differ."""
    if not isinstance(stated, dict):
        raise ValueError(f"{key} is {_short(stated)}, but must be a JSON object")
    kinds = [kind for kind in stated if kind in LAYER_KINDS]
    if not kinds:
        if nested := [kind for kind, value in stated.items() if isinstance(value, dict)]:
            raise ValueError(f"{key} holds parameters of {_short(nested[0])}, which is no kind of layer that is known "
                             f"here: {', '.join(LAYER_KINDS)}")
        return stated
    if others := sorted(set(stated) - set(kinds)):
        raise ValueError(f"{key} holds parameters of {kinds[0]} layers beside {_short(others[0])} for all layers: give "
                         f"one or the other")
    first, *rest = kinds
    for kind in rest:
        if stated[kind] != stated[first]:
            raise ValueError(f"{key} differs between {first} ({_short(stated[first])}) and {kind} "
                             f"({_short(stated[kind])}); only the same rotary positions in all layers are supported")
    return _of_all_layers(f"{key}.{first}", stated[first])


def _scaling(key: str, stated: dict) -> dict | None:
    """The rotary scaling that one place states; None for plain rotary positions."""
    kind = _agree(f"{key}'s type", [("rope_type", stated.get("rope_type")), ("type", stated.get("type"))])
    if kind is None or kind == "default":
        if stated.get("factor") not in (None, 1):
            raise ValueError(f"{key} has factor {_short(stated['factor'])}, but "
                             f"{'no rope_type' if kind is None else 'rope_type default, which scales nothing'}: name "
                             f"the rotary scaling; supported: {', '.join(ROPE_TYPES)}")
        return None
    if kind not in ROPE_TYPES:
        raise ValueError(f"rotary scaling {_short(kind)} is not supported; supported: {', '.join(ROPE_TYPES)}")
    missing = [name for name in FACTORS[kind] if name not in stated]
    if missing:
        raise ValueError(f"rotary scaling {kind!r} needs {', '.join(missing)}")
    for name in FACTORS[kind]:
        if name != "original_max_position_embeddings":
            check_number(f"{name} of the rotary scaling", stated[name], 0, 1e6)
    scaling = {"rope_type": kind, **{name: stated[name] for name in FACTORS[kind]}}
    if kind == "llama3":
        original = scaling["original_max_position_embeddings"]
        if not (is_int(original) and 0 < original <= LARGEST["max_position_embeddings"]):
            raise ValueError(f"original_max_position_embeddings of the rotary scaling is {_short(original)}, but must "
                             f"be a positive integer")
        if scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
            raise ValueError(f"low_freq_factor is {scaling['low_freq_factor']}, but must be below high_freq_factor "
                             f"{scaling['high_freq_factor']}")
    return scaling
