"""Chat templates: where a model keeps its own, and turns -> text -> token ids.

| code name | meaning |
|---|---|
| turn | `{"role": "system", "user" or "assistant", "content": text}` |
| control token | a special token of the tokenizer, such as `<|im_end|>`: one id wherever a template writes its text |
| end of turn | the token that the template puts behind what an assistant writes |
| hidden | turns in which the text of a control token is replaced, so that it stays letters |

A template's ids are those of Hugging Face's `apply_chat_template`: the tokenizer adds no begin token, since the
template writes the one it wants. Differs from it: text of a turn that spells a control token, such as `<|im_end|>` in
a question, is encoded as letters. It would otherwise end the turn, and let a user write a system's turn.
"""
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path

from model.files import read_json, read_utf8, write_json
from model.gguf_reader import is_gguf, read_gguf
from model.sentencepiece_tokenizer import SentencePieceTokenizer
from model.template_sandbox import compiled, rendered
from model.tokenizer import Tokenizer
from model.tokenizer_files import CONFIG, MAP

FILE, GGUF_KEY = "chat_template.jinja", "tokenizer.chat_template"
START, END = "<|im_start|>", "<|im_end|>"  # of ChatML
MARKS = [chr(i) for i in range(0xFDD0, 0xFDF0)]  # characters that Unicode keeps free for a program's own use
PROBE = "hello"
Turn = dict[str, str]


# ---- where it is ----------------------------------------------------------------------------------------------------

def find_template(directory: Path) -> tuple[str, str] | None:
    """The template and the place that names it, as transformers looks for it: chat_template.jinja, else
    tokenizer_config.json (a text, or a list of named ones); of a GGUF file: its metadata. None: the model has none."""
    if is_gguf(directory):
        text = read_gguf(directory).get(GGUF_KEY, str, "")
        return (text, f"{directory}, {GGUF_KEY}") if text else None
    if (file := directory / FILE).is_file():
        return read_utf8(file), str(file)
    if not (config := directory / CONFIG).is_file():
        return None
    stated = read_json(config).get("chat_template")
    if stated is None or isinstance(stated, str):
        return (stated, str(config)) if stated else None
    return default_of(stated, config), str(config)


def default_of(stated: object, where: Path) -> str:
    """The template called `default` of a list of named ones, or the only one."""
    listed = stated if isinstance(stated, list) else []
    named = {t["name"]: t["template"] for t in listed if isinstance(t, dict) and isinstance(t.get("name"), str)
             and isinstance(t.get("template"), str)}
    if not named or len(named) < len(listed):
        raise ValueError(f"{where}: chat_template must be a text, or a list of objects with a name and a template")
    if "default" not in named and len(named) > 1:
        raise ValueError(f"{where}: chat_template names {', '.join(named)}, but none is called default: put the one to "
                         f"use into {where.parent / FILE}")
    return named.get("default") or next(iter(named.values()))


def chatml(tokenizer: Tokenizer) -> str:
    """ChatML for a model without a template. A tokenizer that adds a begin token gets it once, at the start. One that
    does not know `<|im_end|>` ends a turn with its end token, so that an answer ends somewhere."""
    begin = "".join(map(tokenizer.token, tokenizer.begin))
    end = END if END in control_tokens(tokenizer) or tokenizer.eos_id is None else tokenizer.token(tokenizer.eos_id)
    return (f"{begin}{{% for message in messages %}}{START}{{{{ message['role'] }}}}\n"
            f"{{{{ message['content'] }}}}{end}{{{{ '\\n' }}}}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{START}assistant{{{{ '\\n' }}}}{{% endif %}}")


# ---- tokens ---------------------------------------------------------------------------------------------------------

def control_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Text -> id of every special token."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        found = {tokenizer.processor.id_to_piece(i): i for i in range(tokenizer.pieces)
                 if tokenizer.processor.is_control(i)}
        return found | {token.text: i for i, token in tokenizer.added.items() if token.special}
    return {token.content: i for i, token in tokenizer.tokenizer.get_added_tokens_decoder().items() if token.special}


def added_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Text -> id of every token that is one id wherever its text stands, special or not. White space is none."""
    found = control_tokens(tokenizer)
    if isinstance(tokenizer, SentencePieceTokenizer):
        found |= {token.text: i for i, token in tokenizer.added.items()}
    else:
        found |= {token.content: i for i, token in tokenizer.tokenizer.get_added_tokens_decoder().items()}
    return {text: i for text, i in found.items() if text.strip()}


def any_of(texts: Sequence[str]) -> re.Pattern:
    """The longest first. No text: a pattern that finds nothing."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


@dataclass(frozen=True)
class Hidden:
    """Turns whose control tokens' texts are `mark`, number, `mark`."""
    turns: list[Turn]
    mark: str
    found: frozenset[str]  # the texts that were replaced


