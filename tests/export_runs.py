"""What the tests of export.py share: runs whose adapters hold large random numbers, made without a step of training."""
import json
from pathlib import Path

import torch

import export as export_script
import train as train_script
from finetune import arguments
from finetune.checks import check_layers, take_block_of_base
from finetune.models import Source
from finetune.run import new_run
from interop.trained import Trained
from model.config_json import config_to_json
from model.files import write_json
from model.llama import Llama
from model.tokenizer import copy_tokenizer
from tests.cli import call

TOKENS = torch.randint(3, 4000, (3, 17), generator=torch.Generator().manual_seed(0))


def made_run(path: Path, model: Path, *flags) -> Path:
    """As train.py leaves a run, every adapter parameter N(0, 0.3^2). `flags` as train.py takes them; no quantizer that needs data."""
    parser = arguments.train_parser()
    command = ["--model", str(model), "--dtype", "float32", *map(str, flags)]
    args = arguments.resolve(parser.parse_args(command), arguments.given_flags(parser, parser.parse_args(command), command))
    source, run = Source(args.model), new_run(path, "")
    take_block_of_base(source, args)
    check_layers(source, args)
    saved = {"arguments": arguments.to_json(args), "model_config": config_to_json(source.config), "fingerprints": {"base": source.fingerprint}}
    write_json(run.config_file, saved)
    copy_tokenizer(source.path, run.path)
    make = train_script.full(run, args) if args.method == "full" else train_script.adapted(run, args, saved, None)
    _, parameters, keep = make
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in parameters.values():
            p.add_(torch.randn(p.shape, generator=generator) * (0.01 if args.method == "full" else 0.3))
    keep()
    return path


def export(run: Path, form: str, to: Path, *flags) -> dict:
    """What the report beside it says."""
    message = call(export_script, run, "--format", form, "--to", to, *flags)
    assert message is None, message
    return json.loads((to / "export.json" if to.is_dir() else to.with_suffix(".export.json")).read_text())


def refusal(run: Path, form: str, to: Path, *flags) -> str:
    """The error message; nothing is left, under no name."""
    before = set(to.parent.iterdir())
    message = call(export_script, run, "--format", form, "--to", to, *flags)
    assert message and message.startswith("error: ") and "\n" not in message, message
    assert set(to.parent.iterdir()) == before
    return message


def as_trained(run: Path) -> Llama:
    return Trained.at(run).load()


@torch.inference_mode()
def difference(a: Llama, b: Llama) -> float:
    """Largest, of any logit."""
    a.dtype = b.dtype = torch.float32
    return (a(TOKENS) - b(TOKENS)).abs().max().item()
