"""Perplexity of a text file: exp of the mean -ln p(token | tokens before it in its window).

    python eval.py --model DIR --task perplexity --test-data wikitext2/test.txt

The file is one sequence of tokens, with the tokenizer's begin token before it, if it has one, cut into windows that do not overlap
(2048 tokens, or --max-length, or the model's positions where those are fewer). A window's first token is only read, so W - 1 are scored; the
last window, if it is not whole, is left out, unless it is the only one. That is the protocol of the quantization papers (GPTQ's, for one), which read
WikiText-2 with two line breaks between its rows; here the file is read as it is.
"""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from model.likelihood import token_log_probabilities
from model.llama import Llama
from model.tokenizer import Tokenizer
from tasks.batching import split_list
from tasks.task import Asking, Splits, Task


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Window:
    tokens: list[int]


class Perplexity(Task):
    name, metric = "perplexity", "nats_per_token"
    protocol = "windows of {} tokens that do not overlap, the first token of each only read, the last one left out if it is not whole"
    formats = {"perplexity": ".4f", "nats_per_token": ".4f"}
    needs_test_data, trains = True, False

    def splits(self, data: Path | None, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        """One text. Raises FileNotFoundError, or ValueError for a file that is no UTF-8 text, and for training rows."""
        if data:
            raise ValueError(f"--data {data}: {self.name} is of one text; it goes to --test-data")
        if not test_data.is_file():
            raise FileNotFoundError(f"{test_data}: no such text file")
        try:
            return Splits(test=[Text(test_data.read_text(encoding="utf-8"))])
        except UnicodeDecodeError as error:
            raise ValueError(f"{test_data}: not UTF-8 text ({error})") from None

    def test_rows(self, test: Sequence[Text], tokenizer: Tokenizer, longest: int) -> list[Window]:
        """The protocol says their size from here on. Raises ValueError for a text or windows of fewer than two tokens, of which none could be scored."""
        tokens = tokenizer.encode(test[0].text)
        if len(tokens) < 2:
            raise ValueError(f"--test-data: {len(tokens)} tokens of text are too few for a perplexity")
        if longest < 2:
            raise ValueError(f"--max-length {longest}: the first token of a window is only read, so that one of two tokens is the smallest")
        self.protocol = type(self).protocol.format(min(longest, len(tokens)))
        whole = [w for w in split_list(tokens, longest) if len(w) == longest]
        return [Window(w) for w in whole or [tokens]]

    @torch.no_grad()
    def answers(self, model: Llama, rows: Sequence[Window], asking: Asking) -> Iterator[tuple[int, dict]]:
        """A window's line: its text, how many tokens were scored, and the sum of their log-probabilities. The text is what tells the windows of two
        files, or of two sizes, apart where scores are compared. Windows go one at a time: a batch of them would be no faster, and hold as many
        more logits."""
        for i, row in enumerate(tqdm(rows, desc=asking.desc, unit="window", disable=None, leave=False)):
            scored = len(row.tokens) - 1
            yield i, {"prompt": asking.tokenizer.decode(row.tokens), "gold": "", "tokens": scored, "log_likelihoods": [log_likelihood(model, row.tokens)]}

    def marks(self, row: Window, line: dict) -> dict[str, float]:
        return {"nats_per_token": -line["log_likelihoods"][0] / line["tokens"]}

    def other_scores(self, rows: Sequence[Window], lines: Sequence[dict]) -> dict[str, float]:
        """Windows are of one size, so that the mean over the windows is the mean over the tokens."""
        nats = -sum(line["log_likelihoods"][0] for line in lines)
        return {"perplexity": torch.tensor(nats / sum(line["tokens"] for line in lines), dtype=torch.float64).exp().item()}


def log_likelihood(model: Llama, tokens: Sequence[int]) -> float:
    """sum over t > 0 of ln p(token t | tokens before t), from float32 logits."""
    x = model.hidden(torch.tensor([tokens[:-1]], device=model.device))[0]
    return token_log_probabilities(model, x, tokens[1:]).double().sum().item()
