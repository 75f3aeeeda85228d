"""The dense model that a run equals, as transformers and vLLM read it: config.json, model.safetensors, the tokenizer, and generation_config.json
where the base had one. One file whatever its size: the model passes through memory as a whole anyway, and its readers take files of any size.
"""
import shutil
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from finetune.adapted_model import sixteen_bit_type
from finetune.source import Source
from interop.comparison import check_tokenizer
from interop.trained import Trained, dense_tensor, dense_tensors, tensor_names
from model.checkpoint import load_config, load_model, weight_files
from model.config import LlamaConfig
from model.config_json import config_to_json
from model.files import write_json, write_safetensors
from model.llama import Llama
from model.tokenizer import copy_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BESIDE = ("generation_config.json", "special_tokens_map.json", "chat_template.jinja")  # of the base; runs keep none of these


class SafetensorsExport:
    name, is_directory, tolerance = "safetensors", True, 0.0

    def __init__(self, trained: Trained, to: Path, dtype: str | None):
        """dtype: None for that of the checkpoint's embeddings, bfloat16 where they are float32. Reads headers only."""
        self.trained, self.dtype = trained, dtype and DTYPES[dtype]

    def write(self, model: Llama, place: Path) -> dict:
        """Raises ValueError, naming the tensor, for values that the type cannot hold."""
        self.dtype = self.dtype or sixteen_bit_type(model)
        write_model(self.trained, model, self.dtype, place)
        return {"type": name_of(self.dtype)}

    def expected(self, model: Llama, name: str) -> Tensor:
        return dense_tensor(model, name).to(self.dtype)

    def reread(self, place: Path) -> Llama:
        return read_model(self.trained, place)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def write_model(trained: Trained, model: Llama, dtype: torch.dtype, directory: Path) -> None:
    """A model directory of all that `model` is, adapters merged and codes dequantized."""
    tensors = {name: in_type(tensor, dtype, name) for name, tensor in
               tqdm(dense_tensors(model), "merging", len(tensor_names(model.config)), unit="tensor", disable=None, leave=False)}
    write_safetensors(directory / "model.safetensors", tensors)
    write_json(directory / "config.json", hugging_face_config(model.config, dtype))
    write_tokenizer(trained, directory)
    for path in (trained.origin / name for name in BESIDE if trained.origin and trained.origin.is_dir()):
        if path.is_file():
            shutil.copy(path, directory / path.name)


def read_model(trained: Trained, directory: Path) -> Llama:
    """By its own config.json. Raises ValueError where that, or its tokenizer, is another."""
    check_tokenizer(trained, directory)
    config = load_config(directory)
    if differ := [name for name, value in vars(config).items() if value != getattr(trained.config, name)]:
        raise ValueError(f"config.json, read again, says {differ[0]} {getattr(config, differ[0])!r}, and the run has {getattr(trained.config, differ[0])!r}; "
                         f"nothing is left of this export")
    return load_model(weight_files(directory), config, torch.float32)


def hugging_face_config(config: LlamaConfig, dtype: torch.dtype) -> dict:
    """config.json: the family's own keys with the class's name, and the type of the weights, which readers take for the computation."""
    return {**config_to_json(config), "torch_dtype": name_of(dtype)}


def in_type(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Rounded to the type. Raises ValueError for values beyond it: float16 ends at 65504."""
    rounded = tensor.to(dtype)
    if not rounded.isfinite().all():
        raise ValueError(f"{name} holds values up to {tensor.abs().max():.4g}, which {name_of(dtype)} cannot hold (up to "
                         f"{torch.finfo(dtype).max:.5g}): give --dtype bfloat16 or float32")
    return rounded


def write_tokenizer(trained: Trained, directory: Path) -> None:
    """The run's own files; and, where it has none that names the begin and end tokens, one that does. It names no class: transformers then reads
    tokenizer.model and tokenizer.json as they are, where LlamaTokenizer puts spaces otherwise."""
    copy_tokenizer(trained.path, directory)
    names = directory / "tokenizer_config.json"
    if names.is_file():
        return
    begin, end = trained.tokenizer.encode("")[:1], Source(trained.path).stop_ids()[:1]
    tokens = {f"{kind}_token": trained.tokenizer.token(ids[0]) for kind, ids in (("bos", begin), ("eos", end)) if ids}
    write_json(names, tokens if (directory / "tokenizer.json").is_file() else {**tokens, "add_bos_token": bool(begin)})
