"""Quantized layers as the tools of the hub write them, packed by each format's description, bit by bit.

Nothing here comes from quant/formats, whose readers are tested with it."""
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoint import random_model
from model.config_json import config_to_json
from model.files import write_json
from model.tokenizer_files import copy_tokenizer
from quant.absmax import AbsMax
from quant.factors import ZeroPoints
from quant.grid import Block, QuantizedWeight
from quant.integer_minmax import IntegerMinMax
from quant.minmax import MinMax
from quant.normal_float import NormalFloat
from tests.cli import SMALL

WIDE = replace(SMALL, hidden_size=64, head_dim=32, intermediate_size=128)


def words(codes: Tensor, bits: int) -> Tensor:
    """(rows, n) -> int32 (rows, n * bits / 32): one string of bits a row, the lowest bits first."""
    each = (codes.numpy().astype(numpy.uint32)[..., None] >> numpy.arange(bits, dtype=numpy.uint32)) & 1
    string = each.reshape(len(codes), -1).astype(numpy.uint8)
    string = numpy.pad(string, ((0, 0), (0, -string.shape[1] % 32)))
    return torch.from_numpy(numpy.packbits(string, axis=1, bitorder="little").view(numpy.int32).copy())


def zeros(weight: QuantizedWeight) -> Tensor:
    """Of each block, integers (D_out, groups)."""
    assert isinstance(weight.grid.offset, ZeroPoints)
    return weight.grid.offset.integers(weight.grid.scale.shape).to(torch.int32)


