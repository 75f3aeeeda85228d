"""cells.json, in and out."""
import json
from pathlib import Path

from model.files import read_json, write_text


def read_cells(file: Path) -> dict:
    """Raises ValueError for JSON of another kind."""
    found = read_json(file)
    if not isinstance(found.get("cells"), dict):
        raise ValueError(f"{file}: holds no cells: give a cells.json of experiments.run")
    return found


def write_cells(file: Path, kept: dict) -> None:
    """A line a cell: some hundred numbers each."""
    cells = ",\n".join(f"{json.dumps(name)}: {json.dumps(facts)}" for name, facts in kept["cells"].items())
    head = json.dumps({name: value for name, value in kept.items() if name != "cells"}, indent=1)
    write_text(file, f"{head[:-2]},\n \"cells\": {{\n{cells}\n}}}}\n")
