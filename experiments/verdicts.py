"""The verdicts on the papers' claims as one table, read from the findings of the records of cells.

A finding that judges a claim is `CLAIM (SOURCE): VERDICT at WIDTHS (FIGURES); VERDICT at WIDTHS (FIGURES). More.`
"""
import re
from itertools import zip_longest

# by record: the paper whose claims it judges, and the model that they were tried on
PAPERS = {"methods": ("Shen et al.", "embedded base"), "methods_real": ("Shen et al.", "SmolLM2-135M"),
          "plr": ("Kanda & Hatano", "SmolLM2-135M"), "plr_recipe": ("Kanda & Hatano", "SmolLM2-135M"),
          "ptq_qlora": ("Zhu et al.", "SmolLM2-135M")}
OWN = "methods"  # records whose names begin so judge ideas of this project too, which name no paper
JUDGED = re.compile(r"(?P<claim>.+?): "
                    r"(?P<verdicts>(?:[\w-]+, \d+ bits: )?(?:not )?(?:confirmed|decided|the opposite)\b.*)")
IN_BRACKETS = re.compile(r" \([^()]*\)")
AT_BITS = re.compile(r"(.+) at ([\d, and]+) bits")
RESERVATIONS = ("Without ", "That verdict ")  # how a finding begins that goes with the one before


def verdict_of(finding: str) -> tuple[str, str] | None:
    """(claim, verdicts) without figures: `("A is above B", "confirmed at 4 and 3 bits; not confirmed at 2 bits")`.
    None: the finding judges no claim."""
    if not (found := JUDGED.fullmatch(finding)):
        return None
    verdicts = IN_BRACKETS.sub("", found["verdicts"]).partition(". ")[0].removesuffix(".")
    return IN_BRACKETS.sub("", found["claim"]), joined(verdicts.split("; "))


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
        for finding, after in zip_longest(findings, findings[1:], fillvalue=""):
            judged = verdict_of(finding)
            if judged and (paper in finding or not name.startswith(OWN)):
                mark = " *" if after.startswith(RESERVATIONS) else ""
                rows.append([paper, judged[0], judged[1] + mark, f"[{model}](#{anchor_of[name]})"])
    return {"caption": "The papers' claims, and what was found of each. Figures and tests are in the sections. *: some "
                       "of the comparisons say little, and the section says what is left without them.",
            "columns": ["paper", "claim", "found", "on"], "rows": rows}
