"""Fine-tunes a GGUF file, exports it as GGUF, and runs both files in llama.cpp and here, on the same tokens. Prints a
table and keeps it in OUT.

    python -m tests.interop.gguf_round_trip --gguf smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \\
        --data DATA/sql_create_context --out runs/round-trip

llama.cpp rounds activations to 8 bits where weights are codes, so its logits differ from ours before any fine-tuning.
The last row holds the same weights in float32, which shows all other differences. Keys and values are float32 in both.
Needs llama-cpp-python (tests/interop/requirements.txt).
"""
import argparse
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import llama_cpp
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import export as export_script
import train as train_script
from finetune.data import PreparedData, prepare_data
from finetune.run import open_run
from finetune.source import Source
from interop.comparison import logits_of
from model.files import write_text
from model.llama import Llama
from tasks.batching import split_list
from tasks.generative import before
from tasks.task import Asking, Encoded
from tests.cli import call

LENGTH = 256  # tokens of the longest prompt and its answer
ROWS = 64     # on which logits are compared
# llama.cpp's threads wait for each other in a busy loop, which takes 40 times as long on a busy machine
ONE_THREAD = {"n_threads": 1, "n_threads_batch": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True,
                        help="directory with train.jsonl and test.jsonl of sql-create-context")
    parser.add_argument("--out", type=Path, default=Path("runs/round-trip"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--limit", type=int, default=100, help="rows; a tenth of them is validation")
    parser.add_argument("--rows", type=int, default=200, help="test rows that both answer")
    options = parser.parse_args()
    run, tuned, dense = options.out / "run", options.out / "tuned.gguf", options.out / "tuned-f32.gguf"
    if not (run / "adapter.safetensors").is_file():
        done(train_script, "--model", options.gguf, "--quantizer", "none", "--method", "qablora", "--lam", "32x8",
             "--task", "sql-create-context", "--data", options.data / "train.jsonl",
             "--test-data", options.data / "test.jsonl", "--limit", options.limit, "--max-length", 128,
             "--batch-size", 8, "--steps", options.steps, "--test-limit", 1, "--out", run)
    for source, target, flags in ((run, tuned, []), (tuned, dense, ["--dtype", "float32"])):
        if not target.is_file():
            done(export_script, source, "--format", "gguf", "--to", target, *flags)
    data = prepare_data(Source(run), open_run(run).config, calibrate=False)
    longest = LENGTH - data.max_new_tokens
    test = [row for row in data.test if len(data.tokenizer.encode(row.prompt)) < longest][:options.rows]
    validation = [example for example in data.validation if len(example.tokens) <= LENGTH]
    data = replace(data, test=test, validation=validation)
    lines = ["| file | max abs. logit difference | mean | KL, nats a token | same first choice | perplexity, ours "
             "| llama.cpp |", "| --- | --- | --- | --- | --- | --- | --- |"]
    lines += [compared(name, path, data) for name, path in (("base, Q4_1", options.gguf), ("fine-tuned, Q4_1", tuned),
                                                           ("fine-tuned, the same in F32", dense))]
    print("\n".join(lines), flush=True)
    lines += ["", f"| exact match of {len(data.test)} rows | ours | llama.cpp | rows with the same text |",
              "| --- | --- | --- | --- |"]
    lines += [answered(name, path, data) for name, path in (("base, Q4_1", options.gguf), ("fine-tuned, Q4_1", tuned))]
    write_text(options.out / "table.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


def done(script, *arguments) -> None:
    if message := call(script, *arguments):
        raise SystemExit(message)


def ours(path: Path) -> Llama:
    return Source(path).load(torch.float32, "cpu")


def theirs(path: Path) -> llama_cpp.Llama:
    return llama_cpp.Llama(str(path), n_ctx=LENGTH, logits_all=True, verbose=False, type_k=0, type_v=0, **ONE_THREAD)


def compared(name: str, path: Path, data: PreparedData) -> str:
    """One row of the table: logits on validation rows, and the perplexity of their target tokens. A few rows at a time,
    because logits are large."""
    model, own, sums = theirs(path), ours(path), Counter()
    for part in tqdm(split_list(data.validation[:ROWS], 8), f"{name}, logits", disable=None, leave=False):
        for example, a in zip(part, logits_of(own, [row.tokens[:-1] for row in part]), strict=True):
            model.reset()
            model.eval(example.tokens[:-1])
            b = torch.from_numpy(model.scores[:len(a)].copy())
            sums["max"] = max(sums["max"], (a - b).abs().max().item())
            sums.update({"tokens": len(a), "mean": (a - b).abs().mean(-1).sum().item(),
                         "same": (a.argmax(-1) == b.argmax(-1)).sum().item(),
                         "kl": F.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="sum").item(),
                         "targets": len(example.tokens) - example.prompt_length, "ours": loss(a, example),
                         "theirs": loss(b, example)})
    model.close()
    mean = {key: sums[key] / sums["tokens"] for key in ("mean", "kl", "same")}
    perplexities = " | ".join(f"{math.exp(sums[who] / sums['targets']):.4f}" for who in ("ours", "theirs"))
    return (f"| {name} | {sums['max']:.2g} | {mean['mean']:.2g} | {mean['kl']:.2g} | {mean['same']:.2%} | "
            f"{perplexities} |")


def loss(logits: Tensor, example: Encoded) -> float:
    """The sum of -log p over the target tokens, in nats."""
    return F.cross_entropy(logits[example.prompt_length - 1:], torch.tensor(example.tokens[example.prompt_length:]),
                           reduction="sum").item()


def answered(name: str, path: Path, data: PreparedData) -> str:
    """One row of the table: both models answer the task's test rows greedily."""
    asking = Asking(data.tokenizer, data.end_ids, data.max_new_tokens, 32, name)
    own = dict(data.task.answers(ours(path), data.test, asking))
    own = [own[i] for i in range(len(data.test))]
    model, other = theirs(path), []
    for row in tqdm(data.test, f"{name}, llama.cpp", unit="row", disable=None, leave=False):
        other.append({"text": text_of(model, data.tokenizer.encode(row.prompt), data)})
    model.close()
    scores = [data.task.scores(data.test, lines)[0]["exact_match"] for lines in (own, other)]
    same = sum(a["text"] == b["text"] for a, b in zip(own, other, strict=True)) / len(own)
    return f"| {name} | {scores[0]:.1%} | {scores[1]:.1%} | {same:.1%} |"


def text_of(model: llama_cpp.Llama, prompt: list[int], data: PreparedData) -> str:
    ids, text = [], ""
    model.reset()
    for token in model.generate(prompt, temp=0.0, repeat_penalty=1.0):
        if token in data.end_ids or len(ids) == data.max_new_tokens:
            break
        ids.append(token)
        text = data.tokenizer.decode(ids)
        if any(stop in text for stop in data.task.stop_texts):
            break
    return before(text, data.task.stop_texts).strip()


if __name__ == "__main__":
    main()
