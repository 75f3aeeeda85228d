"""(b) Quantize and dequantize, million weights a second of every quantizer on one thread; (c) GPTQ of a model.

    python -m benchmarks.quantizers --cpu-time
    python -m benchmarks.quantizers --tree before=/path/to/old/checkout --tree after=. --peer-python venv/bin/python \\
        --gptq MODEL_DIR --gptq-layers 30 --cpu-time --out benchmarks/results/quantizers.json

Every contender runs in a process of its own, one after the other, in several rounds. A figure is the median over all
rounds, with the quartiles beside it. Before any ratio, NF4's dequantized weights must be those of bitsandbytes bit for
bit, and GPTQ's output must be as close to the dense model's as that of the textbook algorithm (Frantar et al. 2022,
Algorithm 1). `--cpu-time` counts processor seconds instead of seconds: use it on a busy machine.
"""
import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

PHRASES = ("nf@64x1-4bit", "nf@64x1-3bit", "nf@64x1-2bit", "nf@64x1-4bit+double-quant", "icq@64x1-4bit",
           "minmax@4x8-4bit", "minmax@32x1-4bit", "minmax@4x8-3bit", "minmax@4x8-2bit", "minmax@4x8-8bit",
           "intminmax@32x1-4bit", "absmax@64x1-4bit", "absmax@64x1-8bit")
PEER = "bitsandbytes"
COPIED = 1 << 26      # bytes, more than a cache holds
LAZY, GROUP, TOP = 128, 32, 15  # of the textbook algorithm: 4 bits in groups of 32x1
TOLERANCE = 0.1       # by which the output errors of the two GPTQs may differ


# ---- in a process of its own --------------------------------------------------------------------------------------

def clock(given: argparse.Namespace) -> float:
    return time.process_time() if given.cpu_time else time.perf_counter()


def rates(given: argparse.Namespace, work, size: int) -> list[float]:
    """Units a second, once for each sample of several calls."""
    work()
    start = clock(given)
    work()
    calls = max(1, int(given.seconds / 5 / max(clock(given) - start, 1e-9)))
    found: list[float] = []
    while len(found) < 5:
        start = clock(given)
        for _ in range(calls):
            work()
        found.append(calls * size / (clock(given) - start))
    return found


def grow_heap() -> None:
    """Frees a large block, as a process that trains has: glibc then keeps freed memory instead of returning it, and no
    result is timed with the page faults of fresh memory."""
    import torch
    torch.ones(31 << 18)  # 31 MiB; from 32 MiB on a block is always returned


def random_weight(given: argparse.Namespace):
    import torch
    D_out, D_in = map(int, given.shape.split("x"))
    return (0.02 * torch.randn(D_out, D_in, generator=torch.Generator().manual_seed(0))).bfloat16()


def digest(tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def measure_ours(given: argparse.Namespace) -> dict:
    import torch

    from quant.linear import QuantLinear
    from quant.spec import QuantSpec
    weight, rows = random_weight(given), {}
    for phrase in PHRASES:
        quantizer = QuantSpec.parse(phrase).new_quantizer()
        part = weight[:32] if phrase.startswith("icq") else weight  # icq searches 201 offsets a block
        layer = QuantLinear.from_weight(quantizer.quantize(weight if part is weight else part.repeat(4, 1)))
        rows[phrase] = {"quantize": rates(given, lambda q=quantizer, w=part: q.quantize(w), part.numel()),
                        "dequantize": rates(given, lambda one=layer: one.dequantize(torch.bfloat16),
                                            layer.in_features * layer.out_features)}
    nf4 = QuantSpec.parse(PHRASES[0]).new_quantizer().quantize(weight.float()).dequantize()
    return {"rows": rows, "digest": digest(nf4), "copy": copy_rate(given)}


def measure_peer(given: argparse.Namespace) -> dict:
    from bitsandbytes import functional as bnb
    weight, rows = random_weight(given), {}
    for phrase, double in ((PHRASES[0], False), (PHRASES[3], True)):
        def quantize(weight=weight, double=double):
            return bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=double)
        codes, state = quantize()
        rows[phrase] = {"quantize": rates(given, quantize, weight.numel()), "dequantize": rates(
            given, lambda codes=codes, state=state: bnb.dequantize_4bit(codes, state), weight.numel())}
    nf4 = bnb.dequantize_4bit(*bnb.quantize_4bit(weight.float(), blocksize=64, quant_type="nf4"))
    return {"rows": rows, "digest": digest(nf4.view(weight.shape)), "copy": copy_rate(given)}


