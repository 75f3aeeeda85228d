"""Claims of the papers, judged by cells: tables, paired tests, pictures, and one sentence each.

| module | what it holds |
|---|---|
| claim.py | a claim and its verdicts as data: the sentence among the findings, the row of the table of verdicts |
| evidence.py | cells.json as it is read: groups of seeds, paired tests over test rows, Holm's correction, verdicts |
| notes.py | how cells were made: validations, calibration, the base's weights, seeds |
| pictures.py | the look of all pictures: colours, intervals, titles that say the finding |
| method_findings.py, method_limits.py | sentences of the comparison of methods: what was found, what it leaves open |
| method_parts.py, method_gradients.py, method_bases.py | likewise: further parts; gradients; what training began from |
| plr.py, ptq_qlora.py, scale.py | a plan's claims: `record(cells, place)` writes the pictures and returns the record |
| verdicts.py | the table at the top of docs/results.md: the verdict on every claim |
| overview.py | the picture in README.md: one panel a paper, from the cells of three plans |

A record is a section of docs/results.md: title, about, tables, pictures, findings, claims: see
experiments/results_page.py.

    python -m experiments.findings CELLS.json ...
"""
