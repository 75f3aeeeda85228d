"""The rows of the plans' tasks, drawn once and the same for every seed, and the text that GPTQ is calibrated on.

A seed changes the validation tenth, the order of rows, and the initial adapter; training and test rows stay."""
from dataclasses import dataclass
from pathlib import Path

from experiments.cells.plan import Settings
from model.files import write_text
from tasks import TASKS
from tasks.banking77 import HERE
from tasks.task import shuffled

LENGTH = 256  # tokens of a training row, and of a window of the calibration text
CALIBRATED = ("sql-create-context", "banking77")  # the text is of rows of these tasks, half of each
CALIBRATION_ROWS, CALIBRATION_WINDOWS = 500, 96   # Kanda & Hatano use 500 rows; windows: at most


@dataclass(frozen=True)
class TaskRows:
    """A task at the size of the plans. `folder` is that of its data set; None: in the repository."""
    task: str
    folder: str | None
    rows: int          # to train and validate on
    test_rows: int
    new_tokens: int    # of an answer, at most
    batch: int = 32

    def files(self, settings: Settings) -> tuple[Path, Path]:
        """(training rows, test rows), written now."""
        source = settings.data / self.folder if self.folder else HERE
        return tuple(drawn(source / f"{part}.jsonl", settings.scratch / "rows" / f"{self.task}-{part}.jsonl",
                           settings.rows(n, 10)) for part, n in (("train", self.rows), ("test", self.test_rows)))

    def flags(self, settings: Settings, epochs: int, validations: int = 4) -> list[str]:
        """Of every cell of the task, the number of steps included. The validation loss is computed `validations`
        times, and what has the lowest is kept."""
        train, test = self.files(settings)
        steps = self.steps(settings, epochs)
        return ["--task", self.task, "--data", str(train), "--test-data", str(test), "--batch-size", str(self.batch),
                "--max-length", str(LENGTH), "--max-new-tokens", str(self.new_tokens), "--eval-batch-size", "256",
                "--steps", str(steps), "--eval-every", str(max(1, steps // validations))]

    def steps(self, settings: Settings, epochs: int) -> int:
        return max(2, epochs * settings.rows(self.rows) * 9 // 10 // self.batch)


SCC = TaskRows("sql-create-context", "sql_create_context", 2000, 256, 64)
BANKING77 = TaskRows("banking77", None, 2000, 512, 10)
BITEXT = TaskRows("bitext", "bitext", 1000, 400, 8)
BITEXT_RESPONSE = TaskRows("bitext-response", "bitext", 1000, 128, 96, batch=16)
ALL = (SCC, BANKING77, BITEXT, BITEXT_RESPONSE)


def drawn(source: Path, target: Path, n: int) -> Path:
    """n rows of a file, the same every time. Files may be sorted, so they are shuffled first."""
    lines = source.read_text(encoding="utf-8").splitlines()
    write_text(target, "\n".join(shuffled(lines, 0)[:n]) + "\n")
    return target


def calibration(settings: Settings) -> list[str]:
    """The flags of GPTQ's calibration: one text for all tasks and seeds, so that all cells share their bases."""
    file, texts = settings.scratch / "rows" / "calibration.txt", []
    for rows in (rows for rows in ALL if rows.task in CALIBRATED):
        train, _ = rows.files(settings)
        splits = TASKS[rows.task]().splits(train, None, None, 0)
        examples = splits.train[:settings.rows(CALIBRATION_ROWS // len(CALIBRATED))]
        texts += [f"{example.prompt} {example.answer}" for example in examples]
    write_text(file, "\n\n".join(texts) + "\n")
    return ["--calibration", str(file), "--calibration-rows", str(settings.rows(CALIBRATION_WINDOWS))]


def gptq(settings: Settings, bits: int) -> list[str]:
    """The flags of a base by GPTQ: min-max 32x1, columns by falling H_ii."""
    return ["--quantizer", "gptq", "--act-order", "--bits", str(bits), *calibration(settings)]



