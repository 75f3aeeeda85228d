"""A judge from a model directory. It continues the prompt greedily, and its text is read like an endpoint's answer.

The log-likelihoods of two verdict letters are not used. The definition of Shen et al. needs scores that can be equal.
Two real numbers never are, so there would be no ties in one order. The prompt is plain text: no chat template is
applied, so a chat model judges below its abilities.
"""
from dataclasses import dataclass
from functools import cached_property

from adapters.held import dense_weights
from finetune.data import check_ids
from finetune.source import Source
from finetune.values import DTYPES
from model.generate import generate
from model.llama import Llama
from model.tokenizer import continuation
from tasks.task import prompt_ids

NEW_TOKENS = 16  # enough for two numbers from 1 to 10 and the text between them


@dataclass
class LocalJudge:
    source: Source
    dtype: str
    device: str

    @property
    def name(self) -> str:
        return str(self.source.place)

    def identity(self) -> dict:
        """What an answer depends on besides the prompt: the weights (not their path) and the compute type."""
        return {"judge": self.source.fingerprint, "dtype": self.dtype}

    @cached_property
    def model(self) -> Llama:
        return self.source.load(DTYPES[self.dtype], self.device)

    def check(self, prompts: list[str]) -> None:
        """Raises ValueError for a prompt that is too long for the model. Reads no weights."""
        ids = self.ids_of(prompts)
        positions = self.source.config.max_position_embeddings
        check_ids(ids, self.source)
        if too_long := [i for i, row in enumerate(ids) if len(row) + NEW_TOKENS > positions]:
            row = too_long[0] // 2
            remedy = "use a judge with more positions" + (f", or --limit {row}" if row else "")
            raise ValueError(f"--judge-model {self.name} has {positions} positions, but row {row} needs "
                             f"{len(ids[too_long[0]])} for its prompt and {NEW_TOKENS} for the answer: {remedy}")

    def ids_of(self, prompts: list[str]) -> list[list[int]]:
        return [prompt_ids(prompt, self.source.tokenizer, self.source.stop_ids()[0]) for prompt in prompts]

    def ask(self, prompts: list[str]) -> list[str]:
        """The answers to all prompts, generated in one batch."""
        tokenizer = self.source.tokenizer
        ids = self.ids_of(prompts)
        with dense_weights(self.model):
            answers = generate(self.model, ids, NEW_TOKENS, self.source.stop_ids(), len(ids), desc="judging")
        return [continuation(tokenizer, prompt, answer) for prompt, answer in zip(ids, answers, strict=True)]
