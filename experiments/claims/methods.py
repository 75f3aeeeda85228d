"""Which way to a fine-tuned k-bit model is best, each with its own rate; and Shen et al.'s claims of Q-BLoRA."""
from pathlib import Path

from experiments.claims import method_findings as finding
from experiments.claims import method_limits as limits
from experiments.claims.claim import Claim, told
from experiments.claims.evidence import OF_SEVERAL, Cells
from experiments.claims.method_bases import of_divergence
from experiments.claims.method_gradients import draw_gradients, gradient_widths, gradients_table, of_gradients
from experiments.claims.method_lams import draw_rates, rate_widths
from experiments.claims.method_parts import of_parts
from experiments.claims.method_pictures import draw_scores
from experiments.claims.method_rows import Found, first_table, gather
from experiments.claims.method_tables import (
    Tests,
    against_reference,
    balance_table,
    bases_table,
    costs_table,
    methods_table,
    part_table,
    progress_table,
    rates_table,
)
from experiments.plans.methods import planned
from model.files import read_json

PARTS = (("operators", "Other operators (Shen et al., Table 6), at 4 bits.",
          ("qblora-2", "qblora-4", "qablora-4x8", "qablora-8x8")),
         ("blocks", "Blocks of 32 and of 64 weights (Shen et al., Figure 7b), at 4 bits.",
          ("qablora-4x8", "qablora-8x8")),
         ("parameters", "Equal trainable parameters: those of QA-BLoRA with 4x8 blocks, or a few less.",
          ("qablora-4x8", "peqa")),
         ("time", "Equal wall-clock: Q-BLoRA with fewer steps, as its step takes longer.", ("qlora", "qblora-2")),
         ("targets", "Three targets on one base (GPTQ, min-max 32x1): offset, codes, scale and offset.",
          ("qalora", "lota")),
         ("afterwards", "Trained on 16 bits, then rounded by GPTQ, beside rows that end at as many bits.",
          ("qlora", "qalora", "qablora-4x8", "peqa", "codes-residual", "scaleoffset")))


def record(cells: Cells, place: Path, plan: str = "methods", base: str = "embedded base, BANKING77") -> dict:
    """Writes the pictures into `place`. Returns the section of the page. Costs are read from `place`, too."""
    found = gather(cells, plan)
    widths = sorted({one.bits for one in first_table(found) if one.bits < 16 and one.finals}, reverse=True)
    tests = against_reference(found)
    bases = [facts for facts in cells.facts.values() if facts["plan"] == plan and facts["tags"]["role"] == "base"]
    costs = [read_json(file) for file in sorted(place.glob(f"{plan}_costs_*.json"))]
    tables = [*(methods_table(found, bits, tests) for bits in widths), rates_table(found), balance_table(found),
              gradients_table(found), *(part_table(found, *part) for part in PARTS), *map(costs_table, costs),
              bases_table(bases), progress_table(cells, planned(plan))]
    return {"title": f"Every method with a rate of its own: {base}",
            "tables": [table for table in tables if table["rows"]], "pictures": pictures(found, place, plan, base),
            **told(findings(cells, found, plan, tests))}


def pictures(found: list[Found], place: Path, plan: str, base: str) -> list[list[str]]:
    """[alternative text, file name] of each that has cells."""
    trained = any(one.finals and one.bits < 16 for one in first_table(found))
    made = [(draw_scores, trained, "scores as trained and at k bits", f"{plan}.png"),
            (draw_rates, rate_widths(found), "validation loss by rate and lam", f"{plan}_rates.png"),
            (draw_gradients, gradient_widths(found), "norm of the gradient by step and lam", f"{plan}_gradients.png")]
    for draw, possible, _, name in made:
        if possible:
            draw(found, place / name, base)
    return [[words, name] for _, possible, words, name in made if possible]


def findings(cells: Cells, found: list[Found], plan: str, tests: dict[str, Tests]) -> list[str | Claim]:
    last = tests["at k bits"]
    return [*finding.beside_reference(found, last), *finding.of_reference(found, last), *finding.of_balance(found),
            finding.of_rounding(found), *finding.of_targets(found), *of_parts(found),
            *limits.of_borrowed(found), *limits.of_nothing(found), *limits.of_edges(found), *limits.of_threshold(found),
            *of_gradients(found), *of_divergence(cells, plan),
            *limits.unseen(found), OF_SEVERAL]
