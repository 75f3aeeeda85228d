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
from experiments.claims.pictures import BLUE, GREEN, MARKS, ORANGE, legend, panels, save
from experiments.shared import experiment_parser, markdown
from finetune.command_line import train_parser
from finetune.config import EMBEDDED_BASE, BaseConfig, ComputeConfig, Place
from finetune.data import Calibration, PreparedData
from finetune.loop import mean_loss
from finetune.quantize import load_base
from finetune.run import Run
from finetune.source import Source
from model.files import read_json, write_json
from quant.spec import QuantSpec
from tasks.pretrain import WINDOW, Pretrain
from tasks.task import Encoded

TOKENS = 5632 * 16 * WINDOW  # that today's base has seen: 23.1 M
ROWS = 32                    # of a step. Today's recipe has 16 and 2e-3; the rate grows by the root of the batch
RATE = 2.8e-3
TODAY = "embedded"           # today's base itself, as it is in the repository
HELD_OUT = ("held_out_today", "held_out_wikitext2")
HOW = {"NF": "nf@64x1", "min-max 4x8": "minmax@4x8", "GPTQ": "gptq:minmax@32x1"}
BITS = (4, 3, 2)
CALIBRATED, SCORED = 128, 256  # windows
COLORS = dict(zip(HOW, (BLUE, ORANGE, GREEN), strict=True))


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
    held_out = windows(read_tokens(corpus / f"{HELD_OUT[0]}.xz"))
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
    bases = [(text, times) for times in sorted(options.times, reverse=True) for text in options.texts]
    cells = []
    for text, times in bases:
        steps = max(2, round(options.scale * times * TOKENS / (ROWS * WINDOW)))
        argv = ["--method", "full", "--from-scratch", "--model", str(EMBEDDED_BASE), "--task", "pretrain",
                "--data", str(options.corpus), "--steps", str(steps), "--lr", str(RATE), "--batch-size", str(ROWS),
                "--weight-decay", "0.1", "--beta2", "0.95", "--warmup", "0.05", "--save-dtype", "float16", *on]
        cells.append(Cell(f"{text}-{times:g}x", argv, kind="base", tags={"text": text, "times": times},
                          seconds=20 * times * options.scale))
    for base in (TODAY, *(cell.name for cell in cells)):
        cells += cells_on(base, next((c.tags["text"] for c in cells if c.name == base), "today"), options, on)
    return cells


def cells_on(base: str, text: str, options: argparse.Namespace, on: list[str]) -> list[Cell]:
    """What is measured of one base. The second seed comes last."""
    after = () if base == TODAY else (base,)
    rounding = Cell(f"{base}-rounding", [], kind="rounding", priority=1, after=after, seconds=10, tags={
        "base": base, "text": text, "device": options.device, "windows": max(2, round(options.scale * SCORED))})
    small = [] if options.scale == 1 else ["--limit", "60", "--steps", "2", "--test-limit", "20"]
    model = str(EMBEDDED_BASE) if base == TODAY else f"{RUN_OF}{base}"
    ways = {"lora": ["--method", "lora"]} | {
        f"qlora-nf-{bits}": ["--method", "qlora", "--quantizer", "nf", "--bits", str(bits)] for bits in BITS} | {
        "qlora-gptq-2": ["--method", "qlora", "--quantizer", "gptq", "--bits", "2"]}
    return [rounding, *(Cell(f"{base}-{name}-seed{seed}", [*way, "--model", model, "--seed", str(seed), *small, *on],
                             kind="banking77", priority=2 + seed, seconds=20,
                             tags={"base": base, "way": name, "seed": seed})
                        for seed in options.seeds for name, way in ways.items())]


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


def seen_tokens(found: dict, base: str) -> float:
    return TOKENS if base == TODAY else found["cells"][base]["tokens"]


def lost(found: dict, base: str, spec: str, text: str) -> float:
    """nats a token that rounding costs."""
    loss = found["cells"][f"{base}-rounding"]["loss"]
    return loss[spec][text] - loss["16"][text]