def gptq(weight: QuantizedWeight, version: int = 1) -> dict[str, Tensor]:
    bits, D_in = weight.grid.bits, weight.codes.shape[1]
    stored = (zeros(weight).T - int(version == 1)) % 2 ** bits
    return {"qweight": words(weight.codes, bits).T.contiguous(), "qzeros": words(stored, bits),
            "scales": weight.grid.scale.T.contiguous(),
            "g_idx": torch.tensor([i // weight.grid.block.n_in for i in range(D_in)], dtype=torch.int32)}


def awq(weight: QuantizedWeight) -> dict[str, Tensor]:
    def eight(codes: Tensor) -> Tensor:
        out = torch.zeros(len(codes), codes.shape[1] // 8, dtype=torch.int64)
        for i, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            out |= codes[:, output::8].long() << 4 * i
        return out.to(torch.int32)
    return {"qweight": eight(weight.codes.T), "qzeros": eight(zeros(weight).T),
            "scales": weight.grid.scale.T.contiguous()}


def compressed(weight: QuantizedWeight) -> dict[str, Tensor]:
    bits, shape = weight.grid.bits, weight.codes.shape
    if isinstance(weight.grid.offset, ZeroPoints):
        more, codes = {"weight_zero_point": words(zeros(weight).T, bits).T.contiguous()}, weight.codes
    else:  # the codes of AbsMax count from its lowest level
        more, codes = {}, weight.codes + int(weight.grid.levels[0]) + 2 ** (bits - 1)
    return {"weight_packed": words(codes, bits), "weight_scale": weight.grid.scale,
            "weight_shape": torch.tensor(shape), **more}


def bitsandbytes(weight: QuantizedWeight) -> dict[str, Tensor]:
    """Without double quantization."""
    flat, state = weight.codes.flatten(), {"quant_type": "nf4", "blocksize": weight.grid.block.n_in,
                                           "dtype": "float32", "shape": list(weight.codes.shape)}
    return {"weight": (flat[0::2] * 16 + flat[1::2])[:, None].clone(),
            "weight.absmax": weight.grid.scale.flatten().clone(), "weight.quant_map": weight.grid.levels.clone(),
            "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)}


def hqq(weight: QuantizedWeight) -> dict[str, Tensor]:
    """zero = -offset / scale, in float16; so the weights are `hqq_weight`, not those that come in."""
    bits, group, (D_out, D_in) = weight.grid.bits, weight.grid.block.n_in, weight.codes.shape
    rows, each = weight.codes.reshape(-1, group).to(torch.int32), {2: 4, 3: 10, 4: 2}.get(bits, 1)
    rows = torch.cat((rows, rows.new_zeros(-len(rows) % each, group)))
    packed = torch.zeros(len(rows) // each, group, dtype=torch.int32)
    for part in rows.chunk(each):
        packed = packed << bits | part
    scale, offset = weight.grid.factors()
    numbers = {"nbits": bits, "group_size": group, "axis": 1}
    return {"W_q": packed if bits == 3 else packed.to(torch.uint8), "scale": scale.reshape(-1, 1),
            "zero": (-offset.float() / scale.float()).half().reshape(-1, 1), "shape": torch.tensor([D_out, D_in]),
            **{name: torch.tensor(number, dtype=torch.int32) for name, number in numbers.items()},
            **{name: torch.tensor(0, dtype=torch.uint8) for name in ("view_as_float", "round_zero")},
            "packing": torch.tensor([ord(letter) for letter in "4bit_u8"], dtype=torch.uint8)}


def hqq_weight(weight: QuantizedWeight) -> Tensor:
    parts = hqq(weight)
    rows = weight.codes.reshape(-1, weight.grid.block.n_in).double()
    return ((rows - parts["zero"].double()) * parts["scale"].double()).float().view(weight.codes.shape)


@dataclass(frozen=True)
class Tool:
    """A format with one setting."""
    name: str
    config: dict           # quantization_config
    quantize: type         # with blocks of group_size x 1
    parts: object          # function: QuantizedWeight -> tensors
    bits: int = 4
    group: int = 32
    weights: object = QuantizedWeight.dequantize  # as the tool computes them

    def weight(self, dense: Tensor) -> QuantizedWeight:
        return self.quantize(self.bits, Block(self.group, 1)).quantize(dense)


def gptq_config(bits: int = 4, group: int = 32, **more) -> dict:
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, "sym": False, **more}


def awq_config(group: int = 32, **more) -> dict:
    return {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True, **more}


def compressed_config(bits: int = 4, group: int | None = 32, symmetric: bool = True, more=None, **of_weights) -> dict:
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "group_size": group, "dynamic": False,
               "strategy": "group" if group else "channel", "actorder": None, "block_structure": None, **of_weights}
    layers = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
            "ignore": ["lm_head"], "kv_cache_scheme": None, "config_groups": {"group_0": layers}, **(more or {})}


def bitsandbytes_config(**more) -> dict:
    return {"quant_method": "bitsandbytes", "_load_in_4bit": True, "_load_in_8bit": False, "load_in_4bit": True,
            "load_in_8bit": False, "bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": None, **more}


def hqq_config(**more) -> dict:
    params = {"nbits": 4, "group_size": 32, "axis": 1, "channel_wise": True, "optimize": True, "round_zero": False,
              "view_as_float": False, **more}
    return {"quant_method": "hqq", "skip_modules": ["lm_head"], "quant_config": {
        "weight_quant_params": params, "scale_quant_params": None, "zero_quant_params": None}}


TOOLS = {tool.name: tool for tool in (
    Tool("gptq", gptq_config(), IntegerMinMax, gptq),
    Tool("gptq_v2", gptq_config(8, checkpoint_format="gptq_v2"), IntegerMinMax, lambda weight: gptq(weight, 2), bits=8),
    Tool("awq", awq_config(), IntegerMinMax, awq),
    Tool("compressed-tensors", compressed_config(), AbsMax, compressed),
    Tool("compressed-tensors asymmetric", compressed_config(8, symmetric=False), IntegerMinMax, compressed, bits=8),
    Tool("bitsandbytes", bitsandbytes_config(), NormalFloat, bitsandbytes, group=64),
    Tool("hqq", hqq_config(), MinMax, hqq, weights=hqq_weight))}


def write_model(tool: Tool, path: Path, tokenizer: Path, dense: str = "lm_head") -> dict[str, QuantizedWeight]:
    """A model directory as the tool writes it. Returns the codes of all layers but those that stay dense."""
    model, held = random_model(WIDE, torch.float32, seed=1), {}
    tensors = {name: t.half() for name, t in model.state_dict().items() if name != "lm_head.weight"}
    for name in [name.removesuffix(".weight") for name in tensors if "_proj" in name and dense not in name]:
        held[name] = tool.weight(model.get_submodule(name).weight.detach())
        del tensors[f"{name}.weight"]
        tensors |= {f"{name}.{part}": tensor for part, tensor in tool.parts(held[name]).items()}
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "model.safetensors")
    write_json(path / "config.json", {**config_to_json(WIDE), "quantization_config": tool.config})
    copy_tokenizer(tokenizer, path)
    return held
