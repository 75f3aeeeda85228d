"""The cheap path of each additive adapter is multiplication by one matrix (Shen et al., Eq. 2)."""
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters import ADAPTERS, adapted_layer
from adapters.adapted import AdaptedLinear
from adapters.adapter import AdditiveAdapter
from adapters.blora import BLoRA
from adapters.irqlora import IRQLoRA
from adapters.lam import Lam, group_mean, repeat_each
from adapters.lora import LoRA, low_rank_factors
from adapters.merge import merge_to_dense
from adapters.operators import OPERATORS, AvgPool
from adapters.qablora import QABLoRA
from adapters.qalora import QALoRA
from model.llama import Linear
from tests.strategies import nonzero_adapter, possible_lams, random, tiled_layers

ADDITIVE = [kind for kind in ADAPTERS.values() if kind.additive]
LAMS = [(LoRA, Lam(1, 1)), (BLoRA, Lam(2, 2)), (QALoRA, Lam(4, 1)), (QABLoRA, Lam(4, 8)), (IRQLoRA, Lam(1, 1))]
KNOWN = [kind for kind, _ in LAMS]


@st.composite
def adapters(draw, kinds=ADDITIVE):
    """(adapter, D_out, D_in) of any additive kind, with any operators."""
    kind = draw(st.sampled_from(kinds))
    lam, D_out, D_in = draw(tiled_layers(square=kind is BLoRA))
    if kind in (LoRA, IRQLoRA):
        lam = Lam(1, 1)
    if kind is QALoRA:
        lam = Lam(lam.lam_in, 1)
    if kind not in KNOWN:
        square = math.gcd(lam.lam_in, lam.lam_out)
        lam = possible_lams(kind, [lam, Lam(square, square), Lam(lam.lam_in, 1), Lam(1, 1)], (D_out, D_in))[0]
    rank = math.gcd(D_out, D_in) if kind is IRQLoRA else 2
    operators = draw(st.sampled_from(list(OPERATORS)))
    seed = draw(st.integers(0, 99))
    return nonzero_adapter(kind, D_out, D_in, lam, rank, seed=seed, operators=operators), D_out, D_in


@given(adapters())
def test_probing_the_cheap_path_with_the_identity_gives_the_dense_matrix(drawn):
    adapter, D_out, D_in = drawn
    dense = adapter.delta(torch.eye(D_in, dtype=torch.float64)).T
    assert dense.shape == (D_out, D_in) and dense.abs().max() > 0
    torch.testing.assert_close(dense, adapter.delta_weight(), rtol=0, atol=1e-10)


@given(adapters([LoRA, BLoRA, QALoRA, QABLoRA]))
def test_averaging_adapters_are_the_kronecker_product_of_equation_2(drawn):
    adapter, D_out, D_in = drawn
    if adapter.operators is not AvgPool:
        return
    lam = adapter.tile
    expected = adapter.scaling / lam.lam_in * torch.kron(
        adapter.core_weight(), torch.ones(lam.lam_out, lam.lam_in, dtype=torch.float64))
    torch.testing.assert_close(adapter.delta_weight(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name,C,R", [
    ("avgpool", [[.5, .5, 0, 0], [0, 0, .5, .5]], [[1, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0, 1]]),
    ("truncation", [[1, 0, 0, 0], [0, 1, 0, 0]], [[1, 0], [0, 1], [0, 0], [0, 0], [0, 0], [0, 0]]),
    ("interval", [[1, 0, 0, 0], [0, 0, 1, 0]], [[1, 0], [0, 0], [0, 0], [0, 1], [0, 0], [0, 0]])])
def test_the_operators_of_table_6_are_these_two_matrices(name, C, R):
    """Written out for lam 2x3, two groups of inputs and two of outputs: delta_W = scaling * R core C."""
    C, R, core = torch.tensor(C).double(), torch.tensor(R).double(), random(2, 2)
    operators, x, y = OPERATORS[name], random(5, 4), random(5, 2, seed=1)
    torch.testing.assert_close(operators.compress(x, 2), x @ C.T, rtol=0, atol=1e-10)
    torch.testing.assert_close(operators.restore(y, 3), y @ R.T, rtol=0, atol=1e-10)
    torch.testing.assert_close(operators.expand(core, Lam(2, 3)), R @ core @ C, rtol=0, atol=1e-10)
    others = [o.expand(core, Lam(2, 3)) for o in OPERATORS.values() if o is not operators]
    assert all((other - R @ core @ C).abs().max() > 1e-3 for other in others)  # the three differ


@given(adapters())
def test_every_additive_adapter_is_the_plain_lora_of_its_lora_factors(drawn):
    adapter, D_out, D_in = drawn
    A, B = adapter.lora_factors()
    assert A.shape[1] == D_in and B.shape[0] == D_out
    torch.testing.assert_close(adapter.scaling * B @ A, adapter.delta_weight(), rtol=0, atol=1e-10)


