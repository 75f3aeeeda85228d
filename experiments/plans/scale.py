"""The scale of the effects: cells of the plans plr and ptq_qlora on the embedded base of 5.8 M parameters.

ABOUT says what is run and tested. It was written before the runs, and is stored with the results.
"""
from dataclasses import replace

from experiments.cells.plan import Plan, Settings
from experiments.plans import plr, ptq_qlora
from experiments.plans.rows import BANKING77

ABOUT = """\
Base: the embedded base, 5.8 M parameters, width 256. Task: banking77, with the rows, steps, seeds and flags of the
plans plr (LoRA, QLoRA at 8 to 2 bits, QA-LoRA and QA-BLoRA at 2 bits, restored) and ptq_qlora (GPTQ and NF, 4 and 2
bits). Read beside the same cells on SmolLM2-135M, 23 times larger: what 2 bits cost, what restoring brings, and what
QLoRA after PTQ brings. Two sizes make no trend, so no test is made across them: each size has its own, as in its
plan."""

PTQ = {"gptq": (4, 2), "nf": (4, 2)}


def plan(settings: Settings) -> Plan:
    embedded = replace(settings, model=None)
    cells = [*plr.bases("scale-plr", embedded, BANKING77), *plr.of_task("scale-plr", embedded, BANKING77),
             *ptq_qlora.of_task("scale-ptq", embedded, BANKING77, ptq=PTQ)]
    return Plan("scale", ABOUT, [replace(cell, priority=cell.priority + 1, kind=f"embedded-{cell.kind}", seconds=15.0)
                                 for cell in cells])
