"""Perplexity of a text file: exp of the mean -ln p(token | tokens before it in its window).

    python eval.py --model DIR --task perplexity --test-data wikitext2/test.txt

The file is one sequence of tokens, after the tokenizer's begin token if it has one. It is cut into windows of W tokens
that do not overlap. W is --max-length, by default 2048 tokens or the model's positions, whichever is less. A window's
first token is only read, so W - 1 tokens are scored. A last window that is not whole is left out, unless it is the only
one. This is the protocol of GPTQ and other quantization papers.
Differs from theirs: the file is read unchanged, whereas they put two line breaks between the rows of WikiText-2.
"""
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from model.files import say_once
from model.finite import NotFinite, why_not_finite
from model.likelihood import token_log_probabilities
from model.llama import Llama
from model.tokenizer import Tokenizer
from tasks.batching import split_list
from tasks.rows import SUFFIXES, read_prose
from tasks.task import Asking, Splits, Task


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Window:
    tokens: list[int]


class Perplexity(Task):
    name, metric = "perplexity", "nats_per_token"
    title, licence = "perplexity of a text file", "that of the text"
    rows = "none: one UTF-8 text"
    protocol = ("windows of {} tokens that do not overlap, the first token of each only read, "
                "the last one left out if it is not whole")
    formats = {"perplexity": ".4f", "nats_per_token": ".4f"}
    needs_test_data, trains = True, False

    def splits(self, data: Path | None, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        """One text. Raises FileNotFoundError, or ValueError where the file is not UTF-8 text or --data is given."""
        if data:
            raise ValueError(f"--data {data}: --task {self.name} takes no --data; give the text file as --test-data")
        if not test_data.is_file():
            raise FileNotFoundError(f"{test_data}: no such text file")
        self.file = test_data
        if test_data.suffix.lower() in SUFFIXES:
            say_once(f"--test-data {test_data}: read as one text, with its brackets, quotes and field names")
        return Splits(test=[Text(read_prose(test_data))])

    def test_rows(self, test: Sequence[Text], tokenizer: Tokenizer, longest: int) -> list[Window]:
        """Cuts the text into windows and writes their size into `protocol`.

        Raises ValueError for a text or a window of fewer than two tokens: nothing in it could be scored."""
        tokens = tokenizer.encode(test[0].text)
        if len(tokens) < 2:
            raise ValueError(f"--test-data {self.file}: the text has {len(tokens)} tokens; a perplexity needs at "
                             f"least 2")
        if longest < 2:
            raise ValueError(f"--max-length {longest}: a window needs at least 2 tokens, as the first is only read")
        self.protocol = type(self).protocol.format(min(longest, len(tokens)))
        whole = [w for w in split_list(tokens, longest) if len(w) == longest]
        return [Window(w) for w in whole or [tokens]]

    @torch.no_grad()
    def answers(self, model: Llama, rows: Sequence[Window], asking: Asking) -> Iterator[tuple[int, dict]]:
        """A line holds the window's text, the number of tokens scored, and the sum of their log-probabilities.

        The text tells windows of different files or sizes apart where scores are compared. Windows are read one at a
        time: a batch would not be faster, and its logits would take more memory."""
        for i, row in enumerate(tqdm(rows, desc=asking.desc, unit="window", disable=None, leave=False)):
            scored, value = len(row.tokens) - 1, log_likelihood(model, row.tokens)
            if not math.isfinite(value):
                raise NotFinite(f"--task {self.name}, window {i + 1} of {len(rows)}: its log-likelihood {value} is no "
                                f"number; {why_not_finite(model, row.tokens[:-1])}")
            yield i, {"prompt": asking.tokenizer.decode(row.tokens), "gold": "", "tokens": scored,
                      "log_likelihoods": [value]}

    def marks(self, row: Window, line: dict) -> dict[str, float]:
        return {"nats_per_token": -line["log_likelihoods"][0] / line["tokens"]}

    def other_scores(self, rows: Sequence[Window], lines: Sequence[dict]) -> dict[str, float]:
        """Windows have one size, so the mean over the windows is the mean over the tokens."""
        nats = -sum(line["log_likelihoods"][0] for line in lines)
        mean = nats / sum(line["tokens"] for line in lines)
        return {"perplexity": torch.tensor(mean, dtype=torch.float64).exp().item()}


def log_likelihood(model: Llama, tokens: Sequence[int]) -> float:
    """sum over t > 0 of ln p(token t | tokens before t), from float32 logits."""
    x = model.hidden(torch.tensor([tokens[:-1]], device=model.device))[0]
    return token_log_probabilities(model, x, tokens[1:]).double().sum().item()
