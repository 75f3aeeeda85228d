"""What the cells of the plan found: rows of the tables, their states, and paired tests between them.

    mark of a test row = mean over the seeds of its score
    p of a pair of rows: `compare_scores` of the marks on the same test rows, two-sided
    Holm: p_(i) -> max over j <= i of min(1, (m - j + 1) * p_(j)),   p_(1) <= ... <= p_(m)
"""
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from experiments.cells.work import unpacked
from tasks.significance import Comparison, compare_scores

Facts = dict
Key = tuple[str, int]  # (row, bits)


@dataclass(eq=False)
class Found:
    """One row of the plan at one width. `finals` are in the order of their seeds."""
    row: str
    title: str
    part: str
    bits: int
    rates: list[Facts] = field(default_factory=list)
    finals: list[Facts] = field(default_factory=list)
    slower: float = 1.0

    @property
    def best(self) -> Facts | None:
        """The rate with the lowest validation loss."""
        losses = [facts for facts in self.rates if facts["training"]["best_validation_loss"] is not None]
        return min(losses, key=lambda facts: facts["training"]["best_validation_loss"], default=None)

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the lowest or the highest that was tried."""
        values = [facts["tags"]["value"] for facts in self.rates]
        return bool(self.best) and self.best["tags"]["value"] in (min(values), max(values))

    def at_factor(self, factor: float) -> Facts | None:
        return next((f for f in self.rates if math.isclose(f["tags"]["factor"], factor)), None)

    def states(self, which: "Which") -> list[dict]:
        """The state of each seed, as far as there is one."""
        return [state for facts in self.finals if (state := which(facts))]

    def marks(self, which: "Which") -> list[float]:
        """Of each test row, averaged over the seeds."""
        of_seeds = [unpacked(state["marks"]) for state in self.states(which)]
        return [statistics.mean(marks) for marks in zip(*of_seeds, strict=True)]


Which = Callable[[Facts], dict | None]


def as_trained(facts: Facts) -> dict | None:
    return facts["states"].get("trained")


def merged(facts: Facts) -> dict | None:
    return next((state for key, state in facts["states"].items() if key.startswith("merged")), None)


def rounded_afterwards(facts: Facts) -> dict | None:
    return next((state for key, state in facts["states"].items() if key.startswith("requantized")), None)


def at_k_bits(facts: Facts) -> dict | None:
    """What a row ends in where the model must have k bits: rounded afterwards, or merged into k bits."""
    exact = next((state for key, state in facts["states"].items()
                  if key.startswith("merged") and not key.startswith("merged-16bit")), None)
    return rounded_afterwards(facts) or exact


def gather(cells: Mapping[str, Facts]) -> list[Found]:
    """In the order of the plan. Cells with an error are left out; `failures` lists them."""
    found: dict[tuple, Found] = {}
    for facts in cells.values():
        tags = facts["tags"]
        if "error" in facts or tags["role"] == "base":
            continue
        key = tags["row"], tags["bits"], tags["part"], tags.get("slower", 1.0)
        one = found.setdefault(key, Found(tags["row"], tags["title"], tags["part"], tags["bits"],
                                          slower=tags.get("slower", 1.0)))
        (one.rates if tags["role"] == "rate" else one.finals).append(facts)
    for one in found.values():
        one.rates.sort(key=lambda facts: facts["tags"]["value"])
        one.finals.sort(key=lambda facts: facts["tags"]["seed"])
    return list(found.values())


def bases(cells: Mapping[str, Facts]) -> list[Facts]:
    return [facts for facts in cells.values() if "error" not in facts and facts["tags"]["role"] == "base"]


def failures(cells: Mapping[str, Facts]) -> dict[str, str]:
    """Cells that failed, and those in which training diverged, with the reason."""
    errors = {name: facts["error"] for name, facts in cells.items() if "error" in facts}
    return errors | {name: facts["training"]["diverged"] for name, facts in cells.items()
                     if "diverged" in facts.get("training", {})}


# ---- tests ----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Tested:
    """a against b. `p` is corrected."""
    a: str
    b: str
    bits: int
    result: Comparison
    p: float | None


def compared(a: Found, b: Found, which: Which, other: Which | None = None) -> Comparison | None:
    """None if one of them was not scored, or not with the same seeds and test rows."""
    other = other or which
    seeds = [[facts["tags"]["seed"] for facts in one.finals if how(facts)] for one, how in ((a, which), (b, other))]
    x, y = a.marks(which), b.marks(other)
    if not x or len(x) != len(y) or seeds[0] != seeds[1]:
        return None
    return compare_scores(x, y)


def family(pairs: Sequence[tuple[Found, Found]], which: Which) -> list[Tested]:
    """The pairs that can be compared, with p corrected after Holm over all of them."""
    results = [(a, b, result) for a, b in pairs if (result := compared(a, b, which))]
    adjusted = holm([result.p_value for *_, result in results])
    return [Tested(a.row, b.row, a.bits, result, p) for (a, b, result), p in zip(results, adjusted, strict=True)]


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """`holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]`. None, of too few rows for a test, stays and is not counted.

    Source: Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure."""
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    so_far = 0.0
    for rank, (p, i) in enumerate(order):
        so_far = max(so_far, min(1.0, (len(order) - rank) * p))
        adjusted[i] = so_far
    return adjusted