def test_lora_pays_nothing_for_the_operators():
    """With lam 1x1 they return the very tensors that they are given."""
    lora, x = nonzero_adapter(LoRA, 6, 4), random(3, 4)
    assert lora.operators.compress(x, 1) is x and lora.operators.restore(x, 1) is x
    assert all(factor is own for factor, own in zip(lora.lora_factors(), (lora.A, lora.B), strict=True))


def test_a_new_method_is_a_constructor_and_two_factors():
    class Rank1(AdditiveAdapter):
        """delta_W = scaling * v u^T."""
        name, options = "rank1", ("lora_alpha",)

        def __init__(self, D_out, D_in, lora_alpha):
            super().__init__()
            self.scaling = lora_alpha
            self.u, self.v = low_rank_factors(D_out, D_in, 1)

        def core_factors(self):
            return self.u, self.v
    adapter, x = nonzero_adapter(Rank1, 6, 4), random(3, 4)
    layer = adapted_layer(Linear(4, 6).double(), adapter)
    torch.testing.assert_close(layer(x), layer.base(x) + 3.0 * x @ adapter.u.T @ adapter.v.T, rtol=0, atol=1e-10)
    torch.testing.assert_close(merge_to_dense(layer, torch.float64)(x), layer(x), rtol=0, atol=1e-10)
    assert adapter.tile == Lam(1, 1) and adapter.additive and adapter.merges_into == "offset"


@given(adapters(), st.sampled_from([(1,), (2, 3), ()]))
def test_delta_is_multiplication_by_delta_weight(drawn, batch):
    adapter, D_out, D_in = drawn
    x = random(*batch, D_in, seed=7)
    torch.testing.assert_close(adapter.delta(x), x @ adapter.delta_weight().T, rtol=0, atol=1e-10)


@given(adapters())
def test_delta_weight_is_constant_on_the_adapters_tile(drawn):
    adapter, D_out, D_in = drawn
    tile = adapter.tile
    tiles = adapter.delta_weight().unflatten(1, (-1, tile.lam_in)).unflatten(0, (-1, tile.lam_out))
    assert torch.equal(tiles, tiles[:, :1, :, :1].expand_as(tiles))


LAM, D_OUT, D_IN = Lam(4, 2), 6, 8


def expanded(H, lam, scaling):
    return scaling * AvgPool.expand(H, lam)


@pytest.mark.parametrize("fault,wrong", [
    ("1/lam_in left out, as in the authors' merge", lambda a: expanded(a.H, LAM, a.scaling * LAM.lam_in)),
    ("s left out, as in get_delta_weight (erratum 4)", lambda a: expanded(a.H, LAM, 1.0)),
    ("flipped sign", lambda a: -a.delta_weight()),
    ("lam_in and lam_out exchanged", lambda a: a.scaling / LAM.lam_in * torch.kron(a.H, torch.ones(4, 2).double())),
    ("shifted group", lambda a: a.delta_weight().roll(1, dims=1)),
    ("repeated along outputs as a whole, not each",
     lambda a: a.scaling / LAM.lam_in * torch.kron(torch.ones(2, 4).double(), a.H)),
])
def test_the_identity_probe_notices(fault, wrong):
    adapter = nonzero_adapter(QABLoRA, D_OUT, D_IN, LAM)
    probe = adapter.delta(torch.eye(D_IN, dtype=torch.float64)).T
    torch.testing.assert_close(probe, adapter.delta_weight(), rtol=0, atol=1e-10)
    matrix = wrong(adapter)
    assert matrix.shape != probe.shape or (matrix - probe).abs().max() > 1e-3, fault


