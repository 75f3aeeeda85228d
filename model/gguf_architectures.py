"""The architectures of GGUF files: names of tensors, metadata and row order, against those of a model directory.

| `general.architecture` | differs from llama in |
|---|---|
| llama, smollm3, granite | rows of q and k are interleaved (`interleaved`) |
| qwen2, qwen3, gemma2, gemma3, phi3 | rows of q and k are those of Hugging Face files |
| gemma2, gemma3 | norms hold 1 + weight; two more norms a layer; scores are scaled by the size of a head |
| phi3 | q, k, v are one tensor, gate and up another |

llama.cpp computes what it has no key for in one way only. So which layers have no rotary positions (smollm3) or no
window (gemma2, gemma3) follows from their number. A model that differs is not written (gguf_metadata_writer.py).
"""
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from model.config import LlamaConfig

WINDOW = "attention.sliding_window"
# Tensor of a GGUF file -> module of a model directory.
TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_TENSORS = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
GEMMA_NORMS = {"post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
               "post_ffw_norm": "post_feedforward_layernorm"}
JOINED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
# Key of config.json -> metadata key, without the architecture's prefix.
CONFIG_KEYS = {
    "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length", "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count", "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length"}
OPTIONAL_KEYS = {"num_key_value_heads": "attention.head_count_kv", "head_dim": "attention.key_length",
                 "rope_theta": "rope.freq_base"}


def head_size(raw: dict) -> dict:
    """The scale of Gemma's scores. The largest models divide hidden_size by the heads; the heads' size is another."""
    size = raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]
    largest = raw["num_hidden_layers"] in (46, 62)  # Gemma 2 27B, Gemma 3 27B: as llama.cpp tells them apart
    return {"query_pre_attn_scalar": raw["hidden_size"] // raw["num_attention_heads"] if largest else size}


def no_zeros(raw: dict) -> dict:
    """In Granite's metadata, 0 and an absent key mean: no such factor."""
    size = raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]
    usual = {"embedding_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0,
             "attention_multiplier": size ** -0.5}
    return {key: raw.get(key) or value for key, value in usual.items()}


@dataclass(frozen=True)
class Architecture:
    model_type: str           # the value in config.json
    interleaved_rotary: bool  # the two rows of each rotary pair of q and k are stored next to each other
    keys: dict[str, str] = field(default_factory=dict)      # further keys of config.json -> metadata keys
    tensors: dict[str, str] = field(default_factory=dict)   # names of tensors that are not those of LAYER_TENSORS
    norms_plus_one: bool = False
    implied: Callable[[dict], dict] = lambda raw: {}        # config.json so far -> what llama.cpp takes for granted

    @property
    def layer_tensors(self) -> dict[str, str]:
        return {**LAYER_TENSORS, **self.tensors}


CAPS = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
# general.architecture -> what it means here.
ARCHITECTURES = {
    "llama": Architecture("llama", True),
    "qwen2": Architecture("qwen2", False),
    "qwen3": Architecture("qwen3", False),
    "gemma2": Architecture("gemma2", False, {"sliding_window": WINDOW, **CAPS}, GEMMA_NORMS, True, head_size),
    "gemma3": Architecture("gemma3_text", False,
                           {"sliding_window": WINDOW, "rope_local_base_freq": "rope.freq_base_swa",
                            "final_logit_softcapping": "final_logit_softcapping"}, GEMMA_NORMS, True, head_size),
    "smollm3": Architecture("smollm3", True),
    "phi3": Architecture("phi3", False, {"original_max_position_embeddings": "rope.scaling.original_context_length",
                                         "sliding_window": WINDOW}, JOINED),
    "granite": Architecture("granite", True,
                            {"attention_multiplier": "attention.scale", "embedding_multiplier": "embedding_scale",
                             "residual_multiplier": "residual_scale", "logits_scaling": "logit_scale"},
                            implied=no_zeros)}


def our_name(name: str, architecture: str = "llama") -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`. Unknown names stay, for error messages."""
    module, _, leaf = name.rpartition(".")
    prefix, _, rest = module.partition(".")
    layer, _, kind = rest.partition(".")
    known = ARCHITECTURES[architecture].layer_tensors
    if prefix == "blk" and kind in known:
        return f"model.layers.{layer}.{known[kind]}.{leaf}"
    return f"{TENSORS.get(module, module)}.{leaf}"


def gguf_name(name: str, architecture: str = "llama") -> str:
    """The inverse of `our_name`: `model.layers.3.self_attn.q_proj.weight` -> `blk.3.attn_q.weight`."""
    module, _, leaf = name.rpartition(".")
    if not module.startswith("model.layers."):
        return f"{next(theirs for theirs, ours in TENSORS.items() if ours == module)}.{leaf}"
    layer, _, kind = module.removeprefix("model.layers.").partition(".")
    known = ARCHITECTURES[architecture].layer_tensors
    return f"blk.{layer}.{next(theirs for theirs, ours in known.items() if ours == kind)}.{leaf}"


def half_split(rows: Tensor, heads: int) -> Tensor:
    """The rows of q or k from the order of GGUF files to that of Hugging Face files.

    GGUF files store the two rows of a rotary pair next to each other. Hugging Face files pair x_i with
    x_{i + head_dim/2}. Rows 0 1 2 3 4 5 of one head -> 0 2 4 1 3 5."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """The inverse of `half_split`: rows 0 2 4 1 3 5 of one head -> 0 1 2 3 4 5."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def heads_of(architecture: str, config: LlamaConfig) -> dict[str, int]:
    """Linear layer -> number of heads, for the layers whose rows a file of this architecture interleaves."""
    if not ARCHITECTURES[architecture].interleaved_rotary:
        return {}
    return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}


def is_shifted(name: str, architecture: str) -> bool:
    """Whether the file holds 1 + this tensor."""
    return ARCHITECTURES[architecture].norms_plus_one and name.endswith("norm.weight")
