"""A model that holds its weights answers the same bits, and is what it was afterwards."""
import pytest
import torch

from adapters import held
from adapters.adapted import adapter_parameters
from adapters.held import HeldLinear, PackedLinear, dense_weights, packs
from finetune.adapted_model import attach_adapters
from finetune.command_line import train_parser
from finetune.quantize import quantized_layer
from finetune.resolve import resolve_run
from model.checkpoint import random_model
from model.config import LlamaConfig
from model.finite import damaged_weights
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
            if layer.bias is not None:
                torch.nn.init.normal_(layer.bias)
            weight = QUANTIZERS[quantizer](4, config.base.block).quantize(layer.weight.detach().float())
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, quantized_layer(layer, weight))
    model.dtype = dtype
    attach_adapters(model, config)
    for p in adapter_parameters(model).values():
        torch.nn.init.normal_(p, std=0.1)
    return model.eval()


TOKENS = torch.randint(3, 48, (3, 11), generator=torch.Generator().manual_seed(0))


def held_modules(model) -> list:
    """The modules of a model that are outermost of those which hold weights, and layers of codes that none holds."""
    held, codes = [], []
    for name, module in model.named_modules():
        if isinstance(module, HeldLinear):
            held.append(name)
        elif isinstance(module, QuantLinear) and not name.startswith(tuple(f"{one}." for one in held)):
            codes.append(name)
    assert not codes
    return held


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_the_same_bits_and_the_same_modules_afterwards(method, dtype, capsys):
    model = trained(method, dtype)
    before, modules = model(TOKENS), dict(model.named_modules())
    with dense_weights(model) as holds:
        assert holds and torch.equal(model(TOKENS), before)
        assert len(held_modules(model)) == 14 + packs(model)  # and the head, which has no codes
    assert dict(model.named_modules()) == modules and torch.equal(model(TOKENS), before)
    assert "weights are held while the model answers, as products read them: 0 MB" in capsys.readouterr().err


@torch.no_grad()
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_packed_weights_of_16_bits_give_the_same_bits(stored):
    """A matrix of 16 bits, stored in either type, with a bias in some layers; and the adapter beside it."""
    model = random_model(CONFIG, stored, seed=1).eval()
    model.dtype = torch.bfloat16
    if not packs(model):
        pytest.skip("this processor does not multiply bfloat16")
    attach_adapters(model, resolve_run(train_parser().given(["--method", "lora", "--rank", "4"])))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    before, one = model(TOKENS), model(TOKENS[:1, :1])
    with dense_weights(model) as holds:
        assert holds and sum(isinstance(m, PackedLinear) for m in model.modules()) == 15
        assert torch.equal(model(TOKENS), before) and torch.equal(model(TOKENS[:1, :1]), one)
        model.get_submodule("model.layers.1.mlp.up_proj.base.base").weight[0, 0] = torch.nan
        assert next(damaged_weights(model, [])).startswith("model.layers.1.mlp.up_proj.weight holds 1 ")
        with dense_weights(model) as again:  # nothing is held twice
            assert not again


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


def test_a_model_without_codes_in_float32_is_left_alone(capsys):
    with dense_weights(random_model(CONFIG, torch.float32, seed=1)) as holds:
        assert not holds
    assert capsys.readouterr().err == ""
