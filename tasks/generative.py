"""Tasks that are answered in writing: greedy, in batches, up to an end token or one of the task's stop texts."""
from collections.abc import Iterator, Sequence

from model.generate import generate_each
from model.llama import Llama
from tasks.task import Asking, Example, Task

TRUNCATED, EMPTY, EMPTY_GOLD = "prompt cut on the left", "empty answer", "empty gold answer"


class GenerativeTask(Task):
    stop_texts: tuple[str, ...] = ("\n",)  # the answer is the text before the first of them

    def answers(self, model: Llama, rows: Sequence[Example], asking: Asking) -> Iterator[tuple[int, dict]]:
        """A line holds prompt, gold and text. The batch that a row is in changes its answer by rounding only."""
        prompts = [asking.tokenizer.encode(row.prompt) for row in rows]
        room = model.config.max_position_embeddings - asking.max_new_tokens

        def stopped(ids: list[int]) -> bool:
            return any(stop in asking.tokenizer.decode(ids) for stop in self.stop_texts)
        written = generate_each(model, prompts, asking.max_new_tokens, asking.end_ids, asking.batch_size, asking.desc,
                                stopped=stopped)
        for i, ids in written:
            text = before(asking.tokenizer.decode(ids), self.stop_texts).strip()
            flags = ([TRUNCATED] * (len(prompts[i]) > room) + [EMPTY] * (not text)
                     + [EMPTY_GOLD] * (not rows[i].answer.strip()))
            yield i, {"prompt": rows[i].prompt, "gold": rows[i].answer, "text": text,
                      **({"flags": flags} if flags else {})}


def before(text: str, stops: Sequence[str]) -> str:
    """`before(" card arrival\\nReply: ...", ["\\n"]) == " card arrival"`"""
    return text[:min((text.index(stop) for stop in stops if stop in text), default=len(text))]
