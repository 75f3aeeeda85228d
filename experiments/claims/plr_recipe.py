"""What the cells of the plan `plr_recipe` say: restoring after the paper's own training."""
from pathlib import Path

from experiments.claims import notes, plr
from experiments.claims.claim import Claim, told
from experiments.claims.evidence import OF_SEVERAL, Cells, judged_at_this_scale, spread_not_in_tests, table_of
from experiments.claims.ratio import WIDTHS

PLAN, TASKS = "plr_recipe", ("sql-create-context",)
EPOCHS = 10  # the plan: the validation loss once an epoch


def record(cells: Cells, place: Path) -> dict:
    """Writes the picture into `place`. Returns the section of the page."""
    ours, lora = plr.restored(cells, PLAN, TASKS, ["qlora"]), plr.beside_lora(cells, PLAN, TASKS)
    claim = judged_at_this_scale(Claim("By the paper's recipe, restoring a QLoRA run to more bits raises its score",
                                       source=plr.SOURCE), ours)
    title = plr.title_of("By the paper's recipe, restoring QLoRA to more bits", ours)
    plr.draw_scores(cells, TASKS, PLAN, title, place / "plr_recipe.png")
    rows = {f"{name} at {bits} bits": plr.group_of(cells, PLAN, TASKS[0], method, bits) for bits in WIDTHS
            for name, method in (("LoRA", "lora"), ("QLoRA", "qlora"))}
    return {"title": "Post-LoRA Restoration by the paper's recipe: ten epochs at 2e-4",
            "tables": [plr.table_1(cells, PLAN, TASKS),
                       {"caption": "Family 1.", **table_of(ours, "restored - as trained, points [95 %]")},
                       {"caption": "Family 2.", **table_of(lora, "restored to 16 - LoRA, points [95 %]")}],
            "pictures": [["score against the width trained at", "plr_recipe.png"]],
            **told([claim, plr.equal_to_lora(lora), *plr.by_task(ours), OF_SEVERAL,
                    *spread_not_in_tests(plr.trained_rows(cells, PLAN, TASKS)), *notes.uneven_seeds(rows),
                    *notes.validations(cells, PLAN, EPOCHS), notes.BASE_OF_CODES, *notes.calibration(cells, PLAN)])}
