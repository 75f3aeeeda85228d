"""The table of `train.py --list-tasks`: what each task is, and which files it needs."""
import textwrap
from collections.abc import Iterable
from itertools import zip_longest

from tasks.task import Task

HEADER = ["task", "what it is", "licence", "fields of a row", "--data", "--test-data", "score"]
WIDTHS = [18, 18, 13, 26, 8, 11, 14]  # columns, at most: 120 in all, with two spaces between them


def task_table(tasks: Iterable[type[Task]]) -> list[list[str]]:
    """The header, then one line for each task, or several where a cell is wrapped to its width in WIDTHS."""
    lines = [HEADER]
    for task in tasks:
        cells = [task.name, task.title, task.licence, task.rows, need_of_data(task), need_of_test_data(task),
                 task.metric or "none"]
        wrapped = [textwrap.wrap(cell, width, break_on_hyphens=False)
                   for cell, width in zip(cells, WIDTHS, strict=True)]
        lines += [list(line) for line in zip_longest(*wrapped, fillvalue="")]
    return lines


def task_table_text(tasks: Iterable[type[Task]]) -> str:
    """The table in columns. All cells are text, so all are aligned on the left."""
    lines = task_table(tasks)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                     for line in lines)


def need_of_data(task: type[Task]) -> str:
    """`needed`, `embedded` (used where no file is given), or `none` (the task takes no such file)."""
    return "needed" if task.needs_data else "embedded" if task.embedded else "none"


def need_of_test_data(task: type[Task]) -> str:
    """As `need_of_data`, or `optional`: without the file, test rows come from --data, or there are none."""
    if task.needs_test_data:
        return "needed"
    return "embedded" if task.embedded else "optional" if task.metric else "none"
