"""`--task auto`: the task of a user's own rows, by the fields of the first row of --data.

It is the default if --data is given without --task."""
from pathlib import Path

from tasks.own_rows import AUTO, LAYOUTS
from tasks.task import Splits, Task


class Own(Task):
    """It stands for another task until the file is there (`finetune.data.with_recognised_task`)."""
    name, metric, needs_data = AUTO, "that of the task", True
    title, licence = "your own rows, the task by their fields", "yours"
    rows = "those of " + ", ".join(dict.fromkeys(layout.task for layout in LAYOUTS))
    protocol = "that of the task which the fields name"

    def splits(self, data: Path | None, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        raise ValueError(f"--task {AUTO} stands for the task of the rows of {data}, which is not named yet")
