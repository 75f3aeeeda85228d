"""Cells: small training runs, many at a time, and what they found in one JSON file.

| word | what it is |
|---|---|
| cell | one run of train.py, scored in the states that are asked for; `Cell` in plan.py |
| plan | a list of cells with a text that says what is tested, written before the runs; in experiments/plans |
| base | a quantized base, made once and shared by all cells that need it (bases.py) |
| worker | a process that does cells one after the other; it imports and starts CUDA once (pool.py) |
| facts | what a cell leaves: scores, losses, ratios, seconds, peak memory, each test row's mark (work.py) |

A plan's module has `plan(settings: Settings) -> Plan`. The command is

    python -m experiments.run NAME [NAME ...] --jobs 12 --seconds 280 --device cuda --out DIR

It writes DIR/cells.json after each cell (file.py): {"plans": {name: about},
"planned": {plan: cells}, "settings", "sessions", "cells": {name: facts}}.
Given again, it does the cells that are missing or failed. Names of cells are unique over all plans, so they begin with
their plan's.
"""
