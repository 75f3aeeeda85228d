"""Text <-> token ids. One interface for `tokenizer.model` (sentencepiece) and `tokenizer.json` (tokenizers).

`begin` precedes every prompt: one token for Llama, Mistral and Gemma, none for Qwen2. An end token never follows one,
even if the tokenizer file or `add_eos_token` appends it: an answer goes on where its prompt ends.

Three files in the same directory state more (`Stated`): tokenizer_config.json, special_tokens_map.json and
added_tokens.json. They name the begin and the end token, and tokens that the tokenizer file does not have.
"""
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import sentencepiece
import tokenizers

from model.checksums import check_sums
from model.config import LlamaConfig
from model.durable import copy_file
from model.files import read_bytes, read_json, say_once
from model.gguf_reader import is_gguf, read_gguf
from model.gguf_tokenizer_reader import extract_gguf_tokenizer, message

FILES = ("tokenizer.model", "tokenizer.json")
CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
# The files that travel with a model beside its config, its weights and its tokenizer file.
TRAVELLING = (CONFIG, MAP, ADDED, "chat_template.jinja", "generation_config.json")
LARGEST_FILE = 1 << 28  # bytes of a tokenizer file


# ---- what is stated beside the tokenizer file -----------------------------------------------------------------------

@dataclass(frozen=True)
class Added:
    """A token that is one id wherever its text stands."""
    text: str
    special: bool = False
    lstrip: bool = False  # it swallows the spaces before it
    rstrip: bool = False


@dataclass(frozen=True)
class Stated:
    """What the files beside a tokenizer file state. None: not stated."""
    eos: str | None = None
    bos: str | None = None
    adds_begin: bool | None = None
    legacy: bool = True          # sentencepiece puts a space before the text after an added token, too
    added: dict[int, Added] | None = None
    adds_end: bool | None = None


def stated_beside(directory: Path) -> Stated:
    """Raises ValueError, naming the files, for values of a wrong type, and for two files that disagree."""
    config, special = (read_json(directory / name) if (directory / name).is_file() else {} for name in (CONFIG, MAP))
    where = directory / CONFIG
    flags = {key: config.get(key) for key in ("add_bos_token", "add_eos_token", "legacy")}
    for key, value in flags.items():
        if not isinstance(value, bool | None):
            raise ValueError(f"{where}: {key} is {value!r}, but must be true or false")
    names = {}
    for key in ("eos_token", "bos_token"):
        places = {where: _content(where, key, config.get(key)), directory / MAP: _content(directory / MAP, key,
                                                                                          special.get(key))}
        found = {place: text for place, text in places.items() if text}
        if len(set(found.values())) > 1:
            raise ValueError(f"{key} is {places[where]!r} in {where}, but {places[directory / MAP]!r} in "
                             f"{directory / MAP}: make the two agree")
        names[key] = next(iter(found.values()), None)
    added = _added_tokens(directory, config, {*names.values(), *_other_special(config), *_other_special(special)})
    legacy = True if flags["legacy"] is None else flags["legacy"]
    return Stated(names["eos_token"], names["bos_token"], flags["add_bos_token"], legacy, added, flags["add_eos_token"])


def _shown(value: object) -> str:
    """The value for a message, in at most 60 characters that can be printed."""
    return str(value).encode("ascii", "backslashreplace").decode()[:60]


