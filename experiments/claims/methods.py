"""Which way to a fine-tuned k-bit model is best, each with its own rate; and Shen et al.'s claims of Q-BLoRA."""
from pathlib import Path

from experiments.claims import method_pictures as drawn
from experiments.claims.evidence import Cells, sentence
from experiments.claims.method_rows import Found, as_trained, first_table, gather, tested
from experiments.claims.method_tables import (
    Tests,
    against_reference,
    balance,
    balance_table,
    bases_table,
    costs_table,
    gradients_table,
    methods_table,
    part_table,
)
from model.files import read_json

PARTS = (("operators", "Other operators (Shen et al., Table 6), at 4 bits.",
          ("qblora-2", "qblora-4", "qablora-4x8", "qablora-8x8")),
         ("blocks", "Blocks of 32 and of 64 weights (Shen et al., Figure 7b), at 4 bits.",
          ("qablora-4x8", "qablora-8x8")),
         ("parameters", "Equal trainable parameters: those of QA-BLoRA with 4x8 blocks, or a few less.",
          ("qablora-4x8", "peqa")),
         ("time", "Equal wall-clock: Q-BLoRA with fewer steps, as its step takes longer.", ("qlora", "qblora-2")),
         ("targets", "Three targets on one base (GPTQ, min-max 32x1): offset, codes, scale and offset.",
          ("qalora", "lota")))


def record(cells: Cells, place: Path, plan: str = "methods", base: str = "embedded base, BANKING77") -> dict:
    """Writes the pictures into `place`. Returns the section of the page. Costs are read from `place`, too."""
    found = gather(cells, plan)
    widths = sorted({one.bits for one in first_table(found) if one.bits < 16}, reverse=True)
    tests = against_reference(found)
    bases = [facts for facts in cells.facts.values() if facts["plan"] == plan and facts["tags"]["role"] == "base"]
    costs = [read_json(file) for file in sorted(place.glob(f"{plan}_costs_*.json"))]
    tables = [bases_table(bases), *(methods_table(found, bits, tests) for bits in widths), balance_table(found),
              gradients_table(found), *(part_table(found, *part) for part in PARTS), *map(costs_table, costs)]
    return {"title": f"Every method with a rate of its own: {base}",
            "tables": [table for table in tables if table["rows"]], "pictures": pictures(found, place, plan, base),
            "findings": findings(cells, found, plan, tests)}


def pictures(found: list[Found], place: Path, plan: str, base: str) -> list[list[str]]:
    """[alternative text, file name] of each."""
    made = [["scores as trained and at k bits", f"{plan}.png"],
            ["validation loss by rate and lam", f"{plan}_rates.png"],
            ["norm of the gradient by step and lam", f"{plan}_gradients.png"]]
    for draw, (_, name) in zip((drawn.draw_scores, drawn.draw_rates, drawn.draw_gradients), made, strict=True):
        draw(found, place / name, base)
    return made


def findings(cells: Cells, found: list[Found], plan: str, tests: dict[str, Tests]) -> list[str]:
    rows = first_table(found)
    diverged = [name for name, facts in cells.facts.items()
                if facts["plan"] == plan and "diverged" in facts.get("training", {})]
    edges = [f"{one.title} at {one.bits} bits" for one in rows if one.at_edge]
    said = [sentence("Another method is above QA-BLoRA 4x8, both at k bits", list(tests["at k bits"].values())),
            sentence("Q-BLoRA is above QLoRA, each at its best rate",
                     list(tested(balance(found), as_trained).values())),
            f"{drawn.gradients_title(found)}.", f"{drawn.rates_title(found)}.",
            f"Training diverged in {len(diverged)} cells{': ' if diverged else ''}{', '.join(diverged)}."]
    return said + ([f"The best rate is the lowest or the highest that was tried, so a better one may lie beyond, for "
                    f"{', '.join(edges)}."] if edges else [])
