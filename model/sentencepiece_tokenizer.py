"""`tokenizer.model`, read by sentencepiece."""
import re
from pathlib import Path

import sentencepiece

from model.gguf_tokenizer_reader import message
from model.stated_tokens import Added, Stated, padded, say_end_is_dropped, unknown_begin
from model.tokenizer_files import ADDED, CONFIG


class SentencePieceTokenizer:
    """The files of LLaMA-1/2, Mistral and Gemma. They name the begin token.

    `add_bos_token: false` in tokenizer_config.json drops it. Added tokens are one id each: text is cut at them, the
    longest first, and sentencepiece encodes what lies between. With `legacy: false` only the beginning of a text gets
    sentencepiece's space, otherwise every part does."""

    def __init__(self, model: bytes, stated: Stated, where: Path):
        """where: the file that errors name."""
        self.where = where
        self.processor = sentencepiece_processor(model, where)
        self.inner = self.processor
        self.pieces = self.processor.vocab_size()
        self.added = self._check_added(stated.added or {})
        if self.added and not stated.legacy:  # no space before, spaces kept; appended fields count
            self.inner = sentencepiece_processor(model + message({3: message({3: 0, 4: 0})}), where)
        self.ids = {token.text: i for i, token in self.added.items()}
        longest = sorted(self.ids, key=len, reverse=True)
        self.cut = re.compile("(" + "|".join(map(re.escape, longest)) + ")") if longest else None
        self.named_end = stated.eos
        self.eos_id = self._id(stated.eos, self.processor.eos_id())
        bos_id = self._id(stated.bos, self.processor.bos_id())
        if bos_id is None and stated.bos is not None and stated.adds_begin is not False:
            raise unknown_begin(where, stated.bos)
        self.begin = [bos_id] if bos_id is not None and stated.adds_begin in (True, None) else []
        if stated.adds_end:
            say_end_is_dropped(where, f"add_eos_token in {CONFIG}")

    def _check_added(self, added: dict[int, Added]) -> dict[int, Added]:
        """Raises ValueError if tokenizer.model has another token at one of the ids, or the token at another id."""
        for i, token in added.items():
            if i < self.pieces and self.processor.id_to_piece(i) != token.text:
                raise ValueError(f"{self.where}: token {i} is {self.processor.id_to_piece(i)!r}, but {ADDED} or "
                                 f"{CONFIG} beside it gives this id to {token.text!r}")
            own = self.processor.piece_to_id(token.text)
            if i >= self.pieces and own != self.processor.unk_id() and self.processor.id_to_piece(own) == token.text:
                raise ValueError(f"{self.where}: {token.text!r} is token {own}, but {ADDED} or {CONFIG} beside it "
                                 f"gives it id {i}")
        return added

    def _id(self, text: str | None, own: int) -> int | None:
        """The id of a token that is named beside the file; without a name, the file's own. None if there is none."""
        if text is None:
            return own if own >= 0 else None  # -1: the file has none
        if text in self.ids:
            return self.ids[text]
        found = self.processor.piece_to_id(text)
        return found if 0 <= found < self.pieces and self.processor.id_to_piece(found) == text else None

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt, begin token included."""
        if not self.cut:
            return self.begin + self.processor.encode(text)
        ids, parts = list(self.begin), self.cut.split(text)
        for place, part in enumerate(parts):
            if place % 2:
                ids.append(self.ids[part])
                continue
            before, after = (self.added[self.ids[parts[i]]] if 0 <= i < len(parts) else None
                             for i in (place - 1, place + 1))
            part = part.lstrip() if before and before.rstrip else part
            part = part.rstrip() if after and after.lstrip else part
            if part:
                ids += (self.inner if place else self.processor).encode(part)
        return ids

    def decode(self, ids: list[int], special: bool = False) -> str:
        """The text of ids. Special tokens are left out, unless `special` asks for them. Ids that no token has, as in a
        vocabulary that is padded to a round size, are no text."""
        parts: list = [[]]  # lists of ids of sentencepiece, with the texts of added tokens between them
        for i in ids:
            name = self._spelled(i, special)
            if name is not None or i in self.added:
                parts += [name or "", []]
            elif i < self.pieces:
                parts[-1].append(i)
        return "".join(part if isinstance(part, str) else (self.inner if place else self.processor).decode(part)
                       for place, part in enumerate(parts) if part)

    def _spelled(self, i: int, special: bool) -> str | None:
        """The text of a token that sentencepiece does not decode itself; None for all others."""
        if i in self.added:
            return self.added[i].text if special or not self.added[i].special else None
        return self.processor.id_to_piece(i) if special and i < self.pieces and self.processor.is_control(i) else None

    def token(self, token_id: int) -> str:
        """The token as the file spells it."""
        if token_id in self.added:
            return self.added[token_id].text
        return self.processor.id_to_piece(token_id) if token_id < self.pieces else padded(token_id)


def sentencepiece_processor(model: bytes, where: Path) -> sentencepiece.SentencePieceProcessor:
    try:
        if not model:
            raise ValueError("empty file")
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        if not processor.vocab_size():
            raise ValueError("no tokens")
        return processor
    except Exception as error:  # sentencepiece raises RuntimeError, OSError or its own, depending on the damage
        raise ValueError(f"{where}: not a sentencepiece model ({error})") from None
