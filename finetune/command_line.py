"""The command lines' flags, built from the fields of the configuration (finetune/config.py).

A parser returns what the user typed and nothing else: defaults stand in the configuration alone.
"""
import argparse
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, NoReturn

from finetune.config import (
    AdapterConfig,
    BaseConfig,
    ComputeConfig,
    DataConfig,
    EvaluationConfig,
    RunConfig,
    TrainingConfig,
    flag,
)
from finetune.values import positive
from quant.spec import QuantSpec
from tasks import TASKS, TRAINING_TASKS

GROUPS = {BaseConfig: "model", ComputeConfig: "model", QuantSpec: "quantization", AdapterConfig: "adapter",
          DataConfig: "data", TrainingConfig: "optimisation", EvaluationConfig: "evaluation"}
ORDER = ("model", "quantization", "adapter", "data", "optimisation", "evaluation", "output")


class Parser(argparse.ArgumentParser):
    """Flags in groups. An error takes one line; --help lists the flags."""

    def __init__(self, description: str | None, **more):
        super().__init__(description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS,
                         formatter_class=argparse.RawDescriptionHelpFormatter, **more)
        self.configured: set[str] = set()  # the flags that are fields of the configuration
        self.groups = {name: self.add_argument_group(name) for name in ORDER}
        self.groups["output"].add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        ours = message.startswith("argument ") and "invalid choice" not in message and "expected" not in message
        sys.exit(f"error: {message}" if ours else f"error: {message} (see {self.prog} --help)")

    def add_fields(self, *kinds: type, leave_out: Collection[str] = (),
                   here: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """A flag for each field of these configuration classes. `here`: by field, facts that differ in this command."""
        for kind in kinds:
            for f in fields(kind):
                if f.metadata and f.metadata.get("flag", True) and f.name not in leave_out:
                    self.add_field(f, f.metadata.get("group") or GROUPS[kind], (here or {}).get(f.name))

    def add_field(self, f: Field, group: str, here: Mapping[str, Any] | None = None) -> None:
        self.configured.add(f.name)
        self.groups[group].add_argument(flag(f.name), **facts_of(f, {**f.metadata, **(here or {})}))

    def given(self, command: list[str] | None = None) -> dict[str, Any]:
        """What the command line says, by field. None: the process's own."""
        return vars(self.parse_args(command))


def facts_of(f: Field, facts: Mapping[str, Any]) -> dict[str, Any]:
    """A field's facts as argparse takes them."""
    if f.default is False:
        return {"action": "store_true", "help": facts["help"]}
    choices = facts.get("choices")
    choices = list(choices() if callable(choices) else choices) if choices else None
    shown = facts.get("shown") or default_of(f)
    parse = {"type": typed(facts["parse"])} if "parse" in facts else {}
    parse |= {"nargs": "?", "const": facts["alone"]} if "alone" in facts else {}
    return {"help": f"{facts['help']} (default: {shown})".replace("%", "%%"), "choices": choices,
            "metavar": facts.get("metavar"), **parse}


def default_of(f: Field) -> str:
    return "" if f.default is MISSING else str(f.default)


def typed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser whose ValueError argparse prints as it is."""
    def checked(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return checked


OF_ANY_MODEL = {  # what differs where no method is named, and where a run brings its own
    "quantizer": {"shown": "none, or minmax if --bits or --block is given",
                  "help": "quantize a model without a run this way; none keeps it as it is"},
    "block": {"shown": "the quantizer's"}, "grid": {"shown": "minmax"},
    "bits": {"shown": "4 if a quantizer is named"},
    "model": {"shown": "the run's own base, else the embedded base"},
    "dtype": {"shown": "the run's own, else bfloat16 if the machine multiplies it, else float32"},
    "device": {"shown": "the run's own, else cuda if there is one, else cpu"},
    "task": {"help": "score on this task", "shown": "the run's own, else as in train.py"},
    "seed": {"help": "draw --limit rows by this seed", "shown": "the run's own, else 0"},
    "max_length": {"help": "leave out training rows with more tokens; perplexity: read windows of this many tokens"}}


def task_that_trains(name: str) -> str:
    if name not in TASKS:
        raise ValueError(f"{name!r} is no task; tasks that train: {', '.join(TRAINING_TASKS)} (see --list-tasks)")
    if name not in TRAINING_TASKS:
        raise ValueError(f"{name} has test rows only: train on one of {', '.join(TRAINING_TASKS)} (see --list-tasks), "
                         f"and score with python eval.py RUN --task {name}")
    return name


def train_parser() -> Parser:
    """The flags of train.py."""
    parser = Parser("Fine-tune one method on one base for one task, then score every state of the model.\n\n"
                    "    python train.py --method qablora --bits 4")
    parser.add_field(RunConfig.__dataclass_fields__["method"], "adapter")
    parser.add_fields(QuantSpec, BaseConfig, ComputeConfig, AdapterConfig)
    parser.add_field(DataConfig.__dataclass_fields__["task"], "data", {"choices": None, "parse": task_that_trains})
    parser.add_fields(DataConfig, TrainingConfig, EvaluationConfig, leave_out=("task",))
    tasks = ", ".join(TRAINING_TASKS)
    data, output = (parser.groups[name].add_argument for name in ("data", "output"))
    data("--list-tasks", action="store_true", help=f"print what each task needs, and stop ({tasks})")
    data("--show-example", action="store_true", help="print the first training row as the model reads it, and stop")
    output("--find-lr", type=typed(positive(int)), nargs="?", const=20, metavar="STEPS",
           help="try learning rates for STEPS steps each (20 if no number is given), print the loss of each and the "
                "recommended --lr, and stop")
    output("--mem-report", action="store_true",
           help="print the memory that training takes, predicted from sizes and measured in one step, and stop")
    output("--dry-run", action="store_true",
           help="check the flags, the model's config, the data, sizes and memory without loading weights, and stop; a "
                "directory with a config.json alone will do as --model")
    output("--nproc", type=typed(positive(int)), metavar="N",
           help="with --mem-report or --dry-run: predict for each of N processes (default: 1)")
    output("--out", type=Path, metavar="DIR",
           help="write the run into this new directory (default: the next free runs/METHOD-BITS-TASK-NUMBER)")
    output("--resume", type=Path, metavar="RUN", help="go on with an interrupted run; give no other flag")
    return parser
