"""The adapter as PEFT reads it: adapter_config.json and adapter_model.safetensors, float32. Every additive adapter is a plain LoRA, exactly, of this rank:

| method | A | B | rank |
|---|---|---|---|
| LoRA, QLoRA | A | B | r |
| BLoRA, Q-BLoRA | A C | R B | lam * r |
| QA-LoRA | A C | B | r |
| QA-BLoRA | H C and R, or C and R H | | min(D_out/lam_out, D_in/lam_in), which may differ from layer to layer |
| IR-QLoRA | A + iec_a P | B + iec_b R | r |

C and R are the compression and restoration of adapters/operators.py. PEQA multiplies scales, which is no LoRA, and full fine-tuning has no adapter: both
are refused.

A PEFT adapter stands beside the base that it was trained on. That is the original checkpoint for lora and blora. A base of codes is nothing
that PEFT could load by itself, so that it leaves dequantized, in PLACE/base, and adapter_config.json names that: float32 unless --dtype says
otherwise, since a dequantized weight is exact in nothing smaller. (A 4-bit nf base at block 64 without --double-quant is what bitsandbytes makes of
the original checkpoint, bit for bit; who serves it so may put the original's name into adapter_config.json and drop PLACE/base.)
"""
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from adapters.adapted import adapted_layers
from finetune.run import is_run
from finetune.source import load_run_base
from interop.hugging_face import DTYPES, name_of, read_model, write_model
from adapters.peft_in import attach_peft, read_peft
from interop.trained import Trained
from model.files import write_json, write_safetensors
from model.hub import HubModel
from model.llama import Llama

PRODUCTS = 1e-4  # of a tensor's largest value: what products of other factors may round otherwise
CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base"


class PEFTExport:
    name, is_directory = "peft", True

    def __init__(self, trained: Trained, to: Path, dtype: str | None):
        """dtype: of the base in PLACE/base, None for float32. Raises ValueError where there is no additive adapter, and for a dtype where the base is
        the original. Reads headers only."""
        if trained.adapter_name is None:
            raise ValueError(f"{trained.path} has no adapter that could leave as PEFT's; give it by --format safetensors")
        if trained.adapter_name == "peqa":
            raise ValueError(f"{trained.path}: peqa multiplies the scales of its codes, which is no sum of base and LoRA: export the merged model by "
                             f"--format safetensors, or by --format gguf where its blocks are 32x1")
        self.trained, self.to = trained, to
        self.original = original_base(trained)
        if self.original and dtype:
            raise ValueError(f"--dtype is of the base that leaves with an adapter, and this one stands beside the original, {self.original}")
        self.dtype = DTYPES[dtype or "float32"]
        self.tolerance = max(PRODUCTS, 4 * torch.finfo(self.dtype).eps)

    def write(self, model: Llama, place: Path) -> dict:
        tensors, ranks, alphas = {}, {}, {}
        for name, layer in adapted_layers(model).items():
            A, B = layer.adapter.lora_factors()
            tensors |= {f"base_model.model.{name}.lora_{letter}.weight": factor.float() for letter, factor in (("A", A), ("B", B))}
            ranks[name], alphas[name] = len(A), layer.adapter.scaling * len(A)
        write_safetensors(place / WEIGHTS, tensors)
        write_json(place / CONFIG, self.config(ranks, alphas))
        kinds = {rank: dict.fromkeys(name.rpartition(".")[2] for name in ranks if ranks[name] == rank) for rank in sorted(set(ranks.values()))}
        said = {"rank": "; ".join(f"{rank} ({', '.join(names)})" for rank, names in kinds.items())}
        if self.original:
            return {**said, "base": f"{self.original}, beside which it stands"}
        base = load_base(self.trained)
        write_model(self.trained, base, self.dtype, place / BASE)
        return {**said, "base": f"{self.to / BASE}, dequantized to {name_of(self.dtype)}: beside this one it stands"}

    def config(self, ranks: dict[str, int], alphas: dict[str, float]) -> dict:
        """adapter_config.json. The commonest rank is `r`; kinds of layer with another are named in the patterns, with the alpha that keeps
        alpha / r. All layers of one kind have one size, hence one rank."""
        rank, _ = Counter(ranks.values()).most_common(1)[0]
        alpha = alphas[next(name for name in ranks if ranks[name] == rank)]
        others = {name.rpartition(".")[2]: name for name in ranks if ranks[name] != rank}
        place = self.trained.model_place
        return {"peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True, "r": rank, "lora_alpha": whole(alpha),
                "lora_dropout": self.trained.run.config.adapter.dropout, "bias": "none", "fan_in_fan_out": False, "use_rslora": False, "use_dora": False,
                "target_modules": sorted({name.rpartition(".")[2] for name in ranks}), "modules_to_save": None,
                "rank_pattern": {kind: ranks[name] for kind, name in others.items()},
                "alpha_pattern": {kind: whole(alphas[name]) for kind, name in others.items()},
                "base_model_name_or_path": str(place.repo if isinstance(place, HubModel) else self.original or (self.to / BASE).resolve()),
                "revision": place.revision if isinstance(place, HubModel) and self.original else None}

    # ---- reading again

    def reread(self, place: Path) -> Llama:
        if self.original:
            model = self.trained.base.load(torch.float32, "cpu")
        else:
            model = read_model(self.trained, place / BASE)
        attach_peft(model, read_peft(place, self.trained.config))
        return model

    def expected(self, model: Llama, name: str) -> Tensor | None:
        """Not known exactly: a product of other factors rounds otherwise."""
        return None


def whole(alpha: float) -> float | int:
    """PEFT calls it an integer, and takes others."""
    return int(alpha) if alpha == int(alpha) else alpha


def original_base(trained: Trained) -> Path | HubModel | None:
    """Where the base is a checkpoint that PEFT's readers load as it stands."""
    place = trained.model_place
    if trained.run.base_file.is_file() or trained.quantized():
        return None
    if isinstance(place, HubModel):
        return place
    return place if place.is_dir() and not is_run(place) else None


def load_base(trained: Trained) -> Llama:
    return load_run_base(trained.run, trained.run.config, torch.float32, "cpu")
