"""What the cells of the plan `plr` say of Kanda & Hatano's claims."""
import statistics
from collections.abc import Sequence
from pathlib import Path

from experiments.claims import notes, pictures
from experiments.claims.claim import Claim, Verdict, told
from experiments.claims.evidence import (
    CONFIRMED,
    NOT_CONFIRMED,
    OF_SEVERAL,
    OPPOSITE,
    Cells,
    Judged,
    compared,
    family,
    figure_of,
    judged_at_this_scale,
    mean_cell,
    p_cell,
    score_of,
    seed_scores,
    spread_not_in_tests,
    table_of,
    with_state,
)
from experiments.claims.ratio import (
    TASKS,
    WIDTHS,
    Rule,
    draw_moves,
    group_of,
    key,
    moves,
    moves_table,
    rules_table,
    wider,
)

PLAN = "plr"


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


# ---- pictures ------------------------------------------------------------------------------------------------------

def draw_scores(cells: Cells, tasks: Sequence[str], plan: str, title: str, path: Path) -> None:
    """As trained and restored to 16 bits, against the width trained at."""
    widths = [8, 4, 3, 2]
    interval = pictures.interval_of([group_of(cells, plan, task, "qlora", bits) for task in tasks for bits in widths])
    figure, axes = pictures.panels(tasks, title, f"score, %\n({interval})")
    for panel, task in zip(axes, tasks, strict=True):
        groups = [group_of(cells, plan, task, "qlora", bits) for bits in widths]
        pictures.level_beside(panel, group_of(cells, plan, task, "lora", 16), "trained", groups, pictures.BLACK,
                              "LoRA on 16 bits")
        for state, color, label, shift in (("trained", pictures.ORANGE, "QLoRA as trained", -0.06),
                                           (key(16), pictures.BLUE, "restored to 16 bits", 0.06)):
            pictures.points(panel, [i + shift for i in range(len(widths))],
                            [score_of(group, state) for group in groups], color, label)
        panel.set_xticks(range(len(widths)), [str(bits) for bits in widths])
        panel.set_xlabel("bits of the base in training")
    pictures.legend(figure, axes)
    pictures.save(figure, path)


def draw_memory(cells: Cells, tasks: Sequence[str], plan: str, title: str, path: Path) -> None:
    """Score against the memory of all weights (Kanda & Hatano, Figure 2). A line for each width trained at: as trained
    (the large marker), then restored to each wider one."""
    interval = pictures.interval_of([group_of(cells, plan, task, "qlora", bits) for task in tasks for bits in WIDTHS])
    figure, axes = pictures.panels(tasks, title, f"score, %\n({interval})")
    colors = dict(zip(WIDTHS, (pictures.BLACK, pictures.GREEN, pictures.BLUE, pictures.ORANGE, pictures.PINK),
                      strict=True))
    for panel, task in zip(axes, tasks, strict=True):
        for bits, color in colors.items():
            group = group_of(cells, plan, task, "lora" if bits == 16 else "qlora", bits)
            states = [state for state in ("trained", *map(key, wider(bits))) if with_state(group, state)]
            if not states:
                continue
            megabytes = [statistics.mean(figure_of(group, state, "megabytes")) for state in states]
            scores = [score_of(group, state) for state in states]
            pictures.points(panel, megabytes, scores, color, f"trained at {bits} bits")
            panel.plot(megabytes[:1], [100 * score.mean for score in scores[:1] if score], color=color, markersize=11,
                       marker=pictures.MARKS[color], alpha=0.6)
        panel.set_xlabel("weights, adapter included, MB (large marker: as trained)", fontsize=9)
    pictures.legend(figure, axes, 5)
    pictures.save(figure, path)


# ---- the record ----------------------------------------------------------------------------------------------------

SOURCE = "Kanda & Hatano, Sec. 3.2"
RESTORING = Claim("Restoring a QLoRA run to more bits raises its score", source=SOURCE)
OPEN_QUESTION = Claim("At 2 bits, restoring QA-LoRA and QA-BLoRA raises their scores (their open question)")


def record(cells: Cells, place: Path) -> dict:
    """Writes the pictures into `place`. Returns the section of the page."""
    ours, lora = restored(cells, PLAN, TASKS, ["qlora"]), beside_lora(cells, PLAN, TASKS)
    aware = restored(cells, PLAN, TASKS, ["qalora", "qablora"])
    every = moves(cells, PLAN, TASKS)
    rule = Rule.of(every)
    qlora = Rule.of([move for move in every if move.method == "qlora"], "QLoRA's moves alone (not in the plan)")
    findings = [judged_at_this_scale(RESTORING, ours), equal_to_lora(lora), judged_at_this_scale(OPEN_QUESTION, aware),
                rule.claim(), qlora.claim(), *rule.hindsight(), *qlora.hindsight(), *by_task(ours),
                which_width(cells, PLAN, TASKS), OF_SEVERAL, *spread_not_in_tests(trained_rows(cells, PLAN, TASKS)),
                *notes.validations(cells, PLAN, 4), *NOTES, *notes.calibration(cells, PLAN),
                *notes.learned_little(cells, PLAN, TASKS)]
    title = title_of("Restoring QLoRA to more bits", ours)
    draw_scores(cells, TASKS, PLAN, title, place / "plr_scores.png")
    draw_memory(cells, TASKS, PLAN, title, place / "plr_memory.png")
    draw_moves(rule, place / "plr_ratio.png")
    gain = "restored - as trained, points [95 %]"
    return {"title": "Post-LoRA Restoration on SmolLM2-135M",
            "tables": [table_1(cells, PLAN, TASKS), {"caption": "Family 1.", **table_of(ours, gain)},
                       {"caption": "Family 2.", **table_of(lora, "restored to 16 - LoRA, points [95 %]")},
                       {"caption": "Family 3.", **table_of(aware, gain)}, rules_table([rule, qlora]),
                       moves_table(every)],
            "pictures": [["score against the width trained at", "plr_scores.png"],
                         ["score against the memory of the weights", "plr_memory.png"],
                         ["gain against the early ratio", "plr_ratio.png"]],
            **told(findings)}


