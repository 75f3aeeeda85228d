"""What the comparison of methods says of each claim, as one sentence: by width, and undecided where no cell was run."""
from collections.abc import Sequence
from dataclasses import replace

from experiments.claims.claim import Claim, Verdict, listed
from experiments.claims.evidence import CONFIRMED, LEVEL, NOT_CONFIRMED, OPPOSITE, Judged, overall
from experiments.claims.method_rows import (
    Found,
    Tested,
    as_trained,
    at_k_bits,
    compared,
    first_table,
    rounded_afterwards,
    tested,
)
from experiments.claims.method_tables import Tests, balance, deployed, gain, p_words
from experiments.plans.method_rows import FACTORS, REFERENCE, WIDTHS

TARGETS = (("codes", "Merging QLoRA into the codes"),
           ("codes-residual", "Merging QLoRA into the codes, 16-bit weights kept,"),
           ("lota", "LoTA-QAF"), ("scaleoffset", "Training scale and offset"))


def by_width(claim: Claim, tests: Tests, titles: dict[str, str]) -> Claim:
    """`CLAIM: confirmed at 4 bits (+1.2 [+0.1, +2.3] points, p 0.03); not decided at 3 and 2 bits (not run).`"""
    said = []
    for bits in WIDTHS:
        of_width = {row: judged for (row, width), judged in tests.items() if width == bits}
        if of_width:
            named = [f"{titles[row]} " if len(of_width) > 1 else "" for row in of_width]
            shown = "; ".join(f"{name}{judged.points} points, {p_words(judged)}"
                              for name, judged in zip(named, of_width.values(), strict=True))
            said.append(Verdict(overall(list(of_width.values())), shown, (bits,)))
    missing = [bits for bits in WIDTHS if all(width != bits for _, width in tests)]
    return replace(claim, verdicts=(*said, *not_run(missing)))


def not_run(widths: Sequence[int]) -> list[Verdict]:
    """Of the widths that have no cells, one verdict; none if there is no such width."""
    return [Verdict("not decided", "not run", tuple(widths))] if widths else []


def titles_of(found: Sequence[Found]) -> dict[str, str]:
    return {one.row: one.title for one in found}


def beside_reference(found: Sequence[Found], tests: Tests) -> list[str]:
    """Which rows are significantly above REFERENCE, and which below, both at k bits."""
    titles, said = titles_of(found), []
    for bits in sorted({width for _, width in tests}, reverse=True):
        of_width = [(titles[row], judged) for (row, width), judged in tests.items() if width == bits]
        signs = {1: [], -1: []}
        for title, judged in of_width:
            if judged.adjusted is not None and judged.adjusted < LEVEL:
                signs[1 if judged.comparison.difference > 0 else -1].append(
                    f"{title} {100 * judged.comparison.difference:+.1f}")
        above, below = ("; ".join(names) or "none" for names in signs.values())
        said.append(f"Beside {titles[REFERENCE]}, both at {bits} bits, {len(of_width)} rows were tested. Significantly "
                    f"above: {above}. Significantly below: {below}. (Points, p below 0.05 after Holm.)")
    return said


def of_reference(found: Sequence[Found], tests: Tests) -> list[Claim]:
    """Shen et al.'s claims for QA-BLoRA, from the same tests with the sign turned."""
    claims = (("qalora", "QA-BLoRA 4x8 scores above QA-LoRA, both merged into k bits"),
              ("qlora", "QA-BLoRA 4x8 scores above QLoRA rounded afterwards by GPTQ"))
    return [by_width(Claim(words, source="Shen et al., Table 1"),
                     {key: turned(judged) for key, judged in tests.items() if key[0] == row}, titles_of(found))
            for row, words in claims]


def turned(judged: Judged) -> Judged:
    """b - a."""
    c = judged.comparison
    low, high = (None if c.high is None else -c.high), (None if c.low is None else -c.low)
    return replace(judged, comparison=replace(c, difference=-c.difference, low=low, high=high))