def copy_rate(given: argparse.Namespace) -> list[float]:
    """Bytes read and written a second."""
    import torch
    source = torch.randint(0, 255, (COPIED,), dtype=torch.uint8)
    target = torch.empty_like(source)
    return rates(given, lambda: target.copy_(source), 2 * COPIED)


def measure_gptq(given: argparse.Namespace, textbook: bool) -> dict:
    """Seconds to quantize the first decoder layers, and ||x - x_dense|| / ||x_dense|| of what they put out."""
    import torch

    from finetune.gptq_model import CalibrationBatch, gptq_model
    from model.checkpoint import load_config, load_model, weight_files
    from quant.linear import QuantLinear
    from quant.spec import QuantSpec
    path, generator = Path(given.gptq), torch.Generator().manual_seed(0)
    model = load_model(weight_files(path), load_config(path), torch.bfloat16)
    model.model.layers = model.model.layers[:given.gptq_layers]
    stages = model.model.layers[0].stages
    names = [f"model.layers.{i}.{name}" for i in range(len(model.model.layers)) for stage in stages for name in stage]
    rows = torch.randint(0, model.config.vocab_size, (given.gptq_rows, 128), generator=generator).tolist()
    model.dtype = torch.float32
    batches = [CalibrationBatch(model, rows[i:i + 16]) for i in range(0, len(rows), 16)]
    with torch.no_grad():
        dense = run(model, batches)
        start = clock(given)
        if textbook:
            textbook_gptq(model, [CalibrationBatch(model, rows[i:i + 16]) for i in range(0, len(rows), 16)])
        else:
            quantizer = QuantSpec.parse("intminmax@32x1-4bit").new_quantizer()
            gptq_model(model, lambda prefix: None, names, quantizer, False, rows,
                       lambda name, layer, weight: QuantLinear.from_weight(weight))
        seconds = clock(given) - start
        return {"seconds": seconds, "output_error": ((run(model, batches) - dense).norm() / dense.norm()).item()}


def forward(layer, batch):
    return layer(batch.x, batch.cos, batch.sin, batch.allowed, None)


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