def test_iec_is_linear_and_its_matrix_is_the_product_of_two_sums():
    """Erratum 7. P and R written out for rank 2, D_in 4, D_out 6; without its shortcuts the matrix is another."""
    adapter, x = nonzero_adapter(IRQLoRA, 6, 4), random(3, 4)
    P = torch.tensor([[.5, .5, 0, 0], [0, 0, .5, .5]]).double()
    R = torch.tensor([[1, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0, 1]]).double()
    expected = adapter.scaling * (adapter.B + adapter.iec_b * R) @ (adapter.A + adapter.iec_a * P)
    torch.testing.assert_close(adapter.delta_weight(), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(adapter.delta(x), x @ expected.T, rtol=0, atol=1e-10)
    assert (adapter.scaling * adapter.B @ adapter.A - expected).abs().max() > 1e-2  # B A alone: what does lose them


def test_iec_with_its_scalars_at_zero_is_lora():
    adapter = nonzero_adapter(IRQLoRA, 6, 4)
    adapter.iec_a.data, adapter.iec_b.data = torch.zeros(1).double(), torch.zeros(1).double()
    torch.testing.assert_close(adapter.delta_weight(), adapter.scaling * adapter.B @ adapter.A, rtol=0, atol=1e-12)


@pytest.mark.parametrize("D_out,D_in", [(6, 9), (9, 6)])
def test_a_rank_that_does_not_divide_both_sizes_is_refused_for_iec(D_out, D_in):
    with pytest.raises(ValueError, match=f"rank 2 does not divide both D_in={D_in} and D_out={D_out}"):
        IRQLoRA(D_out, D_in, Lam(1, 1), 2, 4.0)


def test_qalora_averages_each_group_and_multiplies_by_b_a():
    adapter, x = nonzero_adapter(QALoRA, 6, 8, Lam(4, 1)), random(3, 8)
    means = torch.stack((x[:, :4].mean(1), x[:, 4:].mean(1)), 1)
    torch.testing.assert_close(adapter.delta(x), 1.5 * means @ adapter.A.T @ adapter.B.T, rtol=0, atol=1e-10)
    assert adapter.A.shape == (2, 2) and adapter.B.shape == (6, 2)


def test_the_pseudo_codes_sum_before_scaling_is_another_function():
    """Errata 2 and 4: scaling and repeating base + adapter together needs an output lam_out times too wide, and
    repeating twice along one dimension gives a matrix that is not (D_out, D_in)."""
    adapter, base = nonzero_adapter(QABLoRA, D_OUT, D_IN, LAM), random(D_OUT, D_IN)
    x = random(3, D_IN)
    with pytest.raises(RuntimeError):  # base (3, D_out) + adapter (3, D_out/lam_out) do not even add up
        x @ base.T + group_mean(x, LAM.lam_in) @ adapter.H.T
    # with lam_out 1 the sum exists, and is not base + adapter
    adapter = nonzero_adapter(QABLoRA, D_OUT, D_IN, Lam(4, 1))
    summed = adapter.scaling * (x @ base.T + group_mean(x, 4) @ adapter.H.T)
    assert (summed - (x @ base.T + adapter.delta(x))).abs().max() > 1e-2
    adapter = nonzero_adapter(QABLoRA, D_OUT, D_IN, LAM)
    twice = adapter.H.repeat_interleave(LAM.lam_in, 1).repeat_interleave(LAM.lam_out, 1)
    assert twice.shape != (D_OUT, D_IN)


def test_group_mean_and_repeat_each_are_what_their_examples_say():
    assert group_mean(torch.tensor([1.0, 2, 5, 7]), 2).tolist() == [1.5, 6]
    assert repeat_each(torch.tensor([3, 4]), 2).tolist() == [3, 3, 4, 4]


@given(tiled_layers())
def test_blora_with_lam_1_is_lora(drawn):
    _, D_out, D_in = drawn
    lora, blora = (nonzero_adapter(kind, D_out, D_in, Lam(1, 1)) for kind in (LoRA, BLoRA))
    torch.testing.assert_close(lora.delta_weight(), blora.delta_weight(), rtol=0, atol=0)


@pytest.mark.parametrize("lam", [1, 2, 4, 8])
def test_blora_has_as_many_parameters_as_lora_of_the_same_nominal_rank(lam):
    blora, lora = (sum(p.numel() for p in adapter.parameters())
                   for adapter in (BLoRA(64, 32, Lam(lam, lam), 4, 8.0), LoRA(64, 32, Lam(1, 1), 4, 8.0)))
    assert blora == lora


def test_scaling_of_blora_uses_the_nominal_rank():
    assert BLoRA(64, 32, Lam(4, 4), 8, 16.0).scaling == 2.0


@pytest.mark.parametrize("kind,lam", [*LAMS, *(
    (kind, lam) for kind in ADDITIVE if kind not in KNOWN
    for lam in possible_lams(kind, dict.fromkeys(lam for _, lam in LAMS), (16, 8)))])
def test_a_fresh_adapter_leaves_the_base_model_as_it_is(kind, lam):
    """Erratum 6: the released QA-BLoRA starts at random, so its step 0 is another model."""
    values = {"lam": lam, "rank": 2, "lora_alpha": 4.0, "operators": "avgpool", "scaling": "lora"}
    adapter = kind(16, 8, **{option: values[option] for option in kind.options}).double()
    x = random(3, 8)
    assert adapter.delta(x).abs().max() == 0 and adapter.delta_weight().abs().max() == 0
    adapted = AdaptedLinear(Linear(8, 16).double(), adapter)
    assert torch.equal(adapted(x), adapted.base(x))
    adapted(x).square().sum().backward()
    assert any(p.grad.abs().max() > 0 for p in adapter.parameters())  # and yet it learns


def test_any_base_layer_will_do():
    adapter = nonzero_adapter(QABLoRA, 16, 8, Lam(4, 8))
    base = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh()).double()
    x = random(2, 5, 8)
    y = AdaptedLinear(base, adapter)(x)
    torch.testing.assert_close(y, base(x) + x @ adapter.delta_weight().T, rtol=0, atol=1e-10)


