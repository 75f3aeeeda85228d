"""What PTQ takes from SFT, and how much of it QLoRA wins back. Not in the plan."""
from dataclasses import dataclass

from experiments.claims.evidence import LEVEL, Cells, Judged, compared
from experiments.claims.ptq_rows import PLAN, QUANTIZERS, TASKS, group_of, settings

NARROW = (3, 2)  # the widths of open question 2


@dataclass(frozen=True)
class Share:
    """Of one task, quantizer and width: lost = SFT - SFT -> PTQ, won = SFT -> PTQ -> QLoRA - SFT -> PTQ."""
    what: tuple[str, str, int]
    lost: Judged
    won: Judged

    @property
    def loses(self) -> bool:
        """The loss is significant, p not corrected. A share of nothing says nothing."""
        p = self.lost.comparison.p_value
        return p is not None and p < LEVEL and self.lost.comparison.difference > 0

    @property
    def share(self) -> str:
        return f"{100 * self.won.comparison.difference / self.lost.comparison.difference:.0f}" if self.loses else "-"

    @property
    def words(self) -> str:
        """`38.9 of 44.4 on banking77`"""
        won, lost = (f"{100 * one.comparison.difference:.1f}" for one in (self.won, self.lost))
        return f"{won} of {lost} on {self.what[0]}"


def shares(cells: Cells) -> list[Share]:
    found = []
    for task, how, bits in settings(TASKS):
        sft, ours = group_of(cells, PLAN, task, "sft"), group_of(cells, PLAN, task, "sft-qlora", how, bits)
        lost = compared({}, sft, "trained", ours, "quantized")
        won = compared({}, ours, "trained", ours, "quantized")
        if lost and won:
            found.append(Share((task, how, bits), lost, won))
    return found


def table(found: list[Share]) -> dict:
    """One row a task, quantizer and width."""
    rows = []
    for one in found:
        p = one.lost.comparison.p_value
        rows.append([*map(str, one.what), one.lost.points, "-" if p is None else f"{p:.2g}", one.won.points, one.share])
    return {"caption": "What PTQ lost, and how much of it QLoRA won back (not in the plan, p not corrected). The share "
                       "is left out where the loss is not significant.",
            "columns": ["task", "quantizer", "bits", "lost: SFT - SFT -> PTQ, points [95 %]", "p of the loss",
                        "won back, points [95 %]", "share, %"], "rows": rows}


def won_back(found: list[Share]) -> list[str]:
    """A finding: won of lost at 3 and 2 bits, by quantizer and width, where PTQ lost significantly."""
    said = []
    for how in QUANTIZERS:
        for bits in NARROW:
            if some := [one.words for one in found if one.what[1:] == (how, bits) and one.loses]:
                said.append(f"By {how.upper()} at {bits} bits: {', '.join(some)}.")
    return [f"That tests whether QLoRA gains at all. This is what it wins back of the points that PTQ lost, where the "
            f"loss is significant (not in the plan, p not corrected). {' '.join(said)}"] * bool(said)


def title(found: list[Share], how: str, bits: int) -> str:
    """Of a picture."""
    of_width = [one for one in found if one.what[1:] == (how, bits)]
    words = [one.words for one in of_width if one.loses]
    if not words:
        return f"PTQ by {how.upper()} at {bits} bits {'loses nothing significant' if of_width else 'has no cells'}"
    return f"At {bits} bits by {how.upper()}, QLoRA wins back points that PTQ lost: {', '.join(words)}"
