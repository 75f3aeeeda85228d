"""Kanda & Hatano's own recipe: ten epochs at a low rate. The plan `plr` trains shorter, at this project's usual rate.

ABOUT says what is run and tested. It was written before the runs, and is stored with the results.
"""
from dataclasses import replace

from experiments.cells.plan import Plan, Settings
from experiments.plans import plr
from experiments.plans.rows import SCC

ABOUT = """\
Base: SmolLM2-135M-Instruct. Question: does restoring bring what the paper says where training follows its recipe?
As the plan plr on sql-create-context (rows, bases, layers, rank, batch), but for: learning rate 2e-4, 10 epochs, and
the validation loss computed once an epoch; what has the lowest is kept. LoRA at 16 bits and QLoRA at 8, 4, 3 and 2
bits; seeds 0 and 1.
Tests: family 1 and family 2 of the plan plr, over this task alone. Holm's correction within each, level 0.05."""

RATE, EPOCHS, SEEDS = "2e-4", 10, (0, 1)
LONGER = 4  # times as long as a cell of plr


def plan(settings: Settings) -> Plan:
    flags = [*SCC.flags(settings, EPOCHS, EPOCHS), "--lr", RATE]
    cells = [plr.of_width("plr_recipe", settings, SCC, flags, bits, seed) for seed in SEEDS for bits in plr.WIDTHS]
    longer = [replace(cell, kind=f"long-{cell.kind}", seconds=LONGER * cell.seconds, priority=cell.priority + 1)
              for cell in cells]
    return Plan("plr_recipe", ABOUT, [*plr.bases("plr_recipe", settings, SCC), *longer])
