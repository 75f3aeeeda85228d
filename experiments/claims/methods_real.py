"""The comparison of methods on a real model, and how far its effects differ from those on the embedded base."""
from pathlib import Path

from experiments.claims import methods, notes
from experiments.claims.evidence import Cells
from experiments.claims.method_bases import of_bases
from experiments.claims.method_rows import gather
from experiments.claims.method_sizes import can_be_drawn, draw_sizes, sizes_title

BASE = "SmolLM2-135M, sql-create-context"
NOTES = (
    "The 16-bit weights of this base are dequantized 4-bit min-max codes in blocks of 32x1. So GPTQ at 4 bits gives "
    "nearly the same weights back, and QA-LoRA and LoTA-QAF begin there without loss; NormalFloat and 4x8 blocks do "
    "not.",
    "When the plan was changed: its \"first 240 cells\" are of all plans, 93 of them of the embedded base's and 54 of "
    "this one. Borrowing the rates at 2 bits was decided later, when 12 rates at 2 bits had been run, and "
    "taken back when all of its cells had been.")


def record(cells: Cells, place: Path) -> dict:
    found = methods.record(cells, place, "methods_real", BASE)
    bases = {"embedded base, BANKING77": gather(cells, "methods"), BASE: gather(cells, "methods_real")}
    found = {**found, "findings": [*found["findings"], *of_bases(cells),
                                  *notes.calibration(cells, "methods_real"), *NOTES]}
    if not all(map(can_be_drawn, bases.values())):
        return found
    draw_sizes(bases, place / "methods_sizes.png")
    return {**found, "pictures": [*found["pictures"], ["loss at k bits on both bases", "methods_sizes.png"]],
            "findings": [*found["findings"], f"{sizes_title(bases)}."]}
