"""A real pretrained model through everything that a base goes through: SmolLM2-135M from safetensors and from its GGUF file.

    python -m experiments.real_model --model smollm2 --gguf smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --data DATA

smollm2 is a directory of HuggingFaceTB/SmolLM2-135M-Instruct. DATA holds wikitext2 (valid.txt, test.txt) and
sql_create_context (train.jsonl, test.jsonl).

1. time and peak memory of loading each, in processes of their own, one after the other in turn;
2. the same greedy text from both;
3. perplexity on WikiText-2's test file of both, and at 8, 4, 3 and 2 bits by min-max, NF and GPTQ (calibrated on its validation file);
4. the GGUF file fine-tuned by QA-BLoRA (32x8) on sql-create-context: scores before, after, and merged into the file's own 4 bits.

Each step is a process of its own on one thread; what is in --out already is not done again. The tables go to --out/table.md.
"""
import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.shared import ONE_THREAD, keep_settings, make_run, python
from model.files import write_json

PROMPTS = ("The capital of France is", "Water boils at", "To make bread, first", "def fibonacci(n):")
CALIBRATION = ("--calibration-rows", "8")  # of 2048 tokens
QUANTIZED = {f"{name}, {bits} bits": ["--quantizer", *flags, "--bits", str(bits)]
             for name, flags, widths in (("min-max 32x1", ["minmax", "--block", "32x1"], (8, 4, 3, 2)), ("NF 64x1", ["nf"], (4, 3, 2)),
                                         ("GPTQ 32x1", ["gptq", "--act-order"], (8, 4, 3, 2))) for bits in widths}

