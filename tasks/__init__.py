"""Data sets, prompts and scores. Each task is one file.

`TASKS` holds every task by its name. `TRAINING_TASKS` holds those that `train.py --task` offers.

| code name | meaning |
|---|---|
| `Example` | one row: the prompt that the model reads, and the answer that it should write |
| `Encoded` | the row's token ids, and how many of them are prompt. The rest is learned, end token included |
| `Splits` | train, validation and test: three lists of `Example` that share no row |
| `rows`, `lines` | the test rows, and the model's answer to each: one line of predictions.jsonl |
| `marks` | the scores of one answer. Their means over the rows are the task's scores |

`rows.py` reads data files. `hub_data.py` fetches data files from the Hugging Face hub. `own_rows.py` recognises a
user's own rows: `text.py`, `completion.py` (with instructions), `classification.py` and `messages.py` are their tasks.
`generative.py` asks the model for text. `choices.py` asks for one of several choices: these are benchmarks, which have
test rows only. `labels.py` and `free_text.py` hold the scores that several tasks share.
`significance.py` holds the paired tests of two models' scores on the same rows.
`listing.py` makes the table of `train.py --list-tasks`.
"""
from tasks.alpaca import Alpaca
from tasks.arc import ArcChallenge, ArcEasy
from tasks.banking77 import Banking77
from tasks.bitext import Bitext, BitextResponse
from tasks.boolq import BoolQ
from tasks.classification import Classification
from tasks.completion import Completion, Instruction
from tasks.flan import Flan
from tasks.gsm8k import Gsm8k, Gsm8kZeroShot
from tasks.hellaswag import HellaSwag
from tasks.messages import Messages
from tasks.mmlu import Mmlu
from tasks.openbookqa import OpenBookQa
from tasks.own import Own
from tasks.perplexity import Perplexity
from tasks.piqa import Piqa
from tasks.pretrain import Pretrain
from tasks.sql_create_context import SqlCreateContext
from tasks.text import OwnText
from tasks.winogrande import WinoGrande

TASKS = {task.name: task for task in (
    Own, Messages, Instruction, Completion, Classification, OwnText,
    Banking77, SqlCreateContext, Gsm8k, Gsm8kZeroShot, Alpaca, Flan, Bitext, BitextResponse, Pretrain, Perplexity,
    Mmlu, HellaSwag, Piqa, WinoGrande, ArcEasy, ArcChallenge, BoolQ, OpenBookQa)}
TRAINING_TASKS = {name: task for name, task in TASKS.items() if task.trains}
