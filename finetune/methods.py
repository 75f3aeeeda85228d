"""The methods that `--method` offers, one row each. A method is an adapter on a base; the adapter and the quantizer say
the rest."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    title: str
    adapter: str | None    # a key of adapters.ADAPTERS; None: all weights train
    quantizer: str         # a key of quant.QUANTIZERS, gptq, or none: the base stays as it is
    lr: float | None       # works on the embedded base; --lr overrides it. None: the optimizer has none
    lam: str | None = None    # lam_in x lam_out, or "block": as the quantization block
    block: str | None = None  # n_in x n_out; None: the quantizer's usual block
    grid: str | None = None   # the only key of quant.QUANTIZERS that the method trains on; None: any
    even: bool = False        # the method needs levels that are consecutive whole numbers
    optimizer: str = "adamw"  # a key of finetune.optimizer.RATES


METHODS = {
    "full": Method("full fine-tuning", None, "none", 1e-3),
    "lora": Method("LoRA", "lora", "none", 5e-3, lam="1"),
    "blora": Method("BLoRA", "blora", "none", 5e-3, lam="2"),
    "qlora": Method("QLoRA", "lora", "nf", 5e-3, lam="1"),
    "qblora": Method("Q-BLoRA", "blora", "nf", 5e-3, lam="2"),
    "qalora": Method("QA-LoRA", "qalora", "gptq", 2e-2, lam="block", block="32x1"),
    "qablora": Method("QA-BLoRA", "qablora", "minmax", 2e-2, lam="block", block="4x8"),
    "irqlora": Method("IR-QLoRA", "irqlora", "icq", 5e-3, lam="1"),
    "peqa": Method("PEQA", "peqa", "intminmax", 3e-2, grid="intminmax"),
    "lota": Method("LoTA-QAF", "lota", "gptq", None, block="32x1", even=True, optimizer="t-signsgd"),
    "scaleoffset": Method("scale and offset", "scaleoffset", "minmax", 3e-2, block="32x1"),
}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
TARGETS = {"attention": ATTENTION, "mlp": MLP, "all": ATTENTION + MLP}
