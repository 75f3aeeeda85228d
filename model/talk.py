"""A conversation with a model in its chat template: the history is rendered anew for every answer."""
from collections.abc import Callable
from dataclasses import replace

from model.chat_template import ChatTemplate, Turn
from model.generate import Sampling, generate_each
from model.llama import Llama


class Talk:
    """`turns` is what has been said so far, the system's turn first if there is one."""

    def __init__(self, model: Llama, chat: ChatTemplate, stop_ids: tuple[int, ...], max_new_tokens: int,
                 sampling: Sampling | None = None, system: str | None = None):
        self.model, self.chat, self.max_new_tokens, self.sampling = model, chat, max_new_tokens, sampling
        self.stop_ids = tuple(dict.fromkeys((*stop_ids, chat.end_id)))
        self.turns: list[Turn] = [] if system is None else [{"role": "system", "content": system}]
        self.forgotten = 0  # turns that were dropped because the model has no room for them
        self.cut = False    # whether the last answer reached max_new_tokens

    def answer(self, text: str, show: Callable[[str], None] = lambda so_far: None) -> str:
        """What the model says to `text`. `show` is called with the answer so far. Raises ValueError if the template
        refuses the turn, or the model has no room for it even alone; the turn is then not part of the history."""
        prompt, turns = self._prompt([*self.turns, {"role": "user", "content": text}])
        decode = self.chat.tokenizer.decode

        def stopped(ids: list[int]) -> bool:
            show(decode(ids))
            return False
        (_, ids), = generate_each(self.model, [prompt], self.max_new_tokens, self.stop_ids, 1, "answering",
                                  self._drawing(), stopped)
        said = decode(ids).strip()
        self.cut = len(ids) == self.max_new_tokens
        self.turns = [*turns, {"role": "assistant", "content": said}]
        return said

    def _prompt(self, turns: list[Turn]) -> tuple[list[int], list[Turn]]:
        """The ids, and the turns that they hold: the oldest question and answer are dropped as long as there is no
        room."""
        room, first = self.model.config.max_position_embeddings - self.max_new_tokens, turns[0]["role"] == "system"
        while True:
            hidden = self.chat.hidden(turns)
            ids = self.chat.encode(self.chat.render(hidden.turns, prompt=True), hidden.mark)
            if len(ids) <= room:
                return ids, turns
            if len(turns) <= first + 1:
                raise ValueError(f"the turn has {len(ids)} tokens with its template; the model has room for {room} and "
                                 f"an answer of {self.max_new_tokens}")
            turns = [*turns[:first], *turns[first + 2:]]
            self.forgotten += 2

    def _drawing(self) -> Sampling | None:
        """Every answer is drawn with numbers of its own."""
        if self.sampling is None:
            return None
        return replace(self.sampling, seed=(self.sampling.seed + 1_000_003 * len(self.turns)) % 2 ** 63)
