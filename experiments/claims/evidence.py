"""cells.json as evidence: seeds of one setting as a group, paired tests over test rows, Holm's correction, verdicts."""
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.cells.file import read_cells
from experiments.claims.claim import Claim, Verdict
from tasks.significance import Comparison, compare_scores

LEVEL = 0.05
CONFIRMED, NOT_CONFIRMED, OPPOSITE = "confirmed", "not confirmed", "the opposite"
NOT_DECIDED = "not decided, too few cells,"
OF_SEVERAL = ("How verdicts are made: a claim with several comparisons is confirmed if at least half of them are "
              "significantly above and none is below. It is the opposite if more are below than above. A bootstrap of "
              "10,000 draws has no p below 0.0001 before correction; an exact test may have.")

Facts = dict
Group = dict[int, Facts]  # seed -> the facts of its cell


def marks_of(facts: Facts, state: str) -> list[float]:
    """The mark of each test row. In cells.json, marks that are all 0 or 1 are one text."""
    return [float(mark) for mark in facts["states"][state]["marks"]]


class Cells:
    """The cells of some files that did not fail. Of a cell that is in two files, the later file's counts."""

    def __init__(self, files: Sequence[Path]):
        self.files = [read_cells(file) for file in files]
        self.facts = {name: facts for file in self.files for name, facts in file["cells"].items()
                      if "error" not in facts}
        self.failed = {name: facts for file in self.files for name, facts in file["cells"].items()
                       if "error" in facts and name not in self.facts}

    def group(self, plan: str, **tags: object) -> Group:
        """The cells with these tags, by seed; cells without a seed count as seed 0."""
        return {facts["tags"].get("seed", 0): facts for facts in self.facts.values()
                if facts["plan"] == plan and all(facts["tags"].get(name) == value for name, value in tags.items())}

    def about(self, plan: str) -> str:
        """The plan's text, as it was when its cells were run last."""
        return next(file["plans"][plan] for file in reversed(self.files) if plan in file["plans"])

    def planned(self, plan: str) -> list[str]:
        """The names of the cells that the plan has, done or not. Empty for files that do not say so."""
        return next((names for file in reversed(self.files) if (names := file.get("planned", {}).get(plan))), [])

    def of_prefix(self, prefix: str) -> "Cells":
        """Those whose names begin so."""
        some = Cells([])
        some.files = self.files
        some.facts = {name: facts for name, facts in self.facts.items() if name.startswith(prefix)}
        return some


# ---- scores --------------------------------------------------------------------------------------------------------

def with_state(group: Group, state: str) -> Group:
    return {seed: facts for seed, facts in group.items() if state in facts["states"]}


def row_means(group: Group, state: str, seeds: Iterable[int]) -> list[float]:
    """The mean over the seeds of each test row's mark."""
    return mean_by_row(marks_of(group[seed], state) for seed in seeds)


def mean_by_row(of_seeds: Iterable[Sequence[float]]) -> list[float]:
    return [statistics.mean(marks) for marks in zip(*of_seeds, strict=True)]


def half_width(rows: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean over test rows. NaN of fewer than two."""
    return 1.96 * statistics.stdev(rows) / math.sqrt(len(rows)) if len(rows) > 1 else math.nan


@dataclass(frozen=True)
class Score:
    """A state's mean mark over rows and seeds. `half`: of the 95 % interval over test rows; `deviation`: over seeds."""
    mean: float
    half: float
    deviation: float | None
    seeds: int

    def __str__(self) -> str:
        """`71.3 ± 0.8`: percent, and the deviation over the seeds."""
        return f"{100 * self.mean:.1f}" + ("" if self.deviation is None else f" ± {100 * self.deviation:.1f}")


def score_of(group: Group, state: str) -> Score | None:
    """None if no seed has that state."""
    found = with_state(group, state)
    if not found:
        return None
    rows = row_means(found, state, found)
    of_seeds = [statistics.mean(marks_of(facts, state)) for facts in found.values()]
    return Score(statistics.mean(rows), half_width(rows),
                 statistics.stdev(of_seeds) if len(of_seeds) > 1 else None, len(found))


def figure_of(group: Group, state: str, name: str) -> list[float]:
    """A figure of the state, such as validation_loss, of each seed that has it."""
    return [facts["states"][state][name] for facts in with_state(group, state).values()]


def seed_scores(group: Group, state: str) -> list[float]:
    """The score of each seed that has the state, in percent, in the order of the seeds."""
    found = with_state(group, state)
    return [100 * statistics.mean(marks_of(found[seed], state)) for seed in sorted(found)]


def spread_not_in_tests(rows: Iterable[tuple[str, Sequence[float]]]) -> list[str]:
    """A finding: what tests over test rows leave out, with the row that has the largest spread over seeds.

    rows: (how a reader finds the row, its scores by seed, in percent). No sentence if there are no scores."""
    found = [(name, scores) for name, scores in rows if scores]
    spreads = [(statistics.stdev(scores), name, scores) for name, scores in found if len(scores) > 1]
    if not spreads:
        return ["Each row has one seed. Intervals and tests are over test rows, so the spread over seeds is not "
                "known."] * bool(found)
    most, name, scores = max(spreads, key=lambda one: one[0])
    return [f"Intervals and tests are over test rows, of the models that were trained. The spread over seeds is not in "
            f"them: a standard deviation of up to {most:.1f} points ({name}: "
            f"{', '.join(f'{score:.1f}' for score in scores)} % of {len(scores)} seeds)."]


def mean_cell(values: Sequence[float], digits: int = 3, sign: str = "") -> str:
    """`mean_cell([1, 2]) == "1.500 ± 0.707"`"""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.{digits}f}{spread}"


