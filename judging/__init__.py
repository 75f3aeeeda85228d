"""Pairwise judging: which of two runs answers better. A judge scores each answer (Shen et al., Sec. 4.2).

| code name | meaning |
|---|---|
| request | the prompt of a test row, which both runs were given |
| answers a, b | the texts that run a and run b wrote for it |
| order | `a b` shows a's answer first, `b a` shows b's first. Every row is judged in both orders |
| scores | the judge's scores of the two answers of one order, 1 to 10 each, in the order shown |
| verdict | the outcome of one row over both orders: win (of a), tie or loss; malformed if an order has no scores |
| question | a judge and the two prompts of a row. It is asked once, then read from judgements.jsonl |
"""
