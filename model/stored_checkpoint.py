"""safetensors files whose quantized layers are in the format of another tool (quant/formats)."""
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from model.config import LlamaConfig
from model.families import FAMILIES
from model.files import read_json
from model.gguf_layout import LINEAR
from model.tensor_files import open_safetensors
from quant.formats import format_of
from quant.formats.stored import FLOATS, Stated, StoredFormat


def stored_format(file: Path) -> StoredFormat | None:
    """The format that the config.json beside a weight file states; None for dense weights and for our own codes."""
    config = file.with_name("config.json")
    try:
        return format_of(read_json(config)) if config.is_file() else None
    except ValueError as error:
        raise ValueError(f"{config}: {error}") from None


class StoredWeights:
    """The tensors of such files, with the interface of `model.checkpoint.Weights`.

    Linear layers are codes. Embeddings are a look-up table: they are dequantized, to float32. Raises ValueError for
    tensors of a wrong type or shape, and for a layer that lacks a part."""

    def __init__(self, files: list[Path], stored: StoredFormat):
        self.files, self.format = files, stored
        self._open = {path: open_safetensors(path) for path in files}  # once: opening checks the header's sha256
        self.file_of: dict[str, Path] = {}    # of the files' own names
        self.stated: dict[str, Stated] = {}   # layers that are stored as codes
        self.parts_of: dict[str, list[str]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.quantized: dict[str, dict] = {}
        found: dict[str, tuple[str, tuple[int, ...]]] = {}
        for path, file in self._open.items():
            for name in file.keys():
                if name in found:
                    raise ValueError(f"{path}: {name} is also in {self.file_of[name]}; a model holds each tensor once")
                part = file.get_slice(name)
                self.file_of[name], found[name] = path, (part.get_dtype(), tuple(part.get_shape()))
        for layer in self._layers(found):
            self._list(layer, found)
        if not self.stated:
            raise ValueError(f"{files[0].parent}: config.json says that weights are in the format {stored.name}, but "
                             f"no layer in {', '.join(path.name for path in files[:3])} is: take that entry out of "
                             f"config.json if the weights are dense")
        for name, (kind, shape) in found.items():
            if kind not in FLOATS:
                raise ValueError(f"{self.file_of[name]}: {name} is of type {kind}, but must be {' or '.join(FLOATS)}, "
                                 f"or a part of a layer in the format {stored.name}")
            self.shapes[name] = shape
        self.dense = list(found)

    def _layers(self, found: dict) -> list[str]:
        """The layers whose first part has the type that only codes have."""
        first, types = next(iter(self.format.parts.items()))
        return [name.removesuffix(f".{first}") for name, (kind, _) in found.items()
                if name.endswith(f".{first}") and kind in types]

    def _list(self, layer: str, found: dict) -> None:
        """Moves the parts of a layer from `found` to what it is here."""
        shapes: dict[str, tuple[int, ...]] = {}
        for part, types in (self.format.parts | self.format.optional).items():
            name = f"{layer}.{part}"
            if name not in found and part in self.format.optional:
                continue
            if name not in found:
                raise ValueError(f"{self.files[0].parent}: {layer} holds codes in the format {self.format.name}, but "
                                 f"{name} is missing")
            kind, shapes[part] = found.pop(name)
            if kind not in types:
                raise ValueError(f"{self.file_of[name]}: {name} is of type {kind}, but must be {' or '.join(types)}")
        self.parts_of[layer] = list(shapes)
        small = {part: self.read(f"{layer}.{part}") for part in self.format.small if part in shapes}
        try:
            stated = self.stated[layer] = self.format.stated(layer, shapes, small)
            own = stated.shapes()
        except ValueError as error:
            raise ValueError(f"{self.files[0].parent}: {error}") from None
        if layer.endswith(LINEAR):
            self.quantized[layer] = {"bits": stated.bits, "block": str(stated.block)}
            self.shapes.update({f"{layer}.{leaf}": shape for leaf, shape in own.items()})
        else:
            self.shapes[f"{layer}.weight"] = stated.D_out, stated.D_in

    def name_as(self, config: LlamaConfig) -> None:
        """The names are the model's already. Raises ValueError for a family whose files join layers: their codes are
        not split."""
        if FAMILIES[config.model_type].fused:
            raise ValueError(f"{self.files[0].parent}: model_type {config.model_type!r} is not read in the format "
                             f"{self.format.name}; give the model that it was made from, in 16 bits")

    def stored_name(self, name: str) -> str:
        return name

    def forget(self, name: str) -> None:
        """Ignore this tensor of the files."""
        self.dense.remove(name)
        del self.shapes[name]

    def levels(self, layer: str) -> Tensor:
        """The values that the codes of a quantized layer stand for."""
        return self.stated[layer].values()

    def forget_zero_biases(self, wanted: dict[str, tuple[int, ...]]) -> None:
        """Ignore biases of layers of codes that the model has none of, if they are 0: AutoGPTQ writes one to each."""
        for layer in self.stated:
            name = f"{layer}.bias"
            if name in self.shapes and name not in wanted and not self.read(name).any():
                self.forget(name)

    def parts(self, layer: str) -> dict[str, Tensor]:
        """The tensors of a layer of codes, as the file holds them."""
        return {part: self.read(f"{layer}.{part}") for part in self.parts_of[layer]}

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the model whose name begins with `prefix`, one layer at a time in memory."""
        for layer in self.stated:
            if f"{layer}.".startswith(prefix):
                yield from self._load(layer)
        yield from ((name, self.read(name)) for name in self.dense if name.startswith(prefix))

    def _load(self, layer: str) -> Iterator[tuple[str, Tensor]]:
        try:
            linear = self.format.read(self.stated[layer], self.parts(layer))
        except ValueError as error:
            raise ValueError(f"{self.file_of[f'{layer}.{self.parts_of[layer][0]}']}: {layer}: {error}") from None
        if layer in self.quantized:
            for part, tensor in linear.state_dict().items():
                yield f"{layer}.{part}", tensor
        else:
            yield f"{layer}.weight", linear.dequantize()

    def read(self, name: str) -> Tensor:
        """A tensor as the file holds it."""
        return self._open[self.file_of[name]].get_tensor(name)