def test_dropout_acts_on_the_adapters_input_alone_and_only_in_training():
    adapter = nonzero_adapter(QABLoRA, 16, 8, Lam(4, 8))
    layer, x = AdaptedLinear(Linear(8, 16).double(), adapter, dropout=0.5), random(64, 8)
    torch.manual_seed(0)
    dropped = layer.train()(x) - layer.base(x)
    torch.manual_seed(0)
    by_hand = adapter.delta(torch.nn.functional.dropout(x, 0.5))
    torch.testing.assert_close(dropped, by_hand, rtol=0, atol=1e-10)
    assert (dropped - adapter.delta(x)).abs().max() > 1e-3
    torch.testing.assert_close(layer.eval()(x), layer.base(x) + adapter.delta(x), rtol=0, atol=1e-10)


def test_factors_are_outputs_by_inputs():
    """Erratum 3: the pseudo-code's nn.Linear arguments are swapped."""
    adapter = BLoRA(64, 32, Lam(2, 2), 4, 8.0)
    assert adapter.A.shape == (2 * 4, 32 // 2) and adapter.B.shape == (64 // 2, 2 * 4)
    assert QABLoRA(64, 32, Lam(4, 8), 4, 8.0).H.shape == (64 // 8, 32 // 4)


def test_a_size_that_lam_does_not_divide_is_named():
    with pytest.raises(ValueError, match=r"D_in=10 is not a multiple of lam_in=4 \(layer k_proj"):
        Lam(4, 8).check_divides(16, 10, "k_proj")
    with pytest.raises(ValueError, match=r"D_out=12 is not a multiple of lam_out=8 \(layer k_proj"):
        Lam(4, 8).check_divides(12, 8, "k_proj")


@pytest.mark.parametrize("kind,lam,hint", [(LoRA, Lam(2, 2), "use blora"), (BLoRA, Lam(4, 8), "one number"),
                                           (QALoRA, Lam(4, 8), "--lam 4x1"), (IRQLoRA, Lam(2, 2), "only 1x1")])
def test_a_lam_that_the_method_does_not_support_is_refused(kind, lam, hint):
    with pytest.raises(ValueError, match=hint):
        kind(16, 16, lam, 2, 4.0)


@pytest.mark.parametrize("text", ["", "0", "4x", "2x2x2", "two", "-2"])
def test_a_malformed_lam_is_refused(text):
    with pytest.raises(ValueError, match="lam"):
        Lam.parse(text)


# ---- scaling --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", [name for name, kind in ADAPTERS.items() if "scaling" in kind.options])
def test_rslora_divides_by_the_square_root_of_the_nominal_rank(name):
    kind = ADAPTERS[name]
    lam = next(iter(possible_lams(kind, [Lam(2, 2), Lam(2, 1), Lam(1, 1)], (8, 16), rank=4)))
    plain, root = (nonzero_adapter(kind, 8, 16, lam, rank=4, scaling=scaling) for scaling in ("lora", "rslora"))
    assert (plain.scaling, root.scaling) == (3.0 / 4, 3.0 / 2)
    torch.testing.assert_close(root.delta_weight(), 2 * plain.delta_weight(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("ratio", [4.0, 0.25])
def test_a_larger_lora_alpha_is_a_larger_rate_of_B(ratio):
    """Adam moves B by the rate, whatever the size of its gradient. So lora_alpha * ratio is LoRA+ with that ratio: the
    same delta_W after each step, but for Adam's epsilon."""
    x, y = random(32, 12), random(32, 6, seed=1)
    found = []
    for alpha, rate_of_B in ((3.0 * ratio, 0.01), (3.0, 0.01 * ratio)):
        torch.manual_seed(0)
        adapter, deltas = LoRA(6, 12, Lam(1, 1), 2, alpha).double(), []
        adam = torch.optim.AdamW([{"params": [adapter.A]}, {"params": [adapter.B], "lr": rate_of_B}], lr=0.01,
                                 weight_decay=0.0, eps=1e-14)
        for _ in range(5):
            (adapter.delta(x) - y).square().mean().backward()
            adam.step()
            adam.zero_grad()
            deltas.append(adapter.delta_weight().detach())
        found.append(torch.stack(deltas))
    torch.testing.assert_close(*found, rtol=0, atol=1e-9)
    assert found[0].abs().max() > 1e-3
