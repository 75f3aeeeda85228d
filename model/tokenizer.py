"""Text <-> token ids: `tokenizer.model` by sentencepiece, `tokenizer.json` by the tokenizers library, one face for both.

`begin` stands before every prompt: one token for Llama, Mistral and Gemma, none for Qwen2. `tokenizer_config.json` beside the file
names tokens that it does not.
"""
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import sentencepiece
import tokenizers

from model.files import read_json
from model.gguf_reader import is_gguf, read_gguf
from model.gguf_tokenizer_reader import extract_gguf_tokenizer

FILES = ("tokenizer.model", "tokenizer.json")


class SentencePieceTokenizer:
    """LLaMA-1/2's, Mistral's and Gemma's kind of file. The file names the begin token; `add_bos_token: false` beside it drops it."""

    def __init__(self, path: Path):
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except Exception as error:  # sentencepiece raises RuntimeError, OSError or its own, depending on the damage
            raise ValueError(f"{path}: not a sentencepiece model ({error})") from None
        self.eos_id = self.processor.eos_id() if self.processor.eos_id() >= 0 else None  # -1: the file has none
        adds = self.processor.bos_id() >= 0 and beside(path).get("add_bos_token", True)
        self.begin = [self.processor.bos_id()] if adds else []

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt, with the begin token."""
        return self.begin + self.processor.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self.processor.decode(ids)

    def token(self, token_id: int) -> str:
        """As the file spells it."""
        return self.processor.id_to_piece(token_id)


class JsonTokenizer:
    """Llama 3's, SmolLM's and Qwen2's kind of file. Begin tokens are added where the file's own post-processor does it, as
    transformers 5 has it; and where it does not but `add_bos_token: true` stands beside, as transformers 4 has it for Llama and Gemma."""

    def __init__(self, path: Path):
        try:
            self.tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"{path}: not a tokenizers file ({error})") from None
        self.tokenizer.no_truncation()  # a file may carry its last user's settings
        self.tokenizer.no_padding()
        stated = beside(path)
        self.eos_id = self._id(stated.get("eos_token"))
        bos_id = self._id(stated.get("bos_token")) if stated.get("add_bos_token") else None
        self.begin = [] if bos_id is None or self.tokenizer.encode("").ids[:1] == [bos_id] else [bos_id]

    def _id(self, token: str | dict | None) -> int | None:
        """Of a token as tokenizer_config.json spells it."""
        return self.tokenizer.token_to_id(token["content"] if isinstance(token, dict) else token) if token else None

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt, with the begin token."""
        return self.begin + self.tokenizer.encode(text).ids

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def token(self, token_id: int) -> str:
        """As the file spells it."""
        return self.tokenizer.id_to_token(token_id)


def beside(path: Path) -> dict:
    """tokenizer_config.json in the same directory; {} where there is none."""
    config = path.parent / "tokenizer_config.json"
    return read_json(config) if config.is_file() else {}


Tokenizer = SentencePieceTokenizer | JsonTokenizer


def tokenizer_file(directory: Path) -> Path:
    """The tokenizer in a model directory; `tokenizer.json` wins, as it is the later format. FileNotFoundError if none."""
    for name in reversed(FILES):
        if (directory / name).is_file():
            return directory / name
    raise FileNotFoundError(f"{directory}: no tokenizer there (looked for {' and '.join(FILES)})")


def load_tokenizer(directory: Path) -> Tokenizer:
    """Of a model directory, or of a GGUF file, by the same files that a run on it would keep."""
    if is_gguf(directory):
        with TemporaryDirectory() as written:
            extract_gguf_tokenizer(read_gguf(directory), Path(written))
            return load_tokenizer(Path(written))
    path = tokenizer_file(directory)
    return JsonTokenizer(path) if path.suffix == ".json" else SentencePieceTokenizer(path)


def continuation(tokenizer: Tokenizer, prompt: list[int], answer: list[int]) -> str:
    """What the answer adds to the prompt's text. Decoded on its own it could lose the space it begins with, and a character whose
    bytes the border divides."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode(prompt + answer)
    return whole[len(os.path.commonprefix((before, whole))):]


def copy_tokenizer(source: Path, target: Path) -> None:
    """Into a directory that is to be a model of its own, from another one or from a GGUF file."""
    if is_gguf(source):
        return extract_gguf_tokenizer(read_gguf(source), target)
    file = tokenizer_file(source)
    target.mkdir(parents=True, exist_ok=True)
    for path in (file, source / "tokenizer_config.json"):
        if path.is_file():
            shutil.copy(path, target / path.name)
