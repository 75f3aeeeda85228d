"""Does longer pre-training, or a larger mix of text, make the embedded base lose more by rounding?

    python -m experiments.base_tokens corpus --out DIR                             # on a GPU: 2 to 3 minutes
    python -m experiments.base_tokens corpus --times 1 3 10 --seconds 280 --out DIR
    python -m experiments.base_tokens corpus --scale 0.002 --jobs 2 --out DIR      # try it out on a CPU
    python -m experiments.base_tokens --draw DIR/base_tokens.json                  # the picture again

`corpus` is what experiments/base_corpus.py wrote. The embedded architecture is trained from random weights on the text
of today's base, and on the mix, for as many tokens as today's base and several times as many. For each of these bases,
and for today's own:

- the loss on two held-out texts, at 16 bits and rounded by NF, min-max and GPTQ to 4, 3 and 2 bits
- the accuracy on banking77 after LoRA and after QLoRA, with the flags of the main job

DIR gets base_tokens.json after each part, and base_tokens.png. Given again, the command does what is missing.
"""
import argparse
import json
import lzma
import math
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

import train as train_script
from experiments.cells import work
from experiments.cells.plan import RUN_OF, Cell, run_folder
from experiments.cells.pool import Pool
from experiments.claims.base_tokens import BITS, HELD_OUT, HOW, TODAY, TOKENS, show
from experiments.shared import experiment_parser, run_experiment
from finetune.command_line import train_parser
from finetune.config import EMBEDDED_BASE, BaseConfig, ComputeConfig
from finetune.data import Calibration, PreparedData
from finetune.loop import mean_loss
from finetune.quantize import load_base
from finetune.run import Run
from finetune.source import Source
from finetune.values import Place
from model.files import read_json, write_json
from quant.spec import QuantSpec
from tasks.pretrain import WINDOW, Pretrain
from tasks.task import Encoded

ROWS = 32                    # of a step. Today's recipe has 16 and 2e-3; the rate grows by the root of the batch
RATE = 2.8e-3
CALIBRATED, SCORED = 128, 256  # windows


# ---- tokens ---------------------------------------------------------------------------------------------------------

def read_tokens(path: Path) -> np.ndarray:
    return np.frombuffer(lzma.decompress(path.read_bytes()), dtype=np.uint16)


def windows(ids: np.ndarray, most: int | None = None) -> list[Encoded]:
    """Whole windows only, as tasks/pretrain.py cuts them."""
    starts = range(0, len(ids) - WINDOW, WINDOW)[:most]
    return [Encoded(ids[start:start + WINDOW + 1].tolist(), 1) for start in starts]


# ---- the three kinds of cells ---------------------------------------------------------------------------------------

def do(cell: Cell, folder: Path, corpus: Path) -> dict:
    start = time.perf_counter()
    if cell.kind == "base":
        facts = pretrained(cell, folder, corpus)
    elif cell.kind == "rounding":
        facts = {"loss": rounding_losses(base_of(cell, folder), cell.tags["device"], *texts_of(cell, corpus))}
    else:
        facts = fine_tuned(cell, folder)
    return {"tags": cell.tags, "kind": cell.kind, "argv": list(cell.argv), **facts,
            "wall_seconds": round(time.perf_counter() - start, 1)}


def pretrained(cell: Cell, folder: Path, corpus: Path) -> dict:
    """By train.py's own functions; only the rows come from a file of tokens."""
    source, config = train_script.checked(train_parser().given(cell.command(folder)))
    held_out = windows(read_tokens(corpus / f"{HELD_OUT[0]}.xz"), cell.tags["windows"])
    learned = windows(read_tokens(corpus / f"{cell.tags['text']}.xz"))
    data = PreparedData(Pretrain(), source.tokenizer, source.stop_ids(), learned, held_out, [], {}, 0, 1,
                        {"train": cell.tags["text"], "validation": HELD_OUT[0], "test": ""}, None,
                        (config.data.data, None), frozenset())
    run = Run(run_folder(folder, cell.name))
    train_script.describe(run, source, config, data)
    log, trainer = work.trained(run, config, data)
    losses = [line["loss"] for line in log if "gradient_norm" in line]
    return {"tokens": trainer.tokens, "epochs": trainer.tokens / (len(learned) * WINDOW), "lr": config.training.lr,
            "step_seconds": round(trainer.seconds, 1), "best_validation_loss": trainer.best,
            "validations": [line for line in log if "validation_loss" in line],
            "training_loss_at_the_end": sum(losses[-100:]) / len(losses[-100:])}


