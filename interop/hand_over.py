"""One export, whatever its format: checked, written beside, read again, compared, and only then given its name."""
import os
import shutil
from pathlib import Path
from typing import Protocol

from torch import Tensor

from interop.comparison import compare, files_of, report_json, report_lines, token_rows
from interop.trained import Trained
from model.files import write_json
from model.llama import Llama

REPORT = "export.json"


class Export(Protocol):
    """What each format's class offers. The constructor, of (trained, to, dtype), refuses from headers whatever can be refused."""
    name: str
    is_directory: bool
    tolerance: float  # as `compare` has it

    def write(self, model: Llama, place: Path) -> dict: ...             # what there is to say of it
    def reread(self, place: Path) -> Llama: ...
    def expected(self, model: Llama, name: str) -> Tensor | None: ...    # what the file must hold for a tensor of the run; None: unknown


def check_target(to: Path, is_directory: bool) -> None:
    """Raises FileExistsError for what holds something already, ValueError for a name of the wrong kind."""
    if not is_directory and to.suffix != ".gguf":
        raise ValueError(f"--to {to} is not a name of a GGUF file: give one that ends in .gguf")
    if is_directory and to.suffix == ".gguf":
        raise ValueError(f"--to {to} is to be a directory, and looks like a GGUF file")
    taken = [to] if is_directory else [to, report_file(to)]
    for path in taken:
        if path.exists() and not (is_directory and path.is_dir() and not any(path.iterdir())):
            raise FileExistsError(f"--to {to}: {path} is there already; give another place")


def report_file(to: Path) -> Path:
    """Beside a GGUF file: `x.gguf` -> `x.export.json`."""
    return to.with_suffix(f".{REPORT}")


def hand_over(trained: Trained, export: Export, to: Path) -> None:
    """Raises ValueError where what was written does not read as what it should be. Whatever happens, `to` is whole or not there."""
    rows = token_rows(trained)
    to.parent.mkdir(parents=True, exist_ok=True)
    beside = to.with_name(f".{to.stem}.{os.getpid()}.part{to.suffix}")
    try:
        if export.is_directory:
            beside.mkdir()
        model = trained.load()
        facts = export.write(model, beside)
        difference = compare(model, export.reread(beside), rows, export.expected, export.tolerance)
        files = files_of(beside)
        if not export.is_directory:
            files = {to.name: files.pop(beside.name)}
        report = report_json(trained, export.name, facts, difference, files)
        write_json(beside / REPORT if export.is_directory else report_file(to), report)
        os.replace(beside, to)
    finally:
        if not export.is_directory and not to.exists():
            report_file(to).unlink(missing_ok=True)
        shutil.rmtree(beside, ignore_errors=True)
        beside.unlink(missing_ok=True)
    print("\n".join(report_lines(f"{to}: {export.name} of {trained.path}", facts, difference, files)))
