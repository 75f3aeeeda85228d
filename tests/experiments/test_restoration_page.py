"""The ratios and gains of docs/restoration.md are those of all recorded cells."""
import re
from collections.abc import Iterable
from pathlib import Path

from experiments.claims import ratio
from experiments.claims.evidence import Cells
from experiments.results_page import RESULTS, read

PAGE = Path(__file__).parents[2] / "docs" / "restoration.md"
WIDTHS = {8: "8, 4", 4: "8, 4"}


def recorded_runs() -> Iterable[tuple[tuple, float, float]]:
    """(row of the table, ratio, gain) of each of the runs of 2026-11-24 that was restored to another width."""
    runs = read("restoration")["runs"]
    trained = {one["run"]: one["validation_loss"] for one in runs if not one["restored"]}
    for one in runs:
        widths = {one["trained_bits"], one["bits"]}
        if one["restored"] and len(widths) == 2:
            which = next((f"to or from {bits}" for bits in (2, 3, 4) if bits in widths), "16 to 8, 8 to 16")
            yield (("embedded base", "recorded runs", "LoRA, QLoRA", which), one["restoration_ratio"],
                   trained[one["run"]] - one["validation_loss"])


def moves() -> Iterable[tuple[tuple, float, float]]:
    cells = Cells([RESULTS / "cells.json"])
    for base, plan, some in (("embedded base", "scale", cells.of_prefix("scale-plr-")), ("SmolLM2-135M", "plr", cells),
                             ("SmolLM2-135M", "plr_recipe", cells)):
        for move in ratio.moves(some, plan, ratio.TASKS):
            method = {"qlora": "QLoRA", "qalora": "QA-LoRA", "qablora": "QA-BLoRA"}[move.method]
            width = str(move.trained) if plan == "scale" else WIDTHS.get(move.trained, str(move.trained))
            yield (base, f"`{plan}`, {move.task}", method, width), move.last, move.gain


def said(value: float, sign: str = "") -> str:
    """Two digits, five decimals at most: `said(0.601) == "0.60"`."""
    return (f"{value:{sign}#.2g}" if abs(value) >= 1e-4 else f"{value:{sign}.5f}").rstrip(".")


def expected() -> list[str]:
    groups: dict[tuple, list[tuple[float, float]]] = {}
    for row, *values in (*sorted(recorded_runs()), *moves()):
        groups.setdefault(row, []).append(tuple(values))
    lines = []
    for row, found in groups.items():
        ratios, gains = zip(*found, strict=True)
        spread = [" to ".join(dict.fromkeys((said(min(some), sign), said(max(some), sign))))
                  for some, sign in ((ratios, ""), (gains, "+"))]
        lines.append(f"| {' | '.join((*row, *spread))} |")
    return lines


def test_the_table_of_ratios_holds_for_every_recorded_cell():
    text = PAGE.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith(("| embedded base |", "| SmolLM2-135M |"))]
    assert rows == expected(), "the table should be:\n" + "\n".join(expected())


def test_the_threshold_of_the_text_is_one_of_the_first_validation():
    """It tells as many signs as the text says, in the digits of the text."""
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    at, of_all, every, of_qlora, some = re.search(
        r"threshold of (\S+) on the ratio at the first validation tells (\d+) of the (\d+) signs on banking77, and "
        r"(\d+) of the (\d+) of QLoRA", text).groups()
    held_out = [move for move in ratio.moves(Cells([RESULTS / "cells.json"]), "plr", ratio.TASKS)
                if move.task == "banking77"]
    qlora = [move for move in held_out if move.method == "qlora"]
    assert [int(of_all), int(every), int(of_qlora), int(some)] == [
        n for moves in (held_out, qlora) for n in (sum(ratio.right(move, float(at)) for move in moves), len(moves))]