def base_of(cell: Cell, folder: Path) -> Path:
    name = cell.tags["base"]
    return EMBEDDED_BASE if name == TODAY else run_folder(folder, name)


def texts_of(cell: Cell, corpus: Path) -> tuple[dict[str, list[Encoded]], list[Encoded]]:
    """The held-out texts, and windows of the base's own text to calibrate on."""
    most = cell.tags["windows"]
    held_out = {name: windows(read_tokens(corpus / f"{name}.xz"), most) for name in HELD_OUT}
    return held_out, windows(read_tokens(corpus / f"{cell.tags['text']}.xz"), min(most, CALIBRATED))


def rounding_losses(place: Place, device: str, held_out: dict[str, list[Encoded]], calibration: list[Encoded],
                    dtype: str = "float32") -> dict[str, dict[str, float]]:
    """nats a token of each text: {"16": {text: loss}, "nf@64x1-4bit": ...}."""
    specs = {"16": None} | {f"{how}-{bits}bit": QuantSpec.parse(f"{how}-{bits}bit") for how in HOW.values()
                            for bits in BITS}
    seen = Calibration([e.tokens for e in calibration], "windows of the base's own text")
    found = {}
    for name, spec in specs.items():
        model, _ = load_base(Source(place), BaseConfig(model=place, quantization=spec), ComputeConfig(dtype, device),
                             seen)
        model.eval()
        found[name] = {text: mean_loss(model, rows, 16) for text, rows in held_out.items()}
        print(name, found[name], flush=True)
    return found


def fine_tuned(cell: Cell, folder: Path) -> dict:
    facts = work.do(cell, folder)
    state = facts["states"]["trained"]
    return {"lr": facts["lr"], "best_validation_loss": facts["training"].get("best_validation_loss"),
            "accuracy": state["scores"]["accuracy"], "validation_loss": state["validation_loss"],
            "seconds": facts["seconds"]}


# ---- the plan -------------------------------------------------------------------------------------------------------

def cells_of(options: argparse.Namespace) -> list[Cell]:
    """The longest bases first, since they decide when all is done."""
    on = ["--device", options.device, *(["--cuda-graphs"] if options.device.startswith("cuda") else [])]
    scored = max(2, round(options.scale * SCORED))
    bases = [(text, times) for times in sorted(options.times, reverse=True) for text in options.texts]
    cells = []
    for text, times in bases:
        steps = max(2, round(options.scale * times * TOKENS / (ROWS * WINDOW)))
        argv = ["--method", "full", "--from-scratch", "--model", str(EMBEDDED_BASE), "--task", "pretrain",
                "--data", str(options.corpus), "--steps", str(steps), "--lr", str(RATE), "--batch-size", str(ROWS),
                "--weight-decay", "0.1", "--beta2", "0.95", "--warmup", "0.05", "--save-dtype", "float16", *on]
        cells.append(Cell(f"{text}-{times:g}x", argv, kind="base", seconds=20 * times * options.scale,
                          tags={"text": text, "times": times, "windows": scored}))
    names = [cell.name for cell in cells]
    for base, text in [(TODAY, "today"), *((cell.name, cell.tags["text"]) for cell in cells)]:
        rounding = Cell(f"{base}-rounding", [], kind="rounding", priority=1, after=[] if base == TODAY else [base],
                        seconds=10, tags={"base": base, "text": text, "device": options.device, "windows": scored})
        cells += [rounding, *fine_tunings(base, names, options, on)]
    return cells


