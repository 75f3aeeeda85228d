"""The same random weights in transformers, quantized by bitsandbytes and adapted by PEFT."""
import importlib
from typing import Any

import torch
from torch import nn

from benchmarks.shapes import random_weight
from model.config import LlamaConfig


def missing(*names: str) -> str | None:
    """Why these packages cannot be imported; None if they can."""
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # a library that does not load, too
            return f"{name}: {type(error).__name__}: {error}"[:300]
    return None


def versions(*names: str) -> dict[str, str]:
    return {name: missing(name) or importlib.import_module(name).__version__ for name in names}


@torch.no_grad()
def transformers_model(config: LlamaConfig, quantized: bool, device: str) -> Any:
    """LlamaForCausalLM in bfloat16, the decoder's linear layers as NF4 in blocks of 64 if `quantized`."""
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM
    theirs = TheirConfig(
        vocab_size=config.vocab_size, hidden_size=config.hidden_size, intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers, num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads, head_dim=config.head_dim, rms_norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.max_position_embeddings, tie_word_embeddings=config.tie_word_embeddings,
        attn_implementation="sdpa", bos_token_id=None, eos_token_id=None, pad_token_id=0)
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(theirs)
    finally:
        torch.set_default_dtype(kept)
    for name, module in list(model.named_modules()):
        for leaf, p in list(module.named_parameters(recurse=False)):
            full = f"{name}.{leaf}"
            if full == "lm_head.weight" and config.tie_word_embeddings:
                continue
            p.copy_(random_weight(full, config, tuple(p.shape), device, torch.bfloat16))
        if quantized and isinstance(module, nn.Linear) and name.startswith("model.layers."):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, four_bit(module, device))
    model.tie_weights()
    model.is_loaded_in_4bit = quantized
    return model.requires_grad_(False).eval()


def four_bit(layer: nn.Linear, device: str) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit
    made = Linear4bit(layer.in_features, layer.out_features, bias=False, compute_dtype=torch.bfloat16,
                      compress_statistics=False, quant_type="nf4", device="meta")
    made.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=False,
                             module=made)
    return made.to(device)


def peft_model(config: LlamaConfig, quantized: bool, rank: int, device: str) -> nn.Module:
    """LoRA of this rank beside q, k, v and o."""
    from peft import LoraConfig, get_peft_model
    model = transformers_model(config, quantized, device)
    lora = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM",
                      target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    return get_peft_model(model, lora).train()
