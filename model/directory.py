"""What a model directory holds: config.json, and the weights in one file or in shards with an index.

A GGUF file stands for a directory, since it holds both.
"""
import re
from dataclasses import replace
from pathlib import Path

from model.checksums import check_sums
from model.config import LlamaConfig
from model.config_json import config_from_json, token_ids
from model.files import read_json, say_once, some
from model.gguf_reader import gguf_config, is_gguf, read_gguf

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def shard_names(directory: Path) -> list[str]:
    """The file names that the index lists; none without an index. Raises ValueError for a name with a directory."""
    index = directory / INDEX
    if not index.is_file():
        return []
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{index}: holds no weight_map, which must name the shards")
    for tensor, name in shards.items():
        if not (isinstance(name, str) and re.fullmatch(r"[^/\\:\x00]{1,250}\.safetensors", name)):
            raise ValueError(f"{index}: the shard of {tensor} is {name!r}, but must be the plain name of a "
                             f".safetensors file in the same directory")
    return sorted(set(shards.values()))


def weight_files(directory: Path) -> list[Path]:
    """The weight files of a model directory, or the GGUF file itself. Raises FileNotFoundError for missing files.

    model.safetensors goes before an index, as in transformers. If all shards are there too, a line says so."""
    if is_gguf(directory):
        return [directory]
    check_directory(directory)
    single, shards = directory / SINGLE, [directory / name for name in shard_names(directory)]
    if single.is_file():
        if shards not in ([], [single]) and all(path.is_file() for path in shards):
            say_once(f"{directory}: holds {SINGLE} and {len(shards)} shards of {INDEX}; {SINGLE} is read, as in "
                     f"transformers. Delete the one that is not the model")
        return [single]
    if missing := [str(path) for path in shards or [single] if not path.is_file()]:
        raise FileNotFoundError(f"{', '.join(missing)}: no such weight file{_other_formats(directory)}")
    return shards


def check_directory(directory: Path) -> None:
    """Raises FileNotFoundError for a place that is no directory."""
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: " + ("is a file; give the model directory that holds it, or a GGUF file"
                                                    if directory.is_file() else "no such model directory"))


def _other_formats(directory: Path) -> str:
    """What a directory holds instead of a model in safetensors, as the end of an error."""
    if (directory / "adapter_config.json").is_file():
        return (f". The directory holds an adapter of PEFT, without its base: give the base in its place, and to "
                f"eval.py, sample.py and export.py also --adapter {directory}")
    found = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for path in directory.glob(pattern))
    if not found:
        return ""
    if found[0].endswith(".gguf"):
        return f". The directory holds {some(found)}: give the path of the GGUF file itself"
    return (f". The directory holds {some(found)}, which are pickled, and pickled files are never read: save the "
            f"model as safetensors, or look for a version of it in safetensors")


def load_config(directory: Path) -> LlamaConfig:
    """From a model directory's config.json, `model_config` in a run's config.json, or a GGUF file's metadata.

    End tokens are those of config.json, then those that only generation_config.json names: instruction-tuned models
    keep the end of a turn there. Raises FileNotFoundError without a config.json, ValueError as `config_from_json`."""
    if is_gguf(directory):
        return gguf_config(read_gguf(directory))
    check_directory(directory)
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{directory}: no model there; needs a config.json{_other_formats(directory)}")
    check_sums([path, directory / "generation_config.json"])
    raw = read_json(path)
    config = config_from_json(raw.get("model_config", raw), str(path))
    more = generation_ends(directory / "generation_config.json", config.vocab_size)
    return replace(config, eos_token_ids=tuple(dict.fromkeys((*config.eos_token_ids, *more))))


def generation_ends(path: Path, vocab_size: int) -> tuple[int, ...]:
    """The end tokens that generation_config.json names; none without such a file."""
    if not path.is_file():
        return ()
    stated = read_json(path).get("eos_token_id")
    try:
        return token_ids(stated, vocab_size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
