"""(c) GPTQ of a model beside the textbook algorithm (Frantar et al. 2022, Algorithm 1), one thread.

    python -m benchmarks.gptq MODEL_DIR --cpu-time
    python -m benchmarks.gptq MODEL_DIR --layers 2 --tree before=/path/to/old/checkout --tree after=. --cpu-time

Both quantize to integer min-max, 4 bits, in groups of 32x1, calibrate each stage on what the quantized stages before it
put out, and see the same random rows. Before any ratio, the outputs of both must be equally close to the dense model's,
within 10 %. Ours also reports the output error of every layer, beside that of rounding; its time is counted.
"""
import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.processes import ROOT, add_arguments, facts, gather, summary, trees_of, write

LAZY, GROUP, TOP = 128, 32, 15
LENGTH, AT_A_TIME = 128, 16  # tokens of a row, rows of a batch
TOLERANCE = 0.1


# ---- in a process of its own, which may import the packages of another checkout -----------------------------------

def measure(given: argparse.Namespace, textbook: bool) -> dict:
    """Seconds to quantize the first decoder layers, and ||x - x_dense|| / ||x_dense|| of what they put out."""
    import torch

    from finetune.gptq_model import CalibrationBatch, gptq_model
    from model.checkpoint import load_model
    from model.directory import load_config, weight_files
    from quant.linear import QuantLinear
    from quant.spec import QuantSpec
    path, generator = given.model, torch.Generator().manual_seed(0)
    model = load_model(weight_files(path), load_config(path), torch.bfloat16)
    model.model.layers = model.model.layers[:given.layers]
    stages = model.model.layers[0].stages
    names = [f"model.layers.{i}.{name}" for i in range(len(model.model.layers)) for stage in stages for name in stage]
    rows = torch.randint(0, model.config.vocab_size, (given.rows, LENGTH), generator=generator).tolist()
    model.dtype = torch.float32
    batches, again = ([CalibrationBatch(model, rows[i:i + AT_A_TIME]) for i in range(0, len(rows), AT_A_TIME)]
                      for _ in range(2))
    with torch.no_grad():
        dense = run(model, batches)
        clock = time.process_time if given.cpu_time else time.perf_counter
        start = clock()
        if textbook:
            textbook_gptq(model, again)
        else:
            quantizer = QuantSpec.parse("intminmax@32x1-4bit").new_quantizer()
            gptq_model(model, lambda prefix: None, names, quantizer, False, rows,
                       lambda name, layer, weight: QuantLinear.from_weight(weight))
        seconds = clock() - start
        return {"seconds": seconds, "output_error": ((run(model, batches) - dense).norm() / dense.norm()).item()}


def forward(layer, batch):
    return layer(batch.x, batch.angles, batch.allowed, None)


def run(model, batches):
    import torch
    kept = [batch.x for batch in batches]
    for layer in model.model.layers:
        for batch in batches:
            batch.x = forward(layer, batch)
    out = torch.cat([batch.x for batch in batches])
    for batch, x in zip(batches, kept, strict=True):
        batch.x = x
    return out


def textbook_gptq(model, batches) -> None:
    """Each stage is calibrated on the output of the quantized stages before it, by a forward pass of the layer."""
    for layer in model.model.layers:
        for stage in layer.stages:
            H, n = 0, 0
            for batch in batches:
                seen = []
                hook = layer.get_submodule(stage[0]).register_forward_pre_hook(lambda _, x, to=seen: to.append(x[0]))
                forward(layer, batch)
                hook.remove()
                x = seen[0].flatten(0, 1)
                H, n = H + x.T @ x, n + len(x)
            for name in stage:
                weight = layer.get_submodule(name).weight
                weight.copy_(textbook_layer(weight.float(), H * (2 / n)))
        for batch in batches:
            batch.x = forward(layer, batch)


def textbook_layer(W, H):
    """Frantar et al. 2022, Algorithm 1, in float32, with integer min-max grids fitted as a group begins."""
    import torch
    (_, D_in), H = W.shape, H + 0.01 * H.diag().mean() * torch.eye(len(H))
    U = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)
    W_hat = torch.zeros_like(W)
    for start in range(0, D_in, LAZY):
        end = min(start + LAZY, D_in)
        w, errors = W[:, start:end].clone(), torch.zeros_like(W[:, start:end])
        for i in range(start, end):
            if i % GROUP == 0:
                group = w[:, i - start:i - start + GROUP]
                low, high = group.amin(1, keepdim=True).clamp(max=0), group.amax(1, keepdim=True).clamp(min=0)
                scale = (high - low) / TOP
                zero = torch.round(-low / scale)
            column = w[:, i - start, None]
            code = (torch.round(column / scale) + zero).clamp(0, TOP)
            W_hat[:, i, None] = scale * (code - zero)
            errors[:, i - start, None] = (column - W_hat[:, i, None]) / U[i, i]
            w[:, i - start:] -= errors[:, i - start, None] * U[i, i:end]
        W[:, end:] -= errors @ U[start:end, end:]
    return W_hat


# ---- one process after the other ----------------------------------------------------------------------------------

def compare(found: dict[str, list[dict]]) -> dict[str, dict]:
    """Raises ValueError if the outputs are not about equally close to the dense model's."""
    rows = {name: {**summary([one["seconds"] for one in rounds]), "output_error": rounds[0]["output_error"]}
            for name, rounds in found.items()}
    book = rows["textbook"]
    for name, row in rows.items():
        row["of_the_textbook"] = row["median"] / book["median"]
        if abs(row["output_error"] / book["output_error"] - 1) > TOLERANCE:
            raise ValueError(f"gptq {name}: output error {row['output_error']:.4g}, the textbook's is "
                             f"{book['output_error']:.4g}")
        print(f"{name:<12} {row['median']:8.1f} s  {row['of_the_textbook']:.2f} of the textbook's  "
              f"output error {row['output_error']:.4f}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--layers", type=int, help="only the first decoder layers")
    parser.add_argument("--rows", type=int, default=128, help=f"calibration rows of {LENGTH} tokens")
    add_arguments(parser, rounds=1)
    given = parser.parse_args()
    if given.child:
        import torch
        torch.set_num_threads(1)
        print(json.dumps(measure(given, given.child == "textbook")))
        return
    contenders = {name: ("ours", tree, sys.executable) for name, tree in trees_of(given).items()}
    found = gather(__file__, {**contenders, "textbook": ("textbook", ROOT, sys.executable)}, given.rounds)
    write({**facts(given), "model": str(given.model), "decoder_layers": given.layers, "rows_of_tokens":
           [given.rows, LENGTH], "seconds": compare(found)}, given.out)


if __name__ == "__main__":
    main()
