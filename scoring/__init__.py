"""Scoring: a run or a model in each of its states, one after the other, so that memory holds one base at a time.

| code name | meaning |
|---|---|
| state | what is scored: `base`, `quantized`, `trained`, `merged-4bit`, `restored-8bit` ... (`state.py`) |
| `Row` | what a state scored: one row of the table (`scores.py`) |
| `PreparedData` | the task's rows, encoded (finetune/data.py) |
| place | the directory that keeps results.json and predictions.jsonl: a run, a benchmark of a run, or evals/NAME |

`score_run.py` scores a run and `score_model.py` a model without one; `restore.py` is Post-LoRA Restoration; `table.py`
prints; `predictions.py` keeps what was answered and compares two states row by row; `resume.py` goes on after an
interruption; `tradeoff.py` and `show_tradeoff.py` are Table 1 and Figure 2 of Kanda & Hatano.
"""
