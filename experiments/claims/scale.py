"""The same cells on two bases: what changes from 5.8 to 135 million parameters."""
from pathlib import Path

from experiments.claims import pictures, plr, ptq_qlora
from experiments.claims.evidence import Cells, Group, Score, compared, score_of

TASK, WIDTHS = "banking77", (2, 3, 4, 8)


def sides(cells: Cells) -> dict[str, tuple[Cells, str, Cells, str]]:
    """For each base: (cells of plr, their plan, cells of ptq_qlora, their plan)."""
    return {"embedded base, 5.8 M": (cells.of_prefix("scale-plr-"), "scale", cells.of_prefix("scale-ptq-"), "scale"),
            "SmolLM2, 135 M": (cells.of_prefix("plr-"), "plr", cells.of_prefix("ptq-"), "ptq_qlora")}


def effects(cells: Cells) -> list[list[str]]:
    """A row an effect, a column a base."""
    found: dict[str, list[str]] = {}
    for restoring, plan, pipelines, ptq_plan in sides(cells).values():
        def add(name: str, what: object) -> None:
            found.setdefault(name, []).append(str(what) if what is not None else "-")
        lora = plr.group_of(restoring, plan, TASK, "lora", 16)
        add("LoRA, 16 bits, %", score_of(lora, "trained"))
        for bits in (4, 3, 2):
            group = plr.group_of(restoring, plan, TASK, "qlora", bits)
            add(f"what training at {bits} bits costs: QLoRA - LoRA", points_of(group, "trained", lora, "trained"))
            add(f"what restoring {bits} to 16 bits brings", points_of(group, plr.key(16), group, "trained"))
        sft = ptq_qlora.group_of(pipelines, ptq_plan, TASK, "sft")
        add("SFT, 16 bits, %", score_of(sft, "trained"))
        for bits in (4, 2):
            ours = ptq_qlora.group_of(pipelines, ptq_plan, TASK, "sft-qlora", "gptq", bits)
            control = ptq_qlora.group_of(pipelines, ptq_plan, TASK, "qlora", "gptq", bits)
            add(f"what PTQ to {bits} bits costs: SFT -> PTQ - SFT", points_of(ours, "quantized", sft, "trained"))
            add(f"what QLoRA then brings at {bits} bits", points_of(ours, "trained", ours, "quantized"))
            add(f"what SFT brings before PTQ at {bits} bits", points_of(ours, "trained", control, "trained"))
    return [[name, *values] for name, values in found.items()]


def points_of(a: Group, state_a: str, b: Group, state_b: str) -> str | None:
    """Percentage points with their interval and p, not corrected: each size has its own tests in its plan."""
    judged = compared({}, a, state_a, b, state_b)
    if not judged or judged.comparison.p_value is None:
        return None
    return f"{judged.points}, p {judged.comparison.p_value:.2g}"


def record(cells: Cells, place: Path) -> dict:
    """Writes the picture into `place`. Returns the section of the page."""
    rows = effects(cells)
    draw(cells, title(rows), place / "scale.png")
    return {"title": "The scale of the effects: 5.8 M and 135 M parameters", "tables": [
        {"caption": f"{TASK}, percentage points [95 % interval], p not corrected.", "columns": ["", *sides(cells)],
         "rows": rows}], "pictures": [["QLoRA as trained and restored, on both bases", "scale.png"]],
        "findings": [said(rows), *seeds(cells), *unmeasured(cells, rows)]}


def seeds(cells: Cells) -> list[str]:
    """How many seeds of 2-bit QLoRA each base has."""
    of_base = {base: len(plr.group_of(restoring, plan, TASK, "qlora", 2))
               for base, (restoring, plan, _, _) in sides(cells).items()}
    return [f"Seeds of these cells: {', '.join(f'{n} on {base}' for base, n in of_base.items())}. Intervals are over "
            f"test rows alone."]


def unmeasured(cells: Cells, rows: list[list[str]]) -> list[str]:
    """Which effects no cell of a base tells."""
    found = [f"Not measured on {base}: {'; '.join(gone)}." for i, base in enumerate(sides(cells), 1)
             if (gone := [row[0].partition(":")[0] for row in rows if row[i] == "-"])]
    return found


def said(rows: list[list[str]]) -> str:
    cost = next(row for row in rows if row[0].startswith("what training at 2 bits costs"))
    gain = next(row for row in rows if row[0].startswith("what restoring 2 to 16"))
    return (f"At 2 bits, QLoRA differs from LoRA by {cost[1]} on the embedded base and by {cost[2]} on SmolLM2-135M; "
            f"restoring to 16 bits then brings {gain[1]} and {gain[2]} points.")


def title(rows: list[list[str]]) -> str:
    """The points alone."""
    def points(start: str) -> list[str]:
        return [cell.split(" ")[0] for cell in next(row for row in rows if row[0].startswith(start))[1:]]
    cost, gain = points("what training at 2 bits costs"), points("what restoring 2 to 16")
    return (f"2-bit QLoRA beside LoRA: {cost[0]} points at 5.8 M parameters, {cost[1]} at 135 M; "
            f"restored to 16 bits, {gain[0]} and {gain[1]}")


def draw(cells: Cells, title: str, path: Path) -> None:
    found = sides(cells)
    groups = [plr.group_of(restoring, plan, TASK, "qlora", bits) for restoring, plan, *_ in found.values()
              for bits in WIDTHS]
    figure, axes = pictures.panels(list(found), title, f"{TASK}, %\n({pictures.interval_of(groups)})")
    for panel, (restoring, plan, _, _) in zip(axes, found.values(), strict=True):
        groups = [plr.group_of(restoring, plan, TASK, "qlora", bits) for bits in WIDTHS]
        pictures.level_beside(panel, plr.group_of(restoring, plan, TASK, "lora", 16), "trained", groups,
                              pictures.BLACK, "LoRA on 16 bits")
        for state, color, label, shift in (("trained", pictures.ORANGE, "QLoRA as trained", -0.06),
                                           (plr.key(16), pictures.BLUE, "restored to 16 bits", 0.06)):
            scores: list[Score | None] = [score_of(group, state) for group in groups]
            pictures.points(panel, [i + shift for i in range(len(WIDTHS))], scores, color, label)
        panel.set_xticks(range(len(WIDTHS)), [str(bits) for bits in WIDTHS])
        panel.set_xlabel("bits of the base in training")
    pictures.legend(figure, axes)
    pictures.save(figure, path)
