"""What the cells of the plan `ptq_qlora` say of Zhu et al.'s claims and of their open questions."""
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.claims import notes, pictures, ptq_limits, ptq_shares
from experiments.claims.claim import Claim, told
from experiments.claims.evidence import Cells, Judged, judged_at_this_scale, score_of, table_of, with_state
from experiments.claims.ptq_rows import (
    OTHERS,
    PIPELINE,
    PLAN,
    QUANTIZERS,
    TASKS,
    WIDTHS,
    beside,
    group_of,
    settings,
    some,
)

SOURCE = "Zhu et al."
METRICS = {"accuracy": "accuracy, %", "rougeL": "ROUGE-L, %"}


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


def metric_of(cells: Cells, plan: str, task: str) -> str:
    """What the axis of a task is called."""
    names = {facts["states"]["trained"]["metric"] for facts in with_state(group_of(cells, plan, task, "sft-more"),
                                                                          "trained").values()}
    return METRICS[names.pop()] if names else "score, %"


def draw(cells: Cells, plan: str, tasks: Sequence[str], how: str, title: str, path: Path) -> None:
    """A panel for each task: the pipelines against the width."""
    every = [group_of(cells, plan, task, name, how, bits) for task in tasks for name in ("sft-qlora", "qlora")
             for bits in WIDTHS]
    labels = [metric_of(cells, plan, task) for task in tasks]
    figure, axes = pictures.panels(tasks, title, f"{labels[0]}\n({pictures.interval_of(every)})")
    for panel, task, label in zip(axes, tasks, labels, strict=True):
        if label != labels[0]:
            panel.set_ylabel(label, fontsize=9)
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
        gone = [with_state(group, "trained") == {} for group in ours]
        panel.set_xticks(range(len(WIDTHS)), [f"{bits}" + "\n(no cells)" * none
                                              for bits, none in zip(WIDTHS, gone, strict=True)])
        panel.set_xlim(-0.4, len(WIDTHS) - 0.6)
        panel.set_xlabel(f"bits ({how.upper()})")
    pictures.legend(figure, axes)
    pictures.save(figure, path)


def judged_claims(cells: Cells, families: dict[str, list[Judged]]) -> list[str | Claim]:
    """The planned verdicts, each followed by what it rests on."""
    recovers, beats, without = families.values()
    by_gptq, by_nf = (at_4_bits(recovers, how) for how in ("gptq", "nf"))
    at_4 = [some(beats, (4,), TASKS[:2]), some(beats, (4,), TASKS[2:])]
    narrow = [some(recovers, (3, 2)), some(beats, (3, 2))]
    return [
        replace(by_gptq, more=ptq_limits.pointer(cells)), by_nf,
        judged_at_this_scale(Claim(f"{PIPELINE} scores above 16-bit SFT on classification, at 4 bits", source=SOURCE,
                                   reservation="here for as many steps"), at_4[0], 4),
        *ptq_limits.without_them(at_4[0]),
        judged_at_this_scale(Claim(f"{PIPELINE} scores above 16-bit SFT on generation, at 4 bits ({SOURCE} found no "
                                   "difference)"), at_4[1], 2), *ptq_limits.without_them(at_4[1]),
        *ptq_limits.of_control(cells),
        judged_at_this_scale(Claim(f"Open question 1: {PIPELINE} scores above PTQ -> QLoRA without SFT, for as many "
                                   "steps"), without, len(settings(TASKS))),
        *ptq_limits.rests_on(cells, without, "qlora"), *ptq_limits.without_them(without, tuple(ptq_limits.SAY_LITTLE)),
        judged_at_this_scale(Claim("Open question 2: at 3 and 2 bits, QLoRA recovers what PTQ lost"), narrow[0], 12),
        *ptq_shares.won_back(ptq_shares.shares(cells)),
        judged_at_this_scale(Claim(f"Open question 2: at 3 and 2 bits, {PIPELINE} scores above 16-bit SFT for as many "
                                   "steps"), narrow[1], 12)]


def at_4_bits(recovers: Sequence[Judged], how: str) -> Claim:
    claim = Claim(f"{PIPELINE} scores above SFT -> PTQ at 4 bits by {how.upper()}", source=SOURCE)
    return judged_at_this_scale(claim, some(recovers, (4,), how=how), 3)


def record(cells: Cells, place: Path) -> dict:
    """Writes the pictures into `place`. Returns the section of the page."""
    families = {other: beside(cells, PLAN, TASKS, other) for other in OTHERS}
    shares = ptq_shares.shares(cells)
    titles = {"gptq": ptq_shares.title(shares, "gptq", 2), "nf": at_4_bits(families["quantized"], "nf").headline}
    for how, title in titles.items():
        draw(cells, PLAN, TASKS, how, title, place / f"ptq_{how}.png")
    tables = [scores_table(cells, PLAN, TASKS)]
    for name, (other, judged) in zip("ABC", families.items(), strict=True):
        tables.append({"caption": f"Family {name}: {PIPELINE} beside {OTHERS[other]}.",
                       **table_of(judged, "difference, points [95 %]")})
    return {"title": "SFT, PTQ and QLoRA on SmolLM2-135M", "tables": [*tables, ptq_shares.table(shares)],
            "pictures": [[f"scores against bits, {how.upper()}", f"ptq_{how}.png"] for how in QUANTIZERS],
            **told([*judged_claims(cells, families), *ptq_limits.failed_seeds(cells, families),
                    *ptq_limits.notes(cells), *notes.validations(cells, PLAN, 4), *notes.calibration(cells, PLAN)])}
