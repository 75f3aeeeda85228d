"""The command line of train.py: flags, defaults, and every check that needs no file."""
import argparse
import math
import sys
from pathlib import Path

import torch

from adapters import ADAPTERS
from adapters.operators import OPERATORS
from adapters.lam import Lam
from finetune.methods import DEFAULT_BITS, GPTQ, GPTQ_BLOCK, GPTQ_GRID, METHODS, TARGETS, Method
from model.gguf_reader import is_gguf
from model.hub import HubModel
from quant import QUANTIZERS
from quant.grid import Block
from quant.quantizer import Quantizer
from tasks import TASKS
from tasks.hub_data import HubData
from tasks.rows import SUFFIXES

EMBEDDED_BASE = Path(__file__).parent.parent / "model" / "base"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COMPUTE = ("float32", "bfloat16")  # float16 activations would need loss scaling
ADAPTER_FLAGS, FULL_FLAGS = ("lam", "rank", "lora_alpha", "operators", "dropout"), ("from_scratch", "save_dtype")
GPTQ_FLAGS = ("calibration", "calibration_rows", "act_order")
PATHS = ("model", "data", "test_data", "calibration")
REQUANTIZE_FLAGS = ("requantize_grid", "requantize_bits", "requantize_block")


class OneLineParser(argparse.ArgumentParser):
    """Errors in one line; the flags are listed by --help."""

    def error(self, message: str):
        sys.exit(f"error: {message} (see {self.prog} --help)")


def positive(kind: type):
    """An argparse type: a finite number of `kind` above 0."""
    def parse(text: str):
        value = kind(text)
        if not (value > 0 and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value
    parse.__name__ = f"positive {kind.__name__}"
    return parse


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2 ** 63:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 2^63)")
    return value


def given_flags(parser: argparse.ArgumentParser, args: argparse.Namespace, command: list[str] | None = None) -> dict:
    """What the command line itself says, defaults left out; `args` is what it came to with them. None: the process's own."""
    unset = object()  # argparse puts defaults only where nothing stands yet
    namespace = argparse.Namespace(**dict.fromkeys(vars(args), unset))
    return {name: value for name, value in vars(parser.parse_args(command, namespace)).items() if value is not unset}


def model_place(text: str) -> Path | HubModel:
    """An argparse type. What is here goes before what the hub may hold under the same name; an absolute path is never a name there, nor
    that of a GGUF file."""
    if Path(text).is_absolute() or Path(text).exists() or is_gguf(Path(text)):
        return Path(text)
    try:
        return HubModel.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: no such model directory, and no model of the hub: {error}") from None


def data_place(text: str) -> Path | HubData:
    """An argparse type, as `model_place`: what is here goes before the hub, and neither an absolute path, nor a name without a slash, nor the
    plain name of a data file is a name there."""
    plain_file = "/" not in text or ":" not in text and Path(text).suffix.lower() in (*SUFFIXES, ".txt")
    if Path(text).is_absolute() or Path(text).exists() or plain_file:
        return Path(text)
    try:
        return HubData.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: no such data file, and no data set of the hub: {error}") from None


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_dtype() -> str:
    """bfloat16 where the processor multiplies it; emulated, it takes several times as long as float32 (measured on a Xeon without
    avx512_bf16: 26 against 110 GFLOP/s)."""
    native = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bfloat16" if torch.cuda.is_available() or native else "float32"


