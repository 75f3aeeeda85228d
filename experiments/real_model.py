"""Load, prompt, quantize and fine-tune a real pretrained model, SmolLM2-135M, from safetensors and from GGUF.

    python -m experiments.real_model --model smollm2 --gguf smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --data DATA

smollm2 is a directory with the files of HuggingFaceTB/SmolLM2-135M-Instruct. DATA is a directory with wikitext2
(valid.txt, test.txt) and sql_create_context (train.jsonl, test.jsonl).

1. Measure time and peak memory of loading each file. The files take turns, each time in a new process.
2. Check that greedy text is the same from both files.
3. Measure perplexity on WikiText-2's test file: both files as they are, and the safetensors at 8, 4, 3 and 2 bits with
   min-max, NF and GPTQ. NF has no 8 bits. GPTQ is calibrated on WikiText-2's validation file.
4. Fine-tune the GGUF file with QA-BLoRA (32x8) on sql-create-context. Score it before training, as trained, and merged
   into the file's own 4 bits.

Each step runs in separate processes on one thread. Finished steps are not repeated. The tables are written to
--out/table.md.
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

from experiments.shared import ONE_THREAD, experiment_parser, keep_settings, make_run, markdown, python, run_experiment
from model.files import write_json, write_text

PROMPTS = ("The capital of France is", "Water boils at", "To make bread, first", "def fibonacci(n):")
CALIBRATION = ("--calibration-rows", "8")  # of 2048 tokens
QUANTIZERS = (("min-max 32x1", ["minmax", "--block", "32x1"], (8, 4, 3, 2)), ("NF 64x1", ["nf"], (4, 3, 2)),
              ("GPTQ 32x1", ["gptq", "--act-order"], (8, 4, 3, 2)))
QUANTIZED = {f"{name}, {bits} bits": ["--quantizer", *flags, "--bits", str(bits)]
             for name, flags, widths in QUANTIZERS for bits in widths}

SETTINGS = ("model", "gguf", "data", "windows", "loads", "steps", "lr", "test_rows")


def options_parser() -> argparse.ArgumentParser:
    parser = experiment_parser(__doc__, "runs/real-model")
    parser.add_argument("--model", type=Path, help="use this directory with config.json and safetensors (required)")
    parser.add_argument("--gguf", type=Path, help="use this GGUF file of the same model (required)")
    parser.add_argument("--data", type=Path,
                        help="read wikitext2 and sql_create_context in this directory (required)")
    parser.add_argument("--windows", type=int, default=16, metavar="N",
                        help="measure perplexity on N windows of 2048 tokens (default: %(default)s)")
    parser.add_argument("--loads", type=int, default=5, metavar="N",
                        help="load each file N times (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="fine-tune for this many steps (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-2,
                        help="fine-tune with this learning rate (default: %(default)s)")
    parser.add_argument("--test-rows", type=int, default=200, metavar="N",
                        help="score the fine-tuned model on N rows (default: %(default)s)")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)  # used by the processes of step 1
    return parser


def main() -> None:
    parser = options_parser()
    options = parser.parse_args()
    if options.load:
        return print(json.dumps(load(options.load)))
    if missing := [f"--{name}" for name in ("model", "gguf", "data") if getattr(options, name) is None]:
        parser.error(f"{', '.join(missing)} required")
    keep_settings(options, SETTINGS)
    tables = [loading(options), texts(options), perplexities(options), fine_tuned(options)]
    write_text(options.out / "table.md", "\n\n".join(tables) + "\n")
    print((options.out / "table.md").read_text(encoding="utf-8"))


# ---- 1. loading ---------------------------------------------------------------------------------------------------

def load(place: Path) -> dict:
    """Load a model and touch every weight. Returns the CPU seconds, and the rise in peak memory (MB) above the memory
    of the imports."""
    import torch  # here, so that only a process that loads pays for the imports

    from finetune.source import Source

    def peak_mb() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # kB on Linux
    before, start = peak_mb(), time.process_time()
    model = Source(place).load(torch.float32, "cpu")
    # A memory-mapped file is read when its pages are touched.
    sum(t.flatten().view(torch.uint8)[::4096].sum() for t in (*model.parameters(), *model.buffers()))
    return {"seconds": time.process_time() - start, "mb": peak_mb() - before}


def loading(options: argparse.Namespace) -> str:
    file, places = options.out / "loading.json", {"safetensors": options.model, "GGUF": options.gguf}
    if not file.is_file():
        found = {name: [] for name in places}
        for _ in range(options.loads):
            for name, place in places.items():
                command = [sys.executable, "-m", "experiments.real_model", "--load", str(place)]
                done = subprocess.run(command, capture_output=True, check=True, text=True, env=ONE_THREAD)
                found[name].append(json.loads(done.stdout))
        write_json(file, found)
    rows = []
    for name, runs in json.loads(file.read_text()).items():
        seconds, megabytes = (statistics.median(run[what] for run in runs) for what in ("seconds", "mb"))
        rows.append([name, f"{seconds:.1f}", f"{megabytes:.0f}"])
    return markdown(["file", "seconds to load", "MB above the imports"], rows)


# ---- 2. greedy text -----------------------------------------------------------------------------------------------

def texts(options: argparse.Namespace) -> str:
    """Raises RuntimeError if the two files' texts differ."""
    written = {}
    for name, place in (("safetensors", options.model), ("gguf", options.gguf)):
        log = options.out / f"text-{name}.log"
        if not log.is_file():
            prompts = [word for text in PROMPTS for word in ("--prompt", text)]
            python(["sample.py", "--model", str(place), "--max-new-tokens", "48", *prompts], log)
        written[name] = log.read_text(encoding="utf-8")
    if written["safetensors"] != written["gguf"]:
        raise RuntimeError(f"{options.model} and {options.gguf} generate different texts: see {options.out}/text-*.log")
    return f"Greedy text of {len(PROMPTS)} prompts, 48 tokens each, is the same from both files:\n\n" \
           f"```\n{written['gguf']}```"


