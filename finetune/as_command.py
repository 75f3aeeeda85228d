"""The command line that a configuration comes from: the inverse of `resolve_run`. Flags at their defaults are left out,
and files are given by their names, without the directories of this machine."""
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.config import EMBEDDED_BASE, RunConfig, flag, flat
from finetune.methods import METHODS
from finetune.resolve import resolve_run
from quant.spec import DEFAULT_BITS, QuantSpec

LEFT_OUT = ("method", "device", "save_every", "eval_batch_size")  # the last three change no number but rounding


def train_command(config: RunConfig) -> str:
    """`python train.py --method qablora --block 32x1 ...`"""
    flags = {"method": config.method, **quantization_flags(config), "dtype": config.compute.dtype}
    usual = {f.name: value for f, value in flat(resolve_run(flags))}
    for f, value in flat(config):
        if f.name not in (*LEFT_OUT, *flags) and f.metadata.get("flag", True) and value not in (None, usual[f.name]):
            flags[f.name] = value
    if flags.get("micro_batch") == config.training.batch_size:
        del flags["micro_batch"]
    return shlex.join(["python", "train.py", *words(flags)])


def quantization_flags(config: RunConfig) -> dict[str, Any]:
    """Those in which the base's quantization differs from the usual one of the method."""
    spec, usual = config.base.quantization, resolve_run({"method": config.method}).base.quantization
    if spec == usual:
        return {}
    if spec is None:
        return {"quantizer": "none"}
    found: dict[str, Any] = {"quantizer": spec.quantizer, "block": spec.block}
    if spec.bits != DEFAULT_BITS:
        found["bits"] = spec.bits
    if spec.grid != QuantSpec.of(spec.quantizer).grid and spec.grid != METHODS[config.method].grid:
        found["grid"] = spec.grid
    return found | {name: True for name in ("double_quant", "act_order") if getattr(spec, name)}


def words(flags: dict[str, Any]) -> Iterator[str]:
    for name, value in flags.items():
        yield flag(name)
        if value is not True:
            yield shown(value)


def shown(value: object) -> str:
    """Of a path, the name; the embedded base has one place in every copy of this project."""
    if value == EMBEDDED_BASE:
        return "model/base"
    return value.name if isinstance(value, Path) else str(value)
