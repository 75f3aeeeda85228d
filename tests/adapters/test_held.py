"""A model that holds its dequantized weights answers the same bits, and is what it was afterwards."""
import pytest
import torch

from adapters import held
from adapters.adapted import adapter_parameters
from adapters.held import HeldLinear, dense_weights
from finetune.adapted_model import attach_adapters
from finetune.command_line import train_parser
from finetune.quantize import quantized_layer
from finetune.resolve import resolve_run
from model.checkpoint import random_model
from model.config import LlamaConfig
from quant import QUANTIZERS
from quant.linear import QuantLinear

CONFIG = LlamaConfig(vocab_size=48, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, head_dim=8, max_position_embeddings=96, tie_word_embeddings=True,
                     bos_token_id=1, eos_token_ids=(2,), attention_bias=True)
METHODS = {"qlora": "nf 16x1", "qblora": "minmax 2x2", "qalora": "minmax 16x1", "qablora": "minmax 4x8",
           "peqa": "intminmax 4x8"}


def trained(method: str, dtype: torch.dtype):
    quantizer, block = METHODS[method].split()
    flags = ["--method", method, "--quantizer", quantizer, "--block", block, "--targets", "attention",
             *(() if method == "peqa" else ("--rank", "4"))]
    config, model = resolve_run(train_parser().given(flags)), random_model(CONFIG, dtype, seed=1)
    for name, layer in list(model.named_modules()):
        if name.endswith("_proj"):
            weight = QUANTIZERS[quantizer](4, config.base.block).quantize(layer.weight.detach().float())
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, quantized_layer(layer, weight))
    model.dtype = dtype
    attach_adapters(model, config)
    for p in adapter_parameters(model).values():
        torch.nn.init.normal_(p, std=0.1)
    return model.eval()


TOKENS = torch.randint(3, 48, (3, 11), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_the_same_bits_and_the_same_modules_afterwards(method, dtype, capsys):
    model = trained(method, dtype)
    before, modules = model(TOKENS), dict(model.named_modules())
    with dense_weights(model) as holds:
        assert holds and torch.equal(model(TOKENS), before)
        assert sum(isinstance(m, HeldLinear) for m in model.modules()) == 14
        assert not any(isinstance(m, QuantLinear) for m in model.modules())
    assert dict(model.named_modules()) == modules and torch.equal(model(TOKENS), before)
    assert "dequantized weights are held while the model answers: 0 MB" in capsys.readouterr().err


def test_what_fails_inside_leaves_the_model_as_it_was():
    model = trained("qablora", torch.float32)
    modules = dict(model.named_modules())
    with pytest.raises(KeyError), dense_weights(model):
        raise KeyError
    assert dict(model.named_modules()) == modules


def test_without_room_the_codes_stay(monkeypatch, capsys):
    model = trained("qablora", torch.float32)
    monkeypatch.setattr(held, "free_memory", lambda device: 1e4)
    with dense_weights(model) as holds:
        assert not holds and not any(isinstance(m, HeldLinear) for m in model.modules())
    assert "they would take 0 MB of 0 that are free" in capsys.readouterr().err


def test_a_model_without_codes_is_left_alone(capsys):
    with dense_weights(random_model(CONFIG, torch.float32, seed=1)) as holds:
        assert not holds
    assert capsys.readouterr().err == ""
