"""placeholder"""
from experiments.cells.plan import Plan, Settings


def plan(settings: Settings) -> Plan:
    return Plan("plr", "to be written", [])
