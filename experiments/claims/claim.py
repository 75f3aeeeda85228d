"""A claim and what was found of it, as data: a sentence for the list of findings, a row for the table of verdicts."""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


def listed(words: Sequence[str]) -> str:
    """`listed(["4", "3", "2"]) == "4, 3 and 2"`"""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


@dataclass(frozen=True)
class Verdict:
    """`word`, such as confirmed, of some widths, or `where`, such as "at this scale". `of`: the comparison it is on, if
    the claim has several. `figures`: what it rests on."""
    word: str
    figures: str
    bits: tuple[int, ...] = ()
    where: str = ""
    of: str = ""

    @property
    def short(self) -> str:
        """`banking77, 4 bits: not confirmed`, `confirmed at 4 and 3 bits`"""
        where = f"at {listed(list(map(str, self.bits)))} bits" if self.bits else self.where
        return (f"{self.of}: " if self.of else "") + f"{self.word} {where}".rstrip()

    def __str__(self) -> str:
        return f"{self.short} ({self.figures})"


@dataclass(frozen=True)
class Claim:
    """`words` of the claim, with what it leaves out or adds in brackets.

    source: who says so and where, such as "Shen et al., Table 6"; empty: nobody, or the words say it.
    reservation: what a reader of the verdict alone must know, such as "not in the plan".
    family: the comparisons that p is corrected for, where that is not the plan's.
    verdicts: empty if there were no cells to judge it by.
    more: sentences that qualify the verdicts."""
    words: str
    verdicts: tuple[Verdict, ...] = ()
    source: str = ""
    reservation: str = ""
    family: str = ""
    more: str = ""

    @property
    def short(self) -> str:
        """The verdicts without figures. Neighbours of the same word are one: `confirmed at 4 and 3 bits`."""
        joined: list[Verdict] = []
        for one in self.verdicts:
            last = joined[-1] if joined else None
            if last and last.bits and one.bits and (last.word, last.of) == (one.word, one.of):
                joined[-1] = Verdict(one.word, "", last.bits + one.bits, of=one.of)
            else:
                joined.append(one)
        return "; ".join(one.short for one in joined) or "not tested, no cells"

    @property
    def headline(self) -> str:
        """The title of a picture."""
        return f"{self.words}: {self.short}"

    def __str__(self) -> str:
        """`CLAIM (SOURCE; RESERVATION; FAMILY): VERDICT at WIDTHS (FIGURES); VERDICT at WIDTHS (FIGURES). More.`"""
        brackets = "; ".join(filter(None, (self.source, self.reservation, self.family)))
        said = "; ".join(map(str, self.verdicts)) or self.short
        return f"{self.words}{f' ({brackets})' * bool(brackets)}: {said}.{f' {self.more}' * bool(self.more)}"

    def row(self) -> dict[str, str]:
        """What a record keeps of it."""
        reservation = f" ({self.reservation})" if self.reservation else ""
        return {"claim": self.words + reservation, "source": self.source, "found": self.short}


def told(findings: Iterable[str | Claim]) -> dict[str, Any]:
    """The findings of a record as sentences, and its claims as rows."""
    every = list(findings)
    return {"findings": list(map(str, every)), "claims": [one.row() for one in every if isinstance(one, Claim)]}
