"""Quantized bases, each made once and shared: GPTQ of a model takes longer than many a cell."""
import fcntl
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune.config import BaseConfig, ComputeConfig
from finetune.data import Calibration
from finetune.quantize import load_base
from finetune.source import Source
from model.checkpoint import load_model, save_model
from model.directory import load_config
from model.durable import make_directory
from model.files import read_json, write_json
from model.llama import Llama


class Bases:
    """In one directory, for all processes. `made` lists what this process has made, with its seconds."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.made: dict[str, float] = {}

    def file(self, base: BaseConfig, compute: ComputeConfig, calibration: Calibration | None) -> Path:
        """The file of a quantized base, made now if it is missing. Another process that makes it is waited for. GPTQ's
        report is beside it, as `report_of` says."""
        source, spec = Source(base.model), base.quantization
        assert spec is not None
        if spec.by_gptq and calibration is None:
            raise ValueError(f"{spec}: a base by gptq needs calibration rows: start from a run that has them")
        key = {"source": source.fingerprint, "spec": str(spec), "layers": base.quantized_layers, "dtype": compute.dtype,
               "calibration": calibration.fingerprint if spec.by_gptq and calibration else None}
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        file = self.folder / f"{name}.safetensors"
        with locked(self.folder / f"{name}.lock"):
            if not file.is_file():
                start = time.perf_counter()
                model, report = load_base(source, base, compute, calibration)
                write_json(report_of(file), {**key, "report": report})
                save_model(model, file)
                self.made[f"{spec}"] = round(time.perf_counter() - start, 3)
        return file

    def load(self, base: BaseConfig, compute: ComputeConfig, calibration: Calibration | None) -> Llama:
        """The base of a restored state: from its file, or the original weights if `base` is not quantized."""
        if base.quantization is None:
            return Source(base.model).load(compute.torch_dtype, compute.device)
        file = self.file(base, compute, calibration)
        return load_model([file], load_config(Source(base.model).path), compute.torch_dtype, compute.device)


def report_of(file: Path) -> Path:
    return file.with_suffix(".json")


def gptq_report(file: Path) -> dict | None:
    return read_json(report_of(file))["report"]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits for the lock; it is released when the process ends, however it ends."""
    make_directory(path.parent)
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
