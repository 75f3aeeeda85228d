"""(d) Greedy generation: a batch of 32 prompts, and one sequence; 16 bits and NF4; tokens a second.

    python -m benchmarks.gpu_generation --out d.json --shapes 135M 1B 7B

Both write the same number of tokens, and no answer ends early. In random models most tokens are near ties, so texts are
compared by the share of equal first tokens only."""
from collections.abc import Callable

import torch

from adapters.held import dense_weights
from benchmarks.measure import Report, arguments, forget_memory, limits, peak_megabytes, timed
from benchmarks.peers import missing, transformers_model, versions
from benchmarks.shapes import SHAPES, linear_weights, our_model
from model.generate import generate
from quant.spec import QuantSpec

PROMPT = 64
SIZES = ((32, 32), (1, 32))  # prompts, new tokens


def prompts_of(shape: str, n: int) -> list[list[int]]:
    return torch.randint(3, SHAPES[shape].vocab_size, (n, PROMPT),
                         generator=torch.Generator().manual_seed(1)).tolist()


def our_writer(shape: str, quantized: bool, device: str) -> Callable[[int, int], list[list[int]]]:
    model = our_model(SHAPES[shape], QuantSpec.parse("nf@64x1-4bit").new_quantizer() if quantized else None, device)

    def write(n: int, new: int) -> list[list[int]]:
        with dense_weights(model):  # as sample.py and the scoring do
            return generate(model, prompts_of(shape, n), new, (), n)
    return write


def their_writer(shape: str, quantized: bool, device: str) -> Callable[[int, int], list[list[int]]]:
    model = transformers_model(SHAPES[shape], quantized, device)

    @torch.no_grad()
    def write(n: int, new: int) -> list[list[int]]:
        tokens = torch.tensor(prompts_of(shape, n), device=device)
        made = model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new,
                              min_new_tokens=new, do_sample=False, pad_token_id=0)
        return made[:, PROMPT:].tolist()
    return write


def measured(make: Callable, shape: str, quantized: bool, device: str, machine: dict) -> dict:
    """A token of a batch has to read every weight once, and a quantized one in its stored size."""
    forget_memory(device)
    write, config, row = make(shape, quantized, device), SHAPES[shape], {}
    head = 2 * config.vocab_size * config.hidden_size
    weights = linear_weights(config) * (0.5 + 4 / 64 if quantized else 2) + head
    for n, new in SIZES:
        time = timed(device, lambda n=n, new=new: write(n, new), seconds=1.0, warmup=1, most=10)
        answers = write(n, new)
        assert [len(answer) for answer in answers] == [new] * n
        per_second = n * new / time["seconds"]
        row |= {f"tokens_per_second_{n}": per_second, f"seconds_{n}": time["seconds"], f"most_{n}": time["most"],
                f"share_of_copy_bandwidth_{n}": weights * per_second / n / machine["copy_bandwidth"],
                f"first_tokens_{n}": [answer[0] for answer in answers]}
    return {**row, "peak_mb": peak_megabytes(device)}


def main() -> None:
    given = arguments(__doc__, ("1B", "7B", "135M"))
    device = given.device
    machine = limits(device)
    report = Report(given.out, given.seconds, question="generation", prompt=PROMPT, machine=machine,
                    versions=versions("transformers", "bitsandbytes"))
    for shape in given.shapes:
        for quantized in (False, True):
            named = {"shape": shape, "base": "nf4" if quantized else "bf16"}
            ours = report.attempt(lambda s=shape, q=quantized: measured(our_writer, s, q, device, machine), **named,
                                  who="ours")
            if reason := missing("transformers", *["bitsandbytes"] * quantized):
                report.attempt(lambda r=reason: {"not_installed": r}, **named, who="transformers")
                continue
            theirs = report.attempt(lambda s=shape, q=quantized: measured(their_writer, s, q, device, machine), **named,
                                    who="transformers")
            if "peak_mb" in ours and "peak_mb" in theirs:
                report.attempt(lambda o=ours, t=theirs: {
                    f"times_faster_{n}": o[f"tokens_per_second_{n}"] / t[f"tokens_per_second_{n}"] for n, _ in SIZES
                } | {"same_first_tokens": sum(a == b for a, b in zip(o["first_tokens_32"], t["first_tokens_32"],
                                                                     strict=True)) / 32}, **named,
                    who="ours / transformers")
    forget_memory(device)
    report.finish()


if __name__ == "__main__":
    main()