SETTINGS = ("model", "gguf", "data", "windows", "loads", "steps", "lr", "test_rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="directory with config.json and safetensors")
    parser.add_argument("--gguf", type=Path, help="the same model as a GGUF file")
    parser.add_argument("--data", type=Path, help="directory with wikitext2 and sql_create_context")
    parser.add_argument("--out", type=Path, default=Path("runs/real-model"))
    parser.add_argument("--windows", type=int, default=16, help="windows of 2048 tokens that perplexity is taken of")
    parser.add_argument("--loads", type=int, default=5, help="of each file")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--test-rows", type=int, default=200)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)  # what a process of step 1 does
    options = parser.parse_args()
    if options.load:
        return print(json.dumps(load(options.load)))
    if missing := [f"--{name}" for name in ("model", "gguf", "data") if getattr(options, name) is None]:
        parser.error(f"{', '.join(missing)} missing")
    keep_settings(options, SETTINGS)
    tables = [loading(options), texts(options), perplexities(options), fine_tuned(options)]
    (options.out / "table.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    print((options.out / "table.md").read_text(encoding="utf-8"))


# ---- 1. loading ---------------------------------------------------------------------------------------------------

def load(place: Path) -> dict:
    """Seconds of the processor that loading and touching every weight take, and how far memory rises above what the imports took."""
    import torch
    from finetune.source import Source

    def peak_mb() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # kB on Linux
    before, start = peak_mb(), time.process_time()
    model = Source(place).load(torch.float32, "cpu")
    sum(t.flatten().view(torch.uint8)[::4096].sum() for t in (*model.parameters(), *model.buffers()))  # a mapped file is read only now
    return {"seconds": time.process_time() - start, "mb": peak_mb() - before}


def loading(options: argparse.Namespace) -> str:
    file, places = options.out / "loading.json", {"safetensors": options.model, "GGUF": options.gguf}
    if not file.is_file():
        found = {name: [] for name in places}
        for _ in range(options.loads):
            for name, place in places.items():
                command = [sys.executable, "-m", "experiments.real_model", "--load", str(place)]
                found[name].append(json.loads(subprocess.run(command, capture_output=True, check=True, text=True, env=ONE_THREAD).stdout))
        write_json(file, found)
    lines = [f"| {name} | {statistics.median(f['seconds'] for f in runs):.1f} | {statistics.median(f['mb'] for f in runs):.0f} |"
             for name, runs in json.loads(file.read_text()).items()]
    return "\n".join(["| file | seconds to load | MB above the imports |", "| --- | --- | --- |", *lines])


# ---- 2. greedy text -----------------------------------------------------------------------------------------------

def texts(options: argparse.Namespace) -> str:
    """Raises RuntimeError where the two files' texts differ."""
    written = {}
    for name, place in (("safetensors", options.model), ("gguf", options.gguf)):
        log = options.out / f"text-{name}.log"
        if not log.is_file():
            python(["sample.py", "--model", str(place), "--max-new-tokens", "48", *(word for text in PROMPTS for word in ("--prompt", text))], log)
        written[name] = log.read_text(encoding="utf-8")
    if written["safetensors"] != written["gguf"]:
        raise RuntimeError(f"the two files write different texts: see {options.out}/text-*.log")
    return f"Greedy text of {len(PROMPTS)} prompts, 48 tokens each, is the same from both files:\n\n```\n{written['gguf']}```"


# ---- 3. perplexity ------------------------------------------------------------------------------------------------

def perplexities(options: argparse.Namespace) -> str:
    states = {"as it is, safetensors": [options.model], "as it is, GGUF (Q4_1)": [options.gguf],
              **{name: [options.model, *flags, "--without-base"] for name, flags in QUANTIZED.items()}}
    lines = ["| | perplexity | nats a token | bits a weight |", "| --- | --- | --- | --- |"]
    for name, (place, *flags) in states.items():
        folder = options.out / "perplexity" / "".join(c if c.isalnum() else "-" for c in name)
        folder.mkdir(parents=True, exist_ok=True)
        calibration = ["--calibration", str(options.data / "wikitext2" / "valid.txt"), *CALIBRATION] if "gptq" in flags else []
        make_run(["eval.py", "--model", str(place), *flags, *calibration, "--task", "perplexity", "--test-data",
                  str(options.data / "wikitext2" / "test.txt"), "--test-limit", str(options.windows)], folder, "results.json")
        row = json.loads((folder / "results.json").read_text())["rows"][-1]
        scores, error = row["scores"], row["standard_errors"]["nats_per_token"]
        lines.append(f"| {name} | {scores['perplexity']:.3f} | {scores['nats_per_token']:.4f} ± {error:.4f} | {row['bits_per_weight']:.3f} |")
    return "\n".join(lines)


# ---- 4. fine-tuning the GGUF file ---------------------------------------------------------------------------------

def fine_tuned(options: argparse.Namespace) -> str:
    folder, data = options.out / "qablora", options.data / "sql_create_context"
    make_run(train_command(options, data), folder, "results.json")
    lines = ["| | exact match | validation loss | max logit difference |", "| --- | --- | --- | --- |"]
    for row in json.loads((folder / "results.json").read_text())["rows"]:
        score, error = row["scores"]["exact_match"], row["standard_errors"]["exact_match"]
        difference = "-" if row["logit_difference"] is None else f"{row['logit_difference']:.1e}"
        lines.append(f"| {row['title']} | {100 * score:.1f} ± {100 * error:.1f} % | {row['validation_loss']:.4f} | {difference} |")
    return "\n".join(lines)


def train_command(options: argparse.Namespace, data: Path) -> Sequence[str]:
    return ["train.py", "--model", str(options.gguf), "--quantizer", "none", "--method", "qablora", "--lam", "32x8", "--task", "sql-create-context",
            "--data", str(data / "train.jsonl"), "--limit", "2000", "--test-data", str(data / "test.jsonl"), "--test-limit", str(options.test_rows),
            "--steps", str(options.steps), "--batch-size", "8", "--max-length", "256", "--lr", str(options.lr), "--eval-batch-size", "32"]


if __name__ == "__main__":
    main()
