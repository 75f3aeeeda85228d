"""What workers do in tests: cells without models. The first word of a cell's arguments says what happens."""
import os
import time
from pathlib import Path

from experiments.cells.plan import Cell, run_folder


def do(cell: Cell, folder: Path) -> dict:
    run_folder(folder, cell.name).mkdir(exist_ok=True)
    what, *rest = cell.argv
    if what == "fail":
        raise ValueError("value 7: at most 6")
    if what == "exit":
        raise SystemExit(2)
    if what == "die":
        os._exit(9)
    if what == "sleep":
        time.sleep(float(rest[0]))
    if what == "read" and not Path(cell.command(folder)[1]).is_dir():
        raise FileNotFoundError(rest[0])
    return {"kind": cell.kind, "pid": os.getpid(), "wall_seconds": 0.01, "ended": time.monotonic()}
