"""Tasks that are answered in writing: greedy, in batches, up to an end token or one of the task's stop texts."""
from collections.abc import Iterator, Sequence

from model.finite import NotFinite
from model.generate import generate_each
from model.llama import Llama
from model.tokenizer import Tokenizer
from tasks.task import Asking, Example, Task, answer_ids, prompt_ids, same_row

TRUNCATED, EMPTY, EMPTY_GOLD = "prompt cut on the left", "empty answer", "empty gold answer"
CUT_ANSWER = "an answer cut at --max-new-tokens"
LONG_GOLD = "a gold answer longer than --max-new-tokens"
CUT_GOLD = "a gold answer that goes on behind a stop text, where every answer is cut"
ALSO_TRAINED = "the same question and answer among the training rows"
OWN_SHOT = "their own question among the worked examples"


class GenerativeTask(Task):
    stop_texts: tuple[str, ...] = ("\n",)  # the answer is the text before the first of them

    def question_of(self, row: Example) -> str:
        """The prompt without worked examples."""
        return row.prompt

    def prompt_of(self, row: Example, asking: Asking) -> list[int]:
        """The ids that a model answers to."""
        return prompt_ids(row.prompt, asking.tokenizer, asking.end_ids[0])

    def row_flags(self, row: Example, asking: Asking) -> list[str]:
        gold = row.answer.strip()
        found = {EMPTY_GOLD: not gold, CUT_GOLD: before(gold, self.stop_texts).strip() != gold,
                 LONG_GOLD: self.gold_tokens(row, asking) > asking.max_new_tokens,
                 ALSO_TRAINED: bool(self.trained_on) and same_row(self.question_of(row), gold) in self.trained_on}
        return [flag for flag, holds in found.items() if holds]

    def gold_tokens(self, row: Example, asking: Asking) -> int:
        """Of the right answer, the end token not counted. At most as many as its text has bytes: only a text that may
        be too long is encoded."""
        most = len(row.answer.encode())  # with its space: no token has less than a byte
        return most if most < asking.max_new_tokens else tokens_of_answer(row, asking)

    def texts(self, row: Example) -> tuple[str, ...]:
        return (row.prompt,)

    def answers(self, model: Llama, rows: Sequence[Example], asking: Asking) -> Iterator[tuple[int, dict]]:
        """A line holds prompt, gold and text. The batch that a row is in changes its answer by rounding only."""
        tokenizer, limit = asking.tokenizer, asking.max_new_tokens
        prompts = [self.prompt_of(row, asking) for row in rows]
        room = model.config.max_position_embeddings - limit

        def stopped(ids: list[int]) -> bool:
            return any(stop in spelled(tokenizer, ids[-1]) or stop in tokenizer.decode(ids) for stop in self.stop_texts)
        written = generate_each(model, prompts, limit, asking.end_ids, asking.batch_size, asking.desc, stopped=stopped)
        try:
            for i, ids in written:
                text = before(tokenizer.decode(ids), self.stop_texts).strip()
                flags = ([TRUNCATED] * (len(prompts[i]) > room) + [EMPTY] * (not text)
                         + self.row_flags(rows[i], asking) + [CUT_ANSWER] * (len(ids) == limit and not stopped(ids)))
                yield i, {"prompt": rows[i].prompt, "gold": rows[i].answer, "text": text,
                          **({"flags": flags} if flags else {})}
        except NotFinite as error:
            raise NotFinite(f"--task {self.name}, prompt {rows[error.row].prompt[-60:]!r}: {error}") from None


def tokens_of_answer(row: Example, asking: Asking) -> int:
    tokenizer, end = asking.tokenizer, asking.end_ids[0]
    return len(answer_ids(row, prompt_ids(row.prompt, tokenizer, end), tokenizer, end))


def spelled(tokenizer: Tokenizer, token_id: int) -> str:
    """A token as the tokenizer's file spells it. Decoding drops special tokens, of which `<|im_end|>` is a stop text of
    GSM8K. Of an id that the file does not have: nothing."""
    try:
        return tokenizer.token(token_id) or ""
    except (IndexError, OverflowError):
        return ""


def before(text: str, stops: Sequence[str]) -> str:
    """`before(" card arrival\\nReply: ...", ["\\n"]) == " card arrival"`"""
    return text[:min((text.index(stop) for stop in stops if stop in text), default=len(text))]
