"""cells.json as the plans would fill it, from drawn marks: what the claims are tried on before there are results."""
import json
import random
from pathlib import Path

from experiments.cells.plan import Cell, Settings
from experiments.plans import plr, plr_recipe, ptq_qlora, rows, scale

TEST_ROWS = 200
COST = {16: 0.0, 8: 0.0, 4: 0.02, 3: 0.1, 2: 0.4}  # of the share of right answers


def plans(monkeypatch) -> list:
    """Without their data files."""
    monkeypatch.setattr(rows.TaskRows, "files", lambda self, settings: (Path("train.jsonl"), Path("test.jsonl")))
    monkeypatch.setattr(rows, "calibration", lambda settings: ["--calibration", "text"])
    settings = Settings(Path("smollm2"), Path("data"))
    return [module.plan(settings) for module in (plr, plr_recipe, ptq_qlora, scale)]


def share(cell: Cell, state: str) -> float:
    bits = cell.tags.get("bits", 16)
    if state in ("base", "quantized"):
        return 0.05
    restored = int(state.split("-")[1].removesuffix("bit")) if state.startswith("restored") else bits
    return 0.75 - COST[bits] + 0.6 * (COST[bits] - COST[restored])


def facts_of(cell: Cell, plan: str) -> dict:
    draw, states = random.Random(cell.name), {}
    for state in cell.states:
        p = share(cell, state)
        marks = "".join(str(int(random.Random(f"{row}").random() + draw.gauss(0, 0.1) < p)) for row in range(TEST_ROWS))
        ratio = 5.0 if state.startswith("restored") else None
        states[state] = {"marks": marks, "validation_loss": 2 - p, "restoration_ratio": ratio, "metric": "accuracy",
                         "megabytes": 60 + 13 * (int(state[9:-3]) if ratio else cell.tags.get("bits", 16))}
    norm = 4 + draw.random()
    changes = {state: 8 * COST[cell.tags["bits"]] * norm + draw.random() for state in states if "restored" in state}
    validations = [{"step": 1, "validation_loss": 2.0}, {"step": 1, "delta_norm": norm}]
    return {"plan": plan, "tags": dict(cell.tags), "kind": cell.kind, "states": states, "base_changes": changes,
            "training": {"validations": validations} if cell.trains else {}, "wall_seconds": 1.0}


def write(path: Path, monkeypatch, skip=lambda cell: False) -> None:
    made = plans(monkeypatch)
    path.write_text(json.dumps({
        "plans": {plan.name: plan.about for plan in made},
        "planned": {plan.name: [cell.name for cell in plan.cells] for plan in made}, "settings": {}, "sessions": [{
            "machine": {"device": "none", "torch": "0"}, "jobs": 2, "began": "2026-11-27 00:00:00", "seconds": 1.0,
            "plans": [plan.name for plan in made]}],
        "cells": {cell.name: facts_of(cell, plan.name) for plan in made for cell in plan.cells if not skip(cell)}}))
