"""The configuration of a run. Each field states its help text, its default and who may set it; the command lines are
built from these fields, and end in one of the two frozen classes at the bottom.

| class | what it says |
|---|---|
| `BaseConfig` | the model, and how it is quantized while it loads |
| `AdapterConfig` | the adapter, and the layers that get one |
| `DataConfig` | the task and its rows |
| `TrainingConfig` | the optimisation |
| `EvaluationConfig` | how states are scored |
| `ComputeConfig` | type and device of the computation |
| `ScoringConfig` | all that scoring a model takes |
| `RunConfig` | all that a run takes |
"""
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from adapters.lam import Lam
from adapters.lora import SCALINGS
from adapters.operators import OPERATORS
from adapters.rounded import CODES
from finetune.methods import METHODS, TARGETS, Method
from finetune.optimizer import ADAMW
from finetune.schedule import SCHEDULES
from finetune.values import (
    DTYPES,
    DataPlace,
    Place,
    SaveEvery,
    StoredCodes,
    data_place,
    default_device,
    default_dtype,
    device,
    model_place,
    positive,
    saved_place,
    seed,
    share,
    share_above_0,
    spec_text,
)
from model.hub import HubModel
from quant.grid import Block
from quant.spec import QuantSpec
from tasks import TASKS
from tasks.hub_data import HubData
from tasks.rows import SUFFIXES

EMBEDDED_BASE = Path(__file__).parent.parent / "model" / "base"
COMPUTE = ("float32", "bfloat16")  # float16 activations would need loss scaling


def option(default: Any = MISSING, *, factory: Callable = MISSING, **facts) -> Any:
    """A field that a flag of the same name sets.

    help      one imperative sentence, with the unit
    parse     text -> value; raises ValueError
    load      the same for text out of a run's config.json, where it differs
    choices   what is allowed, or a function that gives it
    metavar   what stands behind the flag in --help
    alone     the value that the flag has with nothing behind it
    shown     the default in words, where the value itself says too little
    only      "adapter", "full", "gptq" or "adamw": the flag is refused without it
    rescore   True: may be given anew when a run is scored
    of_task   True: what a run says of it holds for the run's own task only
    answers   False: the field changes nothing in an answer but rounding
    setting   False: two runs that differ in it are the same experiment
    group     the group in --help, where it is not the one of its class
    flag      False: no flag sets it; it follows from other fields
    """
    if factory is not MISSING:
        return field(default_factory=factory, metadata=facts)
    return field(default=default, metadata=facts)


@dataclass(frozen=True)
class BaseConfig:
    model: Place = option(
        EMBEDDED_BASE, parse=model_place, load=saved_place(HubModel), metavar="MODEL", shown="the embedded base",
        rescore=True,
        help="start from this model: a directory, a .gguf file, a run, or a Hugging Face repository "
             "ORG/NAME[@REVISION]")
    from_scratch: bool = option(False, only="full", help="start from random weights of the model's config (--method "
                                                         "full)")
    quantization: QuantSpec | None = option(None, load=QuantSpec.parse, flag=False)
    quantized_layers: str = option("all", choices=TARGETS, group="quantization", help="quantize these linear layers")
    calibration: Path | None = option(
        None, parse=Path, metavar="FILE", only="gptq", group="quantization", rescore=True,
        shown="the task's training rows",
        help="gptq only: calibrate on this text file")
    calibration_rows: int = option(
        500, parse=positive(int), metavar="N", only="gptq", group="quantization", rescore=True,
        help="gptq only: calibrate on this many rows, or windows of the file")
    codes: StoredCodes | None = option(None, load=StoredCodes.parse, flag=False)

    @property
    def bits(self) -> int:
        """Of the target layers' weights; 16 if they are not codes."""
        stored = self.quantization or self.codes
        return stored.bits if stored else 16

    @property
    def block(self) -> Block | None:
        stored = self.quantization or self.codes
        return stored.block if stored else None

    @property
    def by_gptq(self) -> bool:
        return bool(self.quantization and self.quantization.by_gptq)


