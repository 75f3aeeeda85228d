"""Tasks that are answered by writing: greedy, in batches, to an end token or one of the task's stop texts."""
from collections.abc import Iterator, Sequence

from model.generate import generate_each
from model.llama import Llama
from tasks.task import Asking, Example, Task

TRUNCATED, EMPTY, EMPTY_GOLD = "prompt cut on the left", "empty answer", "empty gold answer"


class GenerativeTask(Task):
    stop_texts: tuple[str, ...] = ("\n",)  # the answer is what stands before the first of them

    def answers(self, model: Llama, rows: Sequence[Example], asking: Asking) -> Iterator[tuple[int, dict]]:
        """A row's line: prompt, gold, text. Which rows are asked together changes nothing but rounding."""
        prompts = [asking.tokenizer.encode(row.prompt) for row in rows]
        room = model.config.max_position_embeddings - asking.max_new_tokens
        stopped = lambda ids: any(stop in asking.tokenizer.decode(ids) for stop in self.stop_texts)
        for i, ids in generate_each(model, prompts, asking.max_new_tokens, asking.end_ids, asking.batch_size, asking.desc, stopped=stopped):
            text = before(asking.tokenizer.decode(ids), self.stop_texts).strip()
            flags = [TRUNCATED] * (len(prompts[i]) > room) + [EMPTY] * (not text) + [EMPTY_GOLD] * (not rows[i].answer.strip())
            yield i, {"prompt": rows[i].prompt, "gold": rows[i].answer, "text": text, **({"flags": flags} if flags else {})}


def before(text: str, stops: Sequence[str]) -> str:
    """`before(" card arrival\\nReply: ...", ["\\n"]) == " card arrival"`"""
    return text[:min((text.index(stop) for stop in stops if stop in text), default=len(text))]
