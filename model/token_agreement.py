"""Files that disagree about tokens: what is refused, and what is said.

A configuration, a tokenizer and the tokenizer beside an adapter may each name other tokens.
"""
from pathlib import Path

from model.config import LlamaConfig
from model.files import read_json, say_once
from model.gguf_reader import is_gguf
from model.tokenizer import Tokenizer, load_tokenizer
from model.tokenizer_files import ADDED, CONFIG, FILES, MAP

PROBE = "The café's 2 cards, <|im_start|>user:\n  x = {1};<|im_end|></s>"


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


def note_other_tokenizer(adapter: Path, tokenizer: Tokenizer) -> None:
    """Says if an adapter's directory holds a tokenizer that gives other ids than its base's, or another end."""
    if not any((adapter / name).is_file() for name in FILES):
        return
    own = load_tokenizer(adapter)
    if (own.encode(PROBE), own.eos_id) != (tokenizer.encode(PROBE), tokenizer.eos_id):
        say_once(f"{adapter}: holds a tokenizer that differs from the base's (other tokens, or the end token "
                 f"{own.eos_id} instead of {tokenizer.eos_id}); the base's is used. If the adapter was trained with "
                 f"its own, copy its files into the base's directory")
