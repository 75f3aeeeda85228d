"""The dense model that a run equals, as transformers and vLLM read it.

The directory holds config.json, model.safetensors, the tokenizer, and what travels with it: added tokens, the chat
template and generation_config.json. The weights are one file of any size: the model is in memory as a whole anyway, and
its readers accept large files.
"""
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from finetune.adapted_model import sixteen_bit_type
from finetune.source import Source
from finetune.values import DTYPES
from interop.comparison import check_finite, check_tokenizer
from interop.trained import Trained, dense_tensor, dense_tensors, tensor_names
from model.checkpoint import load_model
from model.config import LlamaConfig
from model.config_json import config_to_json
from model.directory import load_config, weight_files
from model.durable import copy_file
from model.files import write_json
from model.llama import Llama
from model.stored_names import joined
from model.tensor_files import name_of, write_safetensors
from model.tokenizer_files import copy_tokenizer

# copied from the base for runs of earlier versions, which did not keep them
BESIDE = ("generation_config.json", "special_tokens_map.json", "chat_template.jinja")


class SafetensorsExport:
    name, is_directory, tolerance = "safetensors", True, 0.0

    def __init__(self, trained: Trained, to: Path, dtype: str | None):
        """dtype: of the weights. None: the type of the checkpoint's embeddings, or bfloat16 if that is float32. Reads
        headers only."""
        self.trained, self.dtype = trained, dtype and DTYPES[dtype]

    def write(self, model: Llama, place: Path) -> dict:
        """Raises ValueError, naming the tensor, for values outside the range of the type."""
        self.dtype = self.dtype or sixteen_bit_type(model)
        write_model(self.trained, model, self.dtype, place)
        return {"type": name_of(self.dtype)}

    def beside(self, to: Path) -> dict[Path, str]:
        return {}

    def expected(self, model: Llama, name: str) -> Tensor:
        return dense_tensor(model, name).to(self.dtype)

    def reread(self, place: Path) -> Llama:
        return read_model(self.trained, place)


def write_model(trained: Trained, model: Llama, dtype: torch.dtype, directory: Path) -> None:
    """Writes `model` as a model directory: adapters merged, codes dequantized."""
    total = len(tensor_names(model.config))
    bar = tqdm(dense_tensors(model), "merging", total, unit="tensor", disable=None, leave=False)
    tensors = {name: in_type(tensor, dtype, name) for name, tensor in bar}
    write_safetensors(directory / "model.safetensors", joined(tensors, model.config))
    write_json(directory / "config.json", hugging_face_config(trained.config, dtype))
    write_tokenizer(trained, directory)
    for path in (trained.origin / name for name in BESIDE if trained.origin and trained.origin.is_dir()):
        if path.is_file() and not (directory / path.name).exists():
            copy_file(path, directory / path.name)


def read_model(trained: Trained, directory: Path) -> Llama:
    """Reads the directory by its own config.json. Raises ValueError if its config or tokenizer differs from the
    run's."""
    check_tokenizer(trained, directory)
    config = load_config(directory)
    if differ := [name for name, value in vars(config).items() if value != getattr(trained.config, name)]:
        name = differ[0]
        raise ValueError(f"config.json, read again, says {name} {getattr(config, name)!r}, but the run has "
                         f"{getattr(trained.config, name)!r}; the export is deleted")
    return load_model(weight_files(directory), config, torch.float32)


def hugging_face_config(config: LlamaConfig, dtype: torch.dtype) -> dict:
    """config.json: the keys of the model's family, the name of its class, and the type of the weights. Readers compute
    in that type."""
    return {**config_to_json(config), "torch_dtype": name_of(dtype)}


def in_type(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The tensor rounded to the type. Raises ValueError for values outside its range: float16 ends at 65504; and for
    values that are not finite before."""
    check_finite(tensor, name)
    rounded = tensor.to(dtype)
    if not rounded.isfinite().all():
        raise ValueError(f"{name} holds values up to {tensor.abs().max():.4g}, which {name_of(dtype)} cannot hold "
                         f"(up to {torch.finfo(dtype).max:.5g}): give --dtype bfloat16 or float32")
    return rounded


def write_tokenizer(trained: Trained, directory: Path) -> None:
    """Copies the run's tokenizer files. If the run has no tokenizer_config.json, one is written that names the begin
    and end tokens. It names no class, so that transformers reads tokenizer.model and tokenizer.json as they are; its
    class LlamaTokenizer would place spaces differently."""
    copy_tokenizer(trained.path, directory)
    names = directory / "tokenizer_config.json"
    if names.is_file():
        return
    begin, end = trained.tokenizer.encode("")[:1], Source(trained.path).stop_ids()[:1]
    tokens = {f"{kind}_token": trained.tokenizer.token(ids[0]) for kind, ids in (("bos", begin), ("eos", end)) if ids}
    write_json(names, tokens if (directory / "tokenizer.json").is_file() else {**tokens, "add_bos_token": bool(begin)})
