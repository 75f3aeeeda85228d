"""(a) A training step on fixed random tokens: tokens a second, peak memory, share of the machine's matrix rate.

    python -m benchmarks.gpu_training_step --out a.json --shapes 135M 1B 7B

Ours is the step of `Trainer`, with what it logs, without and with --cuda-graphs; theirs PEFT on transformers (and
bitsandbytes for QLoRA), with fused AdamW and clipping. They take turns. The first losses must agree: the adapters start
at zero, and the weights are the same."""
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.measure import (
    Report,
    allocated,
    arguments,
    forget_memory,
    in_turns,
    limits,
    median_of,
    peak_megabytes,
    seconds_of,
)
from benchmarks.peers import missing, peft_model, versions
from benchmarks.shapes import SHAPES, adapted_model, run_config
from finetune.cost import step_operations
from finetune.loop import Trainer
from tasks.task import Encoded

ROWS, LENGTH = 4, 512  # 2,048 tokens a step
ORDER = (("1B", "qlora"), ("7B", "qlora"), ("1B", "qablora"), ("1B", "lora"), ("7B", "qablora"), ("135M", "qlora"),
         ("1B", "peqa"), ("135M", "lora"), ("1B", "qblora"), ("135M", "qablora"), ("135M", "peqa"), ("135M", "qblora"),
         *(("tiny", method) for method in ("qlora", "lora", "qblora", "qalora", "qablora", "irqlora", "peqa")))
PEERS = {"lora": (), "qlora": ("bitsandbytes",)}  # method -> what the peer needs beside PEFT
AGREE = 0.02  # of a loss; both round to bfloat16, in other places
OURS, RECORDED, PEFT = "ours", "ours, --cuda-graphs", "PEFT"
Step = Callable[[], None]


def examples(vocab_size: int) -> list[Encoded]:
    tokens = torch.randint(3, vocab_size, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(0)).tolist()
    return [Encoded(row, 1) for row in tokens]


def our_steps(shape: str, method: str, device: str) -> tuple[nn.Module, dict[str, Step], dict[str, list[dict]]]:
    """One model, two trainers. The recorded one starts from the same adapters, and its gradients stay in place."""
    run = run_config(method, device, ROWS)
    model, parameters = adapted_model(SHAPES[shape], run)
    rows, initial = examples(SHAPES[shape].vocab_size), {n: p.detach().clone() for n, p in parameters.items()}
    logged: dict[str, list[dict]] = {OURS: [], RECORDED: []}
    trainers: dict[str, Trainer] = {}

    def step(name: str) -> None:
        if name not in trainers:
            with torch.no_grad():
                for n, p in parameters.items():
                    p.copy_(initial[n])
            settings = replace(run.training, cuda_graphs=name == RECORDED)
            trainers[name] = Trainer(model, parameters, settings, 0, rows, rows, Path(tempfile.gettempdir()) / "unused",
                                     lambda: None, logged[name].append)
        in_place = trainers[name].recorded
        for p in parameters.values():
            p.grad = in_place.totals[p] if in_place else None
        trainers[name]._one_step(rows, tqdm(disable=True))
    return model, {name: lambda name=name: step(name) for name in (OURS, RECORDED)}, logged


def their_step(shape: str, method: str, device: str) -> tuple[nn.Module, Step, list[dict]]:
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


def first_step(step: Step, device: str, before: float) -> dict:
    """Its seconds, compiler and recording included, and the peak memory, above what lived before it was made."""
    forget_memory(device)
    seconds = seconds_of(device, step)
    step()
    peak = peak_megabytes(device)
    return {"first_step_seconds": seconds, "peak_mb": None if peak is None else round(peak - before, 1)}


