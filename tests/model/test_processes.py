"""What several processes tell each other, tried in forks; and that one process is one."""
import json
import os

import pytest
import torch

from model import processes
from model.processes import HERE, Gone
from tests.processes import said_by


def alike(size: int, task) -> list:
    """What `task` comes to in each of several processes, in the order of their ranks."""
    import torch.distributed as dist
    store = dist.TCPStore("localhost", 0, None, is_master=True, wait_for_workers=False)
    ranks, ready = os.pipe()
    os.write(ready, bytes(range(size)))

    def told() -> str:
        torch.set_num_threads(1)
        rank = os.read(ranks, 1)[0]
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="localhost", MASTER_PORT=str(store.port),
                          TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")
        try:
            processes.begin()
            return json.dumps([rank, task()])
        except (Gone, ValueError) as error:
            return json.dumps([rank, f"{type(error).__name__}: {error}"])
    found = sorted(map(json.loads, said_by(told, size)))
    assert [rank for rank, _ in found] == list(range(size))
    return [value for _, value in found]


def test_one_process_is_all_of_them(monkeypatch):
    for environment in ({}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "4"}):  # a scheduler's, without the rest of torchrun's
        for name in processes.ENVIRONMENT:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        processes.begin()
        assert not processes.several() and processes.is_first() and processes.size() == 1
    rows, numbers = [1, 2, 3], torch.ones(2)
    processes.add_up(numbers), processes.spread(numbers), processes.leave(), processes.end_at_once(3)
    assert processes.share(rows) == rows and numbers.tolist() == [1, 1]
    value = object()  # nothing goes through JSON
    assert processes.gather(value) == [value] and processes.by_first(lambda: value) is value
    assert processes.speaks_last() and processes.started_by() == "python"


@pytest.mark.parametrize("size", [2, 3])
def test_shares_sums_and_values(size):
    def task():
        numbers = torch.tensor([1.0 + processes.rank(), 10.0])
        processes.add_up(numbers)
        text = processes.gather({"rank": processes.rank(), "text": "ä" * processes.rank(), "loss": 1e-300})
        first = processes.by_first(lambda: [processes.rank(), processes.size(), processes.by_first(lambda: "inside")])
        return [processes.share([0, 1, 2, 3, 4]), numbers.tolist(), text, first]
    found = alike(size, task)
    assert sorted(i for share, *_ in found for i in share) == [0, 1, 2, 3, 4] and found[0][0] == list(range(0, 5, size))
    for rank, (_, numbers, told, first) in enumerate(found):
        assert numbers == [size * (size + 1) / 2, 10 * size], rank
        assert told == [{"rank": r, "text": "ä" * r, "loss": 1e-300} for r in range(size)]
        assert first == [0, 1, "inside"]


def test_the_others_wait_until_the_first_has_done_it(tmp_path):
    def task():
        processes.in_turn(lambda: (tmp_path / "order").open("a").write(f"{processes.rank()}"))
        processes.wait()
        return (tmp_path / "order").read_text()
    assert set(alike(3, task)) <= {"012", "021"}


def test_processes_that_differ_are_told():
    assert alike(2, lambda: processes.check_same("the seed", 7)) == [None, None]
    found = alike(2, lambda: processes.check_same("the seed", processes.rank()))
    assert all(line.startswith("ValueError: the seed is 1 in another process, and 0 in the first") for line in found)


@pytest.mark.parametrize("text", ["soon", "0", "-1", "inf", "1e300"])
def test_a_time_out_is_a_number_of_seconds(monkeypatch, text):
    monkeypatch.setenv(processes.TIMEOUT, text)
    with pytest.raises(ValueError, match=f"PROCESSES_TIMEOUT={text} is not a number of seconds above 0"):
        processes.time_out()


@pytest.mark.parametrize("name,text,message", [
    ("WORLD_SIZE", "abc", "WORLD_SIZE=abc is not a whole number from 1 on"), ("WORLD_SIZE", "-2", "SIZE=-2 is not"),
    ("WORLD_SIZE", "0", "WORLD_SIZE=0 is not"), ("RANK", "first", "RANK=first is not a whole number from 0 on"),
    ("RANK", "2", "RANK=2 is not below WORLD_SIZE=2"), ("MASTER_PORT", "http", "MASTER_PORT=http is not")])
def test_an_environment_that_torchrun_never_makes_is_refused_by_name(monkeypatch, name, text, message):
    stated = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1", name: text}
    for each, value in stated.items():
        monkeypatch.setenv(each, value)
    monkeypatch.setattr(processes, "silence", lambda: pytest.fail("nobody would read the message"))
    with pytest.raises(ValueError, match=f"{message}.*unset them to use one process"):
        processes.begin()


def test_a_silent_process_is_gone_after_the_time_out(monkeypatch):
    monkeypatch.setenv(processes.TIMEOUT, "1")
    found = alike(2, lambda: processes.wait() if processes.is_first() else "silent")
    assert found == ["Gone: another of the 2 processes was silent for 1 s (PROCESSES_TIMEOUT)", "silent"]


def test_one_of_several_says_the_last_line():
    assert sum(alike(3, processes.speaks_last)) == 1 and HERE.size == 1


@pytest.mark.parametrize("size", [2, 3])
def test_stretches_follow_each_other_and_numbers_go_from_one_to_the_next(size):
    def task():
        numbers = torch.zeros(4, 4)
        part = numbers[:, 1:3]  # not contiguous
        processes.from_previous(part)
        part.mul_(10).add_(processes.rank() + 1)
        processes.settle([processes.to_next(part)])
        processes.spread(numbers, size - 1)
        return [processes.stretch(range(7), [1, 1, 1, 1, 1, 1, 6]), numbers.sum(0).tolist()]
    found = alike(size, task)
    assert [i for stretch, _ in found for i in stretch] == list(range(7))
    assert found[0][0] == {2: [0, 1, 2, 3, 4, 5], 3: [0, 1, 2, 3]}[size]  # the middle of an item decides
    value = 4.0 * int("123"[:size])
    assert all(numbers == [0, value, value, 0] for _, numbers in found)