def rounded_bases(found: dict) -> list[str]:
    """By tokens seen."""
    names = [facts["tags"]["base"] for facts in found["cells"].values() if facts.get("kind") == "rounding"
             and "loss" in facts]
    return sorted(names, key=lambda base: seen_tokens(found, base))


def loss_table(found: dict, text: str) -> str:
    specs = [f"{how}-{bits}bit" for bits in BITS for how in HOW.values()]
    rows = [[base, f"{seen_tokens(found, base) / 1e6:.1f}",
             f"{found['cells'][f'{base}-rounding']['loss']['16'][text]:.4f}",
             *(f"{lost(found, base, spec, text):+.4f}" for spec in specs)] for base in rounded_bases(found)]
    return markdown([text, "M tokens", "16 bits", *specs], rows)


def accuracy_table(found: dict) -> str:
    cells = [facts for facts in found["cells"].values() if "accuracy" in facts]
    rows = [[f["tags"]["base"], f["tags"]["way"], f["tags"]["seed"], f"{100 * f['accuracy']:.2f}",
             f"{f['validation_loss']:.4f}"] for f in cells]
    return markdown(["base", "way", "seed", "accuracy, %", "validation loss"], sorted(rows))


def draw(found: dict, path: Path, text: str = HELD_OUT[1]) -> None:
    """Loss lost by rounding against tokens seen: one panel a width."""
    bases = rounded_bases(found)
    lines = {"today's text": [b for b in bases if b == TODAY or b.startswith("today")],
             "the mix": [b for b in bases if b.startswith("mix")]}
    figure, axes = panels([f"{bits} bits" for bits in BITS], title_of(found, bases, text),
                          "nats a token lost by rounding")
    for panel, bits in zip(axes, BITS, strict=True):
        for (where, names), line in zip(lines.items(), ("--", "-"), strict=True):
            for how, spec in HOW.items():
                xs = [seen_tokens(found, base) / 1e6 for base in names]
                ys = [lost(found, base, f"{spec}-{bits}bit", text) for base in names]
                panel.plot(xs, ys, line, color=COLORS[how], marker=MARKS[COLORS[how]],
                           markerfacecolor="white" if line == "--" else COLORS[how], label=f"{how}, {where}")
        panel.set(xscale="log", xlabel="million tokens seen")
        panel.set_ylim(bottom=0)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_xticks(sorted({round(seen_tokens(found, base) / 1e6, 1) for base in bases}))
        panel.minorticks_off()
    legend(figure, axes, columns=3)
    save(figure, path)


def title_of(found: dict, bases: list[str], text: str) -> str:
    longest = bases[-1]
    times = seen_tokens(found, longest) / TOKENS
    parts = [f"{bits} bits {lost(found, longest, spec, text):.3f} instead of {lost(found, TODAY, spec, text):.3f}"
             for bits in BITS for spec in [f"{HOW['GPTQ']}-{bits}bit"]]
    return (f"After {times:.1f} times as many tokens ({longest}), GPTQ costs at {', '.join(parts)} nats a token of "
            f"{'WikiText-2' if text == HELD_OUT[1] else 'held-out text'}")


def show(found: dict, file: Path) -> None:
    print("\n\n".join([*(loss_table(found, text) for text in HELD_OUT), accuracy_table(found)]))
    if TODAY in (bases := rounded_bases(found)) and len(bases) > 1:
        draw(found, file.with_suffix(".png"))


def options_parser() -> argparse.ArgumentParser:
    parser = experiment_parser(__doc__, "runs/base_tokens")
    on_gpu = torch.cuda.is_available()
    parser.add_argument("corpus", type=Path, nargs="?", help="read the files of experiments/base_corpus.py here")
    parser.add_argument("--times", type=float, nargs="+", default=[1, 3], metavar="X",
                        help="train on X times the tokens of today's base (default: 1 3)")
    parser.add_argument("--texts", nargs="+", choices=("today", "mix"), default=["mix", "today"],
                        help="train on these texts (default: mix today)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of fine-tuning (default: 0 1)")
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
    main()