NOTES = (
    "The early ratio is that of the first validation.",
    "The moves that the rule is tested on are not independent: the seeds share their bases, and those of 4, 8 and 16 "
    "bits are nearly one base here. So they count for fewer. The ratio counts all quantized layers, those without "
    "an adapter too.",
    notes.BASE_OF_CODES,
    "The paper trains for up to 10 epochs at 2e-4 (the next section); here QLoRA trains for 2 or 3 at 2.2e-3. No "
    "learning rate was tuned.")


def trained_rows(cells: Cells, plan: str, tasks: Sequence[str]) -> list[tuple[str, list[float]]]:
    """Of the first table: each row's name, and its scores by seed in each of its states."""
    return [(f"{task}, {method} at {bits} bits, {said}", seed_scores(group, state))
            for task in tasks for method in ("lora", "qlora", "qalora", "qablora") for bits in WIDTHS
            if (group := group_of(cells, plan, task, method, bits))
            for state, said in (("trained", "as trained"),
                                *((key(width), f"restored to {width}") for width in wider(bits)))]


def title_of(what: str, judged: Sequence[Judged]) -> str:
    """Of a picture: `Restoring QLoRA to more bits: no significant gain in 20 comparisons, 8 losses`."""
    gains, losses = (sum(one.verdict == verdict for one in judged) for verdict in (CONFIRMED, OPPOSITE))
    if not judged:
        return f"{what}: no comparisons"
    return (f"{what}: {gains or 'no'} significant gain{'s' * (gains > 1)} in {len(judged)} "
            f"comparison{'s' * (len(judged) > 1)}, {losses or 'no'} loss{'es' * (losses > 1)}")


def by_task(judged: Sequence[Judged]) -> list[str]:
    """What restoring to 16 bits brings QLoRA of 3 and 2 bits, a sentence a task."""
    found: dict[str, list[str]] = {}
    for one in judged:
        if one.what["restored to"] == 16 and one.what["trained at"] in (3, 2):
            text = f"{one.points} points to {one.what['trained at']}-bit QLoRA (p {p_cell(one)})"
            found.setdefault(one.what["task"], []).append(text)
    return [f"On {task}, restoring to 16 bits brings {' and '.join(said)}." for task, said in found.items()]


def which_width(cells: Cells, plan: str, tasks: Sequence[str]) -> str:
    """For each task and width that a model is used at: the best width to train at, restored where it is narrower."""
    gaps = {}
    for task in tasks:
        for used in WIDTHS[:-1]:
            scores = {bits: score_of(group_of(cells, plan, task, "lora" if bits == 16 else "qlora", bits),
                                     "trained" if bits == used else key(used)) for bits in WIDTHS if bits <= used}
            found = {bits: score.mean for bits, score in scores.items() if score}
            if used in found and len(found) > 1:
                gaps[task, used] = 100 * (max(mean for bits, mean in found.items() if bits != used) - found[used])
    if not gaps:
        return "Which width to train at: not decided, no cells."
    (task, used), most = max(gaps.items(), key=lambda case: case[1])
    best = sum(gap <= 0 for gap in gaps.values())
    return (f"Which width to train at (what the paper leaves open): the width that the model is used at scores best in "
            f"{best} of {len(gaps)} cases (tasks and widths of use; not in the plan, not tested). The most that a "
            f"narrower one, restored, scores above it is {most:+.1f} points ({task}, used at {used} bits).")


MARGIN = 0.02  # of the score: what counts as the same


def equal_to_lora(judged: Sequence[Judged]) -> Claim:
    """Confirmed where the whole 95 % interval is above -MARGIN."""
    said = []
    for one in (one for one in judged if one.what["QLoRA trained at"] in (4, 3)):
        low = one.comparison.low
        same = low is not None and low > -MARGIN
        verdict = CONFIRMED if same else OPPOSITE if one.verdict == OPPOSITE else NOT_CONFIRMED
        said.append(Verdict(verdict, f"{one.points} points, p {p_cell(one)}",
                            of=f"{one.what['task']}, {one.what['QLoRA trained at']} bits"))
    return Claim(f"4-bit and 3-bit QLoRA restored to 16 bits equal LoRA, within {100 * MARGIN:.0f} points", tuple(said),
                 "Kanda & Hatano, Sec. 4")

