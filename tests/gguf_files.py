"""For all tests of GGUF: files that the gguf package writes, from a model or a tokenizer of this project."""
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import sentencepiece
import torch
from torch import Tensor

from finetune.config import EMBEDDED_BASE
from model.checkpoint import random_model
from model.config import LlamaConfig
from model.llama import Llama
from tests.cli import SMALL

gguf = pytest.importorskip("gguf", reason="pip install -r requirements-extra.txt")
# The heads together are wider than hidden_size: 4 * 16 != 32.
ODD_HEADS = replace(SMALL, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, rope_theta=500000.0)
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
         "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
         "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down"}


def strong_model(config: LlamaConfig = ODD_HEADS) -> Llama:
    """Weights so large that attention is far from uniform: q and k then matter."""
    model = random_model(config, torch.float32, seed=0).eval().requires_grad_(False)
    for p in model.parameters():
        if p.ndim == 2:
            p.mul_(8)
    return model


def interleaved(w: Tensor, heads: int) -> Tensor:
    """The row order in which llama.cpp's converter writes q and k: 0 h 1 h+1 ..., with h half of a head."""
    half = len(w) // heads // 2
    return w[[head * 2 * half + i + side * half for head in range(heads) for i in range(half) for side in (0, 1)]]


def gguf_name(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    if module.startswith("model.layers."):
        layer, _, rest = module.removeprefix("model.layers.").partition(".")
        return f"blk.{layer}.{NAMES[rest]}.{leaf}"
    return f"{NAMES[module]}.{leaf}"


def write_gguf(path: Path, model: Llama, kind: str = "F32", arch: str = "llama", interleave: bool = True,
               metadata: dict | None = None, tokenizer: Callable | None = None, tensors: dict | None = None,
               byte_order=None, raw: dict | None = None) -> Path:
    """kind: the type of the linear layers. The embedding is Q8_0 if that is a block type.
    metadata, tensors: entries to add or replace; None removes one.
    raw: name of a weight in the model -> its rows as bytes, and their type, instead of `kind`."""
    config, stored = model.config, {}
    for name, w in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        rows, kind_of_rows = (raw or {}).get(name, (None, None))
        w = w if rows is None else torch.from_numpy(rows)
        w = interleaved(w, heads) if heads and interleave else w
        if rows is not None:
            stored[gguf_name(name)] = (w, kind_of_rows)
            continue
        block = "Q8_0" if kind.startswith("Q") and "embed" in name else kind
        stored[gguf_name(name)] = (w, block if w.ndim == 2 else "F32")
    writer = gguf.GGUFWriter(path, arch, endianess=byte_order or gguf.GGUFEndian.LITTLE)
    (tokenizer or sentencepiece_tokens)(writer)
    keys = {"embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size,
            "block_count": config.num_hidden_layers, "attention.head_count": config.num_attention_heads,
            "attention.head_count_kv": config.num_key_value_heads, "attention.key_length": config.head_dim,
            "attention.layer_norm_rms_epsilon": config.rms_norm_eps, "rope.freq_base": config.rope_theta,
            "context_length": config.max_position_embeddings, "vocab_size": config.vocab_size}
    for key, value in {**{f"{arch}.{key}": value for key, value in keys.items()}, **(metadata or {})}.items():
        if value is not None:
            {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
             bool: writer.add_bool}[type(value)](key, value)
    for name, value in {**stored, **(tensors or {})}.items():
        if value is not None:
            add_tensor(writer, name, *value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_k_types(path: Path, kind: str, of: str = "_proj.weight", others: str = "F32",
                  metadata: dict | None = None) -> tuple[Llama, Path]:
    """A file whose linear layers, or those with such a name, have a type of superblocks, and the model of its values,
    if `others` is F32. The gguf package reads these types and does not write them, so the bytes are made here."""
    model = strong_model(replace(ODD_HEADS, hidden_size=256, intermediate_size=256, head_dim=64))
    raw = {}
    for i, (name, p) in enumerate(model.named_parameters()):
        if name.endswith(of):
            raw[name] = raw_bytes(kind, tuple(p.shape), i), kind
            p.copy_(torch.from_numpy(gguf.quants.dequantize(raw[name][0], gguf.GGMLQuantizationType[kind])))
    return model, write_gguf(path, model, others, raw=raw, metadata=metadata)


def raw_bytes(kind: str, shape: tuple[int, int], seed: int) -> numpy.ndarray:
    """Rows of a K type whose weights are like a model's: random codes, and d and dmin of one size."""
    n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    raw = numpy.random.default_rng(seed).integers(0, 256, (shape[0], shape[1] // 256, n_bytes), dtype=numpy.uint8)
    for place in {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
                  "IQ4_XS": (0,)}[kind]:
        raw[..., place:place + 2] = numpy.float16([0.001]).view(numpy.uint8)
    return raw.reshape(shape[0], -1)


def add_tensor(writer, name: str, w: Tensor, kind: str) -> None:
    number = gguf.GGMLQuantizationType[kind]
    stored = w.numpy() if w.dtype == torch.uint8 else gguf.quants.quantize(w.contiguous().numpy(), number)
    writer.add_tensor(name, stored, raw_dtype=number)


# ---- tokenizers ---------------------------------------------------------------------------------------------------

def sentencepiece_tokens(writer, **changed) -> None:
    """The embedded base's tokenizer. changed: the kind of a token by its id, such as `at_3=4`."""
    p = sentencepiece.SentencePieceProcessor(model_file=str(EMBEDDED_BASE / "tokenizer.model"))
    ids = range(p.vocab_size())
    kinds = [2 if p.is_unknown(i) else 3 if p.is_control(i) else 6 if p.is_byte(i) else 1 for i in ids]
    for name, kind in changed.items():
        kinds[int(name.removeprefix("at_"))] = kind
    writer.add_tokenizer_model("llama")
    writer.add_token_list([p.id_to_piece(i) for i in ids])
    writer.add_token_scores([p.get_score(i) for i in ids])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(p.bos_id())
    writer.add_eos_token_id(p.eos_id())


def byte_level_tokens(writer, tokenizer, pre: str, begin: bool | None = None, special: tuple[str, ...] = (),
                      merges: list[str] | None = None) -> None:
    """A BPE of the tokenizers library. merges: replace its own."""
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    own = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    writer.add_token_merges(merges or own)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    if begin is not None:
        writer.add_add_bos_token(begin)
