"""Every adapter with every operator, on every quantizer, by rounding and by GPTQ, at every width, into every target it
has: additive adapters merge by the rule of tiles, and into the codes if they train so.

Blocks, tiles and shapes are looped over inside, so that one test is one combination of adapter and base."""
import copy
import itertools
from functools import cache

import pytest
import torch

from adapters import ADAPTERS, adapted_layer
from adapters.adapted import replace_layers
from adapters.lam import Lam
from adapters.merge import MergeRefused, merge_into_codes, merge_target, merge_to_dense
from adapters.operators import OPERATORS
from adapters.rounded import into_codes
from model.checkpoint import load_model, random_model, save_model
from model.config import LlamaConfig
from quant import QUANTIZERS
from quant.gptq import gptq
from quant.grid import Block, QuantizedWeight, split_blocks
from quant.linear import QuantLinear
from tests.strategies import nonzero_adapter, possible_lams, random

KINDS = [(kind, operators) for kind in ADAPTERS.values()
         for operators in (OPERATORS if "operators" in kind.options else ["avgpool"])]
# Other operators into the codes: test_rounded.py.
KINDS += [(kind, "avgpool", "codes") for kind in ADAPTERS.values() if kind.additive]
BASES = [(name, bits, by_gptq, double) for name, kind in QUANTIZERS.items() for bits in kind.allowed_bits
         for by_gptq in (False, True) for double in ((False, True) if name in ("nf", "icq") else (False,))]
# The fast suite has every adapter with every operator on every quantizer, rounded to 4 bits.
MARKED = [pytest.param(base, marks=[] if base[1:] == (4, False, False) else pytest.mark.slow) for base in BASES]
BLOCKS = [Block(4, 8), Block(8, 8), Block(32, 1), Block(16, 2), Block(None, 1)]
SHAPES = [(16, 64), (48, 32)]
LAMS = {"lora": [Lam(1, 1)], "irqlora": [Lam(1, 1)], "peqa": [Lam(1, 1)], "blora": [Lam(2, 2), Lam(8, 8), Lam(16, 16)],
        "qalora": [Lam(8, 1), Lam(32, 1)], "qablora": [Lam(4, 8), Lam(8, 8), Lam(32, 1), Lam(2, 2)]}
LAMS_OF_A_NEW_ADAPTER = [Lam(1, 1), Lam(2, 2), Lam(4, 8), Lam(8, 8), Lam(8, 1), Lam(32, 1), Lam(16, 16)]


def ids(case):
    return "-".join(getattr(part, "name", str(part)) for part in case)


@cache
def lams_of(kind):
    return LAMS.get(kind.name) or possible_lams(kind, LAMS_OF_A_NEW_ADAPTER, *SHAPES, block=Block(4, 8))


@cache
def hessian(D_in):
    x = random(256, D_in // 4, seed=3) @ random(D_in // 4, D_in, seed=4) + 0.3 * random(256, D_in, seed=5)
    return x.T @ x


@cache
def base_layer(base, block, shape):
    name, bits, by_gptq, double = base
    quantizer, weight = QUANTIZERS[name](bits, block, torch.float64, double), random(*shape, seed=5)
    quantized = gptq(weight, hessian(shape[1]), quantizer)[0] if by_gptq else quantizer.quantize(weight)
    return QuantLinear.from_weight(quantized, random(shape[0], seed=6))


def layers(base, kind, operators, into=""):
    """Every adapted layer of this combination, over blocks, tiles and shapes. PEQA takes integer zero points only, and
    LoTA whole levels. into: "codes" with --merge-into codes."""
    if kind.name == "peqa" and base[0] != "intminmax" or kind.name == "lota" and base[0] in ("nf", "icq"):
        return
    for block, shape, lam in itertools.product(BLOCKS, SHAPES, lams_of(kind)):
        layer = base_layer(base, block, shape)
        adapter = nonzero_adapter(kind, *shape, lam, operators=operators, block=layer.block)
        yield adapted_layer(layer, into_codes(adapter) if into else adapter)


def constant_on_blocks(delta, block):
    """By looking, not by the rule."""
    blocks = split_blocks(delta, block)
    return bool((blocks - blocks[:, :1, :, :1]).abs().max() < 1e-12)


@pytest.mark.parametrize("base", MARKED, ids=ids)
@pytest.mark.parametrize("kind", KINDS, ids=ids)
def test_the_layer_is_one_matrix_and_its_merge_is_exact_or_refused(kind, base):
    """The identity probe equals the weight. The 16-bit merge is exact in float64. The k-bit merge is exact, and changes
    nothing but its target, if there is one: always, or if delta_W is constant on the blocks; it is refused otherwise.
    The adapted layer does not change."""
    for layer in layers(base, *kind):
        into = layer.adapter.merges_into
        before, x = copy.deepcopy(layer.state_dict()), torch.eye(layer.base.in_features, dtype=torch.float64)
        y, bias = layer(x), layer.base.bias
        assert (y - layer.base(x)).abs().max() > 1e-3  # the adapter does something
        torch.testing.assert_close(y - bias, layer.weight().T, rtol=0, atol=1e-10)
        torch.testing.assert_close(merge_to_dense(layer, torch.float64)(x), y, rtol=0, atol=1e-10)
        unchanged(layer, before)
        merges = into != "offset" or constant_on_blocks(layer.adapter.delta_weight(), layer.base.block)
        try:
            merged = merge_into_codes(layer, "layer")
        except MergeRefused:
            assert not merges
            continue
        assert merges
        torch.testing.assert_close(merged(x), y, rtol=0, atol=1e-10)
        assert (merged.codes is layer.base.codes) == ("codes" not in into)
        factors = [name for name in before if name.startswith(("base.scale", "base.offset"))]
        kept = {"scale": ("levels", "offset.zero"), "scale and offset": ("levels",), "codes": ("levels", *factors)}.get(
            into, ("levels", *(name for name in factors if ".scale" in name)))
        for name in (n.removeprefix("base.") for n in kept):
            assert torch.equal(merged.state_dict()[name], before[f"base.{name}"]), name
        unchanged(layer, before)


def unchanged(layer, before):
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name]), f"merging changed {name}"


