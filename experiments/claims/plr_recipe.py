"""What the cells of the plan `plr_recipe` say: restoring after the paper's own training."""
from pathlib import Path

from experiments.claims import plr
from experiments.claims.evidence import Cells, headline, sentence, table_of

PLAN, TASKS = "plr_recipe", ("sql-create-context",)


def record(cells: Cells, place: Path) -> dict:
    """Writes the picture into `place`. Returns the section of the page."""
    ours, lora = plr.restored(cells, PLAN, TASKS, ["qlora"]), plr.beside_lora(cells, PLAN, TASKS)
    claim = sentence("By the paper's recipe, restoring a QLoRA run to more bits raises its score (Kanda & Hatano, "
                     "Sec. 3.2)", ours)
    plr.draw_scores(cells, TASKS, PLAN, headline(claim), place / "plr_recipe.png")
    return {"title": "Post-LoRA Restoration by the paper's recipe: ten epochs at 2e-4",
            "tables": [plr.table_1(cells, PLAN, TASKS),
                       {"caption": "Family 1.", **table_of(ours, "restored - as trained, points [95 %]")},
                       {"caption": "Family 2.", **table_of(lora, "restored to 16 - LoRA, points [95 %]")}],
            "pictures": [["score against the width trained at", "plr_recipe.png"]],
            "findings": [claim, plr.equal_to_lora(lora), *plr.by_task(ours)]}
