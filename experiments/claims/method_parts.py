"""What the further parts of the comparison of methods say of each claim: one family a part, corrected after Holm."""
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from experiments.claims.claim import Claim, Verdict
from experiments.claims.evidence import overall
from experiments.claims.method_findings import not_run, turned
from experiments.claims.method_rows import Found, Tested, Which, as_trained, at_k_bits, first_table, tested_pairs
from experiments.claims.method_tables import p_words, titled

SEEDS = 3
Rows = Callable[[Found], Iterable[str]]  # of a row of the part: the rows of the first table it is tested against


@dataclass(frozen=True)
class PartClaim:
    """What is claimed of some rows of a part. In each test the row of the part is a, that of the first table b.

    source: where the paper says so; empty: nowhere.
    above: which of the two is claimed to score above the other.
    row: whether a row of the part is meant.
    named: which of the two is named beside the difference."""
    words: str
    source: str
    above: str
    row: Callable[[str], bool] = lambda row: True
    named: str = "a"


@dataclass(frozen=True)
class Part:
    """`widths`: those of the plan."""
    name: str
    words: str
    widths: tuple[int, ...]
    which: Which
    beside: Rows
    claims: tuple[PartClaim, ...]


def block_of(row: str) -> int:
    """The weights of a block: of `qablora-16x2`, 32."""
    inputs, outputs = row.split("-")[1].split("x")
    return int(inputs) * int(outputs)


def without_operator(one: Found) -> list[str]:
    return [one.row.rsplit("-", 1)[0]]


def best_of_size(one: Found) -> list[str]:
    """Shen et al., Figure 7b: the best block of as many weights."""
    return ["qablora-4x8" if block_of(one.row) == 32 else "qablora-8x8"]


PARTS = (
    Part("operators", "other operators", (4,), as_trained, without_operator, tuple(
        PartClaim(f"Average pooling scores above {words}", "Shen et al., Table 6", "b",
                  lambda row, name=name: row.endswith(name), "b")
        for name, words in (("truncation", "truncation"), ("interval", "sampling at intervals")))),
    Part("blocks", "other blocks", (4,), at_k_bits, best_of_size, (
        PartClaim("Of blocks of 32 weights, 4x8 scores above the others", "Shen et al., Figure 7b", "b",
                  lambda row: block_of(row) == 32),
        PartClaim("Of blocks of 64 weights, 8x8 scores above the others", "Shen et al., Figure 7b", "b",
                  lambda row: block_of(row) == 64))),
    Part("parameters", "equal parameters", (4, 2), at_k_bits, lambda one: ["qablora-4x8"], (
        PartClaim("QA-BLoRA 4x8 scores above methods with as many trainable parameters, all at k bits", "", "b"),)),
    Part("time", "equal wall-clock", (4, 2), as_trained, lambda one: ["qlora"], (
        PartClaim("With fewer steps, in QLoRA's time, Q-BLoRA scores above QLoRA", "Shen et al., Table 5", "a"),)),
    Part("targets", "three targets on one base", (4, 2), at_k_bits, lambda one: ["qalora", "lota"], (
        PartClaim("On QA-LoRA's base, merging into the codes scores above QA-LoRA and LoTA-QAF", "", "a",
                  lambda row: row == "codes-gptq", "b"),
        PartClaim("On QA-LoRA's base, training scale and offset scores above QA-LoRA and LoTA-QAF", "", "a",
                  lambda row: row == "scaleoffset-gptq", "b"))),
    Part("afterwards", "LoRA on 16 bits, rounded afterwards", (4, 3, 2), at_k_bits,
         lambda one: ["qlora", "qalora", "qablora-4x8", "peqa", "codes-residual", "scaleoffset"], (
             PartClaim("Training on the quantized base scores above LoRA on 16 bits that is rounded afterwards", "",
                       "b", named="b"),)))


def part_tests(found: Sequence[Found], part: Part) -> list[Tested]:
    """All of a part: one family."""
    first = {(one.row, one.bits): one for one in first_table(found)}
    pairs = [(one, first[row, one.bits]) for one in found if one.part == part.name for row in part.beside(one)
             if (row, one.bits) in first]
    return tested_pairs(pairs, part.which)


def part_families(found: Sequence[Found]) -> dict[str, list[Tested]]:
    return {f"Further part, {part.words}": part_tests(found, part) for part in PARTS}


def of_parts(found: Sequence[Found]) -> list[str | Claim]:
    """The claims, and one about signs. Parts that were not run say nothing here."""
    said: list[str | Claim] = []
    for part in PARTS:
        tests = part_tests(found, part)
        said += [of_claim(claim, part, tests) for claim in part.claims if any(claim.row(one.a.row) for one in tests)]
    return [*said, "In the claims on further parts, a difference above 0 speaks for the claim."] if said else []


def of_claim(claim: PartClaim, part: Part, tests: Sequence[Tested]) -> Claim:
    """`CLAIM: confirmed at 4 bits (...); not decided at 2 bits (not run). Best rate at an edge: ...`"""
    about = [one for one in tests if claim.row(one.a.row)]
    said, missing = [], []
    for bits in part.widths:
        judged = {named(one, claim.named): turned(one.judged) if claim.above == "b" else one.judged
                  for one in about if one.a.bits == bits}
        if judged:
            shown = "; ".join(f"{name} {one.points} points, {p_words(one)}" for name, one in judged.items())
            said.append(Verdict(overall(list(judged.values())), shown, (bits,)))
        else:
            missing.append(bits)
    return Claim(claim.words, (*said, *not_run(missing)), claim.source, "not in the plan",
                 f"Holm over the {len(tests)} tests of this part", (edges(about) + few_seeds(about)).strip())


def named(one: Tested, which: str) -> str:
    return titled(one.a if which == "a" else one.b)


def edges(tests: Sequence[Tested]) -> str:
    """The rows whose best rate is the lowest or the highest that was tried."""
    rows = {f"{titled(row)} at {row.bits} bits": row for one in tests for row in (one.a, one.b)}
    at = [name for name, row in rows.items() if row.at_edge]
    return f" Best rate at the edge of those tried: {'; '.join(at)}." if at else ""


def few_seeds(tests: Sequence[Tested]) -> str:
    """Rows of the part that are compared over fewer than SEEDS seeds."""
    seeds = {f"{titled(one.a)} at {one.judged.what['bits']} bits": one.judged.seeds for one in tests}
    few = [f"{name} ({number})" for name, number in seeds.items() if number < SEEDS]
    return f" Seeds, where fewer than {SEEDS}: {'; '.join(few)}." if few else ""
