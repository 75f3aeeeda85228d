"""The metadata of a GGUF file: made from the run's config and tokenizer, or copied from the GGUF file that the run was
trained on."""
from dataclasses import replace
from pathlib import Path

from finetune.source import Source
from interop.gguf_tokenizer_writer import tokenizer_keys
from interop.trained import Trained
from model.config import LlamaConfig
from model.config_json import config_to_json
from model.gguf_architectures import ARCHITECTURES, CONFIG_KEYS, OPTIONAL_KEYS
from model.gguf_file import GGUFFile
from model.gguf_layout import LLAMA_3_ROPE
from model.gguf_reader import gguf_config, is_gguf, read_gguf
from model.rotary import attention_factor

# key -> value, its type, and the type of its elements if it is a list
Metadata = dict[str, tuple[object, str, str | None]]
# model_type -> general.architecture
WRITTEN_AS = {**{architecture.model_type: name for name, architecture in ARCHITECTURES.items()}, "mistral": "llama"}
OWN_KEYS = ("GGUF.", "general.architecture", "general.alignment")      # the gguf package writes these itself
# Fields that a file does not hold, or holds otherwise: the rest must come back from its metadata.
WITHOUT_KEYS = ("model_type", "rope_scaling", "max_position_embeddings", "vocab_size", "tie_word_embeddings",
                "bos_token_id", "eos_token_ids", "attention_bias", "o_bias", "mlp_bias", "partial_rotary_factor")
WINDOWS = ("sliding_window", "windowed_layers")


def architecture_of(trained: Trained) -> str:
    """general.architecture. Raises ValueError for a model that llama.cpp would compute otherwise."""
    config = trained.config
    if config.model_type not in WRITTEN_AS:
        raise ValueError(f"{trained.path}: model_type {config.model_type!r} is not written as GGUF; supported: "
                         f"{', '.join(WRITTEN_AS)}. Use --format safetensors")
    if reason := unlike_llama_cpp(config, WRITTEN_AS[config.model_type]):
        raise ValueError(f"{trained.path}: {reason}. Use --format safetensors")
    return WRITTEN_AS[config.model_type]


def unlike_llama_cpp(config: LlamaConfig, architecture: str) -> str | None:
    """What llama.cpp would compute otherwise, in words; None: nothing."""
    width = config.num_attention_heads * config.head_dim
    if config.model_type in ("qwen2", "phi3") and width != config.hidden_size:
        return (f"a {config.model_type} whose heads have {width} dimensions together and whose hidden_size is "
                f"{config.hidden_size} cannot be loaded by llama.cpp")
    biases = [name for name in ("attention_bias", "o_bias", "mlp_bias") if getattr(config, name)]
    if biases and architecture not in ("llama", "qwen2", "granite"):
        return f"{biases[0]} is true, but llama.cpp reads no biases of {architecture}"
    if reason := unlike_rotary(config, architecture):
        return reason
    keys = model_keys(replace(config, rope_scaling=None), architecture)
    metadata = {f"{architecture}.{key}": value for key, value in keys.items()}
    file = GGUFFile(Path("metadata"), {"general.architecture": architecture, **metadata}, {})
    read, without = gguf_config(file), WITHOUT_KEYS + WINDOWS * (architecture not in ("gemma2", "gemma3"))
    for name, value in vars(config).items():
        if name not in without and getattr(read, name) != value:
            return (f"{name} is {value}, but llama.cpp takes {getattr(read, name)} for architecture {architecture!r} "
                    f"and has no key for it")
    return None


