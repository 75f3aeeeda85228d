"""What the tests of export.py share: runs whose adapters hold large random numbers, made without a step of training."""
import json
from pathlib import Path

import torch

import export as export_script
import train as train_script
from finetune.checks import check_run, with_codes_of_base
from finetune.command_line import train_parser
from finetune.config import DataConfig
from finetune.config_json import FORMAT, config_json
from finetune.data import task_of
from finetune.resolve import resolve_run
from finetune.run import new_run
from finetune.source import Source
from interop.trained import Trained
from model.config_json import config_to_json
from model.files import read_json, write_json
from model.llama import Llama
from model.tokenizer_files import copy_tokenizer
from tests.cli import call, shows_an_object

# flags -> "arguments", as the last version of format 1 wrote them
FORMAT_1 = Path(__file__).parent / "fixtures" / "format_1.json"
TOKENS = torch.randint(3, 4000, (3, 17), generator=torch.Generator().manual_seed(0))


def made_run(path: Path, model: Path, *flags) -> Path:
    """A run as train.py leaves it; every adapter parameter is N(0, 0.3^2). `flags` are those of train.py, without a
    quantizer that needs data."""
    config = resolve_run(train_parser().given(["--model", str(model), "--dtype", "float32", *map(str, flags)]))
    source, run = Source(config.base.model), new_run(path, "")
    config = with_codes_of_base(source, config)
    check_run(source, config)
    write_json(run.config_file, {"format": FORMAT, "config": config_json(config),
                                 "model_config": config_to_json(source.config),
                                 "fingerprints": {"base": source.fingerprint, "data": fingerprints(config.data)}})
    copy_tokenizer(source.path, run.path)
    full = config.adapter_kind is None
    _, parameters, keep = train_script.full(run, config) if full else train_script.adapted(run, config, None)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in parameters.values():
            p.add_(torch.randn(p.shape, generator=generator) * (0.01 if full else 0.3))
    keep()
    return path


def fingerprints(asked: DataConfig) -> dict[str, str]:
    """Of the rows that the run would be trained on."""
    return task_of(asked).splits(asked.data, asked.test_data, asked.limit, asked.seed).fingerprints()


def in_format_1(run: Path, flags: str, without: tuple[str, ...] = ()) -> None:
    """Rewrites config.json as an earlier version wrote it for `flags`; `without` are flags that did not exist yet."""
    saved = read_json(run / "config.json")
    arguments = {name: value for name, value in read_json(FORMAT_1)[flags].items() if name not in without}
    write_json(run / "config.json", {"arguments": {**arguments, "model": saved["config"]["base"]["model"]},
                                     "model_config": saved["model_config"], "fingerprints": saved["fingerprints"]})


def export(run: Path, form: str, to: Path, *flags) -> dict:
    """The report that lies beside the export."""
    message = call(export_script, run, "--format", form, "--to", to, *flags)
    assert message is None, message
    return json.loads((to / "export.json" if to.is_dir() else to.with_suffix(".export.json")).read_text())


def refusal(run: Path, form: str, to: Path, *flags) -> str:
    """The error message. The refused export leaves no file, under any name."""
    before = set(to.parent.iterdir())
    message = call(export_script, run, "--format", form, "--to", to, *flags)
    assert message and message.startswith("error: ") and "\n" not in message and not shows_an_object(message), message
    assert set(to.parent.iterdir()) == before
    return message


def as_trained(run: Path) -> Llama:
    return Trained.at(run).load()


@torch.inference_mode()
def difference(a: Llama, b: Llama) -> float:
    """The largest difference of any logit."""
    a.dtype = b.dtype = torch.float32
    return (a(TOKENS) - b(TOKENS)).abs().max().item()