class ChatTemplate:
    """Raises ValueError, naming the place of the template, for one that cannot be used."""

    def __init__(self, text: str, where: str, tokenizer: Tokenizer, names: dict[str, str], own: bool = True,
                 day: date | None = None):
        """names: `bos_token` and others that templates write. own: False for ChatML in place of a template."""
        self.text, self.where, self.tokenizer, self.names, self.own = text, where, tokenizer, names, own
        self.control = control_tokens(tokenizer)
        self.texts = list(self.control)
        try:
            self.template = compiled(text, day)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    # ---- text

    def hidden(self, turns: Sequence[Turn]) -> Hidden:
        """Raises ValueError for text that holds every character that could mark."""
        whole, found = "".join(turn["content"] for turn in turns), set()
        mark = next((mark for mark in MARKS if mark not in whole), None)
        if mark is None:
            raise ValueError("it holds all of U+FDD0 to U+FDEF, which are no characters of any text")

        def hide(match: re.Match) -> str:
            found.add(match[0])
            return f"{mark}{self.texts.index(match[0])}{mark}"
        pattern = any_of(self.texts)
        return Hidden([{**turn, "content": pattern.sub(hide, turn["content"])} for turn in turns], mark,
                      frozenset(found))

    def render(self, turns: Sequence[Turn], prompt: bool) -> str:
        """The text of the turns; prompt: with what comes before the next assistant's turn. Raises ValueError if the
        template refuses them."""
        return rendered(self.template, {**self.names, "messages": [dict(turn) for turn in turns], "tools": None,
                                        "documents": None, "add_generation_prompt": prompt})

    def shown(self, text: str, mark: str) -> str:
        """What a rendered text reads as."""
        return re.sub(f"{mark}([0-9]+){mark}", lambda match: self.texts[int(match[1])], text)

    @cached_property
    def end_of_turn(self) -> str:
        """The first token, of those that are one id, that the template writes behind what an assistant says.

        Raises ValueError if there is none: an answer would have no end."""
        asked = [{"role": "user", "content": "hi"}]
        try:
            before, whole = (self.render(turns, prompt) for turns, prompt in (
                (asked, True), ([*asked, {"role": "assistant", "content": PROBE}], False)))
        except ValueError as error:
            raise ValueError(f"{self.where}: of one question and one answer, {error}") from None
        said = whole.find(PROBE, len(before) if whole.startswith(before) else 0)
        behind = any_of(list(added_tokens(self.tokenizer))).search(whole, max(said, 0) + len(PROBE))
        if said < 0 or not behind:
            raise ValueError(f"{self.where}: the chat template writes no special token behind an assistant's turn, so "
                             f"an answer would never end: correct it, or remove it to take ChatML")
        return behind[0]

    @property
    def end_id(self) -> int:
        return added_tokens(self.tokenizer)[self.end_of_turn]

    # ---- ids

    def encode(self, text: str, mark: str) -> list[int]:
        """Ids of a rendered text, which begins a row: no begin token but those that the template writes."""
        return self._ids(text, mark, first=True)

    def encode_rest(self, text: str, mark: str) -> list[int]:
        """Ids of a rendered text that goes on behind another."""
        return self._ids(text, mark, first=False)

    def _ids(self, text: str, mark: str, first: bool) -> list[int]:
        ids: list[int] = []
        for place, part in enumerate(re.split(f"{mark}([0-9]+){mark}", text)):
            if place % 2:
                ids += self._letters(self.texts[int(part)])
            elif part:
                ids += self._plain(part, first and not place)
        return ids

    @cached_property
    def _unknown(self) -> re.Pattern:
        """Control tokens that sentencepiece spells as letters: of a template they are tokens."""
        known = self.tokenizer.ids if isinstance(self.tokenizer, SentencePieceTokenizer) else self.control
        return re.compile(f"({any_of([text for text in self.texts if text not in known]).pattern})")

    def _plain(self, text: str, first: bool) -> list[int]:
        ids: list[int] = []
        for place, part in enumerate(self._unknown.split(text)):
            if place % 2:
                ids.append(self.control[part])
            elif part:
                ids += self._own(part) if first and not place else self._inside(part)
        return ids

    def _own(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)[len(self.tokenizer.begin):]

    def _inside(self, text: str) -> list[int]:
        """Without the space that some tokenizers put before a text."""
        line, whole = self._own("\n"), self._own(f"\n{text}")
        return whole[len(line):] if whole[:len(line)] == line else self._own(text)

    def _letters(self, text: str) -> list[int]:
        """The text of a control token in pieces that are none."""
        middle = max(1, len(text) // 2)
        parts = [text[:middle], text[middle:]] if len(text) > 1 else [text]
        return [i for part in parts for i in self._inside(part) if i not in self.control.values()]


def load_template(directory: Path, tokenizer: Tokenizer, day: date | None = None) -> ChatTemplate:
    """The model's own, else ChatML."""
    found = find_template(directory)
    if found is None:
        return ChatTemplate(chatml(tokenizer), f"{directory} (ChatML)", tokenizer, {}, own=False, day=day)
    return ChatTemplate(*found, tokenizer, token_names(directory, tokenizer), day=day)


def write_end_tokens(directory: Path, ids: Sequence[int]) -> None:
    """Into generation_config.json, if there is one: where it names end tokens, transformers reads no others."""
    file = directory / "generation_config.json"
    if file.is_file():
        write_json(file, {**read_json(file), "eos_token_id": list(ids)})


def token_names(directory: Path, tokenizer: Tokenizer) -> dict[str, str]:
    """`bos_token`, `eos_token` and their like, as the files beside the tokenizer name them, else the tokenizer."""
    found = {}
    if tokenizer.begin:
        found["bos_token"] = tokenizer.token(tokenizer.begin[0])
    if tokenizer.eos_id is not None:
        found["eos_token"] = tokenizer.token(tokenizer.eos_id)
    for name in (MAP, CONFIG):
        stated = read_json(directory / name) if not is_gguf(directory) and (directory / name).is_file() else {}
        for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
            value = stated.get(key)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                found[key] = text
    return found
