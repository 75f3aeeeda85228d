"""What the tests of train.py and eval.py share: a very small model, and the scripts called as from the shell."""
import json
import re
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import train
from finetune.lock import release_all
from finetune.loop import Trainer
from finetune.run import open_run
from model.config import LlamaConfig
from model.files import read_json, write_json

SMALL = LlamaConfig(vocab_size=4096, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                    num_key_value_heads=1, head_dim=16, max_position_embeddings=160, tie_word_embeddings=True,
                    bos_token_id=1, eos_token_ids=(2,))
FEW = ["--limit", "40", "--test-limit", "6", "--steps", "3", "--batch-size", "8", "--block", "16x1", "--max-new-tokens",
       "3"]


def call(script, *arguments):
    """Run a script's main as if from the shell; its exit message, or None. The end of a process releases its locks."""
    kept, sys.argv = sys.argv, [script.__name__, *map(str, arguments)]
    try:
        script.main()
    except SystemExit as exit:
        return str(exit)
    finally:
        sys.argv = kept
        release_all()


def shows_an_object(message: str) -> bool:
    """Whether it holds the text that Python makes of an object: `Scheme(bits=4, ...)`, `<x.Y object at 0x7f>`."""
    return re.search(r"\b[A-Z]\w*\(\w+=|\bobject at 0x", message) is not None


MADE: dict[tuple[str, ...], Path] = {}


def train_once(base, *arguments, out="x") -> None:
    """A run of train.py in `out`. Training is deterministic: the same command is run once, then copied."""
    command = ("--model", str(base), *map(str, arguments))
    if command not in MADE:
        assert call(train, *command, "--out", out) is None
        if Path(base).is_absolute():
            kept = Path(tempfile.mkdtemp(prefix="run-", dir=Path(base).parent)) / "run"
            MADE[command] = Path(shutil.copytree(out, kept))
    else:
        shutil.copytree(MADE[command], out)


@contextmanager
def interrupted_after(steps, monkeypatch):
    """Inside, training is cut off by Ctrl-C when so many steps are done."""
    one_step = Trainer._one_step

    def interrupted(self, *rest):
        if self.step == steps:
            raise KeyboardInterrupt
        one_step(self, *rest)
    with monkeypatch.context() as inside:
        inside.setattr(Trainer, "_one_step", interrupted)
        yield


def goes_on_to_the_bytes_of(whole, arguments, monkeypatch) -> None:
    """The same command, cut off after three steps and resumed, ends with the trained and merged bytes of `whole`."""
    with interrupted_after(3, monkeypatch):
        assert "train.py --resume cut" in call(train, *arguments, "--out", "cut")
    assert call(train, "--resume", "cut") is None
    for name in ("adapter.safetensors", "merged/model.safetensors"):
        assert (Path(whole) / name).read_bytes() == (Path("cut") / name).read_bytes()


def rows_of(run: Path, file="results.json") -> dict[str, dict]:
    return {row["state"]: row for row in json.loads((run / file).read_text())["rows"]}


def few(method):
    """The flags of FEW that go with a method; block 16x1 divides every layer of the small base."""
    of_codes = method.startswith("q") or method in ("irqlora", "peqa", "lota")
    return FEW if of_codes else [f for f in FEW if f not in ("--block", "16x1")]


def forbid_loading(monkeypatch) -> None:
    """Whoever loads weights now, fails."""
    def fail(*rest, **more):
        raise AssertionError("weights were loaded")
    for name in ("load_model", "read_tensors"):
        monkeypatch.setattr(f"finetune.source.{name}", fail)


def as_an_older_version_wrote_it(run: Path, *unknown: str) -> None:
    """Rewrites a run's config.json in format 1, the flat `arguments`, without the flags that were `unknown` then."""
    saved = read_json(run / "config.json")
    config, quantization, codes = saved.pop("config"), open_run(run).config.base.quantization, open_run(
        run).config.base.codes
    del saved["format"]
    flags = {"method": config["method"]}
    for part in ("base", "adapter", "data", "training", "evaluation", "compute"):
        flags |= config[part]
    del flags["quantization"], flags["codes"]
    stated = quantization or codes
    flags |= {"quantizer": quantization.quantizer if quantization else "none", "bits": stated.bits if stated else 16,
              "block": str(stated.block) if stated else None, "grid": quantization and quantization.grid,
              "double_quant": bool(quantization and quantization.double_quant),
              "act_order": bool(quantization and quantization.act_order), "requantize_grid": None,
              "requantize_bits": None,
              "requantize_block": None, "out": str(run), "show_example": False, "resume": None}
    assert flags["requantize"] is None
    write_json(run / "config.json", {"arguments": {k: v for k, v in flags.items() if k not in unknown}, **saved})
