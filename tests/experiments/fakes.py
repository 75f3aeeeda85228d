"""What workers do in tests: cells without models. The first word of a cell's arguments says what happens. And made-up
facts of the comparison of methods."""
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
    return {"argv": list(cell.argv), "training": {"best_validation_loss": 9.0}, "kind": cell.kind, "pid": os.getpid(),
            "wall_seconds": 0.01, "ended": time.monotonic()}


def facts(row, role, seed, loss, marks=None, bits=4, value=1.0, factor=1.0, key="merged-4bit", **more):
    state = {"marks": marks, "metric": "accuracy", "validation_loss": loss, "bits_per_weight": 5.0,
             "scores": {"accuracy": marks and marks.count("1") / len(marks)}, "title": "as trained"}
    states = {"trained": state, key: state} if marks else {}
    tags = {"row": row, "title": row.upper(), "part": "methods", "bits": bits, "role": role, "seed": seed,
            "value": value, "factor": factor}
    return {"tags": tags, "states": states, "training": {
        "best_validation_loss": loss, "trainable_parameters": 1234, "losses": [loss] * 20,
        "gradient_norms": [loss] * 20, **more}}


def a_row(row, losses, marks, bits=4, key="merged-4bit"):
    """The cells of a row: rates of 1, 2, 3 with the losses, and a seed for each text of marks."""
    cells = {f"{row}-{bits}-{v}": facts(row, "rate", 0, loss, bits=bits, value=v, factor=f) | {
        "argv": ["--lr", f"{v}"]} for v, f, loss in zip((1.0, 2.0, 3.0), (1 / 3, 1.0, 3.0), losses, strict=True)}
    tried = {cells[name]["training"]["best_validation_loss"]: cells[name]["argv"] for name in cells}
    best = min(filter(None, tried))
    return cells | {f"{row}-{bits}-seed{i}": facts(row, "final", i, best, m, bits=bits, key=key) | {"argv": tried[best]}
                    for i, m in enumerate(marks)}
