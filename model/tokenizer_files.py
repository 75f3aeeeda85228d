"""The files of a tokenizer, and those that travel with it."""
from collections.abc import Sequence
from pathlib import Path

from model.durable import copy_file
from model.files import read_bytes, read_json
from model.gguf_reader import is_gguf, read_gguf
from model.gguf_tokenizer_reader import extract_gguf_tokenizer

FILES = ("tokenizer.model", "tokenizer.json")
CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
# The files that travel with a model beside its config, its weights and its tokenizer file.
TRAVELLING = (CONFIG, MAP, ADDED, "chat_template.jinja", "generation_config.json")
LARGEST_FILE = 1 << 28  # bytes of a tokenizer file


def tokenizer_file(directory: Path) -> Path:
    """The tokenizer file of a model directory. `tokenizer.json` wins, because it is the later format.

    Raises FileNotFoundError if there is none."""
    for name in reversed(FILES):
        if (directory / name).is_file():
            return directory / name
    raise FileNotFoundError(f"{directory}: no tokenizer there; needs {' or '.join(FILES)}")


def beside(path: Path) -> dict:
    """The tokenizer_config.json in the same directory; {} if there is none."""
    config = path.parent / CONFIG
    return read_json(config) if config.is_file() else {}


def content_of(path: Path) -> bytes:
    """The bytes of a tokenizer file. Raises ValueError for a file that is too large to be one."""
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise ValueError(f"{path}: {size} bytes are too many for a tokenizer; at most {LARGEST_FILE} are read")
    return read_bytes(path)


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
