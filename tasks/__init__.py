"""Data sets, prompts and scores. One task a file; `TASKS` is the list that `--task` offers.

| code name | meaning |
|---|---|
| `Example` | one row: the prompt that the model reads, the answer that it should write |
| `Encoded` | its token ids, and how many of them are prompt: the rest, end token included, is what is learned |
| `Splits` | train, validation, test: three lists of `Example` that share no row |
| `rows`, `lines` | the test rows, and what the model answered to each: a line of predictions.jsonl |
| `marks` | what one answer is worth; the means over the rows are the scores |

`rows.py` reads data files, `hub_data.py` fetches those of the hub; `generative.py` asks for text, `choices.py` for one of several choices (benchmarks, which
have test rows only); `labels.py` and `free_text.py` score what many tasks have in common; `significance.py` has the paired tests between two models' scores on the same rows.
"""
from tasks.alpaca import Alpaca
from tasks.arc import ArcChallenge, ArcEasy
from tasks.banking77 import Banking77
from tasks.bitext import Bitext, BitextResponse
from tasks.boolq import BoolQ
from tasks.flan import Flan
from tasks.gsm8k import Gsm8k, Gsm8kZeroShot
from tasks.hellaswag import HellaSwag
from tasks.mmlu import Mmlu
from tasks.openbookqa import OpenBookQa
from tasks.perplexity import Perplexity
from tasks.piqa import Piqa
from tasks.pretrain import Pretrain
from tasks.sql_create_context import SqlCreateContext
from tasks.winogrande import WinoGrande

TASKS = {task.name: task for task in (Banking77, SqlCreateContext, Gsm8k, Gsm8kZeroShot, Alpaca, Flan, Bitext, BitextResponse, Pretrain, Perplexity,
                                     Mmlu, HellaSwag, Piqa, WinoGrande, ArcEasy, ArcChallenge, BoolQ, OpenBookQa)}