@pytest.mark.parametrize("base", BASES, ids=ids)
def test_which_adapters_merge_into_k_bits(base):
    """Averaged tiles that hold whole blocks merge, and so do PEQA, LoTA, `scaleoffset`, and all that train through the
    rounding. Without it, LoRA, IR-QLoRA and operators that skip inputs never do."""
    into_k_bits = {}  # an entry of KINDS -> which of True and False were found
    for case in KINDS:
        for layer in layers(base, *case):
            target = merge_target(layer.base, layer.adapter)
            assert target.into in ("codes" if "codes" in case else case[0].merges_into, "16 bits")
            into_k_bits.setdefault(case, set()).add(target.keeps_codes)
    for (kind, operators, *into), merged in into_k_bits.items():
        sometimes = operators == "avgpool" and any(lam != Lam(1, 1) for lam in lams_of(kind))
        expected = {True} if into or not kind.additive else {True, False} if sometimes else {False}
        assert merged == expected, (kind.name, operators, into)


@pytest.mark.parametrize("fault,spoil", [
    ("missing 1/lam_in", lambda moved: 4 * moved), ("flipped sign", lambda moved: -moved),
    ("shifted block", lambda moved: moved.roll(1, 1)), ("blocks in another order", lambda moved: moved.flip(0)),
    ("blocks transposed", lambda moved: moved.T.reshape(moved.shape))])
@pytest.mark.parametrize("base", [base for base in BASES if base[1] == 3], ids=ids)
def test_a_wrong_merge_would_be_noticed(base, fault, spoil):
    adapter, x = nonzero_adapter(ADAPTERS["qablora"], 48, 32, Lam(4, 8)), random(3, 32, seed=8)
    layer = adapted_layer(base_layer(base, Block(4, 8), (48, 32)), adapter)
    merged, (_, offset) = merge_into_codes(layer, "layer"), layer.base.grid.factors()
    merged.offset = offset + spoil(merged.offset - offset)
    assert (merged(x) - layer(x)).abs().max() > 1e-3, fault


TARGETS = {"offset": ("qablora",), "scale": ("peqa",), "codes": ("qablora", "codes"), "codes and offset": ("lota",),
           "scale and offset": ("scaleoffset",)}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("base", [base for base in BASES if base[1] == 3], ids=ids)
def test_each_part_of_a_merge_counts_on_every_grid(base, target):
    """A part that the target names, left as it was in the base; another part, changed. The merge with all parts is
    exact: the test above."""
    name, *into = TARGETS[target]
    if name == "peqa" and base[0] != "intminmax" or name == "lota" and base[0] in ("nf", "icq"):
        pytest.skip(f"{name} does not go with {base[0]}")
    adapter = nonzero_adapter(ADAPTERS[name], 48, 32, Lam(4, 8) if name == "qablora" else Lam(1, 1), block=Block(4, 8))
    layer = adapted_layer(base_layer(base, Block(4, 8), (48, 32)), into_codes(adapter) if into else adapter)
    x, merged, (scale, offset) = random(3, 32, seed=8), merge_into_codes(layer), layer.base.grid.factors()
    assert layer.adapter.merges_into == target
    torch.testing.assert_close(merged(x), layer(x), rtol=0, atol=1e-10)
    after = merged.grid.factors()
    codes = layer.base.quantized_weight().codes
    codes = codes if "codes" in target else codes.roll(1, 1)
    wrong = {"codes": QuantLinear.from_weight(QuantizedWeight(codes, merged.grid), merged.bias),
             "scale": merged.with_factors(scale if "scale" in target else 1.1 * after[0], after[1]),
             "offset": merged.with_factors(after[0], offset if "offset" in target else after[1] + 0.1)}
    for part, spoilt in wrong.items():
        assert (spoilt(x) - layer(x)).abs().max() > 1e-3, part


