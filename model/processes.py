"""Several processes on one run, started by torchrun: who is first, and what they tell each other.

    torchrun --nproc-per-node 2 train.py ...

torch.distributed carries what they share: gloo between processors, NCCL between GPUs. The first process (rank 0) alone
writes and prints. Without torchrun there is one process, which is the first, and every function here returns at once.

| function | what it does |
|---|---|
| `share(items)` | this process's part of a list that all of them have |
| `stretch(items, weights)` | the same, of items that follow each other |
| `add_up(tensor)` | the sum over all processes, in place |
| `spread(tensor)` | the first process's numbers for all |
| `from_previous(tensor)`, `to_next(tensor)` | numbers go from each process to the next |
| `gather(value)` | the JSON values of all processes, in the order of their ranks. Nothing is pickled |
| `by_first(do, ...)` | the first process calls `do(...)`, and all get its JSON value |
| `in_turn(do)` | the first process calls `do`, then the others do |

All of them wait for all processes, and raise `Gone` if another one has ended, or is silent for longer than the
time-out: 30 minutes, or as many seconds as the environment variable PROCESSES_TIMEOUT says.
"""
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TextIO, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # torchrun sets these
BY_TORCHRUN = (f"torchrun sets the environment variables {', '.join(ENVIRONMENT)}: start the command by it, or unset "
               f"them to use one process")
TIMEOUT, LIMIT = "PROCESSES_TIMEOUT", 1800.0  # seconds
LONGEST = 1e9  # seconds that torch can count
FOR_THE_FIRST = 3.0  # seconds that a process which fails waits for the first one, which may fail for the same reason
SPOKEN, FIRST_ENDED, LEFT = "last line", "the first has ended", "have left"  # keys of the store


class Gone(RuntimeError):
    """Another process has ended, or does not answer."""


@dataclass
class Here:
    """This process among all."""
    rank: int = 0
    size: int = 1
    store: Any = None            # where processes leave words that nobody waits for
    alone: bool = False          # inside `by_first`: what is called there is called by no other process
    stderr: TextIO | None = None  # what stderr was before this process became silent


HERE = Here()


def several() -> bool:
    return HERE.size > 1


def size() -> int:
    """The number of processes that share the work."""
    return 1 if HERE.alone else HERE.size


def rank() -> int:
    return HERE.rank


def is_first() -> bool:
    return HERE.rank == 0


def started_by() -> str:
    """What stands before the script's name in a command."""
    local = os.environ.get("LOCAL_WORLD_SIZE")
    return f"torchrun --nproc-per-node {HERE.size}" if several() and local == str(HERE.size) else (
        "torchrun ..." if several() else "python")


# ---- beginning and end ----------------------------------------------------------------------------------------------

def begin() -> None:
    """Joins the processes that torchrun has started, if it has. All but the first become silent. Raises ValueError for
    numbers in the environment that are none, and Gone if the others do not come."""
    if several() or not all(map(os.environ.get, ENVIRONMENT)) or (size := stated("WORLD_SIZE", 1)) < 2:
        return
    if (rank := stated("RANK", 0)) >= size:
        raise ValueError(f"RANK={rank} is not below WORLD_SIZE={size}. {BY_TORCHRUN}")
    stated("MASTER_PORT", 0)
    if rank:
        silence()
    limit = time_out()
    with talking():
        HERE.store, HERE.rank, HERE.size = next(iter(dist.rendezvous("env://", timeout=timedelta(seconds=limit))))
        dist.init_process_group(backend(), store=dist.PrefixStore("group", HERE.store), rank=HERE.rank,
                                world_size=HERE.size, timeout=timedelta(seconds=limit))


def stated(name: str, least: int) -> int:
    text = os.environ[name]
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{name}={text} is not a whole number from {least} on. {BY_TORCHRUN}")
    return int(text)


def time_out() -> float:
    text = os.environ.get(TIMEOUT, str(LIMIT))
    try:
        if 0 < (seconds := float(text)) <= LONGEST:
            return seconds
    except ValueError:
        pass
    raise ValueError(f"{TIMEOUT}={text} is not a number of seconds above 0 and up to {LONGEST:g} "
                     f"(environment variable)")


def backend() -> str:
    """Each process of a machine has a GPU of its own, if there are as many. NCCL does not share a GPU; gloo does."""
    if not torch.cuda.is_available():
        return "gloo"
    local, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    torch.cuda.set_device(local % gpus)
    return "cpu:gloo,cuda:nccl" if int(os.environ.get("LOCAL_WORLD_SIZE", gpus + 1)) <= gpus else "cpu:gloo,cuda:gloo"


def leave() -> None:
    """All have come to their end. One of several processes ends here."""
    if several():
        wait()
        HERE.store.add(LEFT, 1)
        until = time.monotonic() + FOR_THE_FIRST
        while is_first() and HERE.store.add(LEFT, 0) < HERE.size and time.monotonic() < until:
            time.sleep(0.01)  # whoever keeps the store goes last
    end_at_once(0)


