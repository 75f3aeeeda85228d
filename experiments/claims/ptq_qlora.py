"""What the cells of the plan `ptq_qlora` say of Zhu et al.'s claims and of their open questions."""
from collections.abc import Sequence
from pathlib import Path

from experiments.claims import pictures
from experiments.claims.evidence import Cells, Group, Judged, compared, family, headline, score_of, sentence, table_of

PLAN = "ptq_qlora"
TASKS = ("banking77", "bitext", "bitext-response")
QUANTIZERS = ("gptq", "nf")
WIDTHS = (4, 3, 2)
PIPELINE = "SFT -> PTQ -> QLoRA"


def group_of(cells: Cells, plan: str, task: str, pipeline: str, how: str = "", bits: int = 0) -> Group:
    """pipeline: sft, sft-more, sft-qlora or qlora, the last two with a quantizer and a width."""
    more = {"how": how, "bits": bits} if how else {}
    return cells.group(plan, task=task, pipeline=pipeline, **more)


def settings(tasks: Sequence[str]) -> list[tuple[str, str, int]]:
    return [(task, how, bits) for task in tasks for how in QUANTIZERS for bits in WIDTHS]


def beside(cells: Cells, plan: str, tasks: Sequence[str], other: str) -> list[Judged]:
    """The pipeline against `other`: quantized (SFT -> PTQ), sft-more, or qlora (PTQ -> QLoRA)."""
    found = []
    for task, how, bits in settings(tasks):
        ours = group_of(cells, plan, task, "sft-qlora", how, bits)
        theirs = {"quantized": ours, "sft-more": group_of(cells, plan, task, "sft-more"),
                  "qlora": group_of(cells, plan, task, "qlora", how, bits)}[other]
        found.append(compared({"task": task, "quantizer": how, "bits": bits}, ours, "trained", theirs,
                              "quantized" if other == "quantized" else "trained"))
    return family(found)


def scores_table(cells: Cells, plan: str, tasks: Sequence[str]) -> dict:
    rows = []
    for task in tasks:
        sft, more = (group_of(cells, plan, task, name) for name in ("sft", "sft-more"))
        for name, group, state in (("base", sft, "base"), ("SFT", sft, "trained"), ("SFT, as many steps", more,
                                                                                   "trained")):
            if score := score_of(group, state):
                rows.append([task, name, "-", "16", str(score), str(score.seeds)])
        for how in QUANTIZERS:
            for bits in WIDTHS:
                ours, control = (group_of(cells, plan, task, name, how, bits) for name in ("sft-qlora", "qlora"))
                for name, group, state in (("SFT -> PTQ", ours, "quantized"), (PIPELINE, ours, "trained"),
                                           ("PTQ", control, "quantized"), ("PTQ -> QLoRA", control, "trained")):
                    if score := score_of(group, state):
                        rows.append([task, name, how, str(bits), str(score), str(score.seeds)])
    return {"caption": "Score in percent (accuracy; ROUGE-L for bitext-response), mean ± standard deviation over the "
                       "seeds.", "columns": ["task", "pipeline", "quantizer", "bits", "score, %", "seeds"],
            "rows": rows}


def draw(cells: Cells, plan: str, tasks: Sequence[str], how: str, title: str, path: Path) -> None:
    """A panel for each task: the pipelines against the width."""
    figure, axes = pictures.panels(tasks, title, "score, % (95 % interval)")
    for panel, task in zip(axes, tasks, strict=True):
        pictures.level(panel, score_of(group_of(cells, plan, task, "sft-more"), "trained"), pictures.BLACK,
                       "SFT, 16 bits, as many steps")
        ours, control = ([group_of(cells, plan, task, name, how, bits) for bits in WIDTHS]
                         for name in ("sft-qlora", "qlora"))
        for groups, state, color, label, shift in (
                (ours, "quantized", pictures.ORANGE, "SFT -> PTQ", -0.08),
                (ours, "trained", pictures.BLUE, PIPELINE, 0),
                (control, "trained", pictures.GREEN, "PTQ -> QLoRA, as many steps", 0.08)):
            pictures.points(panel, [i + shift for i in range(len(WIDTHS))],
                            [score_of(group, state) for group in groups], color, label)
        panel.set_xticks(range(len(WIDTHS)), [f"{bits}" for bits in WIDTHS])
        panel.set_xlabel(f"bits ({how.upper()})")
    pictures.legend(figure, axes)
    pictures.save(figure, path)


def record(cells: Cells, place: Path) -> dict:
    """Writes the pictures into `place`. Returns the section of the page."""
    recovers, beats, without = (beside(cells, PLAN, TASKS, other) for other in ("quantized", "sft-more", "qlora"))
    narrow = [one for one in recovers if one.what["bits"] < 4]
    classes = [one for one in beats if one.what["task"] != "bitext-response"]
    replies = [one for one in beats if one.what["task"] == "bitext-response"]
    findings = [
        sentence(f"{PIPELINE} scores above SFT -> PTQ (Zhu et al.)", recovers),
        sentence(f"{PIPELINE} scores above 16-bit SFT on classification (Zhu et al.; here for as many steps)", classes),
        sentence(f"{PIPELINE} scores above 16-bit SFT on generation (Zhu et al. found no difference)", replies),
        sentence(f"Open question 1: {PIPELINE} scores above PTQ -> QLoRA without SFT, for as many steps", without),
        sentence("Open question 2: at 3 and 2 bits, QLoRA recovers what PTQ lost", narrow)]
    for how in QUANTIZERS:
        draw(cells, PLAN, TASKS, how, f"{headline(findings[0])}; {how.upper()}", place / f"ptq_{how}.png")
    tables = [scores_table(cells, PLAN, TASKS)]
    for name, judged, other in (("A", recovers, "SFT -> PTQ"), ("B", beats, "SFT for as many steps"),
                                ("C", without, "PTQ -> QLoRA")):
        tables.append({"caption": f"Family {name}: {PIPELINE} beside {other}.",
                       **table_of(judged, "difference, points [95 %]")})
    return {"title": "SFT -> PTQ -> QLoRA on SmolLM2-135M", "tables": tables,
            "pictures": [[f"scores against bits, {how.upper()}", f"ptq_{how}.png"] for how in QUANTIZERS],
            "findings": findings}
