"""What the comparison of methods leaves open: rates not tuned, scores of zero, the spread over seeds, parts not run."""
import math
import statistics
from collections.abc import Sequence

from experiments.claims.evidence import spread_not_in_tests
from experiments.claims.method_findings import listed, rounded_pairs, target_pairs
from experiments.claims.method_parts import PARTS, part_families
from experiments.claims.method_rows import Found, Tested, as_trained, at_k_bits, first_table, tested_pairs
from experiments.claims.method_tables import STATES, balance, reference_pairs, titled
from experiments.plans.method_rows import REFERENCE, WIDTHS

ERRORS = 3  # with three seeds, p = 0.05 is at 2.8 to 4.3 of them


def of_borrowed(found: Sequence[Found]) -> list[str]:
    """The widths that were not tuned."""
    lent = [one for one in first_table(found) if one.lender and one.finals and one.best]
    if not lent:
        return []
    widths = sorted({one.bits for one in lent}, reverse=True)
    return [f"At {listed(list(map(str, widths)))} bits no rate was tuned: each row uses its best rate of 4 bits, "
            f"{REFERENCE} too. Differences may come from the rate."]


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
    run = {one.part for one in found if one.finals}
    missing = [part.words for part in PARTS if part.name not in run]
    said = [f"Not decided, as no cell was run: {listed(missing)}."] if missing else []
    return said + of_seeds(found)


def of_seeds(found: Sequence[Found]) -> list[str]:
    """What the tests over test rows leave out: of all families."""
    said = spread_not_in_tests((f"{one.title} at {one.bits} bits", one.scores(which))
                               for one in found for which in STATES.values())
    if max((len(one.finals) for one in found), default=0) <= 1:
        return said
    few = {name: short for name, tests in families(found).items() if (short := within_the_spread(tests))}
    if not few:
        return [f"{said[0]} What is significant, of rows with several seeds, is {ERRORS} standard errors over seeds or "
                f"more, in every family."]
    return [f"{said[0]} Next, by family: what is significant over rows, and less than {ERRORS} standard errors over "
            f"seeds. Other seeds may turn it. (Points; the standard error over seeds.)",
            *(f"{name}: less than {ERRORS} standard errors over seeds for {'; '.join(short)}."
              for name, short in few.items())]


def families(found: Sequence[Found]) -> dict[str, list[Tested]]:
    """All tests of the page, by family or families that are alike."""
    beside = {name: [one for pairs in reference_pairs(found) for one in tested_pairs(pairs, which)]
              for name, which in STATES.items()}
    at_k = [(one.a, one.b, one.judged.comparison.difference) for one in beside["at k bits"]]
    others = [one for one in beside["as trained"] if (one.a, one.b, one.judged.comparison.difference) not in at_k]
    return {"Beside QA-BLoRA 4x8, at k bits": beside["at k bits"],
            "Beside QA-BLoRA 4x8, as trained, where that is not the same at k bits": others,
            "Q-BLoRA beside QLoRA, as trained": tested_pairs(balance(found), as_trained),
            "Rounded afterwards beside the same models as trained (p not corrected)": rounded_pairs(found),
            "Merges beside QLoRA rounded afterwards": tested_pairs(target_pairs(found), at_k_bits),
            **part_families(found)}


def within_the_spread(tests: Sequence[Tested]) -> list[str]:
    """The significant differences a - b with |a - b| < ERRORS sqrt(var(a) / n + var(b) / n), a and b the mean scores of
    the n seeds that both have. Of two states of the same models: < ERRORS sqrt(var(a - b) / n)."""
    said = []
    for one in tests:
        scores = one.seed_scores()
        seeds = scores[0]
        if not one.significant or len(seeds) < 2:
            continue
        if one.same_models:
            scores = [[a - b for a, b in zip(*scores, strict=True)], [0.0] * len(seeds)]
        difference = statistics.mean(scores[0]) - statistics.mean(scores[1])
        error = math.sqrt(sum(map(statistics.variance, scores)) / len(seeds))
        if abs(difference) < ERRORS * error:
            said.append(f"{named(one)} ({difference:+.1f}; {error:.1f})")
    return said


def named(one: Tested) -> str:
    bits = one.judged.what["bits"]
    if one.a.part != "methods":
        return f"{titled(one.a)} minus {one.b.title} at {bits} bits"
    return f"{one.a.title} at {bits} bits" if one.a.bits == bits else f"{one.a.title} on 16 bits, beside {bits} bits"
