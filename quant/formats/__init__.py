"""How other tools store a quantized layer. A format is one file: its layout, a reader and a writer.

All of them are Eq. 1, W_hat = scale * levels[codes] + offset, in blocks along the inputs. Codes, scales and offsets are
taken as they are.
"""
from quant.formats.awq import AWQ
from quant.formats.bitsandbytes import NF4
from quant.formats.compressed_tensors import CompressedTensors
from quant.formats.gptq import GPTQ
from quant.formats.hqq import HQQ
from quant.formats.mlx import MLX
from quant.formats.stored import StoredFormat

FORMATS: tuple[type[StoredFormat], ...] = (MLX, GPTQ, AWQ, CompressedTensors, NF4, HQQ)


def format_of(config: dict) -> StoredFormat | None:
    """The format in which the weights beside this config.json are stored; None for one that is not read, and for dense
    weights. Raises ValueError, naming the key, for settings of a format that are wrong or not read."""
    return next(filter(None, (kind.of(config) for kind in FORMATS)), None)
