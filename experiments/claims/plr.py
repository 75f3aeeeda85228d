"""What the cells of the plan `plr` say of Kanda & Hatano's claims."""
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.claims import pictures
from experiments.claims.evidence import (
    Cells,
    Group,
    Judged,
    compared,
    family,
    figure_of,
    mean_cell,
    p_cell,
    score_of,
    sentence,
    table_of,
)
from tasks.significance import mcnemar_exact

PLAN = "plr"
TASKS = ("sql-create-context", "banking77")
WIDTHS = (16, 8, 4, 3, 2)
FITTED, HELD_OUT = TASKS


def group_of(cells: Cells, plan: str, task: str, method: str, bits: int) -> Group:
    return cells.group(plan, task=task, method=method, bits=bits)


def key(bits: int) -> str:
    return f"restored-{bits}bit"


def wider(bits: int) -> list[int]:
    return [width for width in reversed(WIDTHS) if width > bits]


# ---- Table 1 -------------------------------------------------------------------------------------------------------

def table_1(cells: Cells, plan: str, tasks: Sequence[str]) -> dict:
    """Scores in percent: a row for each task, method and width it was trained at."""
    rows = []
    for task in tasks:
        for method, bits in (("lora", 16), *(("qlora", bits) for bits in WIDTHS[1:]), ("qalora", 2), ("qablora", 2)):
            group = group_of(cells, plan, task, method, bits)
            untrained = score_of(group, "base" if bits == 16 else "quantized")
            cell = [score_of(group, state) for state in ("trained", *map(key, (3, 4, 8, 16)))]
            if cell[0]:
                rows.append([task, method, str(bits), str(untrained or "-"), *(str(score or "-") for score in cell),
                             mean_cell(figure_of(group, "trained", "validation_loss")), str(len(group))])
    return {"caption": "Score in percent, mean ± standard deviation over the seeds (Kanda & Hatano, Table 1).",
            "columns": ["task", "method", "trained at, bits", "untrained", "as trained", "restored to 3", "to 4",
                        "to 8", "to 16", "validation loss as trained", "seeds"], "rows": rows}


# ---- families ------------------------------------------------------------------------------------------------------

def restored(cells: Cells, plan: str, tasks: Sequence[str], methods: Sequence[str]) -> list[Judged]:
    """Each restored state against as trained."""
    found = []
    for task in tasks:
        for method in methods:
            for bits in WIDTHS[1:]:
                group = group_of(cells, plan, task, method, bits)
                found += [compared({"task": task, "method": method, "trained at": bits, "restored to": width}, group,
                                   key(width), group, "trained") for width in wider(bits)]
    return family(found)


def beside_lora(cells: Cells, plan: str, tasks: Sequence[str]) -> list[Judged]:
    """QLoRA restored to 16 bits against LoRA."""
    return family(compared({"task": task, "QLoRA trained at": bits}, group_of(cells, plan, task, "qlora", bits),
                           key(16), group_of(cells, plan, task, "lora", 16), "trained")
                  for task in tasks for bits in WIDTHS[1:])


# ---- the ratio -----------------------------------------------------------------------------------------------------

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
    threshold: float
    fitted: list[Move]
    held_out: list[Move]

    @classmethod
    def of(cls, every: Sequence[Move]) -> "Rule":
        fitted, held_out = ([move for move in every if move.task == task] for task in (FITTED, HELD_OUT))
        return cls(threshold(fitted), fitted, held_out)

    def shares(self, some: Sequence[Move]) -> tuple[float, float]:
        """(of right signs, of the better constant answer)"""
        helped = sum(move.gain > 0 for move in some)
        return sum(right(move, self.threshold) for move in some) / len(some), max(helped, len(some) - helped) / len(some)

    def p_value(self) -> float:
        """McNemar's exact test on the held-out moves: the rule's signs beside the constant answer of the fitted
        ones."""
        constant = 2 * sum(move.gain > 0 for move in self.fitted) >= len(self.fitted)
        pairs = [(right(move, self.threshold), (move.gain > 0) == constant) for move in self.held_out]
        return mcnemar_exact(sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs))

    def table(self) -> dict:
        rows = []
        for name, some in ((f"fitted ({FITTED})", self.fitted), (f"held out ({HELD_OUT})", self.held_out)):
            if some:
                ours, constant = self.shares(some)
                gains = [move.gain for move in some]
                rows.append([name, str(len(some)), f"{100 * ours:.0f}", f"{100 * constant:.0f}",
                             f"{spearman([move.early for move in some], gains):+.2f}",
                             f"{spearman([move.last for move in some], gains):+.2f}"])
        return {"caption": f"The rule: restoring lowers the validation loss if the ratio at the first of four "
                           f"validations is below {self.threshold:.3g}.",
                "columns": ["moves", "number", "right signs, %", "better constant answer, %",
                            "Spearman, early ratio and gain", "Spearman, last ratio and gain"], "rows": rows}

    def sentence(self) -> str:
        if not self.fitted or not self.held_out:
            return "The ratio before training ends predicts gain or loss: not tested, no cells."
        (ours, constant), p = self.shares(self.held_out), self.p_value()
        said = "confirmed" if ours > constant and p < 0.05 else "not confirmed"
        return (f"The ratio before training ends predicts whether restoring helps: {said} on held-out cells "
                f"({100 * ours:.0f} % right signs, {100 * constant:.0f} % by the better constant answer, exact p beside "
                f"the fitted constant {p:.2g}).")


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


