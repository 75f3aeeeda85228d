"""The verdicts on the papers' claims as one table, read from the findings of the records of cells.

A finding that judges a claim is `CLAIM (SOURCE): VERDICT at WIDTHS (FIGURES); VERDICT at WIDTHS (FIGURES). More.`
"""
import re

from experiments.claims.evidence import OF_SEVERAL

# by record: the paper whose claims it judges, and the model that they were tried on
PAPERS = {"methods": ("Shen et al.", "embedded base"), "methods_real": ("Shen et al.", "SmolLM2-135M"),
          "plr": ("Kanda & Hatano", "SmolLM2-135M"), "plr_recipe": ("Kanda & Hatano", "SmolLM2-135M"),
          "ptq_qlora": ("Zhu et al.", "SmolLM2-135M")}
OWN = "methods"  # records whose names begin so judge ideas of this project too, which name no paper
JUDGED = re.compile(r"(?P<claim>.+?): "
                    r"(?P<verdicts>(?:[\w-]+, \d+ bits: )?(?:not )?(?:confirmed|decided|the opposite)\b.*)")
IN_BRACKETS = re.compile(r" \([^()]*\)")
SOURCE = re.compile(r" \((?:Shen et al\.|Kanda & Hatano|Zhu et al\.)(?:, [^;()]+)?(?:; ([^()]*))?\)")
FAMILY = re.compile(r"; Holm over [^;()]*")
AT_BITS = re.compile(r"(.+) at ([\d, and]+) bits")

def verdict_of(finding: str) -> tuple[str, str] | None:
    """(claim, verdicts) without source and figures: `("A is above B (not in the plan)", "confirmed at 4 and 3 bits")`.
    None: the finding judges no claim."""
    if not (found := JUDGED.fullmatch(finding)):
        return None
    verdicts = IN_BRACKETS.sub("", found["verdicts"]).partition(". ")[0].removesuffix(".")
    claim = SOURCE.sub(lambda source: f" ({source[1]})" if source[1] else "", found["claim"])
    return FAMILY.sub("", claim), joined(verdicts.split("; "))


def joined(verdicts: list[str]) -> str:
    """Neighbours of the same verdict are said once: `joined(["a at 4 bits", "a at 2 bits"]) == "a at 4 and 2 bits"`"""
    said: list[tuple[str, list[str]]] = []
    for verdict in verdicts:
        at = AT_BITS.fullmatch(verdict)
        what, widths = (at[1], at[2].replace(" and", ",").split(", ")) if at else (verdict, [])
        if widths and said and said[-1][0] == what:
            said[-1][1].extend(widths)
        else:
            said.append((what, widths))
    return "; ".join(f"{what} at {' and '.join(filter(None, (', '.join(widths[:-1]), widths[-1])))} bits" if widths
                     else what for what, widths in said)


def verdicts_table(records: dict[str, dict], anchor_of: dict[str, str]) -> dict:
    """A row for each claim of a paper. anchor_of: the section of each record."""
    rows = []
    for name, (paper, model) in PAPERS.items():
        findings = records.get(name, {"findings": []})["findings"]
        for finding in findings:
            judged = verdict_of(finding)
            if judged and (paper in finding or not name.startswith(OWN)):
                rows.append([paper, *judged, f"[{model}](#{anchor_of[name]})"])
    return {"caption": "The papers' claims and open questions, and what was found of each. " + OF_SEVERAL + " Read the "
                       "reservations in the section before you use a verdict: some comparisons say little. The claims "
                       "on gradients have no test, so they are in the sections only.",
            "columns": ["paper", "claim", "found", "on"], "rows": rows}
