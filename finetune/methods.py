"""The methods that `--method` offers: one row each. What a row does not say, its adapter and its quantizer do."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    adapter: str | None    # a key of adapters.ADAPTERS; None: all weights train
    quantizer: str         # a key of quant.QUANTIZERS, or none: the base stays as it is
    lam: str | None        # lam_in x lam_out, or "block": as the quantization block
    lr: float              # what serves on the embedded base; --lr overrides it
    title: str


METHODS = {
    "full": Method(None, "none", None, 1e-3, "full fine-tuning"),
    "lora": Method("lora", "none", "1", 5e-3, "LoRA"),
    "blora": Method("blora", "none", "2", 5e-3, "BLoRA"),
    "qlora": Method("lora", "nf", "1", 5e-3, "QLoRA"),
    "qblora": Method("blora", "nf", "2", 5e-3, "Q-BLoRA"),
    "qablora": Method("qablora", "minmax", "block", 2e-2, "QA-BLoRA"),
}
DEFAULT_BITS = 4
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
TARGETS = {"attention": ATTENTION, "mlp": MLP, "all": ATTENTION + MLP}
