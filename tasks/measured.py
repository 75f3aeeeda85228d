"""Free text of a user's own rows: what the model writes is scored, and how likely the right answer is to it."""
import math
from collections.abc import Iterator, Sequence

import torch

from model.finite import NotFinite, why_not_finite
from model.likelihood import token_log_probabilities
from model.llama import Llama
from tasks.free_text import FreeTextTask
from tasks.task import Asking, Encoded, Example, encode_example

NO_ROOM = "a whole row longer than the model, which is left out of loss and perplexity"


class MeasuredTask(FreeTextTask):
    """loss = sum of -ln p(token) over the learned tokens of all test rows / their number; perplexity = e^loss."""
    protocol = (f"{FreeTextTask.protocol}; exact match of the whole text, white space apart; loss in nats a token of "
                "the right answers, end tokens included, and perplexity = e^loss")
    formats = {"loss": ".4f", "perplexity": ".4f"}

    def whole_row(self, row: Example, asking: Asking) -> Encoded:
        return encode_example(row, asking.tokenizer, asking.end_ids[0])

    def answers(self, model: Llama, rows: Sequence[Example], asking: Asking) -> Iterator[tuple[int, dict]]:
        """A line holds also `log_likelihood`, the sum over the learned tokens, and their number, `learned`."""
        for i, line in super().answers(model, rows, asking):
            row = self.whole_row(rows[i], asking)
            if len(row.tokens) > model.config.max_position_embeddings:
                yield i, {**line, "flags": [*line.get("flags", ()), NO_ROOM]}
                continue
            value = log_likelihood(model, row)
            if not math.isfinite(value):
                raise NotFinite(f"--task {self.name}, answer {rows[i].answer[:60]!r}: its log-likelihood {value} is no "
                                f"number; {why_not_finite(model, row.tokens[:-1])}")
            yield i, {**line, "log_likelihood": value, "learned": len(row.learned)}

    def marks(self, row: Example, line: dict) -> dict[str, float]:
        return {"exact_match": float(line["text"].split() == row.answer.split()), **super().marks(row, line)}

    def other_scores(self, rows: Sequence[Example], lines: Sequence[dict]) -> dict[str, float]:
        tokens = sum(line.get("learned", 0) for line in lines)
        if not tokens:
            return {}
        loss = -sum(line.get("log_likelihood", 0.0) for line in lines) / tokens
        return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}


@torch.no_grad()
def log_likelihood(model: Llama, row: Encoded) -> float:
    """sum over the learned places t of ln p(token t | tokens before t), from float32 logits."""
    x = model.hidden(torch.tensor([row.tokens[:-1]], device=model.device))[0]
    learned = list(row.learned)
    x = x[torch.tensor([place - 1 for place in learned], device=x.device)]
    return token_log_probabilities(model, x, [row.tokens[place] for place in learned]).double().sum().item()
