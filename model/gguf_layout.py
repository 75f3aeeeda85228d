"""Types of the tensors of GGUF files. gguf_architectures.py has their names and the order of their rows.

The reader (`gguf_reader.py`) and the writer (`interop/gguf_writer.py`) share this file. The `gguf` package
(requirements-extra.txt) is needed to write, and to dequantize the types of PACKAGE_TYPES.
"""
import torch

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
# tokenizer.ggml.NAME_token_id: the keys of end tokens.
END_KEYS = ("eos", "eot", "eom")
# Tokens that end an answer in llama.cpp by their text alone, whatever the keys say. Its own list has a few more, of
# models and prompts (fill-in-the-middle) that are not supported here.
END_TEXTS = frozenset(("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
                       "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<eos>", "<end_of_utterance>",
                       "<\uff5cend\u2581of\u2581sentence\uff5c>"))
LINEAR = ("_proj", "lm_head")
ROPE_DIVISORS = "rope_freqs.weight"
# longrope's divisors, in a phi3 file: key of the rotary scaling -> tensor
LONGROPE = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
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
