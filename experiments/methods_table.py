"""README's table "method x what it trains x parameters x merges to", from the code itself:

    python -m experiments.methods_table
"""
import torch

from adapters import adapted_layer
from adapters.peqa import PEQA
from finetune import arguments
from finetune.methods import METHODS
from finetune.models import Source, linear_names, new_adapter, why_not_k_bits
from model.checkpoint import empty_model
from quant.linear import QuantLinear

COMMANDS = [*([name] for name in METHODS), ["qblora", "--block", "4x8", "--lam", "8"], ["qalora", "--quantizer", "minmax"],
            ["qablora", "--quantizer", "gptq"], ["qablora", "--operators", "truncation"], ["qablora", "--operators", "interval"],
            ["peqa", "--block", "rowx1"], ["qlora", "--double-quant"], ["irqlora", "--double-quant"]]
SHOWN = "model.layers.0.self_attn.q_proj"


def describe(command: list[str]) -> list[str]:
    """One row: the method, the flags, the base, what trains in the embedded base's first q_proj, how many numbers that makes in all layers,
    and what the merging rule says of it."""
    parser = arguments.train_parser()
    args = parser.parse_args(["--method", *command])
    args = arguments.resolve(args, arguments.given_flags(parser, args, ["--method", *command]))
    model = empty_model(Source(args.model).config, torch.float32)
    title, command = METHODS[args.method].title, f"`{' '.join(command)}`"
    if METHODS[args.method].adapter is None:
        return [title, command, "16 bits", "all weights", f"{sum(p.numel() for p in model.parameters()):,}", "nothing to merge"]
    layers = [model.get_submodule(name) for name in linear_names(model, args.targets)]
    with torch.device("meta"):
        adapters = [new_adapter(args, layer.out_features, layer.in_features, args.block) for layer in layers]
    count = sum(p.numel() for adapter in adapters for p in adapter.parameters())
    trains = ", ".join(f"{name} {'x'.join(map(str, p.shape))}" for name, p in adapters[0].named_parameters())
    return [title, command, base_of(args), trains, f"{count:,}", merges_to(args, model.get_submodule(SHOWN))]


def base_of(args) -> str:
    if args.quantizer == "none":
        return "16 bits"
    return f"{args.quantizer}{f' on {args.grid}' if args.grid else ''} {args.block}{', double-quantized' if args.double_quant else ''}"


def merges_to(args, layer: torch.nn.Module) -> str:
    """By asking the merge itself, on a layer of this size."""
    if args.quantizer != "none":
        layer = QuantLinear.from_weight(arguments.make_quantizer(args).quantize(torch.zeros(layer.out_features, layer.in_features)))
    adapter = new_adapter(args, layer.out_features, layer.in_features, args.block)
    if why_not_k_bits(torch.nn.ModuleDict({"layer": adapted_layer(layer, adapter)})):
        return "16 bits"
    return "k bits, into `scale`" if isinstance(adapter, PEQA) else "k bits, into `offset`"


def table() -> str:
    rows = [["method", "`--method`", "base", "trains in the first q_proj", "parameters in all", "merges to"], ["---"] * 6, *map(describe, COMMANDS)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(table())
