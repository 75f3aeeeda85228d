"""A judge from a model directory: it goes on from the prompt, greedily, and its text is read as an endpoint's answer is.

Not the log-likelihoods of two verdict letters: the paper's definition needs scores that can be equal, and two real numbers never are, so that
"ties in one order" would not exist. The prompt is plain text, chat templates are not applied: a chat model judges below its abilities.
"""
from dataclasses import dataclass
from functools import cached_property

from finetune.arguments import DTYPES
from finetune.data import check_ids
from finetune.models import Source
from model.generate import generate
from model.llama import Llama
from model.tokenizer import continuation

NEW_TOKENS = 16  # two numbers from 1 to 10 and what may stand between them


@dataclass
class LocalJudge:
    source: Source
    dtype: str
    device: str

    @property
    def name(self) -> str:
        return str(self.source.place)

    def identity(self) -> dict:
        """What an answer depends on beside the prompt: the weights, wherever they lie, and the type that they are computed in."""
        return {"judge": self.source.fingerprint, "dtype": self.dtype}

    @cached_property
    def model(self) -> Llama:
        return self.source.load(DTYPES[self.dtype], self.device)

    def check(self, prompts: list[str]) -> None:
        """Raises ValueError for a prompt that the model has no room for: what is cut off could not be judged. Reads no weights."""
        ids, positions = [self.source.tokenizer.encode(prompt) for prompt in prompts], self.source.config.max_position_embeddings
        check_ids(ids, self.source)
        if too_long := [i for i, row in enumerate(ids) if len(row) + NEW_TOKENS > positions]:
            row = too_long[0] // 2
            raise ValueError(f"--judge-model {self.name} has {positions} positions, and the prompt of row {row} takes {len(ids[too_long[0]])} and "
                             f"{NEW_TOKENS} for the answer: use a judge with room for it, or --limit {row}")

    def ask(self, prompts: list[str]) -> list[str]:
        """All prompts are one batch."""
        tokenizer = self.source.tokenizer
        ids = [tokenizer.encode(prompt) for prompt in prompts]
        answers = generate(self.model, ids, NEW_TOKENS, self.source.stop_ids(), len(ids), desc="judging")
        return [continuation(tokenizer, prompt, answer) for prompt, answer in zip(ids, answers)]
