"""The adapter as PEFT reads it: adapter_config.json and adapter_model.safetensors, float32.

Every additive adapter equals a plain LoRA, delta_W = scaling * B A, with these factors:

| method | A | B | rank |
|---|---|---|---|
| LoRA, QLoRA | A | B | r |
| BLoRA, Q-BLoRA | A C | R B | lam * r |
| QA-LoRA | A C | B | r |
| QA-BLoRA | H C and R, or C and R H | | min(D_out/lam_out, D_in/lam_in), which may differ from layer to layer |
| IR-QLoRA | A + iec_a P | B + iec_b R | r |

C and R are the compression and restoration of adapters/operators.py. PEQA multiplies scales and LoTA moves codes, so
they are no LoRAs. Full fine-tuning has no adapter. All three are refused.

The run's tokenizer and its chat template stand beside the adapter, as PEFT's users expect. vLLM reads them with
--tokenizer PLACE.

A PEFT adapter needs the base that it was trained on. For lora and blora that is the original checkpoint. PEFT cannot
load a base of codes from this project's files. Such a base is exported dequantized, in PLACE/base, and
adapter_config.json names it. Its type is float32 unless --dtype names another: no smaller type holds a dequantized
weight exactly. (A 4-bit nf base of block 64 without --double-quant equals, bit for bit, what bitsandbytes makes of the
original checkpoint. For serving with bitsandbytes, adapter_config.json may name the original, and PLACE/base is not
needed.) With --base-format, PLACE/base holds the codes as they are, in a format that vLLM and transformers read.
"""
import math
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from adapters import ADAPTERS
from adapters.adapted import adapted_layers
from adapters.peft_in import attach_peft, read_peft
from finetune.run import is_run
from finetune.source import load_run_base
from finetune.values import DTYPES
from interop.hugging_face import read_model, write_model, write_tokenizer
from interop.stored_format import INTEGER_FORMATS, VLLM
from interop.trained import Trained
from model.checksums import write_sums
from model.files import write_json
from model.hub import HubModel
from model.llama import Llama
from model.stored_names import joined_layers
from model.tensor_files import name_of, write_safetensors

PRODUCTS = 1e-4  # of a tensor's largest value: B A and the run's own delta_W are rounded differently
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM 0.33, MaxLoRARanks
CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base"