def device(text: str) -> str:
    """A device that is there."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{text} is not available here ({str(error).splitlines()[0]})") from None
    return text


def add_base_flags(parser: argparse.ArgumentParser) -> None:
    """What train.py and eval.py both take."""
    parser.add_argument("--model", type=model_place, default=EMBEDDED_BASE, metavar="MODEL",
                        help="a directory with config.json, safetensors and a tokenizer, a .gguf file, a run, or a model of the Hugging Face hub, "
                        "ORG/NAME or ORG/NAME@REVISION; default: the embedded base")
    parser.add_argument("--quantizer", choices=("none", *QUANTIZERS, GPTQ), help="default: the method's")
    parser.add_argument("--bits", type=int, help=f"default: {DEFAULT_BITS} where the base is quantized")
    parser.add_argument("--block", help="n_in x n_out, as in 4x8, or rowx1 for whole rows; default: the method's or quantizer's")
    parser.add_argument("--double-quant", action="store_true", help="8-bit scales (nf, icq)")
    parser.add_argument("--grid", choices=QUANTIZERS, help=f"whose grid gptq rounds to; default: {GPTQ_GRID}, for peqa intminmax")
    parser.add_argument("--act-order", action="store_true", help="gptq: columns in the order of falling activations")
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="gptq: a text file; default: the task's training rows")
    parser.add_argument("--calibration-rows", type=positive(int), default=500, help="gptq: so many rows, or windows of the file")
    parser.add_argument("--requantize", choices=(GPTQ, "rounding"), help="LOSSY: merge a run that merges to 16 bits only into k "
                        "bits all the same, as one more row of the table")
    parser.add_argument("--requantize-grid", choices=QUANTIZERS, help=f"default: {GPTQ_GRID}")
    parser.add_argument("--requantize-bits", type=int, help=f"default: the run's, or {DEFAULT_BITS}")
    parser.add_argument("--requantize-block", help=f"default: {GPTQ_BLOCK}")
    parser.add_argument("--targets", choices=TARGETS, default="all", help="linear layers that get an adapter")
    parser.add_argument("--quantized-layers", choices=TARGETS, default="all", help="linear layers that are quantized, those with an "
                        "adapter among them")
    parser.add_argument("--task", choices=TASKS, default="banking77")
    parser.add_argument("--protocol", metavar="NAME", help="mmlu: lm-eval (default) or hendrycks, the authors' own script")
    parser.add_argument("--data", type=data_place, metavar="FILE", help=f"training rows in the task's original schema ({', '.join(SUFFIXES)}), or "
                        "a data set of the hub, ORG/NAME, ORG/NAME@REVISION or with a file in it, ORG/NAME:PATH")
    parser.add_argument("--test-data", type=data_place, metavar="FILE", help="test rows, likewise; default: the task's, or split off --data")
    parser.add_argument("--limit", type=positive(int), help="use this many rows of --data, drawn by --seed")
    parser.add_argument("--test-limit", type=positive(int), help="score the first so many test rows")
    parser.add_argument("--eval-batch-size", type=positive(int), default=128, help="speed and memory; in bfloat16 also the "
                        "rounding, so that near ties may fall otherwise")
    parser.add_argument("--max-new-tokens", type=positive(int), help="default: what the longest answer takes")
    parser.add_argument("--max-length", type=positive(int), help="longer training rows are left out; default: what the "
                        "model's positions allow, at most 2048")
    parser.add_argument("--dtype", choices=COMPUTE, default=default_dtype(), help="of activations; default: bfloat16 "
                        "where the machine multiplies it, else float32")
    parser.add_argument("--device", type=device, default=default_device())
    parser.add_argument("--seed", type=seed, default=0)


def train_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(description="Fine-tune one method on one base for one task.", allow_abbrev=False,
                           formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--method", choices=METHODS, default="qablora")
    add_base_flags(parser)
    parser.add_argument("--from-scratch", action="store_true", help="random weights of the model's config (method full)")
    parser.add_argument("--rank", type=positive(int), default=16)
    parser.add_argument("--lora-alpha", type=positive(float), default=16.0, help="scaling = lora_alpha / rank")
    parser.add_argument("--lam", help="lam_in x lam_out, as in 4x8, or one number for both; default: the method's")
    parser.add_argument("--operators", choices=OPERATORS, default="avgpool", help="how blora and qablora compress inputs and "
                        "restore outputs (blora.txt Table 6)")
    parser.add_argument("--dropout", type=share, default=0.0, help="on the adapter's input")
    parser.add_argument("--lr", type=positive(float), help="default: the method's")
    parser.add_argument("--batch-size", type=positive(int), default=64)
    parser.add_argument("--micro-batch", type=positive(int), help="examples in memory at a time; default: --batch-size")
    parser.add_argument("--epochs", type=positive(int), default=2)
    parser.add_argument("--steps", type=positive(int), help="in place of --epochs")
    parser.add_argument("--warmup", type=share, default=0.05, help="share of the steps in which the learning rate rises")
    parser.add_argument("--clip", type=positive(float), default=1.0, help="largest norm of the gradient")
    parser.add_argument("--weight-decay", type=share, default=0.0)
    parser.add_argument("--beta2", type=share, default=0.999)
    parser.add_argument("--save-every", type=positive(int), default=200, help="steps between states to resume from")
    parser.add_argument("--save-dtype", choices=DTYPES, help="of the weights that method full saves; default: the checkpoint's")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: the next free runs/METHOD-BITS-TASK-NUMBER")
    parser.add_argument("--show-example", action="store_true", help="print the task's first training row as the model will see it, and stop")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with an interrupted run; no other flag with it")
    return parser


def resolve(args: argparse.Namespace, given: dict) -> argparse.Namespace:
    """Fill in each default that depends on another flag; paths become absolute, so that a run can be scored from anywhere.
    Raises ValueError for values that clash."""
    method = METHODS[args.method]
    refuse_flags(args, method, given)
    if method.quantizer == "none" and (args.quantizer not in (None, "none") or args.bits not in (None, 16) or args.block
                                       or args.double_quant or args.grid):
        hint = f"; use --method q{args.method}" if f"q{args.method}" in METHODS else ""
        raise ValueError(f"--method {args.method} trains on the base as it is, so --quantizer, --bits, --block, "
                         f"--grid and --double-quant do not go with it{hint}")
    resolve_quantizer(args, given, method.quantizer, method)
    resolve_requantization(args, given, (args.quantizer, args.requantize))
    args.lam = _lam(args, method)
    args.lr = args.lr or method.lr
    args.micro_batch = min(args.micro_batch or args.batch_size, args.batch_size)
    if not TASKS[args.task].trains:
        raise ValueError(f"--task {args.task} has no training rows, only test rows: train on another task, and score with python eval.py RUN "
                         f"--task {args.task}")
    for name in PATHS:
        if isinstance(getattr(args, name), Path):
            setattr(args, name, getattr(args, name).resolve())
    return args


def refuse_flags(args: argparse.Namespace, method: Method, given: dict) -> None:
    """Raises ValueError for a flag that the method has no use for."""
    if method.adapter is None:
        useless = {**dict.fromkeys(ADAPTER_FLAGS, "has no adapter"), "requantize": "has nothing to merge"}
    else:
        options = ADAPTERS[method.adapter].options
        taken = (*options, "dropout") if "lam" in options else options
        useless = {**dict.fromkeys(FULL_FLAGS, "keeps its base as it is"),
                   **{name: "has no use for it" for name in ADAPTER_FLAGS if name not in taken}}
    for name, reason in useless.items():
        if name in given:
            raise ValueError(f"{flag(name)} does not go with --method {args.method}, which {reason}")


def flag(name: str) -> str:
    """`flag("act_order") == "--act-order"`"""
    return f"--{name.replace('_', '-')}"


def resolve_quantizer(args: argparse.Namespace, given: dict, default: str, method: Method | None = None) -> None:
    """Quantizer, grid, bits and block together: 16 bits and no quantizer mean the same. Raises ValueError for what does not go
    together, and for bits that a grid has not."""
    args.quantizer = args.quantizer or default
    if args.quantizer == "none":
        names = [name for name in ("bits", "block", "double_quant", "grid", "quantized_layers") if name in given and given[name] != 16]
        if names:
            raise ValueError(f"--quantizer none keeps the base as it is: {', '.join(map(flag, names))} does not go with it")
        args.bits = 16
    else:
        needed = method and method.grid
        if args.grid and args.quantizer != GPTQ:
            raise ValueError(f"--grid {args.grid} goes with --quantizer {GPTQ} only; {args.quantizer} is a grid itself")
        if args.quantizer == GPTQ:
            args.grid = args.grid or needed or GPTQ_GRID
        if needed and (args.grid or args.quantizer) != needed:
            raise ValueError(f"--method {args.method} trains the scales of a grid with integer zero points, which "
                             f"{args.grid or args.quantizer} is not: use --quantizer {needed}, or --quantizer {GPTQ} --grid {needed}")
        args.bits = DEFAULT_BITS if args.bits is None else args.bits
        usual = GPTQ_BLOCK if args.quantizer == GPTQ else str(QUANTIZERS[args.quantizer].usual_block)
        args.block = Block.parse(args.block or (method and method.block) or usual)
        if method and not set(TARGETS[args.targets]) <= set(TARGETS[args.quantized_layers]):
            raise ValueError(f"--targets {args.targets} adapts layers that --quantized-layers {args.quantized_layers} leaves in 16 bits: "
                             f"quantize them too, or adapt fewer")
        make_quantizer(args)


def resolve_model_quantizer(args: argparse.Namespace, given: dict) -> None:
    """Of a model without a run: none, or min-max where --bits or --block ask for codes."""
    asks_for_codes = args.block or args.bits not in (None, 16)
    resolve_quantizer(args, given, "minmax" if asks_for_codes else "none")


def make_quantizer(args: argparse.Namespace) -> Quantizer:
    """The grid that the base is quantized on. Raises ValueError for bits that it has not."""
    return QUANTIZERS[args.grid or args.quantizer](args.bits, args.block, double_quant=args.double_quant)


def resolve_requantization(args: argparse.Namespace, given: dict, asked: tuple[str | None, ...]) -> None:
    """Grid, bits and block of --requantize. `asked`: the ways of quantizing that this command will take. Raises ValueError for bits
    that the grid has not, and for flags that say nothing without --requantize, or without GPTQ."""
    if unused := [name for name in GPTQ_FLAGS if name in given and GPTQ not in asked]:
        raise ValueError(f"{', '.join(map(flag, unused))} goes with {GPTQ} only, which is not asked for here")
    if args.requantize is None:
        if unused := [name for name in REQUANTIZE_FLAGS if name in given]:
            raise ValueError(f"{', '.join(map(flag, unused))} goes with --requantize only")
        return
    args.requantize_grid = args.requantize_grid or GPTQ_GRID
    if args.requantize_bits is None:
        args.requantize_bits = args.bits if args.bits < 16 else DEFAULT_BITS
    args.requantize_block = Block.parse(str(args.requantize_block or GPTQ_BLOCK))
    make_requantizer(args)


def make_requantizer(args: argparse.Namespace) -> Quantizer:
    return QUANTIZERS[args.requantize_grid](args.requantize_bits, args.requantize_block)


def _lam(args: argparse.Namespace, method: Method) -> Lam | None:
    text = args.lam or method.lam
    if text == "block":
        if args.block and args.block.n_in is None:
            raise ValueError(f"--block {args.block} has no number of inputs that lam could follow: give --lam")
        return Lam(args.block.n_in, args.block.n_out) if args.block else None  # None: of the block that the model brings
    return Lam.parse(text) if text else None


def to_json(args: argparse.Namespace) -> dict:
    plain = (int, float, bool, type(None))
    return {name: value if isinstance(value, plain) else str(value) for name, value in vars(args).items()}


def from_json(saved: dict) -> argparse.Namespace:
    """The inverse of `to_json` after `resolve`. A device that is not on this machine gives way to one that is."""
    if saved["quantizer"] != "none":
        saved = {"quantized_layers": saved["targets"], **saved}  # before that flag, the targets alone were quantized
    args = argparse.Namespace(**{**vars(train_parser().parse_args([])), **saved})  # an older run lacks the newer flags
    try:
        device(args.device)
    except argparse.ArgumentTypeError as error:
        args.device = default_device()
        print(f"{error}: {args.device} instead")
    for name, kind in {**dict.fromkeys((*PATHS, "out"), Path), "model": saved_place(HubModel), "data": saved_place(HubData),
                       "test_data": saved_place(HubData), "block": Block.parse, "requantize_block": Block.parse,
                       "lam": Lam.parse}.items():
        setattr(args, name, kind(saved[name]) if saved.get(name) else None)
    return args


def saved_place(of_the_hub: type):
    """What reads a place back: paths are absolute in a run (see `resolve`), so that nothing else can be one, wherever the run is looked at."""
    return lambda text: Path(text) if Path(text).is_absolute() else of_the_hub.parse(text)
