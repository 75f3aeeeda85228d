"""The page of scale, and the commands of the papers' cells, each checked from a config.json alone."""
import json
import re

import pytest

from experiments import paper_cells, scale
from model.checkpoint import empty_model

PUBLISHED = {"llama-7b": 6738415616, "llama-13b": 13015864320, "llama-33b": 32528943616, "llama-65b": 65285660672,
             "llama-2-7b": 6738415616, "llama-2-13b": 13015864320, "llama-3.2-1b": 1235814400,
             "llama-3.2-3b": 3212749824, "llama-3.1-8b": 8030261248, "llama-3.1-70b": 70553706496}


@pytest.mark.parametrize("name", paper_cells.MODELS)
def test_a_config_has_the_published_number_of_parameters(name):
    model = empty_model(paper_cells.config_of(name), scale.torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]


def test_the_page_is_what_the_command_prints(monkeypatch):
    """The lines of one model, and the models of every table."""
    between = scale.PAGE.read_text(encoding="utf-8").partition(scale.BEGIN)[2].partition(scale.END)[0].splitlines()
    assert [line for line in between if line.startswith("**")] == [f"**{title}**" for title in scale.TABLES]
    for model in scale.SHOWN:
        assert sum(line.startswith(f"| {model} |") for line in between) == 4 * len(scale.METHODS) + 1
    monkeypatch.setattr(scale, "SHOWN", ("llama-7b",))
    lines = [line for table in scale.TABLES.values() for line in table().splitlines()]
    assert len(lines) > 25 and [line for line in lines if line not in between] == []


def test_the_files_are_what_the_command_writes():
    written = {path.stem: path.read_text(encoding="utf-8") for path in paper_cells.HERE.glob("*.jsonl")}
    assert written == paper_cells.tables(), "run python -m experiments.paper_cells --write"


def test_every_number_of_the_papers_is_a_cell():
    """30 + 14 + 7 rows of MMLU, 14 rows of seven tasks, ten rows, and 15 widths of three models and two data sets."""
    counted = {table: len(text.splitlines()) for table, text in paper_cells.tables().items()}
    assert counted == {"shen-1": 30, "shen-2": 14, "shen-3": 7, "shen-4": 98, "shen-5": 10, "kanda-1": 90}
    for model, rows in paper_cells.CHOICES.items():  # the averages of Table 4 follow from its numbers
        for row, (*numbers, average) in rows.items():
            printed = 63.07 if (model, row) == ("llama-7b", "QA-LoRA") else average  # the paper prints 61.8
            assert abs(sum(numbers) / 7 - printed) < 0.16, (model, row)


@pytest.mark.parametrize("command", paper_cells.commands())
def test_every_training_command_passes_a_dry_run_within_141_gb(command):
    printed = paper_cells.checked(command, paper_cells.commands()[command])
    assert "nothing was found to be wrong" in printed
    megabytes = re.search(r"^memory +([\d,.]+) MB", printed, re.MULTILINE)[1]
    assert 1e3 < float(megabytes.replace(",", "")) < 141e3


def test_a_wrong_command_would_be_noticed():
    command = next(iter(paper_cells.commands()))
    with pytest.raises(ValueError, match="does not divide|not a multiple"):
        paper_cells.checked(command.replace("--block 32x1", "--block 48x1"), "llama-7b")


@pytest.mark.parametrize("command", sorted({found["score"] for found in paper_cells.cells()})[::9])
def test_scoring_commands_are_read_by_the_parser(command):
    from tests.docs.test_commands import check_flags_together
    check_flags_together("eval", paper_cells.words_of(command))


def test_hours_follow_from_the_measured_step():
    """2,048 tokens of a 7B take 356 ms; four times as many are bound by their operations."""
    model = paper_cells.config_of("llama-7b")
    run = scale.kanda("llama-7b", "QLoRA")  # 10 epochs of 32 rows, 4 at a time
    assert paper_cells.hours(model, run, 32, 512) == pytest.approx(10 * 8 * 0.356 / 3600)
    assert paper_cells.hours(model, run, 32, 4096) > 3 * paper_cells.hours(model, run, 32, 512)


def test_cells_are_json_lines():
    for text in paper_cells.tables().values():
        for line in text.splitlines():
            assert set(json.loads(line)) == {"table", "row", "model", "data", "column", "paper", "state", "train",
                                             "hours", "score"}
