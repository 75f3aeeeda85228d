"""What the cells of the plans methods and methods_real found, row by row, and the paired tests between rows."""
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from experiments.cells.plan import value_after
from experiments.claims.evidence import (
    LEVEL,
    Cells,
    Facts,
    Group,
    Judged,
    family,
    half_width,
    marks_of,
    mean_by_row,
)
from experiments.plans.method_rows import BORROWED, FACTORS, every_row
from tasks.significance import compare_scores

Which = Callable[[Facts], str | None]  # the key of a state of the cell; None: it has none


@dataclass(eq=False)
class Found:
    """One row of the plan at one width. `finals`: by seed, at the best rate."""
    row: str
    title: str
    part: str
    bits: int
    slower: float = 1.0
    rates: list[Facts] = field(default_factory=list)
    finals: Group = field(default_factory=dict)
    lender: "Found | None" = None  # the row at the width whose rates are used; None: its own

    @property
    def tuning(self) -> list[Facts]:
        """The rates that are chosen from: those of the plan. Others, of a plan before, are shown and not chosen."""
        if self.lender:
            return self.lender.tuning
        return [facts for facts in self.rates
                if any(math.isclose(facts["tags"]["factor"], factor) for factor in self.factors)]

    @property
    def best(self) -> Facts | None:
        """The rate with the lowest validation loss."""
        return min((facts for facts in self.tuning if loss_of(facts) is not None), key=loss_of, default=None)

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the lowest or the highest that was tried."""
        values = [facts["tags"]["value"] for facts in self.tuning]
        return bool(self.best) and self.best["tags"]["value"] in (min(values), max(values))

    @property
    def factors(self) -> list[float]:
        """Of the rates that the plan asks for."""
        if self.lender:
            return []
        row = next((row for row in every_row() if row.name == self.row), None)
        return row.factors(self.rates[0]["plan"], self.bits) if row and self.rates else list(FACTORS)

    @property
    def factors_run(self) -> list[float]:
        return [facts["tags"]["factor"] for facts in self.rates]

    def at_factor(self, factor: float) -> Facts | None:
        """The rate that is so many times the usual one."""
        return next((facts for facts in self.rates if math.isclose(facts["tags"]["factor"], factor)), None)

    def states(self, which: Which) -> dict[int, dict]:
        """By seed, of the seeds that have one."""
        return {seed: facts["states"][key] for seed, facts in sorted(self.finals.items()) if (key := which(facts))}

    def row_means(self, which: Which, seeds: Iterable[int]) -> list[float]:
        """The mean over these seeds, which all have the state, of each test row's mark."""
        return mean_by_row(marks_of(facts, which(facts) or "") for facts in map(self.finals.__getitem__, seeds))

    def losses(self, which: Which) -> list[float]:
        return [state["validation_loss"] for state in self.states(which).values()]

    def scores(self, which: Which) -> list[float]:
        """Of the task's metric, in percent."""
        return [100 * state["scores"][state["metric"]] for state in self.states(which).values()]


def loss_of(rate: Facts) -> float | None:
    """None: training diverged."""
    return rate["training"]["best_validation_loss"]


def as_trained(facts: Facts) -> str | None:
    return "trained" if "trained" in facts["states"] else None


def rounded_afterwards(facts: Facts) -> str | None:
    return next((key for key in facts["states"] if key.startswith("requantized")), None)


def at_k_bits(facts: Facts) -> str | None:
    """What a row ends in where the model must have k bits: rounded afterwards, or merged into k bits."""
    exact = next((key for key in facts["states"] if key.startswith("merged") and key != "merged-16bit"), None)
    return rounded_afterwards(facts) or exact


def rate_of(facts: Facts) -> str:
    """The learning rate, or the threshold, that the cell was given."""
    return value_after(facts["argv"], "--omega" if "--omega" in facts["argv"] else "--lr")


