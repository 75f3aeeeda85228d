"""(d) Greedy generation on a CPU: a batch of 32 prompts, and one sequence; 16 bits and NF4; beside transformers.

    python -m benchmarks.generation MODEL_DIR TEXT_FILE --cpu-time --peer-python VENV/bin/python

Prompts are 64 tokens of the text, answers 32 tokens (64 of the one sequence), none ends early. Ours holds dequantized
weights while it answers, as `sample.py` and `eval.py` do. Before any ratio, nine of ten answers must begin with the
peers' token: later ones differ where two tokens are equally likely but for rounding.
"""
import argparse
import json
import math
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.processes import add_arguments, contenders, facts, gather, summary, write

PROMPT = 64
SIZES = ((32, 32), (1, 64))  # prompts, new tokens
AGREE = 0.9                  # of the first tokens
HELD = ExitStack()           # of contexts that last as long as the process


# ---- in a process of its own, which may import the packages of another checkout -----------------------------------

def prompts_of(given: argparse.Namespace) -> list[list[int]]:
    from tokenizers import Tokenizer
    text = given.text.read_text(encoding="utf-8")[:100_000]
    ids = Tokenizer.from_file(str(given.model / "tokenizer.json")).encode(text).ids
    return [ids[i * PROMPT:(i + 1) * PROMPT] for i in range(max(n for n, _ in SIZES))]


def measure(given: argparse.Namespace, who: str, quantized: bool) -> dict:
    """Seconds of each size, the answers, the peak memory; and the rate at which this process reads the weights."""
    import resource

    from our_model import loaded, theirs  # of this file's directory, whatever checkout is measured
    prompts, clock = prompts_of(given), time.process_time if given.cpu_time else time.perf_counter
    model = (theirs if who == "peers" else loaded)(given.model, quantized)
    start, found = clock(), {}
    written = (their_answers if who == "peers" else our_answers)(model)
    held = clock() - start
    for n, new in SIZES:
        written(prompts[:n], 2)
        start = clock()
        answers = written(prompts[:n], new)
        found[f"{n}"] = {"seconds": clock() - start, "answers": answers}
        assert [len(answer) for answer in answers] == [new] * n
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"sizes": found, "peak_mb": peak, "read_bytes_a_second": reading_rate(clock),
            "step_bytes": step_bytes(model), "seconds_to_hold": held}


def our_answers(model):
    """Weights are held from here on."""
    from adapters.held import dense_weights
    from model.generate import generate

    HELD.enter_context(dense_weights(model))
    return lambda prompts, new: generate(model, prompts, new, (), len(prompts))


def their_answers(model):
    import torch

    @torch.no_grad()
    def written(prompts, new):
        tokens = torch.tensor(prompts)
        made = model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new,
                              min_new_tokens=new, do_sample=False, pad_token_id=0)
        return made[:, PROMPT:].tolist()
    return written


def reading_rate(clock) -> float:
    """Bytes a second at which a sum reads 512 MB: the most that weights can be read at."""
    import torch
    numbers, taken = torch.ones(64 * 2 ** 20, dtype=torch.float64), []
    for _ in range(5):
        start = clock()
        numbers.sum()
        taken.append(clock() - start)
    return numbers.nbytes / sorted(taken)[1]


def step_bytes(model) -> int:
    """Of the weights that a token has to read in 16 bits: every linear layer's, the head's once."""
    config = model.config
    heads = config.head_dim * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    layer = config.hidden_size * (heads + 3 * config.intermediate_size)
    return 2 * (layer * config.num_hidden_layers + config.vocab_size * config.hidden_size)


# ---- one process after the other ----------------------------------------------------------------------------------

def rows_of(found: dict[str, list[dict]]) -> list[dict]:
    """Raises ValueError if the answers of one base do not begin alike."""
    rows = []
    for name, rounds in found.items():
        who, base = name.split()
        for n, new in SIZES:
            if "failed" in rounds[0]:
                rows.append({"who": who, "base": base, "prompts": n, **rounds[0]})
                continue
            sizes = [one["sizes"][f"{n}"] for one in rounds]
            rate = [n * new / size["seconds"] for size in sizes]
            rows.append({"who": who, "base": base, "prompts": n, "new_tokens": new, "tokens_a_second": summary(rate),
                         "peak_mb": rounds[0]["peak_mb"], "seconds_to_hold": rounds[0]["seconds_to_hold"],
                         "answers": sizes[0]["answers"],
                         "share_of_reading_rate": summary(rate)["median"] / n * rounds[0]["step_bytes"]
                         / summary([one["read_bytes_a_second"] for one in rounds])["median"]})
    for row in rows:
        compare(row, rows)
    return [{name: value for name, value in row.items() if name != "answers"} for row in rows]


def compare(row: dict, rows: list[dict]) -> None:
    """Adds how fast a row is beside the peers' of the same base, and beside its own 16 bits."""
    same = {(r["who"], r["base"]): r for r in rows if r["prompts"] == row["prompts"] and "failed" not in r}
    if "failed" in row:
        return
    if peers := same.get(("peers", row["base"])):
        agreeing = [a[0] == b[0] for a, b in zip(row["answers"], peers["answers"], strict=True)]
        row["same_first_tokens"] = sum(agreeing) / len(agreeing)
        row["same_answers"] = sum(map(list.__eq__, row["answers"], peers["answers"])) / len(agreeing)
        if row["prompts"] > 1 and row["same_first_tokens"] < AGREE:
            raise ValueError(f"generation, {row['who']} {row['base']}: {row['same_first_tokens']:.2f} of the answers "
                             f"begin with the peers' token, {AGREE} at least should")
        row["of_the_peers"] = row["tokens_a_second"]["median"] / peers["tokens_a_second"]["median"]
    row["of_16_bits"] = row["tokens_a_second"]["median"] / same[row["who"], "bf16"]["tokens_a_second"]["median"]


def line(row: dict) -> str:
    if "failed" in row:
        return f"{row['who']:<8} {row['base']:<5} {row['prompts']:>3} prompts: {row['failed']}"
    low, high = row["tokens_a_second"]["quartiles"]
    return (f"{row['who']:<8} {row['base']:<5} {row['prompts']:>3} prompts {row['tokens_a_second']['median']:7.1f} "
            f"tokens/s ({low:.0f} to {high:.0f})  {row.get('of_the_peers', math.nan):.2f} x the peers'  "
            f"{row['of_16_bits']:.2f} x 16 bits  {row['share_of_reading_rate']:.0%} of the reading rate  "
            f"{row['peak_mb']:.0f} MB")



def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("text", type=Path, metavar="TEXT_FILE")
    parser.add_argument("--peer-python", metavar="PYTHON", help="an interpreter with transformers and bitsandbytes")
    add_arguments(parser, rounds=3)
    given = parser.parse_args()
    if given.child:
        import torch
        torch.set_num_threads(1)
        who, base = given.child.split()
        print(json.dumps(measure(given, who, base == "nf4")))
        return
    measured = contenders(given, given.peer_python, ("peers bf16", "peers nf4"),
                          "transformers and bitsandbytes are left out: give --peer-python")
    rows = rows_of(gather(__file__, measured, given.rounds))
    print(*map(line, rows), sep="\n")
    write({**facts(given), "model": str(given.model), "prompt_tokens": PROMPT, "rows": rows}, given.out)


if __name__ == "__main__":
    main()