def _content(where: Path, key: str, token: object) -> str | None:
    """A token is text, or an object with `content`. Half a surrogate pair is no text."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str | None) or text and re.search("[\ud800-\udfff]", text):
        raise ValueError(f"{where}: {key} is {_shown(token)}, but must be a text, or an object with a content")
    return text


def _other_special(stated: dict) -> set[str]:
    """The texts of `additional_special_tokens` (in transformers 5: `extra_special_tokens`)."""
    found = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = stated.get(key) or []
        found += listed.values() if isinstance(listed, dict) else listed if isinstance(listed, list) else []
    texts = [token.get("content") if isinstance(token, dict) else token for token in found]
    return {text for text in texts if isinstance(text, str)}


def _added_tokens(directory: Path, config: dict, special: set[str | None]) -> dict[int, Added]:
    """id -> token, of `added_tokens_decoder` in tokenizer_config.json and of added_tokens.json."""
    where, found = directory / CONFIG, {}
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise ValueError(f"{where}: added_tokens_decoder is {str(decoder)[:60]}, but must be an object of ids")
    for key, token in decoder.items():
        flags = token if isinstance(token, dict) else {}
        _content(where, f"added_tokens_decoder {key[:20]!r}", flags)
        if not (isinstance(flags.get("content"), str) and flags["content"] and re.fullmatch("[0-9]{1,9}", key)):
            raise ValueError(f"{where}: added_tokens_decoder holds {key[:20]!r}: {str(token)[:60]}, but must hold an "
                             f"id and an object with a content")
        strips = (flags.get(side) is True for side in ("lstrip", "rstrip"))
        found[int(key)] = Added(flags["content"], flags.get("special") is True, *strips)
    older = directory / ADDED
    ids = {token.text: i for i, token in found.items()}
    if len(ids) < len(found):
        raise ValueError(f"{where}: added_tokens_decoder gives one token two ids")
    for text, i in (read_json(older) if older.is_file() else {}).items():
        if not (isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 10 ** 9 and text):
            raise ValueError(f"{older}: the id of {text[:60]!r} is {str(i)[:20]!r}, but must be an integer from 0 on")
        if ids.get(text, i) != i or (i in found and found[i].text != text):
            raise ValueError(f"{older}: {text!r} has id {i}, but {where} says otherwise: make the two agree")
        ids[text] = i
        found.setdefault(i, Added(text, text in special))
    return dict(sorted(found.items()))


def content_of(path: Path) -> bytes:
    """The bytes of a tokenizer file. Raises ValueError for a file that is too large to be one."""
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise ValueError(f"{path}: {size} bytes are too many for a tokenizer; at most {LARGEST_FILE} are read")
    return read_bytes(path)


# ---- the two kinds ------------------------------------------------------------------------------------------------

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


def say_end_is_dropped(where: Path, stated: str, token: str = "an end token") -> None:
    say_once(f"{where}: puts {token} behind every text ({stated}); here no prompt ends with it")


def unknown_begin(where: Path, text: str) -> ValueError:
    return ValueError(f"{where}: {CONFIG} or {MAP} names the begin token {text!r}, but the tokenizer has no such "
                      f"token: correct the name, add the token to {ADDED} with its id, or set add_bos_token to false")


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


def padded(token_id: int) -> str:
    """A name for an id that no token has."""
    return f"[PAD{token_id}]"


Tokenizer = SentencePieceTokenizer | JsonTokenizer


def beside(path: Path) -> dict:
    """The tokenizer_config.json in the same directory; {} if there is none."""
    config = path.parent / CONFIG
    return read_json(config) if config.is_file() else {}


def tokenizer_file(directory: Path) -> Path:
    """The tokenizer file of a model directory. `tokenizer.json` wins, because it is the later format.

    Raises FileNotFoundError if there is none."""
    for name in reversed(FILES):
        if (directory / name).is_file():
            return directory / name
    raise FileNotFoundError(f"{directory}: no tokenizer there; needs {' or '.join(FILES)}")


def load_tokenizer(directory: Path) -> Tokenizer:
    """From a model directory or a GGUF file. A GGUF file's tokenizer is first extracted, as for a run that keeps it.

    Raises ValueError, naming the user's file, for a damaged tokenizer, and for files that disagree."""
    if is_gguf(directory):
        with TemporaryDirectory() as written:
            extract_gguf_tokenizer(read_gguf(directory), Path(written))
            return _load(Path(written), directory)
    check_sums(tokenizer_files(directory))
    return _load(directory, tokenizer_file(directory))


def _load(directory: Path, where: Path) -> Tokenizer:
    path = tokenizer_file(directory)
    kind = JsonTokenizer if path.suffix == ".json" else SentencePieceTokenizer
    tokenizer = kind(content_of(path), stated_beside(directory), where)
    if kind is JsonTokenizer:
        note_other_tokens(tokenizer, directory / FILES[0])
    return tokenizer


