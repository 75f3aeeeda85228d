"""The two compact forms of scale and offset.

Each form is a module, so its buffers are saved and counted under its factor's name: `NAME.scale.codes`,
`NAME.offset.zero`. `Grid.factors()` returns the plain tensors that Eq. 1 computes with.
"""
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quant.packing import pack, unpack

OUTER_BLOCK = 256  # factors that share one second-level absmax (Dettmers et al. 2023, QLoRA Sec. 3)


@cache
def dynamic_map() -> Tensor:
    """The 256 values of bitsandbytes' signed 8-bit dynamic map, ascending, float32.

    For i in 0..6: the means of neighbours of linspace(.1, 1, 2^i + 1) times 10^(i - 6), both signs. Also 0 and 1."""
    ends = [torch.linspace(0.1, 1, 2 ** i + 1) for i in range(7)]
    means = torch.cat([(e[1:] + e[:-1]) / 2 * 10.0 ** (i - 6) for i, e in enumerate(ends)])
    return torch.cat((-means, means, torch.tensor([0.0, 1.0]))).sort().values


@cache
def dynamic_map_on(device: torch.device) -> Tensor:
    """One copy a device, so that no step copies from the host."""
    return dynamic_map().to(device)


class DoubleQuantized(nn.Module):
    """Double quantization: factor = mean + absmax * dynamic_map[codes], in blocks of 256 factors.

    A factor takes 8 + 32/256 bits. With 64 weights for each factor and 4-bit codes, that is 4.127 bits a weight.

    Differs from bitsandbytes, which chooses codes by the factor before it is double-quantized. Here codes are chosen by
    the factor that will be read back. Codes differ in about 0.4 % of the weights, and the error is a little smaller."""
    codes: Tensor
    absmax: Tensor
    mean: Tensor

    def __init__(self, codes: Tensor, absmax: Tensor, mean: Tensor):
        super().__init__()
        self.register_buffer("codes", codes)    # uint8, in the factor's shape
        self.register_buffer("absmax", absmax)  # (ceil(n / 256),) float32
        self.register_buffer("mean", mean)      # (1,) float32

    @classmethod
    def of(cls, factor: Tensor) -> "DoubleQuantized":
        flat = factor.float().flatten()
        mean = flat.mean(0, keepdim=True)
        blocks = F.pad(flat - mean, (0, -len(flat) % OUTER_BLOCK)).unflatten(0, (-1, OUTER_BLOCK))
        absmax = blocks.abs().amax(1)
        inverse = torch.where(absmax > 0, 1 / absmax, 0)
        levels = dynamic_map_on(factor.device)
        codes = torch.bucketize(blocks * inverse[:, None], (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
        return cls(codes.flatten()[:len(flat)].view(factor.shape), absmax, mean)

    def forward(self) -> Tensor:
        """The factor, float32."""
        values = dynamic_map_on(self.codes.device)[self.codes.flatten().int()]
        absmax = self.absmax.repeat_interleave(OUTER_BLOCK)[:len(values)]
        return torch.addcmul(self.mean, values, absmax).view(self.codes.shape)


class ZeroPoints(nn.Module):
    """offset = -scale * zero. Each zero is an integer of the grid, packed into as many bits as a code."""
    zero: Tensor

    def __init__(self, zero: Tensor, bits: int):
        super().__init__()
        self.bits = bits
        self.register_buffer("zero", zero)  # packed

    @classmethod
    def of(cls, zero: Tensor, bits: int) -> "ZeroPoints":
        """zero: integers 0 .. 2^bits - 1, one for each block."""
        return cls(pack(zero.to(torch.uint8), bits), bits)

    def forward(self, scale: Tensor) -> Tensor:
        """The offset for this scale; exact in float32 if the scale is float16."""
        wide = torch.promote_types(scale.dtype, torch.float32)
        return -scale.to(wide) * self.integers(scale.shape).to(wide)

    def integers(self, shape: tuple[int, ...]) -> Tensor:
        """z, uint8. `shape` is the shape of the scale."""
        return unpack(self.zero, self.bits, shape)
