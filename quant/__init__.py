"""Quantizers. One equation for all of them (Eq. 1 of blora.txt with the rounding grid made explicit):

    W_hat = scale * levels[codes] + offset          block by block

| code name | meaning | shape | symbol in blora.txt |
|---|---|---|---|
| `weight` | a linear layer's weight, y = x @ weight.T (the paper writes W as D_in x D_out) | (D_out, D_in) | W |
| `codes` | N-bit integers 0 .. 2^N - 1, one a weight, packed in storage | (D_out, D_in) | w-hat |
| `levels` | the values that a code can stand for, ascending | (<= 2^N,) | the rounding grid |
| `scale` | one a block | (D_out/n_out, D_in/n_in) | alpha |
| `offset` | one a block, real-valued; (1, 1) where the whole layer has the same one | as scale, or (1, 1) | beta |
| `zero` | integer zero points z, offset = -scale * z (integer min-max only) | as scale | |
| `block` | n_in inputs x n_out outputs that share scale and offset, written `4x8`; `rowx1` for whole rows | | lambda_1 x lambda_2 |
| `bits` | N | | N |
| `H` | 2/n * sum over n calibration tokens of x^T x | (D_in, D_in) | |

Three verbs: fit a grid to a weight (one quantizer a file), round a weight to a grid, dequantize (both in `grid.py`).
`gptq.py` is a loop over the verbs: it takes any quantizer's grid and chooses other codes. `factors.py` has the two forms in
which scale and offset are kept other than plainly: double-quantized, and as integer zero points. `packing.py` puts codes
into bytes; `gguf_blocks.py` takes codes, scale and offset from the blocks of a GGUF file; `linear.py` is the layer that keeps
nothing but them. `QUANTIZERS` is the list that `--quantizer` and `--grid` offer.
"""
from quant.absmax import AbsMax
from quant.icq import ICQ
from quant.integer_minmax import IntegerMinMax
from quant.minmax import MinMax
from quant.normal_float import NormalFloat

QUANTIZERS = {quantizer.name: quantizer for quantizer in (MinMax, IntegerMinMax, AbsMax, NormalFloat, ICQ)}