def end_at_once(status: int) -> None:
    """In several processes. After an error, whoever waits for this one notices that it has gone; an orderly end of the
    group could wait for them in turn. And gloo's threads may abort a process that ends in order (measured: 3 of 12)."""
    if several():
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def silence() -> None:
    HERE.stderr = sys.stderr
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends


def speaks_last() -> bool:
    """Whether this process prints the last line of the command. The first that fails does, so that there is one line:
    others then fail because that one has gone. The first process (rank 0) goes before others that fail at once."""
    if not several():
        return True
    try:
        if is_first():
            HERE.store.set(FIRST_ENDED, "")
        else:
            until = time.monotonic() + FOR_THE_FIRST
            while time.monotonic() < until and not HERE.store.check([FIRST_ENDED]):
                time.sleep(0.05)
        speaks = HERE.store.add(SPOKEN, 1) == 1
    except RuntimeError:  # torchrun itself, which keeps the store, has gone
        speaks = is_first()
    if speaks and HERE.stderr:
        sys.stderr = HERE.stderr
    return speaks


# ---- what they share ------------------------------------------------------------------------------------------------

@contextmanager
def talking() -> Iterator[None]:
    """Raises Gone for what the network says."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        number = HERE.size if several() else os.environ.get("WORLD_SIZE")  # before they have met
        if "timed out" in str(error).lower() or "timeout" in str(error).lower():
            raise Gone(f"another of the {number} processes was silent for {time_out():g} s ({TIMEOUT})") from error
        raise Gone(f"another of the {number} processes has ended") from error


def share(items: Sequence[T]) -> list[T]:
    """Every `size`-th item, from the rank's on. All shares together hold each item once.
    `share([1, 2, 3, 4, 5]) -> [1, 3, 5]` in the first of two processes."""
    return list(items[HERE.rank::HERE.size] if size() > 1 else items)


def stretch(items: Sequence[T], weights: Sequence[float]) -> list[T]:
    """This process's part, whose items follow each other, of about the same weight as those of others.
    `stretch([5, 6, 7], [1, 1, 2]) -> [5, 6]` in the first of two processes."""
    whole, before, mine = sum(weights), 0.0, []
    for item, weight in zip(items, weights, strict=True):
        if int(size() * (before + weight / 2) / whole) == (HERE.rank if size() > 1 else 0):
            mine.append(item)
        before += weight
    return mine


def from_previous(tensor: Tensor) -> None:
    """Numbers that the process before this one sends by `to_next`."""
    if size() > 1 and HERE.rank:
        received = torch.empty_like(tensor, memory_format=torch.contiguous_format)
        with talking():
            dist.recv(received, HERE.rank - 1)
        tensor.copy_(received)


def to_next(tensor: Tensor) -> Any:
    """Begins to send. `settle` waits until all has been sent."""
    if not (size() > 1 and HERE.rank < HERE.size - 1):
        return None
    sent = tensor.clone(memory_format=torch.contiguous_format)
    with talking():
        return dist.isend(sent, HERE.rank + 1), sent


def settle(sent: Sequence[Any]) -> None:
    with talking():
        for work, _ in filter(None, sent):
            work.wait()


def add_up(tensor: Tensor) -> None:
    if size() > 1:
        with talking():
            dist.all_reduce(tensor)


def spread(tensor: Tensor, of_rank: int = 0) -> None:
    """The numbers of one process, usually of the first, for all."""
    if size() > 1:
        with talking():
            dist.broadcast(tensor, of_rank)


def gather(value: Any) -> list[Any]:
    if size() == 1:
        return [value]
    mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    with talking():
        lengths = [torch.zeros(1, dtype=torch.long) for _ in range(HERE.size)]
        dist.all_gather(lengths, torch.tensor([len(mine)]))
        longest = max(n.item() for n in lengths)
        texts = [torch.zeros(longest, dtype=torch.uint8) for _ in lengths]
        dist.all_gather(texts, torch.nn.functional.pad(mine, (0, longest - len(mine))))
    return [json.loads(text[:n.item()].numpy().tobytes()) for text, n in zip(texts, lengths, strict=True)]


def wait() -> None:
    gather(None)


def by_first(do: Callable[..., T], *given: Any, **named: Any) -> T:
    if size() == 1:
        return do(*given, **named)
    value = None
    if is_first():
        HERE.alone = True
        try:
            value = do(*given, **named)
        finally:
            HERE.alone = False
    return gather(value)[0]


def in_turn(do: Callable[[], None]) -> None:
    by_first(do)
    if not is_first():
        do()


def check_same(what: str, value: Any) -> None:
    """Raises ValueError if processes hold different values: they would not train one model."""
    values = gather(value)
    if other := next((v for v in values if v != values[0]), None):
        raise ValueError(f"{what} is {other} in another process, and {values[0]} in the first: give all processes the "
                         f"same command, files and versions")
