"""A configuration as it stands in a run's config.json, and back; and runs of older formats.

Format 2 is the configuration, part by part. Format 1 has no number: it is one flat object `arguments` of the flags of
that time. `modern` turns it into format 2; nothing else knows it. """
from dataclasses import Field, fields
from typing import Any

from finetune.config import RunConfig, ScoringConfig
from finetune.values import default_device, device
from quant.grid import Block
from quant.spec import DEFAULT_BITS, QuantSpec

FORMAT = 2
PLAIN = (int, float, bool, str, type(None))


def config_json(config: ScoringConfig) -> dict[str, Any]:
    """Parts are objects; what is no number, text or truth value is written as people type it."""
    def written(f: Field, value: Any) -> Any:
        if not f.metadata:
            return config_json(value)
        return value if isinstance(value, PLAIN) else str(value)
    return {f.name: written(f, getattr(config, f.name)) for f in fields(config)}


def run_config(saved: dict, where: str) -> RunConfig:
    """The configuration in a run's config.json. A device that this machine does not have gives way to one that it has.
    Raises ValueError, naming `where`, for a format that is newer than this code."""
    if (number := saved.get("format", 1)) not in (1, FORMAT):
        raise ValueError(f"{where}: config.json has format {number}, and this version reads up to {FORMAT}: use a "
                         "newer one")
    stated = saved["config"] if "config" in saved else modern(saved["arguments"])
    compute = stated["compute"]
    return from_json(RunConfig, {**stated, "compute": {**compute, "device": known_device(compute["device"])}})


def from_json(kind: type, stated: dict) -> Any:
    """Fields that an earlier version did not have take their defaults."""
    values = {}
    for f in fields(kind):
        if f.name in stated:
            value = stated[f.name]
            values[f.name] = (value_from_json(f, value) if f.metadata
                              else from_json(f.default_factory().__class__, value))
    return kind(**values)


def value_from_json(f: Field, value: Any) -> Any:
    """`load` reads numbers too: `save_every` was a number of steps."""
    if "load" in f.metadata and value is not None:
        return f.metadata["load"](str(value))
    return f.metadata["parse"](value) if "parse" in f.metadata and isinstance(value, str) else value


def known_device(name: str) -> str:
    try:
        return device(name)
    except ValueError as error:
        print(f"{error}: {default_device()} instead")
        return default_device()


# ---- format 1 -------------------------------------------------------------------------------------------------------

def modern(flags: dict) -> dict:
    """Format 1 -> format 2. Flags that a run is older than take the defaults that they stood for."""
    by_part = {f.name: {g.name: flags[g.name] for g in fields(f.default_factory().__class__) if g.name in flags}
               for f in fields(RunConfig) if not f.metadata}
    base = by_part["base"]
    base |= {"quantization": old_quantization(flags), "codes": old_codes(flags)}
    if flags["quantizer"] != "none":
        base.setdefault("quantized_layers", flags["targets"])  # before that flag, only the targets were quantized
    by_part["evaluation"]["requantize"] = old_requantization(flags)
    return {"method": flags["method"], **by_part}


def old_quantization(flags: dict) -> str | None:
    if flags["quantizer"] == "none":
        return None
    by_gptq = flags["quantizer"] == "gptq"
    return str(QuantSpec.of(flags["quantizer"], flags["bits"], Block.parse(flags["block"]), flags.get("grid"),
                            flags.get("double_quant", False), by_gptq and flags.get("act_order", False)))


def old_codes(flags: dict) -> str | None:
    """A model that was codes already: its bits and block stood where those of a quantizer stand."""
    held = flags["quantizer"] == "none" and flags.get("block")
    return f"{flags['bits']} bits, block {flags['block']}" if held else None


def old_requantization(flags: dict) -> str | None:
    if not (how := flags.get("requantize")):
        return None
    grid = flags.get("requantize_grid") or "minmax"
    bits = flags.get("requantize_bits") or (flags["bits"] if flags["bits"] < 16 else DEFAULT_BITS)
    act_order = "+act-order" if how == "gptq" and flags.get("act_order") else ""
    return f"{'gptq:' if how == 'gptq' else ''}{grid}@{flags.get('requantize_block') or '32x1'}-{bits}bit{act_order}"