@dataclass(frozen=True)
class AdapterConfig:
    targets: str = option("all", choices=TARGETS, help="put adapters beside these linear layers")
    rank: int = option(16, parse=positive(int), metavar="R", only="adapter", help="set the rank of the adapter")
    lora_alpha: float = option(16.0, parse=positive(float), metavar="ALPHA", only="adapter",
                               help="set the adapter's scaling = lora_alpha / rank")
    scaling: str = option("lora", choices=SCALINGS, only="adapter",
                          help="scale the adapter by lora_alpha / rank, or by lora_alpha / sqrt(rank) (rslora)")
    lam: Lam | None = option(None, parse=Lam.parse, metavar="LAM", only="adapter", shown="the method's",
                             help="average lam_in inputs and repeat lam_out outputs: 4x8, or one number for both")
    operators: str = option("avgpool", choices=OPERATORS, only="adapter",
                            help="blora and qablora: compress inputs and restore outputs this way (Shen et al., Table "
                                 "6)")
    dropout: float = option(0.0, parse=share, metavar="P", only="adapter",
                            help="drop this share of the adapter's inputs in training")
    omega: float | None = option(None, parse=positive(float), metavar="OMEGA", only="adapter",
                                 shown="4 * sqrt(rank) / 2^bits",
                                 help="lota only: move a code where the product of the ternary matrices is larger")
    merge_into: str | None = option(
        None, choices=(CODES,), only="adapter", shown="offset or scale where that is exact, else 16 bits",
        help="train through the rounding to the base's grid, so that the adapter merges into the codes exactly")
    begins: str | None = option(None, flag=False)  # with merge_into: where in their cells weights begin
    keep_residual: bool = option(
        False, only="adapter",
        help="--merge-into codes only: add delta_W to the original weights, which takes 16 more bits a weight in "
             "training, and not to the quantized ones")


@dataclass(frozen=True)
class DataConfig:
    task: str = option("banking77", choices=TASKS, rescore=True, metavar="TASK",
                      shown="banking77, or with --data the task that the rows' fields name",
                      help="train and score on this task")
    protocol: str | None = option(None, metavar="NAME", rescore=True, of_task=True, shown="lm-eval",
                                  help="mmlu only: score by lm-eval, or by hendrycks, the authors' own script")
    data: DataPlace | None = option(
        None, parse=data_place, load=saved_place(HubData), metavar="FILE", of_task=True, shown="the task's own, if it "
                                                                                               "has any",
        help=f"read training rows from this file ({', '.join(SUFFIXES)}) or Hugging Face data set, "
             "ORG/NAME[@REVISION][:PATH]")
    test_data: DataPlace | None = option(
        None, parse=data_place, load=saved_place(HubData), metavar="FILE", rescore=True, of_task=True,
        shown="the task's own, or rows split off --data", help="read test rows from this file or data set")
    limit: int | None = option(None, parse=positive(int), metavar="N", of_task=True, shown="all",
                               help="use this many rows of --data, drawn by --seed")
    test_limit: int | None = option(None, parse=positive(int), metavar="N", rescore=True, of_task=True, shown="all",
                                    help="score the first N test rows")
    max_length: int | None = option(
        None, parse=positive(int), metavar="TOKENS", of_task=True, shown="the model's positions, at most 2048",
        help="leave out training rows with more tokens")
    max_new_tokens: int | None = option(
        None, parse=positive(int), metavar="TOKENS", rescore=True, of_task=True,
        shown="the protocol's, else the longest answer's",
        help="write at most this many tokens for an answer")
    seed: int = option(0, parse=seed, setting=False, help="seed the rows' order, the initial weights, and dropout")


