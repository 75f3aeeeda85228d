"""Text <-> token ids. One interface for `tokenizer.model` (sentencepiece) and `tokenizer.json` (tokenizers).

`begin` precedes every prompt: one token for Llama, Mistral and Gemma, none for Qwen2. An end token never follows one,
even if the tokenizer file or `add_eos_token` appends it: an answer goes on where its prompt ends.
"""
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from model.checksums import check_sums
from model.files import say_once
from model.gguf_reader import is_gguf, read_gguf
from model.gguf_tokenizer_reader import extract_gguf_tokenizer
from model.json_tokenizer import JsonTokenizer
from model.sentencepiece_tokenizer import SentencePieceTokenizer, sentencepiece_processor
from model.stated_tokens import shown, stated_beside
from model.tokenizer_files import FILES, content_of, tokenizer_file, tokenizer_files

Tokenizer = SentencePieceTokenizer | JsonTokenizer


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
            say_once(f"{tokenizer.where}: token {i} is {shown(own)!r}, but {shown(its)!r} in {other}: "
                     f"{tokenizer.where.name} is read, as in transformers. Delete the one that is not the model's")
            return


def continuation(tokenizer: Tokenizer, prompt: list[int], answer: list[int]) -> str:
    """The text that the answer adds to the prompt's text.

    Decoding the answer alone could lose its leading space, and a character whose bytes begin in the prompt."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode(prompt + answer)
    return whole[len(os.path.commonprefix((before, whole))):]
