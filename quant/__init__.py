"""Quantizers. One equation for all of them (Shen et al., Eq. 1, with the rounding grid made explicit):

    W_hat = scale * levels[codes] + offset          block by block

| code name | meaning | shape | symbol in Shen et al. |
|---|---|---|---|
| `weight` | a linear layer's weight, y = x @ weight.T (the paper writes W as D_in x D_out) | (D_out, D_in) | W |
| `codes` | N-bit integers 0 .. 2^N - 1, one for each weight, packed in storage | (D_out, D_in) | w-hat |
| `levels` | the values that a code can stand for, ascending | (<= 2^N,) | the rounding grid |
| `scale` | one for each block | (D_out/n_out, D_in/n_in) | alpha |
| `offset` | one for each block, real-valued; (1, 1) if the whole layer shares one | as scale, or (1, 1) | beta |
| `zero` | integer zero points z, offset = -scale * z (integer min-max only) | as scale | |
| `block` | n_in inputs x n_out outputs that share scale and offset: `4x8`, or `rowx1` | | lambda_1 x lambda_2 |
| `bits` | N | | N |
| `H` | 2/n * sum over n calibration tokens of x^T x | (D_in, D_in) | |

There are three verbs. A quantizer fits a grid to a weight (one file each). `grid.py` rounds a weight to a grid, and
dequantizes. `gptq.py` is a loop over these verbs: it takes any quantizer's grid and chooses other codes.

`spec.py` says which quantizer, bits and block in one phrase. `factors.py` has the two compact forms of scale and
offset: double-quantized, and as integer zero points. `packing.py` packs codes into bytes. `linear.py` is the layer that
holds codes and no dense weight. `moved.py` moves codes by a change of the weights. `gguf_blocks.py` reads and writes
the blocks of GGUF files as codes, scale and offset.
`QUANTIZERS` lists the choices of `--quantizer` and `--grid`. docs/papers.md lists the errata that comments name.
"""
from quant.absmax import AbsMax
from quant.icq import ICQ
from quant.integer_minmax import IntegerMinMax
from quant.minmax import MinMax
from quant.normal_float import NormalFloat
from quant.quantizer import Quantizer

QUANTIZERS: dict[str, type[Quantizer]] = {kind.name: kind for kind in (MinMax, IntegerMinMax, AbsMax, NormalFloat, ICQ)}
