"""Print the table of docs/methods.md: what each method trains, how many parameters, and what it merges into.

    python -m experiments.methods_table

The table is computed from the code.
"""
from collections.abc import Sequence

from torch import nn

from adapters.adapted import adapted_layers, adapter_parameters
from adapters.merge import merge_target
from experiments.shared import experiment_parser, markdown, run_experiment
from finetune.checks import planned_model
from finetune.command_line import train_parser
from finetune.config import RunConfig
from finetune.methods import METHODS
from finetune.resolve import resolve_run
from finetune.source import Source

VARIANTS = (["qblora", "--block", "4x8", "--lam", "8"], ["qalora", "--quantizer", "minmax"],
            ["qablora", "--quantizer", "gptq"], ["qablora", "--operators", "truncation"],
            ["qablora", "--operators", "interval"], ["peqa", "--block", "rowx1"], ["qlora", "--double-quant"],
            ["irqlora", "--double-quant"])
HEAD = ["method", "`--method`", "base", "trains in the first q_proj", "parameters in all", "merges to"]


def describe(command: Sequence[str]) -> list[str]:
    """One row of the table for the embedded base: the method, its flags, the base, the trainable tensors of the first
    adapted layer, the number of trainable parameters in all layers, and the result of the merge rule."""
    config = resolve_run(train_parser().given(["--method", *command]))
    model = planned_model(Source(config.base.model), config)
    title, flags = config.of_method.title, f"`{' '.join(command)}`"
    if config.adapter_kind is None:
        return [title, flags, "16 bits", "all weights", count(model.parameters()), "nothing to merge"]
    first = next(iter(adapted_layers(model).values()))
    target = merge_target(first.base, first.adapter)
    trains = ", ".join(f"{name} {'x'.join(map(str, p.shape))}" for name, p in first.adapter.named_parameters())
    return [title, flags, base_of(config), trains, count(adapter_parameters(model).values()),
            f"k bits, into `{target.into}`" if target.keeps_codes else target.into]


def base_of(config: RunConfig) -> str:
    spec = config.base.quantization
    return spec.how if spec else "16 bits"


def count(parameters) -> str:
    return f"{sum(p.numel() for p in parameters if isinstance(p, nn.Parameter)):,}"


def table() -> str:
    return markdown(HEAD, map(describe, [*([name] for name in METHODS), *VARIANTS]))


def main() -> None:
    experiment_parser(__doc__).parse_args()
    print(table())


if __name__ == "__main__":
    run_experiment(main)