def child(given: argparse.Namespace, kind: str, tree: Path, python: str) -> dict:
    """What a process measures that imports the packages of `tree`; {"failed": why} if it ends in an error."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    ended = subprocess.run([python, str(Path(__file__).resolve()), *sys.argv[1:], "--child", kind], cwd=tree,
                           env=environment, capture_output=True, text=True)
    if ended.returncode:
        return {"failed": (ended.stderr.strip() or "no message").splitlines()[-1][:300]}
    return json.loads(ended.stdout.splitlines()[-1])


def summary(samples: list[float]) -> dict:
    if len(samples) < 2:
        return {"median": samples[0], "quartiles": [samples[0]] * 2, "samples": 1}
    low, _, high = statistics.quantiles(samples, n=4)
    return {"median": statistics.median(samples), "quartiles": [low, high], "samples": len(samples)}


def gather(given: argparse.Namespace, contenders: dict[str, tuple], rounds: int) -> dict[str, list[dict]]:
    """name -> what its process measured, round by round; the order turns round after round."""
    found: dict[str, list[dict]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name in sorted(contenders, reverse=bool(turn % 2)):
            found[name].append(child(given, *contenders[name]))
            print(f"round {turn + 1}: {name} {found[name][-1].get('failed', 'done')}", file=sys.stderr, flush=True)
    return found


def throughput(found: dict[str, list[dict]]) -> dict:
    """Raises ValueError unless all NF4 weights are the same."""
    whole = {name: rounds for name, rounds in found.items() if not any("failed" in one for one in rounds)}
    digests = {one["digest"] for rounds in whole.values() for one in rounds}
    if len(digests) > 1:
        raise ValueError(f"the NF4 weights of {', '.join(whole)} differ: {digests}")
    rows = {phrase: {kind: {name: summary([x for one in rounds for x in one["rows"][phrase][kind]])
                            for name, rounds in whole.items() if phrase in rounds[0]["rows"]}
                     for kind in ("quantize", "dequantize")} for phrase in PHRASES}
    return {"copy_bytes_per_second": {name: summary([x for one in rounds for x in one["copy"]])
                                      for name, rounds in whole.items()},
            "failed": {name: rounds[0] for name, rounds in found.items() if name not in whole}, "rows": rows}


def print_throughput(report: dict) -> None:
    copied = {name: value["median"] for name, value in report["copy_bytes_per_second"].items()}
    print("copy: " + ", ".join(f"{name} {rate / 1e9:.1f} GB/s" for name, rate in copied.items()))
    names = list(copied)
    print(f"{'million weights a second':<28}{'':<12}" + "".join(f"{name:>24}" for name in names) + "   ratios to " +
          names[-1])
    for phrase, kinds in report["rows"].items():
        for kind, by_name in kinds.items():
            cells = [f"{r['median'] / 1e6:.0f} ({r['quartiles'][0] / 1e6:.0f}-{r['quartiles'][1] / 1e6:.0f})"
                     if (r := by_name.get(name)) else "" for name in names]
            base = by_name.get(names[-1])
            ratios = [f"{by_name[name]['median'] / base['median']:.2f}" for name in names[:-1]] if base else []
            print(f"{phrase:<28}{kind:<12}" + "".join(f"{cell:>24}" for cell in cells) + "   " + " ".join(ratios))


def print_gptq(found: dict[str, list[dict]]) -> dict:
    """Raises ValueError if the outputs are not about equally close to the dense model's."""
    rows = {name: {**summary([one["seconds"] for one in rounds]), "output_error": rounds[0]["output_error"]}
            for name, rounds in found.items()}
    book = rows["textbook"]
    for name, row in rows.items():
        if abs(row["output_error"] / book["output_error"] - 1) > TOLERANCE:
            raise ValueError(f"gptq {name}: output error {row['output_error']:.4g}, the textbook's is "
                             f"{book['output_error']:.4g}")
        print(f"gptq {name:<12} {row['median']:8.1f} s  {row['median'] / book['median']:.2f} of the textbook's  "
              f"output error {row['output_error']:.4f}")
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", action="append", metavar="NAME=DIR", help="a checkout to measure; default: this one")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has bitsandbytes")
    parser.add_argument("--shape", default="1536x576", metavar="D_OUTxD_IN")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.25, help="for each figure in each round")
    parser.add_argument("--cpu-time", action="store_true", help="count processor seconds, for busy machines")
    parser.add_argument("--gptq", metavar="MODEL_DIR", help="also quantize this model by GPTQ")
    parser.add_argument("--gptq-layers", type=int, help="only its first decoder layers")
    parser.add_argument("--gptq-rounds", type=int, default=1)
    parser.add_argument("--gptq-rows", type=int, default=32, help="calibration rows of 128 tokens")
    parser.add_argument("--out", type=Path, help="write this JSON file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = parse()
    if given.child:
        import torch
        torch.set_num_threads(1)
        grow_heap()
        measured = {"ours": lambda: measure_ours(given), PEER: lambda: measure_peer(given),
                    "gptq": lambda: measure_gptq(given, False), "textbook": lambda: measure_gptq(given, True)}
        print(json.dumps(measured[given.child]()))
        return
    root = Path(__file__).resolve().parent.parent
    named = (one.partition("=") for one in given.tree or [f"ours={root}"])
    trees = {name: Path(place).resolve() for name, _, place in named}
    report: dict = {"shape": given.shape, "clock": "processor" if given.cpu_time else "wall", "rounds": given.rounds,
                    "trees": {name: str(tree) for name, tree in trees.items()}}
    contenders = {name: ("ours", tree, sys.executable) for name, tree in trees.items()}
    report["throughput"] = throughput(gather(given, {**contenders, PEER: (PEER, root, given.peer_python)}, given.rounds))
    print_throughput(report["throughput"])
    if given.gptq:
        given.gptq = str(Path(given.gptq).resolve())
        contenders = {name: ("gptq", tree, sys.executable) for name, tree in trees.items()}
        contenders["textbook"] = ("textbook", root, sys.executable)
        report["gptq"] = {"model": given.gptq, "decoder_layers": given.gptq_layers, "rows_of_128_tokens": given.gptq_rows,
                          "rows": print_gptq(gather(given, contenders, given.gptq_rounds))}
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