def rows_of(report: Report, shape: str, method: str, machine: dict, device: str) -> None:
    """All rows of a shape and a method. What fails or is not installed gets a row that says so."""
    named, steps, facts, logged = {"shape": shape, "method": method}, {}, {}, {}

    def prepare(who: str, step: Step, log: list[dict], before: float) -> None:
        try:
            facts[who] = first_step(step, device, before)
            steps[who], logged[who] = step, log
        except Exception as error:
            report.attempt(lambda error=error: raised(error), **named, who=who)
    forget_memory(device)
    before = allocated(device)
    model, ours, logs = our_steps(shape, method, device)
    trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
    for who, step in ours.items():
        prepare(who, step, logs[who], before)
    if method in PEERS and not (reason := missing("transformers", "peft", *PEERS[method])):
        before = allocated(device)
        _, step, log = their_step(shape, method, device)
        prepare(PEFT, step, log, before)
    elif method in PEERS:
        report.attempt(lambda: {"not_installed": reason}, **named, who=PEFT)
    times = in_turns(device, steps)
    operations = step_operations(SHAPES[shape], ROWS * LENGTH, LENGTH)
    for who, time in times.items():
        rate = operations / time["seconds"]
        more = profiled(steps[who], device) if method in ("qlora", "peqa") else {}
        report.attempt(lambda who=who, time=time, rate=rate, more=more: {
            **time, "tokens_per_second": ROWS * LENGTH / time["seconds"], **facts[who], "trains": trains,
            "first_loss": logged[who][0]["loss"], "last_loss": logged[who][-1]["loss"], "rate": rate,
            "share_of_matrix_rate": rate / machine["matrix_rate"],
            "share_of_rate_at_these_shapes": rate / machine[f"rate_{shape}"], **more}, late=True, **named, who=who)
    for a, b in ((OURS, PEFT), (RECORDED, PEFT), (RECORDED, OURS)):
        if a in times and b in times:
            report.attempt(lambda a=a, b=b: compared(a, b, times, facts, logged), late=True, **named,
                           who=f"{a} / {b}")


def raised(error: Exception) -> dict:
    raise error


def compared(a: str, b: str, times: dict, facts: dict, logged: dict) -> dict:
    """Ours starts from the same adapters in both ways, so the loss after a step is compared too: it tells a wrong
    gradient. PEFT draws other adapters, and shares only the first loss."""
    steps = 1 if PEFT in (a, b) else 2
    off = max(abs(logged[a][i]["loss"] / logged[b][i]["loss"] - 1) for i in range(steps))
    memory = [facts[who]["peak_mb"] for who in (a, b)]
    return {"losses_agree": off < AGREE, "losses_compared": steps, "losses_differ_by": off,
            "times_faster": times[b]["seconds"] / times[a]["seconds"],
            "times_faster_at_best": times[b]["least"] / times[a]["least"],
            "share_of_memory": memory[0] / memory[1] if memory[0] and memory[1] else None}


def profiled(step: Step, device: str) -> dict:
    return {"waits": waits_of(step), "kernels": kernels_of(step)} if device.startswith("cuda") else {}


def waits_of(step: Step) -> dict[str, int]:
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


def kernels_of(step: Step) -> list[dict] | str:
    """The kernels that take most of a step: name, milliseconds, calls."""
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU,
                                                torch.profiler.ProfilerActivity.CUDA]) as profile:
            step()
            torch.cuda.synchronize()
        averages = profile.key_averages()
        on_gpu = [e for e in averages if "CUDA" in str(getattr(e, "device_type", ""))]
        events = sorted(on_gpu or averages, key=lambda e: e.self_device_time_total, reverse=True)
        total = {"name": "all", "ms": round(sum(e.self_device_time_total for e in events) / 1e3, 3),
                 "calls": sum(e.count for e in events)}
        return [total, *({"name": e.key[:90], "ms": round(e.self_device_time_total / 1e3, 3), "calls": e.count}
                         for e in events[:16])]
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
    for shape, method in ORDER:
        if shape not in given.shapes:
            continue
        if report.late():
            report.attempt(dict, shape=shape, method=method, who="all")
            continue
        try:
            rows_of(report, shape, method, machine, device)
        except Exception as error:
            report.attempt(lambda error=error: raised(error), late=True, shape=shape, method=method, who="all")
    forget_memory(device)
    report.finish()


if __name__ == "__main__":
    main()
