"""Text <-> token ids. One interface for `tokenizer.model` (sentencepiece) and `tokenizer.json` (tokenizers).

`begin` precedes every prompt: one token for Llama, Mistral and Gemma, none for Qwen2. The file `tokenizer_config.json`
in the same directory names tokens that the tokenizer file does not.
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
    """The files of LLaMA-1/2, Mistral and Gemma. They name the begin token.

    `add_bos_token: false` in tokenizer_config.json drops it."""

    def __init__(self, path: Path):
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except Exception as error:  # sentencepiece raises RuntimeError, OSError or its own, depending on the damage
            raise ValueError(f"{path}: not a sentencepiece model ({error})") from None
        self.eos_id = self.processor.eos_id() if self.processor.eos_id() >= 0 else None  # -1: the file has none
        adds = self.processor.bos_id() >= 0 and beside(path).get("add_bos_token", True)
        self.begin = [self.processor.bos_id()] if adds else []

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt, begin token included."""
        return self.begin + self.processor.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self.processor.decode(ids)

    def token(self, token_id: int) -> str:
        """The token as the file spells it."""
        return self.processor.id_to_piece(token_id)


class JsonTokenizer:
    """The files of Llama 3, SmolLM and Qwen2.

    A begin token is added if the file's own post-processor adds one, as in transformers 5. It is also added if
    tokenizer_config.json says `add_bos_token: true`, as transformers 4 does for Llama and Gemma."""

    def __init__(self, path: Path):
        try:
            self.tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"{path}: not a tokenizers file ({error})") from None
        self.tokenizer.no_truncation()  # a file may hold settings of its last user
        self.tokenizer.no_padding()
        stated = beside(path)
        self.eos_id = self._id(stated.get("eos_token"))
        bos_id = self._id(stated.get("bos_token")) if stated.get("add_bos_token") else None
        self.begin = [] if bos_id is None or self.tokenizer.encode("").ids[:1] == [bos_id] else [bos_id]

    def _id(self, token: str | dict | None) -> int | None:
        """Id of a token as tokenizer_config.json writes it: text, or an object with `content`."""
        return self.tokenizer.token_to_id(token["content"] if isinstance(token, dict) else token) if token else None

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt, begin token included."""
        return self.begin + self.tokenizer.encode(text).ids

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def token(self, token_id: int) -> str:
        """The token as the file spells it."""
        return self.tokenizer.id_to_token(token_id)


def beside(path: Path) -> dict:
    """The tokenizer_config.json in the same directory; {} if there is none."""
    config = path.parent / "tokenizer_config.json"
    return read_json(config) if config.is_file() else {}


Tokenizer = SentencePieceTokenizer | JsonTokenizer


def tokenizer_file(directory: Path) -> Path:
    """The tokenizer file of a model directory. `tokenizer.json` wins, because it is the later format.

    Raises FileNotFoundError if there is none."""
    for name in reversed(FILES):
        if (directory / name).is_file():
            return directory / name
    raise FileNotFoundError(f"{directory}: no tokenizer there; needs {' or '.join(FILES)}")


def load_tokenizer(directory: Path) -> Tokenizer:
    """From a model directory or a GGUF file. A GGUF file's tokenizer is first extracted, as for a run that keeps it."""
    if is_gguf(directory):
        with TemporaryDirectory() as written:
            extract_gguf_tokenizer(read_gguf(directory), Path(written))
            return load_tokenizer(Path(written))
    path = tokenizer_file(directory)
    return JsonTokenizer(path) if path.suffix == ".json" else SentencePieceTokenizer(path)


def continuation(tokenizer: Tokenizer, prompt: list[int], answer: list[int]) -> str:
    """The text that the answer adds to the prompt's text.

    Decoding the answer alone could lose its leading space, and a character whose bytes begin in the prompt."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode(prompt + answer)
    return whole[len(os.path.commonprefix((before, whole))):]


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer of a model directory or of a GGUF file into another directory, so that it is a whole model."""
    if is_gguf(source):
        return extract_gguf_tokenizer(read_gguf(source), target)
    file = tokenizer_file(source)
    target.mkdir(parents=True, exist_ok=True)
    for path in (file, source / "tokenizer_config.json"):
        if path.is_file():
            shutil.copy(path, target / path.name)
