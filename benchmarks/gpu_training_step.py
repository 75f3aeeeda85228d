"""(a) A training step on fixed random tokens: tokens a second, peak memory, share of the machine's matrix rate.

    python -m benchmarks.gpu_training_step --out a.json --shapes 135M 1B 7B

Ours is the step of `Trainer`, with what it logs; theirs PEFT on transformers (and bitsandbytes for QLoRA), with fused
AdamW and clipping. The first loss of both must agree: the adapters start at zero, and the weights are the same."""
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.measure import Report, arguments, forget_memory, limits, median_of, peak_megabytes, timed, wait
from benchmarks.peers import missing, peft_model, versions
from benchmarks.shapes import SHAPES, adapted_model, run_config, step_operations
from finetune.loop import Trainer
from tasks.task import Encoded

ROWS, LENGTH = 4, 512  # 2,048 tokens a step
METHODS = {"tiny": ("lora", "qlora", "qblora", "qalora", "qablora", "irqlora", "peqa"),
           "135M": ("qlora", "qablora", "lora", "qblora", "qalora", "peqa"),
           "1B": ("qlora", "qablora", "lora", "qblora", "peqa"), "7B": ("qlora", "qablora")}
PEERS = {"lora": (), "qlora": ("bitsandbytes",)}  # method -> what the peer needs beside PEFT
AGREE = 0.02  # of the first loss; both round to bfloat16, in other places


def examples(vocab_size: int) -> list[Encoded]:
    tokens = torch.randint(3, vocab_size, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(0)).tolist()
    return [Encoded(row, 1) for row in tokens]


def our_step(shape: str, method: str, device: str) -> tuple[nn.Module, Callable[[], None], list[dict]]:
    run, logged = run_config(method, device, ROWS), []
    model, parameters = adapted_model(SHAPES[shape], run)
    rows = examples(SHAPES[shape].vocab_size)
    trainer = Trainer(model, parameters, run.training, 0, rows, rows, Path(tempfile.gettempdir()) / "unused",
                      lambda: None, logged.append)
    bar = tqdm(disable=True)
    return model, lambda: trainer._one_step(rows, bar), logged


def their_step(shape: str, method: str, device: str) -> tuple[nn.Module, Callable[[], None], list[dict]]:
    model, logged = peft_model(SHAPES[shape], method == "qlora", 16, device), []
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.0, fused=device.startswith("cuda"))
    tokens = torch.tensor([e.tokens for e in examples(SHAPES[shape].vocab_size)], device=device)

    def step() -> None:  # their loss drops the last logit, so that both learn LENGTH tokens a row
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        logged.append({"loss": loss.item()})
    return model, step, logged


def measured(make: Callable, shape: str, method: str, device: str, machine: dict, more: bool) -> dict:
    forget_memory(device)
    model, step, logged = make(shape, method, device)
    wait(device)
    made = peak_megabytes(device)
    forget_memory(device)
    step()
    trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
    time = timed(device, step, seconds=2.0)
    operations = step_operations(SHAPES[shape], ROWS * LENGTH, LENGTH)
    row = {**time, "tokens_per_second": ROWS * LENGTH / time["seconds"], "peak_mb": peak_megabytes(device),
           "peak_mb_while_made": made, "trains": trains, "first_loss": logged[0]["loss"],
           "last_loss": logged[-1]["loss"], "rate": operations / time["seconds"],
           "share_of_matrix_rate": operations / time["seconds"] / machine["matrix_rate"],
           "share_of_rate_at_these_shapes": operations / time["seconds"] / machine[f"rate_{shape}"]}
    if more and device.startswith("cuda"):
        row |= {"waits": waits_of(step), "kernels": kernels_of(step)}
    return row


def waits_of(step: Callable[[], None]) -> dict[str, int]:
    """Where in a step the processor waits for the GPU: place -> times."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return dict(Counter(f"{Path(w.filename).parent.name}/{Path(w.filename).name}:{w.lineno}" for w in caught
                        if "synchronizing" in str(w.message)))


def kernels_of(step: Callable[[], None]) -> list[dict] | str:
    """The kernels that take most of a step: name, milliseconds, calls."""
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU,
                                                torch.profiler.ProfilerActivity.CUDA]) as profile:
            step()
            torch.cuda.synchronize()
        events = sorted(profile.key_averages(), key=lambda e: e.self_device_time_total, reverse=True)
        return [{"name": e.key[:90], "ms": round(e.self_device_time_total / 1e3, 3), "calls": e.count}
                for e in events[:16]]
    except Exception as error:  # a machine without a profiler still has figures
        return f"{type(error).__name__}: {error}"


def rate_at(shape: str, device: str) -> float:
    """Of the bfloat16 products of this shape's MLP, forward, operations a second."""
    config, n = SHAPES[shape], ROWS * LENGTH
    x = torch.randn(n, config.hidden_size, device=device, dtype=torch.bfloat16)
    w = torch.randn(config.intermediate_size, config.hidden_size, device=device, dtype=torch.bfloat16)
    return 2 * n * w.numel() / median_of(device, lambda: x @ w.T, seconds=0.3)


def main() -> None:
    given = arguments(__doc__, ("1B", "7B", "135M"))
    device = given.device
    machine = {**limits(device), **{f"rate_{shape}": rate_at(shape, device) for shape in given.shapes}}
    report = Report(given.out, given.seconds, question="training step", rows_a_step=ROWS, length=LENGTH,
                    machine=machine, versions=versions("transformers", "peft", "bitsandbytes"))
    for shape in given.shapes:
        for method in METHODS[shape]:
            ours = report.attempt(lambda s=shape, m=method: measured(our_step, s, m, device, machine, True),
                                  shape=shape, method=method, who="ours")
            if method not in PEERS:
                continue
            if reason := missing("transformers", "peft", *PEERS[method]):
                report.attempt(lambda r=reason: {"not_installed": r}, shape=shape, method=method, who="PEFT")
                continue
            theirs = report.attempt(lambda s=shape, m=method: measured(their_step, s, m, device, machine, m == "qlora"),
                                    shape=shape, method=method, who="PEFT")
            if "seconds" in ours and "seconds" in theirs:
                off = abs(ours["first_loss"] / theirs["first_loss"] - 1)
                report.attempt(lambda o=ours, t=theirs, off=off: {
                    "losses_agree": off < AGREE, "first_losses_differ_by": off,
                    "times_faster": t["seconds"] / o["seconds"],
                    "share_of_memory": o["peak_mb"] and o["peak_mb"] / t["peak_mb"]},
                    shape=shape, method=method, who="ours / PEFT")
    forget_memory(device)
    report.finish()


if __name__ == "__main__":
    main()