def unlike_rotary(config: LlamaConfig, architecture: str) -> str | None:
    """A rotary scaling that GGUF files cannot state, or that would not be read again, in words."""
    scaling = config.rope_scaling or {}
    kind = scaling.get("rope_type")
    if kind == "llama3" and any(scaling[key] != value for key, value in LLAMA_3_ROPE.items()):
        supported = ", ".join(f"{key} {value}" for key, value in LLAMA_3_ROPE.items())
        return (f"rotary scaling {scaling} is not written as GGUF: only Llama 3.1's own parameters can be read again, "
                f"{supported}")
    if kind == "longrope" and architecture != "phi3" or architecture == "gemma3" and kind not in (None, "linear"):
        return f"rotary scaling {kind!r} is not written as GGUF for architecture {architecture!r}"
    stated = sorted(set(scaling) - {"rope_type", "factor", "original_max_position_embeddings"})
    if kind == "yarn" and stated:
        return (f"rotary scaling 'yarn' with {', '.join(stated)} is not written as GGUF: llama.cpp reads factor and "
                f"original length")
    return None


def kept_metadata(trained: Trained) -> Metadata | None:
    """The metadata of the GGUF file that the run started from. None if it did not start from one, or the file is
    gone."""
    if trained.origin is None or not is_gguf(trained.origin):
        return None
    file = read_gguf(trained.origin)
    return {key: (value, *file.kinds[key]) for key, value in file.metadata.items() if not key.startswith(OWN_KEYS)}


def new_metadata(trained: Trained, name: str) -> Metadata:
    """Metadata from the run's config and tokenizer. Raises ValueError for a tokenizer that llama.cpp does not
    support."""
    architecture, config = architecture_of(trained), trained.config
    tokenizer = tokenizer_keys(trained.path, config, Source(trained.path).stop_ids())
    found = {"general.type": "model", "general.name": name, "general.quantization_version": 2,
             **{f"{architecture}.{key}": value for key, value in model_keys(config, architecture).items()},
             **tokenizer}
    return {key: typed(value) for key, value in found.items()}


def model_keys(config: LlamaConfig, architecture: str) -> dict[str, object]:
    """The config as GGUF keys. Most architectures have no window in llama.cpp, so their context length ends where the
    window would begin to matter."""
    raw, own = config_to_json(config), ARCHITECTURES[architecture].keys
    keys = {theirs: raw[ours] for ours, theirs in {**CONFIG_KEYS, **OPTIONAL_KEYS, **own}.items()
            if raw.get(ours) is not None}
    if config.windowed_layers and not architecture.startswith("gemma"):
        keys["context_length"] = min(config.max_position_embeddings, config.sliding_window)
        keys.pop(own.get("sliding_window"), None)
    keys |= rotary_keys(config)
    floats = {key: float(keys[key]) for key in keys if key in FLOATS}
    return {**keys, **floats, "attention.value_length": config.head_dim, "rope.dimension_count": config.rotary_dim,
            "vocab_size": config.vocab_size}


# Numbers that config.json may hold as integers, and llama.cpp reads as floats.
FLOATS = ("rope.freq_base", "rope.freq_base_swa", "attention.scale", "embedding_scale", "residual_scale", "logit_scale",
          "attn_logit_softcapping", "final_logit_softcapping", "attention.layer_norm_rms_epsilon")


def rotary_keys(config: LlamaConfig) -> dict[str, object]:
    """Those of llama3 and the lists of longrope are tensors."""
    scaling = config.rope_scaling or {}
    kind, original = scaling.get("rope_type"), scaling.get("original_max_position_embeddings")
    if kind == "longrope":
        return {"rope.scaling.attn_factor": attention_factor(config)}
    if kind not in ("linear", "yarn"):
        return {}
    keys = {"rope.scaling.type": kind, "rope.scaling.factor": float(scaling["factor"])}
    return keys | ({"rope.scaling.original_context_length": original} if kind == "yarn" else {})


def typed(value: object) -> tuple[object, str, str | None]:
    """The value with the types that llama.cpp reads."""
    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}
    if isinstance(value, list):
        return value, "ARRAY", {int: "INT32", float: "FLOAT32", str: "STRING"}[type(value[0])]
    return value, kinds[type(value)], None