class PEFTExport:
    name, is_directory = "peft", True

    def __init__(self, trained: Trained, to: Path, dtype: str | None, base_format: str | None = None):
        """dtype: of the base in PLACE/base; None for float32. base_format: that in which PLACE/base holds codes; None
        for dense weights. Raises ValueError if the run has no additive adapter, for a dtype or format if the base is
        the original, and for codes that the format does not hold. Reads headers only."""
        if trained.adapter_name is None:
            raise ValueError(f"{trained.path} has no adapter, so --format peft has nothing to write: "
                             f"use --format safetensors")
        kind = ADAPTERS[trained.adapter_name]
        if not kind.additive:
            raise ValueError(f"{trained.path}: {trained.adapter_name} trains the {kind.merges_into} of its base, and a "
                             f"LoRA only adds to the base: export the merged model with --format safetensors, or with "
                             f"--format gguf or mlx if its blocks are 32x1")
        if trained.run.config.adapter.merge_into:
            raise ValueError(f"{trained.path}: --merge-into codes trained delta_W through the rounding to the k-bit "
                             f"grid, and a LoRA beside the unrounded base is another model: export the merged model "
                             f"with --format safetensors, or its codes with gguf, mlx, gptq or compressed-tensors")
        self.trained, self.to = trained, to
        self.original = original_base(trained)
        for flag, value in (("--dtype", dtype), ("--base-format", base_format)):
            if self.original and value:
                raise ValueError(f"{flag} {value} is for a base that is exported with its adapter; this adapter uses "
                                 f"the original base, {self.original}: leave {flag} out")
        self.codes = INTEGER_FORMATS[base_format](trained, to / BASE, dtype, merged=False) if base_format else None
        self.dtype = DTYPES[dtype or ("float16" if base_format else "float32")]
        self.tolerance = max(PRODUCTS, 4 * torch.finfo(self.dtype).eps)

    def write(self, model: Llama, place: Path) -> dict:
        tensors, ranks, alphas, layers = {}, {}, {}, adapted_layers(model)
        for name, parts in joined_layers(layers, model.config).items():
            A, B, scaling = joined_factors(model, parts, layers)
            tensors |= {f"base_model.model.{name}.lora_{letter}.weight": factor.float()
                        for letter, factor in (("A", A), ("B", B))}
            ranks[name], alphas[name] = len(A), scaling * self.divisor(len(A))
        write_safetensors(place / WEIGHTS, tensors)
        write_json(place / CONFIG, self.config(ranks, alphas))
        write_tokenizer(self.trained, place)
        kinds = {rank: dict.fromkeys(name.rpartition(".")[2] for name in ranks if ranks[name] == rank)
                 for rank in sorted(set(ranks.values()))}
        facts = {"rank": "; ".join(f"{rank} ({', '.join(names)})" for rank, names in kinds.items())}
        if self.original:
            return {**facts, "base": f"{self.original}, the original"}
        return {**facts, **self.write_base(place / BASE, max(ranks.values()))}

    def write_base(self, place: Path, rank: int) -> dict:
        """rank: the largest of the adapter, for vLLM's command line."""
        base = load_base(self.trained)
        if self.codes:
            facts, form = self.codes.write(base, place), f"its codes as {self.codes.name}"
            facts[VLLM] = self.codes.served("--enable-lora", f"--max-lora-rank {vllm_rank(rank)}",
                                            f"--lora-modules {self.trained.path.name}={self.to}")
        else:
            write_model(self.trained, base, self.dtype, place)
            facts, form = {}, f"dequantized to {name_of(self.dtype)}"
        write_sums(place)
        return {**facts, "base": f"{self.to / BASE}, {form}: load the adapter with this base"}

    @property
    def rslora(self) -> bool:
        return self.trained.run.config.adapter.scaling == "rslora"

    def divisor(self, rank: int) -> float:
        """What PEFT divides lora_alpha by: `rank` of the factors that are written, or its square root."""
        return math.sqrt(rank) if self.rslora else rank

    def config(self, ranks: dict[str, int], alphas: dict[str, float]) -> dict:
        """adapter_config.json. `r` is the most common rank. The patterns name each kind of layer with another rank, and
        the alpha that keeps its scaling. All layers of one kind have one size, hence one rank."""
        rank, _ = Counter(ranks.values()).most_common(1)[0]
        alpha = alphas[next(name for name in ranks if ranks[name] == rank)]
        others = {name.rpartition(".")[2]: name for name in ranks if ranks[name] != rank}
        base = self.original or (self.to / BASE).resolve()
        return {"peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True,
                "r": rank, "lora_alpha": whole(alpha),
                "lora_dropout": self.trained.run.config.adapter.dropout, "bias": "none",
                "fan_in_fan_out": False, "use_rslora": self.rslora, "use_dora": False, "modules_to_save": None,
                "target_modules": sorted({name.rpartition(".")[2] for name in ranks}),
                "rank_pattern": {kind: ranks[name] for kind, name in others.items()},
                "alpha_pattern": {kind: whole(alphas[name]) for kind, name in others.items()},
                "base_model_name_or_path": str(base.repo if isinstance(base, HubModel) else base),
                "revision": base.revision if isinstance(base, HubModel) else None}

    # ---- reading again

    def reread(self, place: Path) -> Llama:
        if self.original:
            model = self.trained.base.load(torch.float32, "cpu")
        else:
            model = read_model(self.trained, place / BASE)
        attach_peft(model, read_peft(place, self.trained.config))
        return model

    def beside(self, to: Path) -> dict[Path, str]:
        return {}

    def expected(self, model: Llama, name: str) -> Tensor | None:
        """None: B A is rounded differently from the run's own delta_W, so no exact value is known."""
        return None


def joined_factors(model: Llama, parts: tuple[str, ...], layers: dict) -> tuple[Tensor, Tensor, float]:
    """A, B and scaling of the LoRA of a layer whose outputs are those of `parts`, which all read the same input.

    B A of the whole has the parts' own B A as its rows: A = [A_1; A_2; ...], B = diag(B_1, B_2, ...). A part without
    an adapter has rows of zeros in B."""
    if len(parts) == 1:
        return *layers[parts[0]].adapter.lora_factors(), layers[parts[0]].adapter.scaling
    scaling = next(layers[part].adapter.scaling for part in parts if part in layers)
    As, Bs = [], []
    for part in parts:
        if part in layers:
            A, B = layers[part].adapter.lora_factors()
            As.append(A)
            Bs.append(B * (layers[part].adapter.scaling / scaling))
        else:
            Bs.append(torch.zeros(model.get_submodule(part).out_features, 0))
    return torch.cat(As), torch.block_diag(*(B.float() for B in Bs)), scaling


def vllm_rank(rank: int) -> int:
    """The smallest value of vLLM's --max-lora-rank that is enough; the rank itself if none is."""
    return next((most for most in VLLM_RANKS if most >= rank), rank)


def whole(alpha: float) -> float | int:
    """PEFT documents alpha as an integer, and accepts others too. `whole(16.0) == 16`. sqrt(r) / sqrt(r) may differ
    from 1 in the last bit."""
    return round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-12) else alpha


def original_base(trained: Trained) -> Path | HubModel | None:
    """The base's place if it is a checkpoint that PEFT's readers load as it is, else None."""
    place = trained.model_place
    if trained.run.base_file.is_file() or trained.quantized():
        return None
    if isinstance(place, HubModel):
        return place
    return place if place.is_dir() and not is_run(place) else None


def load_base(trained: Trained) -> Llama:
    return load_run_base(trained.run, trained.run.config, torch.float32, "cpu")