def zero(parameter):
    parameter.data = torch.zeros_like(parameter)


@pytest.mark.parametrize("kind,fault,spoil", [
    ("lora", "transposed factors", lambda layer: setattr(layer.adapter.B, "data", layer.adapter.B.data.flip(0))),
    ("irqlora", "B A alone", lambda layer: zero(layer.adapter.iec_b)),
    ("irqlora", "first shortcut lost", lambda layer: zero(layer.adapter.iec_a)),
    ("qalora", "sum in place of mean", lambda layer: setattr(layer.adapter, "scaling", layer.adapter.scaling * 8)),
    ("peqa", "scale left as it was", lambda layer: zero(layer.adapter.log_factor)),
    ("lota", "codes left as they were", lambda layer: setattr(layer.adapter, "omega", 9.0)),
    ("lota", "half of the ternary matrix", lambda layer: zero(layer.adapter.A)),
    ("peqa", "zero points moved", lambda layer: layer.base.offset.zero.add_(1)),
    ("scaleoffset", "factor lost", lambda layer: zero(layer.adapter.log_factor)),
    ("scaleoffset", "H lost", lambda layer: zero(layer.adapter.H)),
    ("scaleoffset", "H of other blocks", lambda layer: setattr(layer.adapter.H, "data", layer.adapter.H.data.flip(1))),
    ("blora", "bias lost", lambda layer: layer.base.bias.zero_()),
    ("qablora", "a code changed", lambda layer: layer.base.codes[0].add_(1))])
def test_a_merge_of_anything_else_would_be_noticed(kind, fault, spoil):
    """Both merges of a layer with one fault, against the output of the layer without."""
    lam = {"blora": Lam(8, 8), "qalora": Lam(8, 1), "qablora": Lam(8, 8)}.get(kind, Lam(1, 1))
    block = Block(8, 1) if kind == "qalora" else Block(4, 8)
    layer = adapted_layer(copy.deepcopy(base_layer(("intminmax", 3, False, False), block, (48, 32))),
                          nonzero_adapter(ADAPTERS[kind], 48, 32, lam, block=block))
    x = random(3, 32, seed=8)
    y = layer(x)
    spoil(layer)
    assert (merge_to_dense(layer, torch.float64)(x) - y).abs().max() > 1e-3, fault
    if merge_target(layer.base, layer.adapter).keeps_codes:
        assert (merge_into_codes(layer, "layer")(x) - y).abs().max() > 1e-3, fault


# ---- on disk --------------------------------------------------------------------------------------------------------

CONFIG = LlamaConfig(vocab_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                     num_key_value_heads=1, head_dim=16, max_position_embeddings=16, tie_word_embeddings=True,
                     eos_token_ids=(2,))


def linear_names(model):
    return [name for name, layer in model.model.named_modules(prefix="model") if hasattr(layer, "in_features")]


def quantized_model(base, block):
    name, bits, by_gptq, double = base
    quantizer, model = QUANTIZERS[name](bits, block, double_quant=double), random_model(CONFIG, torch.float32, 0)

    def change(name, layer):
        weight = layer.weight.detach()
        return QuantLinear.from_weight(gptq(weight, hessian(weight.shape[1]).float(), quantizer)[0] if by_gptq
                                       else quantizer.quantize(weight))
    replace_layers(model, linear_names(model), change)
    return model


def same_bits(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def merging(kind, *into):
    """A change of layers: each one with a new adapter, whose tiles are the layer's blocks, merged into its codes."""
    def change(name, layer):
        sizes = layer.out_features, layer.in_features
        adapter = nonzero_adapter(ADAPTERS[kind], *sizes, Lam(*layer.block_size), block=layer.block).float()
        return merge_into_codes(adapted_layer(layer, into_codes(adapter) if into else adapter), name)
    return change


@pytest.mark.parametrize("base", MARKED, ids=ids)
def test_a_base_saved_and_loaded_has_the_same_bits_before_and_after_a_merge(base, tmp_path):
    for block, kind, *into in ((Block(4, 8), "qablora"), (Block(32, 1), "qalora"), (Block(None, 1), "peqa"),
                               (Block(8, 4), "scaleoffset"), (Block(16, 2), "lota"), (Block(8, 1), "qalora", "codes")):
        model = quantized_model(base, block)
        for _ in range(2):
            save_model(model, tmp_path / "model.safetensors")
            loaded = load_model([tmp_path / "model.safetensors"], CONFIG, torch.float32)
            assert same_bits(model, loaded)
            layer = loaded.model.layers[0].mlp.down_proj
            assert torch.equal(layer.dequantize(), model.model.layers[0].mlp.down_proj.dequantize())
            if (kind != "peqa" or base[0] == "intminmax") and (kind != "lota" or base[0] not in ("nf", "icq")):
                replace_layers(model, linear_names(model), merging(kind, *into))
