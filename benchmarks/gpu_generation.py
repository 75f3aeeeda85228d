"""(d) Greedy generation: a batch of 32 prompts, and one sequence; 16 bits and NF4; tokens a second.

    python -m benchmarks.gpu_generation --out d.json --shapes 135M 1B 7B

Ours with recordings of the decoder and without, and transformers, take turns. All write the same number of tokens, and
no answer ends early. In random models most tokens are near ties, so texts are compared by the share of equal first
tokens only."""
from collections.abc import Callable

import torch

import model.recorded_decoding as decoding
from adapters.held import dense_weights
from benchmarks.measure import Report, arguments, forget_memory, in_turns, limits, seconds_of
from benchmarks.peers import missing, transformers_model, versions
from benchmarks.shapes import SHAPES, our_model
from finetune.cost import linear_weights
from model.generate import generate
from quant.spec import QuantSpec

PROMPT = 64
SIZES = ((1, 48), (32, 48))  # prompts, new tokens
OURS, RECORDED, THEIRS = "ours", "ours, recorded", "transformers"
Writer = Callable[[int, int], list[list[int]]]


def prompts_of(shape: str, n: int) -> list[list[int]]:
    return torch.randint(3, SHAPES[shape].vocab_size, (n, PROMPT),
                         generator=torch.Generator().manual_seed(1)).tolist()


def our_writer(shape: str, quantized: bool, device: str) -> Writer:
    model = our_model(SHAPES[shape], QuantSpec.parse("nf@64x1-4bit").new_quantizer() if quantized else None, device)

    def write(n: int, new: int) -> list[list[int]]:
        with dense_weights(model):  # as sample.py and the scoring do
            return generate(model, prompts_of(shape, n), new, (), n)
    return write


def their_writer(shape: str, quantized: bool, device: str) -> Writer:
    model = transformers_model(SHAPES[shape], quantized, device)

    @torch.no_grad()
    def write(n: int, new: int) -> list[list[int]]:
        tokens = torch.tensor(prompts_of(shape, n), device=device)
        made = model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new,
                              min_new_tokens=new, do_sample=False, pad_token_id=0)
        return made[:, PROMPT:].tolist()
    return write


def recorded(write: Writer, on: bool) -> Writer:
    """The same, with recordings of the decoder or without."""
    def written(n: int, new: int) -> list[list[int]]:
        kept, decoding.records = decoding.records, lambda *rest: on
        try:
            return write(n, new)
        finally:
            decoding.records = kept
    return written


def rows_of(report: Report, shape: str, quantized: bool, machine: dict, device: str) -> None:
    """A token of a batch has to read every weight once, and a quantized one in its stored size."""
    named, config = {"shape": shape, "base": "nf4" if quantized else "bf16"}, SHAPES[shape]
    head = 2 * config.vocab_size * config.hidden_size
    weights = linear_weights(config) * (0.5 + 4 / 64 if quantized else 2) + head
    forget_memory(device)
    ours = our_writer(shape, quantized, device)
    writers: dict[str, Writer] = {OURS: recorded(ours, False), RECORDED: recorded(ours, True)}
    if reason := missing("transformers", *["bitsandbytes"] * quantized):
        report.attempt(lambda: {"not_installed": reason}, **named, who=THEIRS)
    else:
        writers[THEIRS] = their_writer(shape, quantized, device)
    figures: dict[str, dict] = {}
    for n, new in SIZES:
        works, answers = {}, {}
        for who, write in writers.items():
            try:
                first = seconds_of(device, lambda write=write, n=n, new=new: write(n, new))
                answers[who] = write(n, new)
                assert [len(answer) for answer in answers[who]] == [new] * n
            except Exception as error:
                report.attempt(lambda error=error: raised(error), **named, who=who, prompts=n)
                continue
            works[who] = lambda write=write, n=n, new=new: write(n, new)
            figures.setdefault(who, {})[f"first_seconds_{n}"] = first
        for who, time in in_turns(device, works, rounds=3, seconds=0.0, least=1, warmup=0).items():
            per_second = n * new / time["seconds"]
            figures[who] |= {f"tokens_per_second_{n}": per_second, f"seconds_{n}": time["seconds"],
                             f"least_{n}": time["least"], f"most_{n}": time["most"],
                             f"share_of_copy_bandwidth_{n}": weights * per_second / n / machine["copy_bandwidth"],
                             f"first_tokens_{n}": [answer[0] for answer in answers[who]]}
    for who, row in figures.items():
        report.attempt(lambda row=row: row, late=True, **named, who=who)
    for a, b in ((OURS, THEIRS), (RECORDED, THEIRS), (RECORDED, OURS)):
        if a in figures and b in figures:
            report.attempt(lambda a=figures[a], b=figures[b]: compared(a, b), late=True, **named, who=f"{a} / {b}")


def compared(ours: dict, theirs: dict) -> dict:
    row = {}
    for n, _ in SIZES:
        if f"tokens_per_second_{n}" in ours and f"tokens_per_second_{n}" in theirs:
            equal = [a == b for a, b in zip(ours[f"first_tokens_{n}"], theirs[f"first_tokens_{n}"], strict=True)]
            row |= {f"times_faster_{n}": ours[f"tokens_per_second_{n}"] / theirs[f"tokens_per_second_{n}"],
                    f"times_faster_at_best_{n}": theirs[f"least_{n}"] / ours[f"least_{n}"],
                    f"same_first_tokens_{n}": sum(equal) / n}
    return row


def raised(error: Exception) -> dict:
    raise error


def main() -> None:
    given = arguments(__doc__, ("1B", "7B", "135M"))
    device = given.device
    machine = limits(device)
    report = Report(given.out, given.seconds, question="generation", prompt=PROMPT, sizes=SIZES, machine=machine,
                    versions=versions("transformers", "bitsandbytes"))
    for shape in given.shapes:
        for quantized in (True, False):
            if report.late():
                report.attempt(dict, shape=shape, base="nf4" if quantized else "bf16", who="all")
                continue
            try:
                rows_of(report, shape, quantized, machine, device)
            except Exception as error:
                report.attempt(lambda error=error: raised(error), late=True, shape=shape, who="all")
    forget_memory(device)
    report.finish()


if __name__ == "__main__":
    main()
