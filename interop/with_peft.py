"""A model and an adapter of PEFT, exported together: `python export.py MODEL --adapter PEFT_DIR --format ...`.

The adapter merges as that of a run does (adapters/merge.py): into the offsets of codes whose blocks lie inside its
groups, which only PEFT's QA-LoRA (`use_qalora`) averages; else into dense weights.
"""
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from adapters.peft_in import PEFTAdapter, attach_peft, read_peft
from finetune.checks import planned_base
from finetune.config import BaseConfig
from finetune.source import Source
from interop.trained import Trained
from model.llama import Llama
from model.token_agreement import note_other_tokenizer


@dataclass(frozen=True)
class WithPEFT(Trained):
    """A model directory or GGUF file, with an adapter of PEFT."""
    adapter: PEFTAdapter = field(kw_only=True)

    @classmethod
    def of(cls, path: Path, adapter: Path) -> "WithPEFT":
        """Reads headers, and whether the adapter's numbers are finite. Raises ValueError or FileNotFoundError if one of
        the two is not there, or if they do not fit each other."""
        model = Trained.at(path)
        if model.run:
            raise ValueError(f"--adapter {adapter} is for a model without a run, and {path} is a run, which has its "
                             f"own: give its merged model, such as {path / 'merged'}, or export it as safetensors")
        found = cls(path, adapter=read_peft(adapter, model.config))
        note_other_tokenizer(adapter, found.tokenizer)
        return found

    @cached_property
    def run_of_result(self) -> None:
        """None, also for RUN/merged: the run knows nothing of this adapter."""
        return None

    @cached_property
    def adapted(self) -> list[str]:
        return list(self.adapter.layers)

    def planned(self) -> Llama:
        model = planned_base(Source(self.path), BaseConfig(model=self.path))
        attach_peft(model, self.adapter)
        return model

    def load(self) -> Llama:
        model = super().load()
        attach_peft(model, self.adapter)
        return model

    def state(self) -> dict:
        """`adapter: banking, of PEFT: QA-LoRA of groups of 32 in 14 layers`."""
        kinds = Counter("LoRA" if layer.group == 1 else f"QA-LoRA of groups of {layer.group}"
                        for layer in self.adapter.layers.values())
        layers = ", ".join(f"{kind} in {count} layers" for kind, count in kinds.items())
        return {"adapter": f"{self.adapter.path.resolve().name}, of PEFT: {layers}"}