# ---- tests ---------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Judged:
    """One comparison of a family: a - b, and what it says of the claim that a is above b."""
    what: dict                # how it is called in tables: {"task": ..., "trained at": ...}
    comparison: Comparison
    seeds: int
    adjusted: float | None = None  # p, corrected for the family

    @property
    def verdict(self) -> str:
        if self.adjusted is None or self.adjusted >= LEVEL:
            return NOT_CONFIRMED
        return CONFIRMED if self.comparison.difference > 0 else OPPOSITE

    @property
    def points(self) -> str:
        """`+3.1 [+0.8, +5.5]`: percentage points, and their 95 % interval."""
        c = self.comparison
        interval = "" if c.low is None or c.high is None else f" [{100 * c.low:+.1f}, {100 * c.high:+.1f}]"
        return f"{100 * c.difference:+.1f}{interval}"


def compared(what: dict, a: Group, state_a: str, b: Group, state_b: str) -> Judged | None:
    """a and b on the same test rows, each row's mark averaged over the seeds that both have. None: they have none."""
    a, b = with_state(a, state_a), with_state(b, state_b)
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        return None
    return Judged(what, compare_scores(row_means(a, state_a, seeds), row_means(b, state_b, seeds)), len(seeds))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: with m of them in rising order, the i-th is max over j <= i of min(1, (m - j + 1) p_j).

    `holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]`. Source: Holm 1979."""
    order, adjusted, largest = sorted(range(len(p_values)), key=p_values.__getitem__), [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def family(found: Iterable[Judged | None]) -> list[Judged]:
    """The comparisons that could be made, corrected for their number. One without a p-value stays without."""
    every = [judged for judged in found if judged]
    tested = [i for i, judged in enumerate(every) if judged.comparison.p_value is not None]
    adjusted = holm([every[i].comparison.p_value or 0.0 for i in tested])
    for i, p in zip(tested, adjusted, strict=True):
        every[i] = replace(every[i], adjusted=p)
    return every


def p_cell(judged: Judged) -> str:
    return "-" if judged.adjusted is None else f"{judged.adjusted:.2g}"


def overall(judged: Sequence[Judged]) -> str:
    """Of a claim with several comparisons: confirmed if at least half say so and none the opposite, the opposite if
    more say that than confirm, else not confirmed."""
    counts = {verdict: sum(one.verdict == verdict for one in judged) for verdict in (CONFIRMED, OPPOSITE)}
    if judged and 2 * counts[CONFIRMED] >= len(judged) and not counts[OPPOSITE]:
        return CONFIRMED
    return OPPOSITE if counts[OPPOSITE] > counts[CONFIRMED] else NOT_CONFIRMED


def judged_at_this_scale(claim: Claim, judged: Sequence[Judged], planned: int = 0) -> Claim:
    """`Restoring raises the score: not confirmed at this scale (3 of 20 comparisons significantly above, ...).`
    Not decided if fewer than half of the planned comparisons could be made."""
    ups, downs = (sum(one.verdict == verdict for one in judged) for verdict in (CONFIRMED, OPPOSITE))
    if not judged:
        return claim
    ps = [one.adjusted for one in judged if one.adjusted is not None]
    smallest = f", smallest corrected p {min(ps):.2g}" if ps else ""
    verdict = NOT_DECIDED if 2 * len(judged) < planned else overall(judged)
    missing = f", {planned - len(judged)} more were planned" if planned > len(judged) else ""
    figures = f"{ups} of {len(judged)} comparisons significantly above, {downs} below{smallest}{missing}"
    return replace(claim, verdicts=(Verdict(verdict, figures, where="at this scale"),))


def table_of(judged: Sequence[Judged], difference: str) -> dict:
    """One row a comparison."""
    names = list(judged[0].what) if judged else []
    return {"columns": [*names, difference, "p (Holm)", "test", "seeds", "verdict"],
            "rows": [[*map(str, one.what.values()), one.points, p_cell(one), one.comparison.test, str(one.seeds),
                      one.verdict] for one in judged]}