# ---- pictures ------------------------------------------------------------------------------------------------------

def draw_scores(cells: Cells, tasks: Sequence[str], plan: str, title: str, path: Path) -> None:
    """As trained and restored to 16 bits, against the width trained at."""
    figure, axes = pictures.panels(tasks, title, "score, % (95 % interval over test rows)")
    widths = [2, 3, 4, 8]
    for panel, task in zip(axes, tasks, strict=True):
        groups = [group_of(cells, plan, task, "qlora", bits) for bits in widths]
        pictures.level(panel, score_of(group_of(cells, plan, task, "lora", 16), "trained"), pictures.BLACK,
                       "LoRA on 16 bits")
        for state, color, label, shift in (("trained", pictures.ORANGE, "QLoRA as trained", -0.06),
                                           (key(16), pictures.BLUE, "restored to 16 bits", 0.06)):
            pictures.points(panel, [i + shift for i in range(len(widths))],
                            [score_of(group, state) for group in groups], color, label)
        panel.set_xticks(range(len(widths)), [str(bits) for bits in widths])
        panel.set_xlabel("bits of the base in training")
    pictures.legend(figure, axes)
    pictures.save(figure, path)


def draw_moves(rule: Rule, title: str, path: Path) -> None:
    figure, (axes,) = pictures.panels([""], title, "gain in validation loss by restoring, nats", 7.0, 4.2)
    for some, color, label in ((rule.fitted, pictures.BLUE, f"{FITTED} (fitted)"),
                               (rule.held_out, pictures.ORANGE, f"{HELD_OUT} (held out)")):
        axes.plot([move.early for move in some], [move.gain for move in some], color=color, linestyle="none",
                  marker=pictures.MARKS[color], label=label, alpha=0.8)
    axes.axhline(0, color="0.4", linewidth=0.8)
    if 0 < rule.threshold < math.inf:
        axes.axvline(rule.threshold, color="0.4", linestyle=":", label=f"threshold {rule.threshold:.2g}")
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_xlabel("norm(W_l - W_k) / norm(delta_W) at the first of four validations")
    pictures.legend(figure, [axes])
    pictures.save(figure, path)


# ---- the record ----------------------------------------------------------------------------------------------------

def record(cells: Cells, place: Path) -> dict:
    """Writes the pictures into `place`. Returns the section of the page."""
    ours, lora = restored(cells, PLAN, TASKS, ["qlora"]), beside_lora(cells, PLAN, TASKS)
    aware = restored(cells, PLAN, TASKS, ["qalora", "qablora"])
    every = moves(cells, PLAN, TASKS)
    rule = Rule.of([move for move in every if move.method == "qlora"])
    findings = [sentence("Restoring a QLoRA run to more bits raises its score (Kanda & Hatano, Sec. 3.2)", ours),
                equal_to_lora(lora),
                sentence("At 2 bits, restoring QA-LoRA and QA-BLoRA raises their scores (their open question)", aware),
                rule.sentence()]
    draw_scores(cells, TASKS, PLAN, findings[0].split(" (")[0], place / "plr_scores.png")
    draw_moves(rule, findings[3].split(" (")[0], place / "plr_ratio.png")
    gain = "restored - as trained, points [95 %]"
    return {"title": "Post-LoRA Restoration on SmolLM2-135M",
            "tables": [table_1(cells, PLAN, TASKS), {"caption": "Family 1.", **table_of(ours, gain)},
                       {"caption": "Family 2.", **table_of(lora, "restored to 16 - LoRA, points [95 %]")},
                       {"caption": "Family 3.", **table_of(aware, gain)}, rule.table(), moves_table(every)],
            "pictures": [["score against the width trained at", "plr_scores.png"],
                         ["gain against the early ratio", "plr_ratio.png"]],
            "findings": findings}


MARGIN = 0.02  # of the score: what counts as the same


def equal_to_lora(judged: Sequence[Judged]) -> str:
    """Confirmed where the whole 95 % interval is above -MARGIN."""
    if not judged:
        return "4-bit and 3-bit QLoRA restored to 16 bits equal LoRA: not tested, no cells."
    said = []
    for one in (one for one in judged if one.what["QLoRA trained at"] in (4, 3)):
        low = one.comparison.low
        same = low is not None and low > -MARGIN
        verdict = "confirmed" if same else "the opposite" if one.verdict == "the opposite" else "not confirmed"
        said.append(f"{one.what['task']}, {one.what['QLoRA trained at']} bits: {verdict} ({one.points} points, "
                    f"p {p_cell(one)})")
    return (f"4-bit and 3-bit QLoRA restored to 16 bits equal LoRA, within {100 * MARGIN:.0f} points (Kanda & Hatano, "
            f"Sec. 4): {'; '.join(said)}.")

