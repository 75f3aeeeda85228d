"""Pairwise judging: which of two runs answers better, by the score that a judge gives each answer (blora.txt Sec. 4.2).

| code name | meaning |
|---|---|
| request | what both runs were asked: a test row's prompt |
| answers a, b | what run a and run b wrote for it |
| order | `a b` shows a's answer first, `b a` shows b's first; every row is judged in both |
| scores | what the judge gave the two answers of one order, as shown, 1 to 10 each |
| verdict | of one row over both orders: win (of a), tie, loss; malformed where an answer of the judge gives no two scores |
| question | a judge and the two prompts of a row: asked once, then read from judgements.jsonl |
"""