def gather(cells: Cells, plan: str) -> list[Found]:
    """In the order of the plan. A seed counts at the best rate only: one that was done before a better rate was found
    is left out."""
    found: dict[tuple, Found] = {}
    rows = {row.name: row for row in every_row()}
    for facts in cells.facts.values():
        tags = facts["tags"]
        if facts["plan"] != plan or tags["role"] == "base":
            continue
        key = tags["row"], tags["bits"], tags["part"], tags.get("slower", 1.0)
        one = found.setdefault(key, Found(tags["row"], tags["title"], tags["part"], tags["bits"], key[-1]))
        if tags["role"] == "rate":
            one.rates.append(facts)
        else:
            one.finals[tags["seed"]] = facts
    for one in found.values():
        one.rates.sort(key=lambda facts: facts["tags"]["value"])
        if (row := rows.get(one.row)) and row.rates_of:
            one.lender = found.get((row.rates_of, 16, "methods", 1.0))
        elif one.part == "time":
            one.lender = found.get((one.row, one.bits, "methods", 1.0))
        elif lender := BORROWED[plan].get(one.bits):
            one.lender = found.get((one.row, lender, one.part, one.slower))
        if one.best:
            best = rate_of(one.best)
            one.finals = {seed: facts for seed, facts in one.finals.items() if rate_of(facts) == best}
    order = {name: i for i, name in enumerate(rows)}
    return sorted(found.values(), key=lambda one: (order.get(one.row, len(order)), -one.bits, one.slower))


def first_table(found: Sequence[Found]) -> list[Found]:
    return [one for one in found if one.part == "methods"]


def half_interval(one: Found, which: Which) -> float | None:
    """Half of the 95 % interval of the score over test rows, in points. None: it has fewer than two rows."""
    rows = one.row_means(which, one.states(which))
    return 100 * half_width(rows) if len(rows) > 1 else None


# ---- tests ----------------------------------------------------------------------------------------------------------

def compared(a: Found, b: Found, which: Which) -> Judged | None:
    """a - b on the same test rows; each row's mark is averaged over the seeds that both have. None: they have none.

    Rows end in states with different names, so the states are chosen cell by cell."""
    seeds = sorted(a.states(which).keys() & b.states(which).keys())
    if not seeds:
        return None
    marks = [one.row_means(which, seeds) for one in (a, b)]
    if len(marks[0]) != len(marks[1]):
        return None
    return Judged({"row": a.row, "beside": b.row, "bits": min(a.bits, b.bits)}, compare_scores(*marks), len(seeds))


@dataclass(frozen=True)
class Tested:
    """One test of a family: a - b, in the state that `which` chooses."""
    a: Found
    b: Found
    which: Which
    judged: Judged

    @property
    def significant(self) -> bool:
        return self.judged.adjusted is not None and self.judged.adjusted < LEVEL

    @property
    def same_models(self) -> bool:
        """Whether two states of the same models are compared."""
        return (self.a.row, self.a.bits, self.a.slower) == (self.b.row, self.b.bits, self.b.slower)

    def seed_scores(self) -> list[list[float]]:
        """Of a and of b: the score in percent of each seed that both have."""
        a, b = (one.states(self.which) for one in (self.a, self.b))
        return [[100 * states[seed]["scores"][states[seed]["metric"]] for seed in sorted(a.keys() & b.keys())]
                for states in (a, b)]


def tested_pairs(pairs: Sequence[tuple[Found, Found]], which: Which) -> list[Tested]:
    """One family, corrected after Holm. Pairs without a common seed are left out."""
    made = [(a, b, judged) for a, b in pairs if (judged := compared(a, b, which))]
    return [Tested(a, b, which, judged)
            for (a, b, _), judged in zip(made, family(judged for *_, judged in made), strict=True)]


def tested(pairs: Sequence[tuple[Found, Found]], which: Which) -> dict[tuple[str, int], Judged]:
    """The same family: by row and width."""
    return {(one.judged.what["row"], one.judged.what["bits"]): one.judged for one in tested_pairs(pairs, which)}
