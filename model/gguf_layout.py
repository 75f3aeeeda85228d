"""Names, types and row order of GGUF files, against those of a model directory.

The reader (`gguf_reader.py`) and the writer (`interop/gguf_writer.py`) share this file. The `gguf` package
(requirements-extra.txt) is needed to write, and to dequantize the types of PACKAGE_TYPES.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import LlamaConfig
from quant.gguf_blocks import BLOCK_TYPES, BlockType
from quant.gguf_superblocks import SUPERBLOCK_TYPES, SuperBlockType

PLAIN_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Types that are codes, scale and offset. A linear layer of such a type stays codes.
CODE_TYPES: dict[str, BlockType | SuperBlockType] = {**BLOCK_TYPES, **SUPERBLOCK_TYPES}
# Types that the gguf package dequantizes, with the weights and the bytes of a block. They are read, and never written
# but as a copy.
PACKAGE_TYPES = {
    "IQ4_NL": (32, 18), "MXFP4": (32, 17), "IQ4_XS": (256, 136), "IQ3_S": (256, 110), "IQ3_XXS": (256, 98),
    "IQ2_S": (256, 82), "IQ2_XS": (256, 74), "IQ2_XXS": (256, 66), "IQ1_M": (256, 56), "IQ1_S": (256, 50),
    "TQ1_0": (256, 54), "TQ2_0": (256, 66)}


@dataclass(frozen=True)
class Architecture:
    model_type: str           # the value in config.json
    interleaved_rotary: bool  # the two rows of each rotary pair of q and k are stored next to each other


# general.architecture -> what it means here.
ARCHITECTURES = {"llama": Architecture("llama", interleaved_rotary=True),
                 "qwen2": Architecture("qwen2", interleaved_rotary=False)}
# Field of LlamaConfig -> metadata key, without the architecture's prefix.
CONFIG_KEYS = {
    "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length", "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count", "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length"}
OPTIONAL_KEYS = {"num_key_value_heads": "attention.head_count_kv", "head_dim": "attention.key_length",
                 "rope_theta": "rope.freq_base"}
# tokenizer.ggml.NAME_token_id: the keys of end tokens.
END_KEYS = ("eos", "eot", "eom")
# Tokens that end an answer in llama.cpp by their text alone, whatever the keys say. Its own list has a few more, of
# models and prompts (fill-in-the-middle) that are not supported here.
END_TEXTS = frozenset(("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
                       "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<eos>", "<end_of_utterance>",
                       "<\uff5cend\u2581of\u2581sentence\uff5c>"))
# Tensor of a GGUF file -> module of a model directory.
TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_TENSORS = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
LINEAR = ("_proj", "lm_head")
ROPE_DIVISORS = "rope_freqs.weight"
# The published rotary scaling of Llama 3.1 and 3.2, but for its factor.
LLAMA_3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def block_size(kind: str) -> tuple[int, int]:
    """Weights and bytes of the unit that a row of this type consists of: `block_size("Q4_1") == (32, 20)`."""
    if kind in PLAIN_TYPES:
        return 1, PLAIN_TYPES[kind].itemsize
    return (CODE_TYPES[kind].weights, CODE_TYPES[kind].bytes) if kind in CODE_TYPES else PACKAGE_TYPES[kind]


def gguf_package(purpose: str = "writing GGUF files"):
    """The optional `gguf` package. Raises ValueError if it is not installed."""
    try:
        import gguf
    except ImportError:
        raise ValueError(f"{purpose} needs the gguf package: pip install gguf "
                         f"(or pip install -r requirements-extra.txt)") from None
    return gguf


# ---- names and row order ------------------------------------------------------------------------------------------

def our_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`. Unknown names stay, for error messages."""
    module, _, leaf = name.rpartition(".")
    prefix, _, rest = module.partition(".")
    layer, _, kind = rest.partition(".")
    if prefix == "blk" and kind in LAYER_TENSORS:
        return f"model.layers.{layer}.{LAYER_TENSORS[kind]}.{leaf}"
    return f"{TENSORS.get(module, module)}.{leaf}"


def gguf_name(name: str) -> str:
    """The inverse of `our_name`: `model.layers.3.self_attn.q_proj.weight` -> `blk.3.attn_q.weight`."""
    module, _, leaf = name.rpartition(".")
    if not module.startswith("model.layers."):
        return f"{next(theirs for theirs, ours in TENSORS.items() if ours == module)}.{leaf}"
    layer, _, kind = module.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{next(theirs for theirs, ours in LAYER_TENSORS.items() if ours == kind)}.{leaf}"


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
