"""What the comparison of methods leaves open: rates not tuned, scores of zero, the spread over seeds, parts not run."""
import math
import statistics
from collections.abc import Sequence

from experiments.claims.evidence import LEVEL
from experiments.claims.method_findings import listed
from experiments.claims.method_rows import Found, as_trained, at_k_bits, first_table
from experiments.claims.method_tables import against_reference
from experiments.plans.method_rows import REFERENCE, WIDTHS

ERRORS = 3  # with three seeds, p = 0.05 is at 2.8 to 4.3 of them


def of_borrowed(found: Sequence[Found]) -> list[str]:
    """The widths that were not tuned."""
    lent = [one for one in first_table(found) if one.lender and one.finals and one.best]
    if not lent:
        return []
    widths = sorted({one.bits for one in lent}, reverse=True)
    return [f"At {listed(list(map(str, widths)))} bits no rate was tuned: each row has its best rate of 4 bits, "
            f"{REFERENCE}, which all rows are tested against, too. Differences may come from the rate."]


def of_nothing(found: Sequence[Found]) -> list[str]:
    """The widths at which several rows have no right answer."""
    said = []
    for bits in WIDTHS:
        none = [one.title for one in first_table(found)
                if one.bits == bits and (scores := one.scores(as_trained)) and not any(scores)]
        if len(none) > 1:
            said.append(f"At {bits} bits, {len(none)} rows score 0 %: {'; '.join(none)}. Comparisons between these say "
                        f"nothing.")
    return said


def of_edges(found: Sequence[Found]) -> list[str]:
    """The rows with a trained model whose best rate is the lowest or the highest that was tried, by width."""
    said = []
    for bits in (16, *WIDTHS):
        edges = [f"{one.title} ({one.best['tags']['value']:g})" for one in first_table(found)
                 if one.bits == bits and one.finals and one.at_edge and one.best]
        if edges:
            said.append(f"At {bits} bits, the best rate is at the edge of those tried for {'; '.join(edges)}. A better "
                        f"one may lie beyond, so comparisons with these rows hold among the rates tried only.")
    return said


def of_threshold(found: Sequence[Found]) -> list[str]:
    """Whether LoTA-QAF's thresholds reach its best."""
    rows = [one for one in first_table(found) if one.row == "lota" and one.bits == 4 and one.best and one.at_edge]
    return [f"LoTA-QAF may not be at its best: the best threshold at 4 bits, {one.best['tags']['value']:g}, is "
            f"an end of those tried." for one in rows if one.best]


def unseen(found: Sequence[Found]) -> list[str]:
    """What no cell decides: further parts that were not run, and how many seeds there are."""
    parts = {"operators": "other operators", "blocks": "other blocks", "parameters": "equal parameters",
             "time": "equal wall-clock", "targets": "three targets on one base",
             "afterwards": "LoRA on 16 bits, rounded afterwards"}
    run = {one.part for one in found if one.finals}
    missing = [words for part, words in parts.items() if part not in run]
    said = [f"Not decided, as no cell was run: {listed(missing)}."] if missing else []
    return said + of_seeds(found)


def of_seeds(found: Sequence[Found]) -> list[str]:
    """What the tests over test rows leave out."""
    seeds = max((len(one.finals) for one in found), default=0)
    if seeds <= 1:
        return ["Each row has one seed. Intervals and tests are over test rows, so the spread over seeds is not "
                "known."] * seeds
    spread = max(statistics.stdev(scores) for one in first_table(found) if len(scores := one.scores(as_trained)) > 1)
    said = (f"Intervals and tests are over test rows, of the models that were trained. The spread over seeds is not in "
            f"them: a standard deviation of up to {spread:.1f} points.")
    few = within_the_spread(found)
    return [said + (f" Significant at k bits over rows, and less than {ERRORS} standard errors over seeds: "
                    f"{'; '.join(few)}. Other seeds may turn these." if few else
                    f" What is significant at k bits, of rows with several seeds, is {ERRORS} standard errors over "
                    f"seeds or more.")]


def within_the_spread(found: Sequence[Found]) -> list[str]:
    """The significant differences a - b from REFERENCE with |a - b| < ERRORS sqrt(var(a) / n + var(b) / n), a and b the
    mean scores of the n seeds that both have."""
    rows = {(one.row, one.bits): one for one in first_table(found)}
    said = []
    for (row, bits), judged in against_reference(found)["at k bits"].items():
        a, b = (rows[name, bits].states(at_k_bits) for name in (row, REFERENCE))
        seeds = sorted(a.keys() & b.keys())
        if len(seeds) < 2 or judged.adjusted is None or judged.adjusted >= LEVEL:
            continue
        scores = [[100 * states[seed]["scores"][states[seed]["metric"]] for seed in seeds] for states in (a, b)]
        difference = statistics.mean(scores[0]) - statistics.mean(scores[1])
        error = math.sqrt(sum(map(statistics.variance, scores)) / len(seeds))
        if abs(difference) < ERRORS * error:
            said.append(f"{rows[row, bits].title} at {bits} bits ({difference:+.1f} ± {error:.1f})")
    return said
