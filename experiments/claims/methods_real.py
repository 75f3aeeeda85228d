"""The comparison of methods on a real model, and how far its effects differ from those on the embedded base."""
from pathlib import Path

from experiments.claims import methods
from experiments.claims.evidence import Cells
from experiments.claims.method_rows import gather
from experiments.claims.method_sizes import can_be_drawn, draw_sizes, sizes_title

BASE = "SmolLM2-135M, sql-create-context"


def record(cells: Cells, place: Path) -> dict:
    found = methods.record(cells, place, "methods_real", BASE)
    bases = {"embedded base, BANKING77": gather(cells, "methods"), BASE: gather(cells, "methods_real")}
    if not all(map(can_be_drawn, bases.values())):
        return found
    draw_sizes(bases, place / "methods_sizes.png")
    return {**found, "pictures": [*found["pictures"], ["loss at k bits on both bases", "methods_sizes.png"]],
            "findings": [*found["findings"], f"{sizes_title(bases)}."]}
