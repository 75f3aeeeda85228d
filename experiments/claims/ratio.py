"""||W_l - W_k|| / ||delta_W||, known before training ends, as a rule that predicts whether restoring helps."""
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.claims import pictures
from experiments.claims.claim import Claim, Verdict
from experiments.claims.evidence import Cells, Group, mean_cell
from tasks.significance import mcnemar_exact

TASKS = ("sql-create-context", "banking77")
WIDTHS = (16, 8, 4, 3, 2)
FITTED, HELD_OUT = TASKS
ALL_MOVES = "all moves"
EARLY = "norm(W_l - W_k) / norm(delta_W) at the first validation"


def group_of(cells: Cells, plan: str, task: str, method: str, bits: int) -> Group:
    return cells.group(plan, task=task, method=method, bits=bits)


def key(bits: int) -> str:
    return f"restored-{bits}bit"


def wider(bits: int) -> list[int]:
    return [width for width in reversed(WIDTHS) if width > bits]


@dataclass(frozen=True)
class Move:
    """One run restored to one width."""
    task: str
    method: str
    trained: int
    restored: int
    early: float  # ||W_l - W_k|| / ||delta_W|| of the first validation
    last: float   # of what was kept
    gain: float   # of restoring: validation loss as trained - restored, nats


def moves(cells: Cells, plan: str, tasks: Sequence[str]) -> list[Move]:
    found = []
    for task in tasks:
        for method in ("qlora", "qalora", "qablora"):
            for bits in WIDTHS[1:]:
                for facts in group_of(cells, plan, task, method, bits).values():
                    found += [move for width in wider(bits) if (move := move_of(facts, task, method, bits, width))]
    return found


def move_of(facts: dict, task: str, method: str, bits: int, width: int) -> Move | None:
    norms = [line["delta_norm"] for line in facts["training"]["validations"] if "delta_norm" in line]
    states = facts["states"]
    if key(width) not in states or not norms:
        return None
    return Move(task, method, bits, width, facts["base_changes"][key(width)] / norms[0],
                states[key(width)]["restoration_ratio"],
                states["trained"]["validation_loss"] - states[key(width)]["validation_loss"])


def threshold(some: Sequence[Move]) -> float:
    """The ratio below which restoring is said to help: the one with the most right signs; between two ratios, their
    geometric mean. The lowest, if several have as many."""
    ratios = sorted(move.early for move in some)
    between = [math.sqrt(a * b) for a, b in zip(ratios, ratios[1:], strict=False)]
    return max([0.0, *between, math.inf], key=lambda t: sum(right(move, t) for move in some))


def right(move: Move, at: float) -> bool:
    return (move.early < at) == (move.gain > 0)


