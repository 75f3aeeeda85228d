"""`tokenizer.json`, read by tokenizers."""
import json
import re
from pathlib import Path

import tokenizers

from model.stated_tokens import Added, Stated, padded, say_end_is_dropped, unknown_begin
from model.tokenizer_files import ADDED, CONFIG, MAP


class JsonTokenizer:
    """The files of Llama 3, SmolLM and Qwen2.

    A begin token is added if the file's own post-processor adds one, as in transformers 5. It is also added if
    tokenizer_config.json says `add_bos_token: true`, as transformers 4 does for Llama and Gemma. What the
    post-processor puts behind a text, such as an end token, is never added."""

    def __init__(self, model: bytes, stated: Stated, where: Path):
        """where: the file that errors name."""
        self.where = where
        self.tokenizer = self._checked(lambda: tokenizers.Tokenizer.from_buffer(model), "not a tokenizers file")
        self.tokenizer.no_truncation()  # a file may hold settings of its last user
        self.tokenizer.no_padding()
        if isinstance(self.tokenizer.model, tokenizers.models.BPE):
            self.tokenizer.model.dropout = None  # else the ids of a text are drawn anew each time
        self._check_own(model.decode(errors="replace"))
        self._add(stated.added or {})
        self.named_end = stated.eos
        self.eos_id = self._id(stated.eos)
        bos_id = self._id(stated.bos)
        self.begin, behind = self._around()
        if len(set(self.begin)) < len(self.begin):
            raise ValueError(f"{where}: puts {' '.join(map(self.token, self.begin))} before every text "
                             f"(post_processor): name each begin token once")
        if behind or stated.adds_end:
            say_end_is_dropped(where, "post_processor" if behind else f"add_eos_token in {CONFIG}",
                               repr(self.token(behind[0])) if behind else "an end token")
        if self.begin and stated.adds_begin is False:
            raise ValueError(f"{where}: puts {self.token(self.begin[0])!r} before every text (post_processor), but "
                             f"add_bos_token is false in {CONFIG}: make the two agree")
        if stated.adds_begin and stated.bos:
            if bos_id is None:
                raise unknown_begin(where, stated.bos)
            if self.begin and self.begin[0] != bos_id:
                raise ValueError(f"{where}: puts {self.token(self.begin[0])!r} before every text (post_processor), but "
                                 f"the begin token in {CONFIG} or {MAP} is {stated.bos!r}, and add_bos_token is true: "
                                 f"make them agree")
            self.begin = self.begin or [bos_id]

    def _checked(self, call, what: str):
        """The library raises plain Exception, and its panics are not even that."""
        try:
            return call()
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise ValueError(f"{self.where}: {what} ({str(error)[:200]})") from None

    def _check_own(self, text: str) -> None:
        """Raises ValueError if the file states another id for an added token than the library gives it, in silence."""
        place = re.search(r'"added_tokens"\s*:\s*(?=\[)', text)
        if not place:
            return
        for token in self._checked(lambda: json.JSONDecoder().raw_decode(text, place.end())[0], "added_tokens"):
            content, i = (token.get(key) for key in ("content", "id")) if isinstance(token, dict) else (None, None)
            if isinstance(content, str) and (own := self.tokenizer.token_to_id(content)) != i:
                raise ValueError(f"{self.where}: added_tokens gives {content[:40]!r} id {i}, but the vocabulary "
                                 f"before it makes it {own}")

    def _add(self, added: dict[int, Added]) -> None:
        """The tokens that only the files beside name. Raises ValueError if they would get other ids than stated."""
        for i, token in added.items():
            if self.tokenizer.token_to_id(token.text) is None:
                self.tokenizer.add_tokens([tokenizers.AddedToken(
                    token.text, special=token.special, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False)])
            if (own := self.tokenizer.token_to_id(token.text)) != i:
                raise ValueError(f"{self.where}: {token.text!r} is token {own}, but {ADDED} or {CONFIG} beside it "
                                 f"gives it id {i}")

    def _id(self, token: str | None) -> int | None:
        return self.tokenizer.token_to_id(token) if token else None

    def _around(self) -> tuple[list[int], list[int]]:
        """What the post-processor puts before and behind a text."""
        for text in ("a", "1", " a", "\n"):
            whole, bare = self._ids(text, True), self._ids(text, False)
            places = [i for i in range(len(whole) - len(bare) + 1) if bare and whole[i:i + len(bare)] == bare]
            if places:
                return whole[:places[0]], whole[places[0] + len(bare):]
        return [], []

    def _ids(self, text: str, processed: bool) -> list[int]:
        return self._checked(lambda: self.tokenizer.encode(text, add_special_tokens=processed).ids,
                             f"cannot encode {text[:40]!r}")

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt, begin token included."""
        return self.begin + self._ids(text, False)

    def decode(self, ids: list[int], special: bool = False) -> str:
        """The text of ids. Special tokens are left out, unless `special` asks for them. Ids that no token has are no
        text."""
        return self._checked(lambda: self.tokenizer.decode(ids, skip_special_tokens=not special), "cannot decode")

    def token(self, token_id: int) -> str:
        """The token as the file spells it."""
        return self.tokenizer.id_to_token(token_id) or padded(token_id)