def of_balance(found: Sequence[Found]) -> list[str | Claim]:
    """Does the gain of Q-BLoRA over QLoRA survive tuned rates?"""
    lent = sorted({one.bits for one, _ in balance(found) if one.lender}, reverse=True)
    tuned = f" (at {listed(list(map(str, lent)))} bits, that of 4 bits)" if lent else ""
    claim = Claim(f"Q-BLoRA scores above QLoRA, each at its best rate{tuned}", source="Shen et al., Sec. 3.2")
    judged = by_width(claim, tested(balance(found), as_trained), titles_of(found))
    return [judged, at_same_rate(found)] if balance(found) else [judged]


def at_same_rate(found: Sequence[Found]) -> str:
    """In how many cases Q-BLoRA's validation loss is below QLoRA's, rate by rate."""
    said = []
    for factor, words in zip(FACTORS, ("a third of the usual rate", "the usual rate", "three times the usual rate"),
                             strict=True):
        gains = [cell for one, plain in balance(found) if (cell := gain(one, plain, factor)) != "-"]
        said.append(f"in {sum(cell.startswith('-') for cell in gains)} of {len(gains)} cases at {words}")
    return f"At the same rate and seed, Q-BLoRA's validation loss is below QLoRA's {listed(said)}."


CHANGES = {NOT_CONFIRMED: "no difference found", CONFIRMED: "raised", OPPOSITE: "lowered"}


def of_rounding(found: Sequence[Found]) -> Claim:
    """Rounded afterwards minus as trained, of the same models."""
    judged = {(one.a.row, one.a.bits): one.judged for one in rounded_pairs(found)}
    claim = by_width(Claim("Merging to 16 bits and rounding afterwards by GPTQ changes the score of the same model",
                           reservation="not in the plan, p not corrected"), judged, titles_of(found))
    return replace(claim, verdicts=tuple(replace(one, word=CHANGES.get(one.word, one.word)) for one in claim.verdicts))


def rounded_pairs(found: Sequence[Found]) -> list[Tested]:
    """Each row of the first table that is rounded afterwards, beside itself as trained. p is not corrected."""
    rows = [one for one in first_table(found) if one.states(rounded_afterwards)]
    return [Tested(one, unrounded(one), rounded_afterwards, judged) for one in rows
            if (judged := compared_with_itself(one))]


def unrounded(one: Found) -> Found:
    """Its trained state in the place of its rounded one."""
    return Found(one.row, one.title, one.part, one.bits, finals={
        seed: {"states": {"requantized": facts["states"]["trained"]}} for seed, facts in one.finals.items()})


def compared_with_itself(one: Found) -> Judged | None:
    """Its rounded state beside its trained one."""
    judged = compared(one, unrounded(one), rounded_afterwards)
    return judged and replace(judged, adjusted=judged.comparison.p_value)


def of_targets(found: Sequence[Found]) -> list[str | Claim]:
    """Each way to merge exactly, beside QLoRA that is rounded afterwards. One family over rows and widths."""
    tests = tested(target_pairs(found), at_k_bits)
    claims = {row: Claim(f"{name} ends above QLoRA rounded afterwards", reservation="not in the plan",
                         family="Holm over these") for row, name in TARGETS}
    return [*(by_width(claim, {key: judged for key, judged in tests.items() if key[0] == row}, titles_of(found))
              for row, claim in claims.items()), *sizes_of_targets(found)]


def target_pairs(found: Sequence[Found]) -> list[tuple[Found, Found]]:
    """(row of TARGETS, QLoRA) of each width."""
    plain = {one.bits: one for one in first_table(found) if one.row == "qlora"}
    return [(one, plain[one.bits]) for one in first_table(found) if one.row in dict(TARGETS) and one.bits in plain]


def sizes_of_targets(found: Sequence[Found]) -> list[str]:
    """Bits a weight of the models that `of_targets` compares."""
    names, said = ("qlora", *dict(TARGETS)), []
    for bits in WIDTHS:
        sizes = {one.row: f"{one.title} {deployed(one)}" for one in first_table(found)
                 if one.bits == bits and one.row in names and one.states(at_k_bits)}
        if len(sizes) > 1:
            said.append(f"At {bits} bits: {'; '.join(sizes[name] for name in names if name in sizes)}.")
    return [f"These models differ in grid and size, so the target of the merge is not all that differs. Bits a weight, "
            f"QLoRA's rounded afterwards. {' '.join(said)}"] if said else []
