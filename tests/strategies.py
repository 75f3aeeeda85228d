"""What hypothesis draws: layers that fall into whole blocks and tiles, and weights with the awkward values in them."""
import torch
from hypothesis import strategies as st

from adapters.lam import Lam
from quant.grid import Block
from quant.packing import SUPPORTED_BITS

bits = st.sampled_from(SUPPORTED_BITS)
blocks = st.builds(Block, st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 3, 8]))
seeds = st.integers(0, 2 ** 31)


@st.composite
def weights(draw, block: Block, dtype=torch.float64):
    """(D_out, D_in) in whole blocks: normal weights, and a constant, a zero, a subnormal and an outlier block."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(seeds))
    weight = torch.randn(rows * block.n_out, columns * block.n_in, generator=generator, dtype=torch.float64)
    weight = weight * draw(st.sampled_from([1.0, 0.02, 100.0]))
    corner = weight[:block.n_out, :block.n_in]
    kind = draw(st.sampled_from(["plain", "constant", "zero", "subnormal", "outlier"]))
    if kind == "constant":
        corner.fill_(draw(st.floats(-100, 100, width=16)))
    elif kind == "zero":
        corner.zero_()
    elif kind == "subnormal":
        corner.mul_(1e-42)
    elif kind == "outlier":
        corner[0, 0] = 1000.0
    return weight.to(dtype)


@st.composite
def tiled_layers(draw, square: bool = False):
    """(lam, D_out, D_in), D_in and D_out multiples of lam and different from each other where they can be."""
    lam_in = draw(st.sampled_from([1, 2, 4]))
    lam = Lam(lam_in, lam_in if square else draw(st.sampled_from([1, 2, 8])))
    return lam, lam.lam_out * draw(st.integers(1, 4)), lam.lam_in * draw(st.integers(1, 5))


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


NO_POOLING = Lam(1, 1)


def nonzero_adapter(kind, D_out, D_in, lam=NO_POOLING, rank=2, lora_alpha=3.0, seed=0, operators="avgpool", block=None,
                    scaling="lora"):
    """A float64 adapter whose every factor is random and not zero: a fresh one computes nothing."""
    values = {"lam": lam, "rank": rank, "lora_alpha": lora_alpha, "operators": operators, "block": block,
              "scaling": scaling, "omega": None}
    adapter = kind(D_out, D_in, **{option: values[option] for option in kind.options}).double()
    for i, p in enumerate(adapter.parameters()):
        value = random(*p.shape, seed=seed + i) + 0.1
        p.data = value.sign() if kind.name == "lota" else value
    return adapter


def possible_lams(kind, lams, *shapes, rank=2, block=None):
    """The lams that the constructor of `kind` accepts at every shape (D_out, D_in). Tests list the lams of the adapters
    that they know; a new adapter gets these. An adapter without the option lam is tested once, with 1x1."""
    def accepts(lam):
        try:
            for D_out, D_in in shapes:
                nonzero_adapter(kind, D_out, D_in, lam, rank, block=block)
        except ValueError:
            return False
        return True
    found = [lam for lam in (lams if "lam" in kind.options else [NO_POOLING]) if accepts(lam)]
    assert found, f"{kind.name} accepts none of {', '.join(map(str, lams))} at rank {rank}: give it a lam in this test"
    return found