@dataclass(frozen=True)
class TrainingConfig:
    lr: float | None = option(parse=positive(float), only=ADAMW, shown="that of method, tile, scaling and width",
                              help="set the largest learning rate of AdamW")
    batch_size: int = option(64, parse=positive(int), metavar="ROWS", help="take this many rows for one optimizer step")
    micro_batch: int | None = option(None, parse=positive(int), metavar="ROWS", shown="--batch-size", setting=False,
                                     help="hold this many rows in memory at a time")
    gradient_checkpointing: bool = option(
        False, setting=False,
        help="keep only the inputs of decoder layers and compute the rest again for the gradients: less memory, more "
             "time, the same numbers")
    cuda_graphs: bool = option(
        False, setting=False,
        help="record the decoder's forward and backward pass on the GPU and launch each as a whole: faster, and rows "
             "are padded to multiples of 64 tokens")
    shard_base: bool = option(
        False, setting=False,
        help="share the frozen base among the processes that torchrun starts: each holds its part of every decoder "
             "layer, and gathers one layer at a time")
    epochs: int = option(2, parse=positive(int), help="train this many epochs")
    steps: int | None = option(None, parse=positive(int), shown="what --epochs makes", help="train this many steps "
                                                                                            "instead")
    warmup: float = option(0.05, parse=share, metavar="SHARE", only=ADAMW,
                           help="raise the learning rate in this share of the steps")
    lr_schedule: str = option("cosine", choices=SCHEDULES, only=ADAMW,
                              help="lower the learning rate to 0 after the warm-up along half a cosine or a line, or "
                                   "keep it constant")
    distill: float | None = option(
        None, parse=share_above_0, metavar="SHARE", alone=1.0, shown="not done; 1 if no number is given",
        help="learn this share of the loss from the probabilities of the model before it was quantized")
    distill_from: Place | None = option(
        None, parse=model_place, load=saved_place(HubModel), metavar="MODEL", shown="the model before it was quantized",
        help="with --distill: learn from this model of the same tokens, a run for example")
    clip: float = option(1.0, parse=positive(float), metavar="NORM", only=ADAMW, help="clip the gradient to this norm")
    weight_decay: float = option(0.0, parse=share, metavar="W", only=ADAMW,
                                 help="decay matrices by this factor a step, times the learning rate")
    beta2: float = option(0.999, parse=share, metavar="B", only=ADAMW, help="set AdamW's second beta")
    eval_every: int | None = option(
        None, parse=positive(int), metavar="STEPS", shown="at the end of each epoch",
        help="compute the validation loss after every STEPS steps too, and keep what has the lowest")
    patience: int | None = option(
        None, parse=positive(int), metavar="N", shown="never",
        help="end training after N validation losses in a row that are not below the lowest")
    save_every: SaveEvery = option(
        SaveEvery(200, 10.0), parse=SaveEvery.parse, load=SaveEvery.parse, metavar="STEPS,MINUTESm", setting=False,
        help="save a state to resume from every N steps (200), every N minutes (10m), or at whichever comes first "
             "(200,10m)")
    optimizer: str = option(ADAMW, flag=False)
    save_dtype: str | None = option(None, choices=DTYPES, only="full", shown="the checkpoint's",
                                    help="save the weights in this type (--method full)")


@dataclass(frozen=True)
class EvaluationConfig:
    eval_batch_size: int = option(
        128, parse=positive(int), metavar="ROWS", rescore=True, answers=False, setting=False,
        help="score this many rows at a time; in bfloat16 another number may turn near ties")
    requantize: QuantSpec | None = option(
        None, parse=spec_text, load=QuantSpec.parse, metavar="SPEC", rescore=True, shown="not done",
        help="LOSSY: also score the merged model quantized again, e.g. gptq:minmax@32x1, or nf@64x1-3bit")

    @property
    def requantizes_by_gptq(self) -> bool:
        return bool(self.requantize and self.requantize.by_gptq)


@dataclass(frozen=True)
class ComputeConfig:
    dtype: str = option(factory=lambda: default_dtype(), choices=COMPUTE, rescore=True,
                        shown="bfloat16 if the machine multiplies it, else float32", help="compute activations in "
                                                                                          "this type")
    device: str = option(factory=lambda: default_device(), parse=device, rescore=True, answers=False, setting=False,
                         shown="cuda if there is one, else cpu", help="compute on this device")

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]


@dataclass(frozen=True)
class ScoringConfig:
    """All that scoring a model takes."""
    base: BaseConfig = field(default_factory=BaseConfig)
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)


@dataclass(frozen=True)
class RunConfig(ScoringConfig):
    """All that a run takes. `resolve_run` makes it; nothing is assigned to it afterwards."""
    method: str = option("qablora", choices=METHODS, metavar="METHOD", help="fine-tune by this method: "
                                                                            f"{', '.join(METHODS)}")
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(lr=METHODS["qablora"].lr))

    @property
    def of_method(self) -> Method:
        return METHODS[self.method]

    @property
    def adapter_kind(self) -> str | None:
        """A key of ADAPTERS; None: all weights train."""
        return METHODS[self.method].adapter


def flat(config: Any) -> Iterator[tuple[Field, Any]]:
    """(field, value) of every field, those of the parts included: names are unique over all parts."""
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value) and not f.metadata:
            yield from flat(value)
        else:
            yield f, value


def flag(name: str) -> str:
    """`flag("act_order") == "--act-order"`"""
    return f"--{name.replace('_', '-')}"
