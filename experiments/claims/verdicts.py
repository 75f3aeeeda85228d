"""The verdicts on the papers' claims as one table, of the claims in the records of cells."""
from experiments.claims.evidence import OF_SEVERAL

# by record: the paper whose claims it judges, and the model that they were tried on
PAPERS = {"methods": ("Shen et al.", "embedded base"), "methods_real": ("Shen et al.", "SmolLM2-135M"),
          "plr": ("Kanda & Hatano", "SmolLM2-135M"), "plr_recipe": ("Kanda & Hatano", "SmolLM2-135M"),
          "ptq_qlora": ("Zhu et al.", "SmolLM2-135M")}
OWN = "methods"  # records whose names begin so judge ideas of this project too, which have no source


def verdicts_table(records: dict[str, dict], anchor_of: dict[str, str]) -> dict:
    """A row for each claim of a paper. anchor_of: the section of each record."""
    rows = [[paper, claim["claim"], claim["found"], f"[{model}](#{anchor_of[name]})"]
            for name, (paper, model) in PAPERS.items() for claim in records.get(name, {}).get("claims", ())
            if claim["source"] or not name.startswith(OWN)]
    return {"caption": "The papers' claims and open questions, and what was found of each. " + OF_SEVERAL + " Read the "
                       "reservations in the section before you use a verdict: some comparisons say little. The claims "
                       "on gradients have no test, so they are in the sections only.",
            "columns": ["paper", "claim", "found", "on"], "rows": rows}
