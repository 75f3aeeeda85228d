"""The text that the embedded base is pre-trained on: `--task pretrain --data DIR`.

DIR holds one folder for each of these public data sets:

| file | data set | fields used |
|---|---|---|
| `sql_create_context/train.jsonl` | sql-create-context | question, context, answer |
| `gsm8k/train.jsonl` | GSM8K | question, answer |
| `boolq/train.jsonl` | BoolQ | question, passage |
| `flan_cot/train.jsonl` | FLAN v2, chain of thought | question, answer, chain_of_thought |
| `c4_sample/train.jsonl` | a sample of C4 | text |
| `bitext/train.jsonl` | Bitext customer support | instruction, intent, response |
| `wikitext2/valid.txt` | WikiText-2, raw text | the articles |

Only train splits are used. WikiText-2 is the exception: its validation file is used, and its test file stays unseen.
All data sets have permissive licences. banking77 is left out because it is the embedded task; alpaca, because it is
non-commercial. Each row becomes one document. Each document gets the tokenizer's begin token, if it has one, and an end
token. The documents are then joined and cut into windows.
"""
from collections.abc import Callable, Sequence
from pathlib import Path

from model.tokenizer import Tokenizer
from tasks.labels import intent_words
from tasks.rows import read_prose, read_rows
from tasks.sql_create_context import sql_prompt
from tasks.task import Encoded, Example, Splits, Task, shuffled

WINDOW = 256  # tokens; nearly every row of these data sets fits


def _boolq(row: dict) -> str:
    return f"{row['passage']}\nQuestion: {row['question']}?"


def _flan(row: dict) -> str:
    return f"Question: {row['question']}\nReasoning: {row['chain_of_thought']}\nAnswer: {row['answer']}"


RECIPE: dict[str, tuple[str, tuple[str, ...], Callable[[dict], str]]] = {
    "sql_create_context": ("train.jsonl", ("question", "context", "answer"),
                           lambda r: f"{sql_prompt(r['context'], r['question'])} {r['answer']}"),
    "gsm8k": ("train.jsonl", ("question", "answer"), lambda r: f"Question: {r['question']}\nAnswer: {r['answer']}"),
    "boolq": ("train.jsonl", ("question", "passage"), _boolq),
    "flan_cot": ("train.jsonl", ("question", "answer", "chain_of_thought"), _flan),
    "c4_sample": ("train.jsonl", ("text",), lambda r: r["text"]),
    "bitext": ("train.jsonl", ("instruction", "intent", "response"),
               lambda r: f"{r['instruction']}\nIntent: {intent_words(r['intent'])}\nReply: {r['response']}"),
}


def documents(data: Path) -> list[str]:
    """Every document of the recipe, in the recipe's order."""
    texts = [render(row) for folder, (file, fields, render) in RECIPE.items()
             for row in read_rows(data / folder / file, fields)]
    return texts + wikitext_articles(data / "wikitext2" / "valid.txt")


def wikitext_articles(path: Path) -> list[str]:
    """Cuts the raw text before each top-level heading ` = Title = `."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such data file")
    articles: list[list[str]] = [[]]
    for line in read_prose(path).split("\n"):
        if line.startswith(" = ") and not line.startswith(" = = "):
            articles.append([])
        articles[-1].append(line.strip())
    return [text for lines in articles if (text := "\n".join(lines).strip())]


class Pretrain(Task):
    name = "pretrain"
    title, licence = "pre-training text of the base", "that of each set"
    rows = "a directory, see tasks/pretrain.py"
    protocol = "validation loss only"
    needs_data = True

    def splits(self, data: Path | None, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        """One document in fifty is for validation."""
        texts = shuffled(documents(data), seed)[:limit]
        n_validation = max(1, len(texts) // 50)
        examples = [Example(prompt="", answer=text) for text in texts]
        return Splits(train=examples[n_validation:], validation=examples[:n_validation])

    def encode(self, examples: Sequence[Example], tokenizer: Tokenizer, eos_id: int) -> list[Encoded]:
        """Windows of one stream of tokens.

        The first token of a window is only read. Each window therefore begins with the last token of the one before it,
        so that every token of the stream is learned once."""
        stream = [token for example in examples for token in [*tokenizer.encode(example.answer), eos_id]]
        return [Encoded(stream[start:start + WINDOW + 1], 1) for start in range(0, len(stream) - 1, WINDOW)]
