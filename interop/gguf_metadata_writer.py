"""The metadata of a GGUF file: made from the run's config and tokenizer, or copied from the GGUF file that the run was
trained on."""
from finetune.source import Source
from interop.gguf_tokenizer_writer import tokenizer_keys
from interop.trained import Trained
from model.config import LlamaConfig
from model.gguf_layout import CONFIG_KEYS, LLAMA_3_ROPE, OPTIONAL_KEYS
from model.gguf_reader import is_gguf, read_gguf

# key -> value, its type, and the type of its elements if it is a list
Metadata = dict[str, tuple[object, str, str | None]]
WRITTEN_AS = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}  # model_type -> general.architecture
OWN_KEYS = ("GGUF.", "general.architecture", "general.alignment")      # the gguf package writes these itself


def architecture_of(trained: Trained) -> str:
    """general.architecture. Raises ValueError for a model that is not written as GGUF."""
    config = trained.config
    if config.model_type not in WRITTEN_AS:
        raise ValueError(f"{trained.path}: model_type {config.model_type!r} is not written as GGUF; supported: "
                         f"{', '.join(WRITTEN_AS)}. Use --format safetensors")
    scaling = config.rope_scaling or {}
    if scaling.get("rope_type") == "llama3" and any(scaling[key] != value for key, value in LLAMA_3_ROPE.items()):
        supported = ", ".join(f"{key} {value}" for key, value in LLAMA_3_ROPE.items())
        raise ValueError(f"{trained.path}: rotary scaling {scaling} is not written as GGUF: only Llama 3.1's own "
                         f"parameters can be read again, {supported}. Use --format safetensors")
    width = config.num_attention_heads * config.head_dim
    if config.model_type == "qwen2" and width != config.hidden_size:
        raise ValueError(f"{trained.path}: a qwen2 whose heads have {width} dimensions together and whose hidden_size "
                         f"is {config.hidden_size} cannot be loaded by llama.cpp. Use --format safetensors")
    return WRITTEN_AS[config.model_type]


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
             **{f"{architecture}.{key}": value for key, value in model_keys(config).items()}, **tokenizer}
    return {key: typed(value) for key, value in found.items()}


def model_keys(config: LlamaConfig) -> dict[str, object]:
    """The config as GGUF keys. These architectures have no key for a sliding window, so the context length ends where
    the window would begin to matter."""
    keys = {theirs: getattr(config, ours) for ours, theirs in {**CONFIG_KEYS, **OPTIONAL_KEYS}.items()}
    if config.windowed_layers:
        keys["context_length"] = min(config.max_position_embeddings, config.sliding_window)
    if (config.rope_scaling or {}).get("rope_type") == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(config.rope_scaling["factor"])}
    return {**keys, "rope.freq_base": float(config.rope_theta), "attention.value_length": config.head_dim,
            "rope.dimension_count": config.head_dim, "vocab_size": config.vocab_size}


def typed(value: object) -> tuple[object, str, str | None]:
    """The value with the types that llama.cpp reads."""
    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}
    if isinstance(value, list):
        return value, "ARRAY", {int: "INT32", float: "FLOAT32", str: "STRING"}[type(value[0])]
    return value, kinds[type(value)], None
