"""The same cells on two bases: what changes from 5.8 to 135 million parameters."""
from pathlib import Path

from experiments.claims import notes, pictures, plr, ptq_qlora
from experiments.claims.evidence import Cells, Group, Score, compared, score_of, seed_scores, spread_not_in_tests
from experiments.claims.ptq_rows import PIPELINE

TASK, WIDTHS = "banking77", (8, 4, 3, 2)
PTQ = (("nf", 4), ("gptq", 4), ("gptq", 2), ("nf", 2))  # quantizer and bits


def sides(cells: Cells) -> dict[str, tuple[Cells, str, Cells, str]]:
    """For each base: (cells of plr, their plan, cells of ptq_qlora, their plan)."""
    return {"embedded base, 5.8 M": (cells.of_prefix("scale-plr-"), "scale", cells.of_prefix("scale-ptq-"), "scale"),
            "SmolLM2, 135 M": (cells.of_prefix("plr-"), "plr", cells.of_prefix("ptq-"), "ptq_qlora")}


def effects(cells: Cells) -> list[list[str]]:
    """A row an effect, a column a base."""
    found: dict[str, list[str]] = {}
    for restoring, plan, pipelines, ptq_plan in sides(cells).values():
        for name, what in {**restored(restoring, plan), **quantized(pipelines, ptq_plan)}.items():
            found.setdefault(name, []).append(str(what) if what is not None else "-")
    return [[name, *values] for name, values in found.items()]


def restored(cells: Cells, plan: str) -> dict[str, object]:
    """What training on few bits costs, and what restoring brings."""
    lora = plr.group_of(cells, plan, TASK, "lora", 16)
    found: dict[str, object] = {"LoRA, 16 bits, %": score_of(lora, "trained")}
    for bits in (4, 3, 2):
        group = plr.group_of(cells, plan, TASK, "qlora", bits)
        cost = points_of(group, "trained", lora, "trained")
        found[f"what training at {bits} bits by GPTQ costs: QLoRA - LoRA"] = cost
        found[f"what restoring {bits} to 16 bits brings"] = points_of(group, plr.key(16), group, "trained")
    return found


def quantized(cells: Cells, plan: str) -> dict[str, object]:
    """What PTQ costs, and what QLoRA and SFT bring."""
    sft = ptq_qlora.group_of(cells, plan, TASK, "sft")
    found: dict[str, object] = {"SFT, 16 bits, %": score_of(sft, "trained")}
    for how, bits in PTQ:
        ours, control = (ptq_qlora.group_of(cells, plan, TASK, name, how, bits) for name in ("sft-qlora", "qlora"))
        by = f"{bits} bits by {how.upper()}"
        found[f"what PTQ to {by} costs: SFT -> PTQ - SFT"] = points_of(ours, "quantized", sft, "trained")
        found[f"what QLoRA then brings at {by}"] = points_of(ours, "trained", ours, "quantized")
        found[f"what SFT brings before PTQ at {by}"] = points_of(ours, "trained", control, "trained")
    return found


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
        "findings": [said(rows), *of_nf(rows), *of_gptq(rows), *seeds(cells), *unmeasured(cells, rows),
                     *notes.validations(cells, "scale", 4),
                     *notes.calibration(cells, "scale", ("the embedded base",))]}


def seeds(cells: Cells) -> list[str]:
    """How many seeds each base has, and what the intervals leave out."""
    said, every = [], []
    for base, (restoring, plan, pipelines, ptq_plan) in sides(cells).items():
        qlora = plr.group_of(restoring, plan, TASK, "qlora", 2)
        said.append(f"{len(qlora)} of QLoRA at 2 bits and "
                    f"{len(ptq_qlora.group_of(pipelines, ptq_plan, TASK, 'sft'))} of SFT on {base}")
        every += [(f"{base}, QLoRA at {bits} bits, {words}", plr.group_of(restoring, plan, TASK, "qlora", bits), state)
                  for bits in WIDTHS for words, state in (("as trained", "trained"), ("restored", plr.key(16)))]
        every += [(f"{base}, {name} by {how.upper()} at {bits} bits",
                   ptq_qlora.group_of(pipelines, ptq_plan, TASK, pipeline, how, bits), state)
                  for how, bits in PTQ for name, pipeline, state in (
                      ("SFT -> PTQ", "sft-qlora", "quantized"), (PIPELINE, "sft-qlora", "trained"),
                      ("PTQ -> QLoRA", "qlora", "trained"))]
    return [f"Seeds of these cells: {'; '.join(said)}.", *spread_not_in_tests(
        (name, seed_scores(group, state)) for name, group, state in every)]


def unmeasured(cells: Cells, rows: list[list[str]]) -> list[str]:
    """Which effects no cell of a base tells."""
    found = [f"Not measured on {base}: {'; '.join(gone)}." for i, base in enumerate(sides(cells), 1)
             if (gone := [row[0].partition(":")[0] for row in rows if row[i] == "-"])]
    return found


def row_of(rows: list[list[str]], start: str) -> list[str]:
    """The row's cells, without its name."""
    return next(row[1:] for row in rows if row[0].startswith(start))


def of_nf(rows: list[list[str]]) -> list[str]:
    """Whether NF at 2 bits leaves something to train on."""
    cost, gain, first = (row_of(rows, start) for start in (
        "what PTQ to 2 bits by NF", "what QLoRA then brings at 2 bits by NF", "what SFT brings before PTQ at 2 bits by "
        "NF"))
    if "-" in (*cost, *gain, *first):
        return []
    return [f"NF at 2 bits. On the embedded base, PTQ changes the score by {cost[0]}, and QLoRA then brings {gain[0]}. "
            f"On SmolLM2-135M, PTQ changes it by {cost[1]}, and QLoRA then brings {gain[1]}. SFT first brings "
            f"{first[0]} and {first[1]}. These bases differ in more than size, so this shows no effect of size alone."]


def of_gptq(rows: list[list[str]]) -> list[str]:
    """The caveat of the plan ptq_qlora."""
    by_gptq, by_nf = (row_of(rows, f"what PTQ to 4 bits by {how}")[1] for how in ("GPTQ", "NF"))
    if "-" in (by_gptq, by_nf):
        return []
    return [f"GPTQ at 4 bits is no measure of size. SmolLM2's 16-bit weights are dequantized 4-bit min-max codes. "
            f"Rounding to that grid after SFT probably undoes part of it, and rounding the base itself loses almost "
            f"nothing. PTQ to 4 bits changes SmolLM2's score by {by_gptq} by GPTQ, and by {by_nf} by NF. Judge 4 bits "
            f"by NF."]


def said(rows: list[list[str]]) -> str:
    cost, gain = row_of(rows, "what training at 2 bits"), row_of(rows, "what restoring 2 to 16")
    return (f"At 2 bits by GPTQ, QLoRA differs from LoRA by {cost[0]} on the embedded base and by {cost[1]} on "
            f"SmolLM2-135M. Restoring to 16 bits then brings {gain[0]} and {gain[1]}.")


def title(rows: list[list[str]]) -> str:
    """The points alone."""
    cost, gain = ([cell.split(" ")[0] for cell in row_of(rows, start)]
                  for start in ("what training at 2 bits", "what restoring 2 to 16"))
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
