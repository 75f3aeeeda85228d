"""The table of `train.py --list-tasks`."""
import pytest

from tasks import TASKS, TRAINING_TASKS
from tasks.choices import ChoiceTask
from tasks.listing import HEADER, WIDTHS, need_of_data, need_of_test_data, task_table, task_table_text
from tasks.mmlu import HendrycksMmlu

EVERY = [*TASKS.values(), HendrycksMmlu]


@pytest.mark.parametrize("task", EVERY, ids=lambda task: task.name)
def test_every_task_states_what_it_is_and_needs(task):
    assert all(isinstance(text, str) and text for text in (task.name, task.title, task.licence, task.rows))
    assert "\n" not in task.title and len(task.title) <= 40
    if issubclass(task, ChoiceTask):
        assert all(field in task.rows for field in task.fields)


@pytest.mark.parametrize("tasks", [TRAINING_TASKS.values(), EVERY])
def test_the_table_has_a_line_for_each_task_and_fits_120_columns(tasks):
    table = task_table(tasks)
    assert table[0] == HEADER and [line[0] for line in table[1:] if line[0]] == [task.name for task in tasks]
    assert all(len(cell) <= width for line in table for cell, width in zip(line, WIDTHS, strict=True))
    assert sum(WIDTHS) + 2 * (len(WIDTHS) - 1) <= 120
    assert all(len(line) <= 120 for line in task_table_text(tasks).splitlines())


def test_only_tasks_that_train_are_offered_for_training():
    assert set(TRAINING_TASKS) == {"auto", "messages", "instruction", "completion", "classification", "text",
                                   "banking77", "sql-create-context", "gsm8k", "gsm8k-zero-shot",
                                   "alpaca", "flan", "bitext", "bitext-response", "pretrain"}


@pytest.mark.parametrize("name,data,test_data", [
    ("banking77", "embedded", "embedded"), ("gsm8k", "needed", "needed"), ("alpaca", "needed", "optional"),
    ("pretrain", "needed", "none"), ("mmlu", "needed", "needed"), ("piqa", "none", "needed")])
def test_needs_are_those_that_the_checks_enforce(name, data, test_data):
    assert (need_of_data(TASKS[name]), need_of_test_data(TASKS[name])) == (data, test_data)