def ranks(values: Sequence[float]) -> list[float]:
    """Mean ranks of ties: `ranks([5, 1, 5]) == [2.5, 1, 2.5]`."""
    return [sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
            for value in values]


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Correlation of the ranks; nan if one of them is constant."""
    try:
        return statistics.correlation(ranks(a), ranks(b))
    except statistics.StatisticsError:
        return math.nan


@dataclass(frozen=True)
class Rule:
    of_what: str  # whose moves: `all moves`
    threshold: float
    fitted: list[Move]
    held_out: list[Move]

    @classmethod
    def of(cls, every: Sequence[Move], of_what: str = ALL_MOVES) -> "Rule":
        fitted, held_out = ([move for move in every if move.task == task] for task in (FITTED, HELD_OUT))
        return cls(of_what, threshold(fitted), fitted, held_out)

    def shares(self, some: Sequence[Move]) -> tuple[float, float]:
        """(of right signs, of the better constant answer)"""
        helped = sum(move.gain > 0 for move in some)
        signs = sum(right(move, self.threshold) for move in some)
        return signs / len(some), max(helped, len(some) - helped) / len(some)

    def p_value(self) -> float:
        """McNemar's exact test on the held-out moves: the rule's signs beside the constant answer of the fitted
        ones: gains, if as many gain as lose."""
        constant = 2 * sum(move.gain > 0 for move in self.fitted) >= len(self.fitted)
        pairs = [(right(move, self.threshold), (move.gain > 0) == constant) for move in self.held_out]
        return mcnemar_exact(sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs))

    def rows(self) -> list[list[str]]:
        rows = []
        for name, some in ((f"fitted ({FITTED})", self.fitted), (f"held out ({HELD_OUT})", self.held_out)):
            if some:
                ours, constant = self.shares(some)
                gains = [move.gain for move in some]
                rows.append([f"{self.of_what}, {name}", str(len(some)), str(sum(gain > 0 for gain in gains)),
                             digits_of(self.threshold, self.fitted), f"{100 * ours:.0f}", f"{100 * constant:.0f}",
                             f"{spearman([move.early for move in some], gains):+.2f}",
                             f"{spearman([move.last for move in some], gains):+.2f}"])
        return rows

    def claim(self) -> Claim:
        claim = Claim(f"The ratio before training ends predicts whether restoring helps, {self.of_what}")
        if not self.fitted or not self.held_out:
            return claim
        (ours, constant), p = self.shares(self.held_out), self.p_value()
        said = "confirmed" if ours > constant and p < 0.05 else "not confirmed"
        gains = [sum(move.gain > 0 for move in some) for some in (self.fitted, self.held_out)]
        figures = (f"{100 * ours:.0f} % right signs, {100 * constant:.0f} % by the better constant answer, exact p "
                   f"beside the fitted constant {p:.2g}; fitted threshold {digits_of(self.threshold, self.fitted)}"
                   f"{', which is to say never' if self.threshold == 0 else ''}; {gains[0]} of {len(self.fitted)} "
                   f"fitted and {gains[1]} of {len(self.held_out)} held-out moves gain")
        return replace(claim, verdicts=(Verdict(said, figures, where="on held-out cells"),))

    def title(self) -> str:
        """Of the picture."""
        if not self.fitted or not self.held_out:
            return "The ratio of the first validation: no cells to test it on"
        ours, constant = self.shares(self.held_out)
        return (f"The early ratio tells {100 * ours:.0f} % of the held-out signs, one constant answer "
                f"{100 * constant:.0f} % ({self.of_what})")

    def hindsight(self) -> list[str]:
        """What a threshold of the held-out cells themselves would have told of them."""
        if not self.fitted or not self.held_out:
            return []
        at = threshold(self.held_out)
        ours, fitted = ([sum(right(move, t) for move in self.held_out) for t in (at, self.threshold)])
        below = sorted({move.trained for move in self.held_out if move.early < at}, reverse=True)
        rho = {task: spearman([move.early for move in some], [move.gain for move in some])
               for task, some in ((HELD_OUT, self.held_out), (FITTED, self.fitted))}
        return [f"In hindsight, {self.of_what}: a threshold of {digits_of(at, self.held_out)} tells {ours} of the "
                f"{len(self.held_out)} held-out signs, the fitted one {fitted}. It tells "
                f"{sum(right(move, at) for move in self.fitted)} of the {len(self.fitted)} fitted ones. Below it are "
                f"held-out moves from {' and '.join(map(str, below)) or 'no'} bits. Spearman's correlation of ratio "
                f"and gain is {' and '.join(f'{value:+.2f} on {task}' for task, value in rho.items())}."] * (
            ours > fitted)


def rules_table(rules: Sequence[Rule]) -> dict:
    return {"caption": "The rule: restoring lowers the validation loss if the ratio at the first validation is below "
                       "the fitted threshold.",
            "columns": ["moves", "number", "gains", "fitted threshold", "right signs, %", "better constant answer, %",
                        "Spearman, early ratio and gain", "Spearman, last ratio and gain"],
            "rows": [row for rule in rules for row in rule.rows()]}


def digits_of(at: float, some: Sequence[Move]) -> str:
    """The threshold in so many digits, two or more, that the printed number gives each move the same sign."""
    return next((text for digits in range(2, 17) if same_signs(text := f"{at:.{digits}g}", at, some)), repr(at))


def same_signs(text: str, at: float, some: Sequence[Move]) -> bool:
    return all((move.early < float(text)) == (move.early < at) for move in some)


def moves_table(every: Sequence[Move]) -> dict:
    """Means over the seeds."""
    groups: dict[tuple, list[Move]] = {}
    for move in every:
        groups.setdefault((move.task, move.method, move.trained, move.restored), []).append(move)
    rows = [[task, method, str(bits), str(width), *(mean_cell([getattr(move, name) for move in group], digits, sign)
             for name, digits, sign in (("early", 2, ""), ("last", 2, ""), ("gain", 4, "+")))]
            for (task, method, bits, width), group in groups.items()]
    return {"caption": "What restoring brings in validation loss, beside the ratio norm(W_l - W_k) / norm(delta_W).",
            "columns": ["task", "method", "trained at", "restored to", "ratio, first validation", "ratio, as kept",
                        "gain, nats"], "rows": rows}


def draw_moves(rule: Rule, path: Path) -> None:
    """QLoRA's moves are filled markers, those of other methods hollow ones."""
    figure, (axes,) = pictures.panels([""], rule.title(), "gain in validation loss by restoring, nats", 7.0, 4.2)
    for some, color, task in ((rule.fitted, pictures.BLUE, f"{FITTED} (fitted)"),
                              (rule.held_out, pictures.ORANGE, f"{HELD_OUT} (held out)")):
        for ours, fill, name in ((True, color, "QLoRA"), (False, "none", "QA-LoRA, QA-BLoRA")):
            if group := [move for move in some if (move.method == "qlora") == ours]:
                axes.plot([move.early for move in group], [move.gain for move in group], color=color, linestyle="none",
                          marker=pictures.MARKS[color], markerfacecolor=fill, label=f"{task}, {name}", alpha=0.8)
    axes.axhline(0, color="0.4", linewidth=0.8)
    if 0 < rule.threshold < math.inf:
        axes.axvline(rule.threshold, color="0.4", linestyle=":",
                     label=f"fitted threshold {digits_of(rule.threshold, rule.fitted)}")
    gains = [0.0, *(move.gain for move in (*rule.fitted, *rule.held_out))]
    axes.set_ylim(min(2 * min(gains), -0.02), max(2 * max(gains), 0.02))  # symlog's own margin cuts markers in half
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_xlabel(EARLY)
    pictures.legend(figure, [axes], 2)
    pictures.save(figure, path)