def note_other_tokens(tokenizer: Tokenizer, other: Path) -> None:
    """Says so if a tokenizer.model beside tokenizer.json has other tokens: an older file, or another model's. A file of
    another kind, such as tiktoken's, is left alone. About 1,000 pieces are looked at."""
    if not other.is_file():
        return
    try:
        pieces = sentencepiece_processor(content_of(other), other)
    except ValueError:
        return
    size = pieces.vocab_size()
    for i in range(0, size, max(1, size // 1000)):
        plain = not (pieces.is_control(i) or pieces.is_unused(i) or pieces.is_unknown(i))
        own, its = tokenizer.token(i), pieces.id_to_piece(i)
        if plain and own != its:
            say_once(f"{tokenizer.where}: token {i} is {_shown(own)!r}, but {_shown(its)!r} in {other}: "
                     f"{tokenizer.where.name} is read, as in transformers. Delete the one that is not the model's")
            return


def end_ids(config: LlamaConfig, tokenizer: Tokenizer, where: Path) -> tuple[int, ...]:
    """The tokens that end a sequence; training teaches the first. Those of the configuration, else the tokenizer's.

    Raises ValueError if there is none, if the tokenizer names another one than the configuration, and if the begin
    token of every prompt is one of them."""
    own = tokenizer.eos_id
    if own is None and tokenizer.named_end:
        raise ValueError(f"{where}: {CONFIG} or {MAP} names the end token {tokenizer.named_end!r}, but the tokenizer "
                         f"has no such token: correct the name, or add the token to {ADDED} with its id")
    ids = config.eos_token_ids or (() if own is None else (own,))
    if not ids:
        places = ("tokenizer.ggml.eos_token_id is not there" if is_gguf(where) else
                  "neither config.json (eos_token_id) nor the tokenizer names one")
        raise ValueError(f"{where}: no end-of-sequence token, so that no answer would end: {places}")
    if own is not None and own not in ids:
        named = ", ".join(f"{i} ({tokenizer.token(i)!r})" for i in ids)
        raise ValueError(f"{where}: the end token is {named} in config.json and generation_config.json, but {own} "
                         f"({tokenizer.token(own)!r}) in the tokenizer: name all end tokens in generation_config.json "
                         f"(eos_token_id)")
    if clash := set(ids) & set(tokenizer.begin):
        token = min(clash)
        raise ValueError(f"{where}: token {token} ({tokenizer.token(token)!r}) begins every prompt, but is also an end "
                         f"token (eos_token_id): correct config.json, or set add_bos_token to false in {CONFIG}")
    return ids


def note_begin(config: LlamaConfig, tokenizer: Tokenizer, where: Path) -> None:
    """Says where config.json or generation_config.json names another begin token than the tokenizer puts first.

    It is no error: the tokenizer decides, as in transformers. A tokenizer that puts none first, such as Qwen2's,
    disagrees with nobody."""
    generation = where / "generation_config.json"
    stated = {"config.json": config.bos_token_id,
              generation.name: read_json(generation).get("bos_token_id") if generation.is_file() else None}
    for name, other in stated.items():
        if tokenizer.begin and other is not None and other != tokenizer.begin[0]:
            own = tokenizer.begin[0]
            say_once(f"{where}: the begin token is {str(other)[:40]} in {name} (bos_token_id), but the tokenizer puts "
                     f"{own} ({tokenizer.token(own)!r}) before every text: {own} is used. If that is wrong, correct "
                     f"the tokenizer; else set bos_token_id to {own}")


PROBE = "The café's 2 cards, <|im_start|>user:\n  x = {1};<|im_end|></s>"


def note_other_tokenizer(adapter: Path, tokenizer: Tokenizer) -> None:
    """Says if an adapter's directory holds a tokenizer that gives other ids than its base's, or another end."""
    if not any((adapter / name).is_file() for name in FILES):
        return
    own = load_tokenizer(adapter)
    if (own.encode(PROBE), own.eos_id) != (tokenizer.encode(PROBE), tokenizer.eos_id):
        say_once(f"{adapter}: holds a tokenizer that differs from the base's (other tokens, or the end token "
                 f"{own.eos_id} instead of {tokenizer.eos_id}); the base's is used. If the adapter was trained with "
                 f"its own, copy its files into the base's directory")


def continuation(tokenizer: Tokenizer, prompt: list[int], answer: list[int]) -> str:
    """The text that the answer adds to the prompt's text.

    Decoding the answer alone could lose its leading space, and a character whose bytes begin in the prompt."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode(prompt + answer)
    return whole[len(os.path.commonprefix((before, whole))):]


# ---- the files that travel ------------------------------------------------------------------------------------------

def tokenizer_files(directory: Path) -> list[Path]:
    """The files on which token ids depend: the tokenizer file, and what is stated beside it. Of a GGUF file: itself."""
    if is_gguf(directory):
        return [directory]
    return [tokenizer_file(directory), *_there(directory, (CONFIG, MAP, ADDED))]


def travelling_files(directory: Path) -> list[Path]:
    """The files that go with a model wherever it goes, beside its config and its weights: the tokenizer, its chat
    template, and generation_config.json. A GGUF file has none: `copy_tokenizer` extracts them."""
    return [] if is_gguf(directory) else [tokenizer_file(directory), *_there(directory, TRAVELLING)]


def _there(directory: Path, names: Sequence[str]) -> list[Path]:
    return [directory / name for name in names if (directory / name).is_file()]


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer of a model directory or of a GGUF file into another directory, so that it is a whole model,
    with the other files that travel."""
    if is_gguf(source):
        return extract_gguf_tokenizer(read_gguf(source), target)
    for path in travelling_files(source):
        copy_file(path, target / path.name)
