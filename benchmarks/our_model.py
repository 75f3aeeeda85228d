"""A model directory as the commands load it, in bfloat16, its linear layers in NF4 if wanted; and the peers'.

Imported in processes that may use the packages of another checkout."""
from pathlib import Path
from typing import Any


def loaded(path: Path, quantized: bool) -> Any:
    import torch

    from finetune.adapted_model import linear_names
    from finetune.quantize import WeightErrors, rounding
    from model.checkpoint import empty_model, load_model
    from model.directory import load_config, weight_files
    from quant.spec import QuantSpec
    config = load_config(path)
    change = None
    if quantized:
        names = linear_names(empty_model(config, torch.float32), "all")
        change = rounding(names, QuantSpec.parse("nf@64x1-4bit").new_quantizer(), WeightErrors())
    return load_model(weight_files(path), config, torch.bfloat16, "cpu", change).requires_grad_(False).eval()


def theirs(path: Path, quantized: bool) -> Any:
    """The same from transformers, NF4 by bitsandbytes."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, device_map={"": "cpu"},
                                                quantization_config=nf4 if quantized else None).eval()
