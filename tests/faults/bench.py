"""The small model, the commands and the undisturbed runs that every section compares with."""
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tests.faults import events
from tests.faults.events import Event, Fault
from tests.faults.trial import Ended, contents, copied, run

# 28 training rows: four steps an epoch. States are saved at steps 2, 4 (an epoch's end), 6 and 7 (the end).
SMALL = ("--limit", "40", "--test-limit", "4", "--max-new-tokens", "3", "--batch-size", "8", "--steps", "7",
         "--save-every", "2", "--dtype", "float32", "--device", "cpu")
METHODS = {"qablora": ("--block", "16x1"), "full": (), "gptq": ("--method", "qlora", "--quantizer", "gptq", "--block",
                                                              "16x1", "--calibration-rows", "8")}


@dataclass
class Bench:
    tree: Path
    method: str = "qablora"
    place: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="faults-", dir=fast_disk())))

    @property
    def training(self) -> tuple[str, ...]:
        named = () if self.method == "gptq" else ("--method", self.method)
        return ("--model", str(self.base), *named, *METHODS[self.method], *SMALL, "--out", "x")

    @cached_property
    def base(self) -> Path:
        """A model directory with random weights."""
        path = self.place / "base"
        path.mkdir()
        ended = self.run_code(path, make_base)
        assert ended.status == 0, ended.out
        return path

    def run_code(self, cwd: Path, code) -> Ended:
        def stop_after():
            code()
            os._exit(0)
        return run(self.tree, cwd, "train.py", patch=stop_after)

    def fresh(self, name: str = "trial") -> Path:
        """An empty directory for a trial."""
        path = self.place / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path

    def train(self, cwd: Path, **more) -> Ended:
        return run(self.tree, cwd, "train.py", *self.training, **more)

    def resume(self, cwd: Path, **more) -> Ended:
        return run(self.tree, cwd, "train.py", "--resume", "x", **more)

    def eval(self, cwd: Path, **more) -> Ended:
        return run(self.tree, cwd, "eval.py", "x", **more)

    @cached_property
    def whole(self) -> Path:
        """Where the undisturbed run is."""
        self.base  # noqa: B018 - made before the log begins
        cwd = self.fresh("whole")
        ended = self.train(cwd, fault=Fault(events.LOG, log=self.place / "log") if self.watched else None)
        assert ended.status == 0, ended.out
        return cwd

    @property
    def watched(self) -> bool:
        return events.ENVIRONMENT in os.environ

    @cached_property
    def events(self) -> list[Event]:
        self.whole  # noqa: B018
        return events.read_log(self.place / "log")

    @cached_property
    def right(self) -> dict[str, str]:
        """The files of two undisturbed runs that are equal: what a disturbed run has to end with."""
        cwd = self.fresh("again")
        ended = self.train(cwd)
        assert ended.status == 0, ended.out
        here, other = contents(self.whole / "x"), contents(cwd / "x")
        equal = {name: value for name, value in here.items() if other.get(name) == value}
        assert any(name.endswith(".safetensors") and "state" not in name for name in equal), equal
        return equal

    @cached_property
    def names(self) -> set[str]:
        return set(contents(self.whole / "x"))

    def wrong(self, cwd: Path) -> list[str]:
        """The files that differ from the undisturbed run's."""
        found = contents(cwd / "x")
        return [name for name, value in self.right.items() if found.get(name) != value]

    def left_over(self, cwd: Path) -> list[str]:
        return sorted(set(contents(cwd / "x")) - self.names)

    @cached_property
    def first_state(self) -> int:
        """The number of the event after which the first state has its name."""
        for event in self.events:
            if event.op == "rename" and "/state/" in event.other:
                return event.number
        return len(self.events)

    @cached_property
    def cut(self) -> Path:
        """A run that was killed at the event before its last state: it has two epochs' files and can go on."""
        saved = [e.number for e in self.events if e.op == "rename" and "/state/" in e.other]
        cwd = self.fresh("cut")
        self.train(cwd, fault=Fault(events.KILL, saved[-2] + 2))
        return cwd

    def copy(self, source: Path, name: str = "trial") -> Path:
        return copied(source, self.place / name)


def fast_disk() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def make_base() -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from finetune.config import EMBEDDED_BASE
    from model.checkpoint import random_model, save_model
    from model.config import LlamaConfig
    from model.config_json import config_to_json
    from model.files import write_json
    small = LlamaConfig(vocab_size=4096, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                        num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=160,
                        tie_word_embeddings=True, bos_token_id=1, eos_token_ids=(2,))
    write_json(Path("config.json"), config_to_json(small))
    save_model(random_model(small, torch.float32, seed=1), Path("model.safetensors"), torch.float16)
    save_file(load_file("model.safetensors"), "model.safetensors", {"format": "pt"})  # as others do, without checksums
    Path("SHA256SUMS").unlink(missing_ok=True)
    shutil.copy(EMBEDDED_BASE / "tokenizer.model", "tokenizer.model")