def fine_tunings(base: str, bases: list[str], options: argparse.Namespace, on: list[str]) -> list[Cell]:
    """Of one base, after all bases: beside them, they would slow the longest one."""
    small = [] if options.scale == 1 else ["--limit", "60", "--steps", "2", "--test-limit", "20"]
    model = str(EMBEDDED_BASE) if base == TODAY else f"{RUN_OF}{base}"
    ways = {"lora": ["--method", "lora"]} | {
        f"qlora-nf-{bits}": ["--method", "qlora", "--quantizer", "nf", "--bits", str(bits)] for bits in BITS} | {
        "qlora-gptq-2": ["--method", "qlora", "--quantizer", "gptq", "--bits", "2"]}
    return [Cell(f"{base}-{name}-seed{seed}", [*way, "--model", model, "--seed", str(seed), "--eval-batch-size", "512",
                                               *small, *on],
                 kind="banking77", priority=2 + seed, seconds=20, after=bases,
                 tags={"base": base, "way": name, "seed": seed})
            for seed in options.seeds for name, way in ways.items()]


# ---- what was found -------------------------------------------------------------------------------------------------

class Results:
    """DIR/base_tokens.json, written anew after each cell."""

    def __init__(self, file: Path, options: argparse.Namespace):
        self.file = file
        self.kept = read_json(file) if file.is_file() else {"cells": {}}
        device = torch.cuda.get_device_name() if options.device.startswith("cuda") else "cpu"
        self.kept |= {"device": device, "torch": torch.__version__, "scale": options.scale,
                      "rows a step": ROWS, "lr": RATE, "corpus": read_json(options.corpus / "about.json")}

    def keep(self, name: str, facts: dict) -> None:
        self.kept["cells"][name] = facts
        write_json(self.file, self.kept)


def options_parser() -> argparse.ArgumentParser:
    parser = experiment_parser(__doc__, "runs/base_tokens")
    on_gpu = torch.cuda.is_available()
    parser.add_argument("corpus", type=Path, nargs="?", help="read the files of experiments/base_corpus.py here")
    parser.add_argument("--times", type=float, nargs="+", default=[1, 3], metavar="X",
                        help="train on X times the tokens of today's base (default: 1 3)")
    parser.add_argument("--texts", nargs="+", choices=("today", "mix"), default=["mix", "today"],
                        help="train on these texts (default: mix today)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of fine-tuning (default: 0)")
    parser.add_argument("--scale", type=float, default=1, metavar="X",
                        help="multiply steps by X, and fine-tune on few rows (default: 1)")
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu",
                        help="compute on this device (default: cuda if there is one, else cpu)")
    parser.add_argument("--jobs", type=int, default=min(12, os.cpu_count() or 1), metavar="N",
                        help="do N cells at a time (default: the number of CPUs, at most 12)")
    parser.add_argument("--seconds", type=float, default=math.inf, metavar="S", help="end after S seconds")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="keep runs here (default: OUT/runs)")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="print tables and draw the picture of this file only")
    return parser


def main() -> None:
    began, options = time.monotonic(), options_parser().parse_args()
    if options.draw:
        return show(json.loads(options.draw.read_text()), options.draw)
    if not options.corpus:
        raise SystemExit("error: give the directory that experiments/base_corpus.py wrote")
    options.corpus, scratch = options.corpus.resolve(), (options.scratch or options.out / "runs").resolve()
    for folder in (options.out / "logs", scratch):
        folder.mkdir(parents=True, exist_ok=True)
    results = Results(options.out / "base_tokens.json", options)
    done = {name: facts for name, facts in results.kept["cells"].items() if "error" not in facts}
    Pool(partial(do, corpus=options.corpus), options.jobs, scratch, options.out / "logs", results.keep,
         began + min(options.seconds, 1e9), done).run(cells_of(options))
    print(f"{time.monotonic() - began:.0f} s")
    show(results.kept, results.file)


if __name__ == "__main__":
    run_experiment(main)
