"""Scores a fine-tuned MLX model in mlx-lm and here: `export.py --format mlx`, the same adapter beside its base, what
`mlx_lm.fuse` makes of the two, and the base. Prints a table, and keeps it and the figures in OUT. A model that has been
scored is not scored again.

    python -m tests.interop.mlx_score --run runs/intents --out runs/mlx-score

The run was trained on an MLX directory by a method that equals a LoRA and merges into offsets, such as QA-LoRA, on a
task that is answered in writing. Both programs read the same prompts, answer greedily and compute in float32. Needs
mlx-lm (tests/interop/requirements.txt).
"""
import argparse
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import torch
from mlx.utils import tree_map
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model as load_mlx
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

import export as export_script
from adapters.adapted import adapted_layers
from experiments.shared import markdown
from finetune.data import PreparedData, prepare_data
from finetune.run import open_run
from finetune.source import Source
from interop.trained import Trained
from model.files import read_json, write_json, write_text
from model.llama import Llama
from quant.linear import QuantLinear
from tasks.generative import before
from tasks.task import Asking
from tests.cli import call

BESIDE = "adapter beside its base"
HEAD = ["model", "codes that changed", "rounding / delta_W", "score here", "in mlx-lm", "rows with the same text"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/mlx-score"))
    parser.add_argument("--rows", type=int, default=100, help="test rows that both answer")
    options = parser.parse_args()
    out, run = options.out, open_run(options.run)
    base, adapter, exported, fused = run.config.base.model, out / "adapter", out / "exported", out / "fused"
    if not exported.is_dir() and (message := call(export_script, run.path, "--format", "mlx", "--to", exported)):
        raise SystemExit(message)
    model = Trained.at(run.path).load()
    if not fused.is_dir():
        write_adapter(model, adapter)
        subprocess.run([sys.executable, "-m", "mlx_lm", "fuse", "--model", base, "--adapter-path", adapter,
                        "--save-path", fused], check=True)
    data = prepare_data(Source(run.path), run.config, calibrate=False)
    data = replace(data, test=data.test[:options.rows])
    asked = {"run": run.path.resolve().name, "task": data.task.name, "metric": data.task.metric, "rows": len(data.test)}
    file = out / "figures.json"
    figures = read_json(file) if file.is_file() else {**asked, "models": {}}
    check_same(file, figures, asked)
    for name, place in (("exported", exported), (BESIDE, base), ("fused", fused), ("base", base)):
        if name not in figures["models"]:
            own, kept = (model, {"codes_changed": 0.0, "rounding": 0.0}) if name == BESIDE else (ours(place), None)
            other = theirs(place, adapter if name == BESIDE else None)
            figures["models"][name] = {**(kept or moved(model, own)), **answered(name, own, other, data)}
            write_json(file, figures)
    table = markdown(HEAD, [[name, f"{of['codes_changed']:.1%}", f"{of['rounding']:.2g}", f"{of['here']:.1%}",
                             f"{of['mlx_lm']:.1%}", f"{of['same_text']:.1%}"]
                            for name, of in figures["models"].items()])
    write_text(out / "table.md", table + "\n")
    print(table)


def check_same(file: Path, figures: dict, asked: dict) -> None:
    """Exits, with the file, if its figures are those of another run or of other rows."""
    for name, value in asked.items():
        if figures.get(name, value) != value:
            raise SystemExit(f"{file}: its {name} is {figures[name]}, and {value} is asked for: give another --out")


def write_adapter(model: Llama, place: Path) -> None:
    """The run's adapters as mlx-lm's plain LoRA, x + scale * x A B. QA-LoRA's A is repeated over its group and divided
    by its size."""
    place.mkdir(parents=True, exist_ok=True)
    tensors, layers = {}, adapted_layers(model)
    for name, layer in layers.items():
        for letter, factor in zip("ab", layer.adapter.lora_factors(), strict=True):
            tensors[f"{name}.lora_{letter}"] = factor.detach().float().T.contiguous()
    save_file(tensors, place / "adapters.safetensors")
    (scale,), (rank,) = ({layer.adapter.scaling for layer in layers.values()},
                         {len(layer.adapter.lora_factors()[0]) for layer in layers.values()})
    kinds = sorted({".".join(name.split(".")[3:]) for name in layers})  # self_attn.q_proj
    write_json(place / "adapter_config.json", {
        "fine_tune_type": "lora", "num_layers": model.config.num_hidden_layers,
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0, "keys": kinds}})


def ours(place: Path) -> Llama:
    return Source(place).load(torch.float32, "cpu")


# ---- weights ------------------------------------------------------------------------------------------------

def moved(trained: Llama, stored: Llama) -> dict[str, float]:
    """Over all layers with an adapter: the share of the base's codes that are others in `stored`, and
    ||W_stored - (W + delta_W)|| / ||delta_W||."""
    changed, codes, rounding, delta = 0, 0, 0.0, 0.0
    for was, now, wanted in adapted_pairs(trained, stored):
        changed += int((was.quantized_weight().codes != now.quantized_weight().codes).sum())
        codes += now.out_features * now.in_features
        rounding += float((now.dequantize() - wanted).square().sum())
        delta += float((wanted - was.dequantize()).square().sum())
    return {"codes_changed": changed / codes, "rounding": (rounding / delta) ** 0.5}


@torch.no_grad()
def adapted_pairs(trained: Llama, stored: Llama) -> Iterator[tuple[QuantLinear, QuantLinear, Tensor]]:
    for name, layer in adapted_layers(trained).items():
        yield layer.base, stored.get_submodule(name), layer.weight().float()


# ---- answers ------------------------------------------------------------------------------------------------

def answered(name: str, model: Llama, other_model, data: PreparedData) -> dict[str, float]:
    """The task's score of both programs' answers, and the share of rows with the same text."""
    asking = Asking(data.tokenizer, data.end_ids, data.max_new_tokens, 32, name)
    own = dict(data.task.answers(model, data.test, asking))
    own = [own[i] for i in range(len(data.test))]
    other = [{"text": text_of(other_model, data.task.prompt_of(row, asking), data)}
             for row in tqdm(data.test, f"{name}, mlx-lm", unit="row", disable=None, leave=False)]
    here, there = (data.task.scores(data.test, lines)[0][data.task.metric] for lines in (own, other))
    same = sum(a["text"] == b["text"] for a, b in zip(own, other, strict=True)) / len(own)
    return {"here": here, "mlx_lm": there, "same_text": same}


def theirs(place: Path, adapter: Path | None = None):
    """In float32: on a CPU, mlx computes 16-bit products ten times as slowly."""
    mx.set_default_device(mx.cpu)
    model, _ = load_mlx(place)
    model = load_adapters(model, str(adapter)) if adapter else model
    model.update(tree_map(lambda t: t.astype(mx.float32) if t.dtype in (mx.float16, mx.bfloat16) else t,
                          model.parameters()))
    return model


def text_of(model, prompt: list[int], data: PreparedData) -> str:
    cache, ids, new, text = make_prompt_cache(model), [], prompt, ""
    while len(ids) < data.max_new_tokens and not any(stop in text for stop in data.task.stop_texts):
        token = int(mx.argmax(model(mx.array([new]), cache=cache)[0, -1]).item())
        if token in data.end_ids:
            break
        ids, new = [*ids, token], [token]
        text = data.tokenizer.decode(ids)
    return before(text, data.task.stop_texts).strip()


if __name__ == "__main__":
    main()
