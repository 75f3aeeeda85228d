"""What three files beside a tokenizer file state: tokenizer_config.json, special_tokens_map.json, added_tokens.json.

They name the begin and the end token, and tokens that the tokenizer file does not have.
"""
import re
from dataclasses import dataclass
from pathlib import Path

from model.files import read_json, say_once
from model.tokenizer_files import ADDED, CONFIG, MAP


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


def shown(value: object) -> str:
    """The value for a message, in at most 60 characters that can be printed."""
    return str(value).encode("ascii", "backslashreplace").decode()[:60]


def _content(where: Path, key: str, token: object) -> str | None:
    """A token is text, or an object with `content`. Half a surrogate pair is no text."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str | None) or text and re.search("[\ud800-\udfff]", text):
        raise ValueError(f"{where}: {key} is {shown(token)}, but must be a text, or an object with a content")
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


def say_end_is_dropped(where: Path, stated: str, token: str = "an end token") -> None:
    say_once(f"{where}: puts {token} behind every text ({stated}); here no prompt ends with it")


def unknown_begin(where: Path, text: str) -> ValueError:
    return ValueError(f"{where}: {CONFIG} or {MAP} names the begin token {text!r}, but the tokenizer has no such "
                      f"token: correct the name, add the token to {ADDED} with its id, or set add_bos_token to false")


def padded(token_id: int) -> str:
    """A name for an id that no token has."""
    return f"[PAD{token_id}]"