# ---- 3. perplexity ------------------------------------------------------------------------------------------------

def perplexities(options: argparse.Namespace) -> str:
    texts = options.data / "wikitext2"
    states = {"as it is, safetensors": [options.model], "as it is, GGUF (Q4_1)": [options.gguf],
              **{name: [options.model, *flags, "--without-base"] for name, flags in QUANTIZED.items()}}
    rows = []
    for name, (place, *flags) in states.items():
        folder = options.out / "perplexity" / "".join(c if c.isalnum() else "-" for c in name)
        folder.mkdir(parents=True, exist_ok=True)
        calibration = ["--calibration", str(texts / "valid.txt"), *CALIBRATION] if "gptq" in flags else []
        make_run(["eval.py", "--model", str(place), *flags, *calibration, "--task", "perplexity",
                  "--test-data", str(texts / "test.txt"), "--test-limit", str(options.windows)], folder, "results.json")
        rows.append(perplexity_row(name, json.loads((folder / "results.json").read_text())["rows"][-1]))
    return markdown(["", "perplexity", "nats a token", "bits a weight"], rows)


def perplexity_row(name: str, row: dict) -> list[str]:
    """One window has no standard error."""
    scores, error = row["scores"], row["standard_errors"].get("nats_per_token")
    nats = f"{scores['nats_per_token']:.4f}" + ("" if error is None else f" ± {error:.4f}")
    return [name, f"{scores['perplexity']:.3f}", nats, f"{row['bits_per_weight']:.3f}"]


# ---- 4. fine-tuning the GGUF file ---------------------------------------------------------------------------------

def fine_tuned(options: argparse.Namespace) -> str:
    folder, data = options.out / "qablora", options.data / "sql_create_context"
    make_run(train_command(options, data), folder, "results.json")
    rows = json.loads((folder / "results.json").read_text())["rows"]
    return markdown(["", "exact match", "validation loss", "max logit difference"], map(fine_tuned_row, rows))


def fine_tuned_row(row: dict) -> list[str]:
    score, error = row["scores"]["exact_match"], row["standard_errors"]["exact_match"]
    difference = "-" if row["logit_difference"] is None else f"{row['logit_difference']:.1e}"
    return [row["title"], f"{100 * score:.1f} ± {100 * error:.1f} %", f"{row['validation_loss']:.4f}", difference]


def train_command(options: argparse.Namespace, data: Path) -> Sequence[str]:
    return ["train.py", "--model", str(options.gguf), "--quantizer", "none", "--method", "qablora", "--lam", "32x8",
            "--task", "sql-create-context", "--data", str(data / "train.jsonl"), "--limit", "2000",
            "--test-data", str(data / "test.jsonl"), "--test-limit", str(options.test_rows),
            "--steps", str(options.steps), "--batch-size", "8", "--max-length", "256", "--lr", str(options.lr),
            "--eval-batch-size", "32"]


if __name__ == "__main__":
    run_experiment(main)
