"""(b) Quantize and dequantize, million weights a second of every quantizer on one thread, beside bitsandbytes.

    python -m benchmarks.quantizers --cpu-time
    python -m benchmarks.quantizers --tree before=/path/to/old/checkout --tree after=. --peer-python venv/bin/python \\
        --cpu-time --out benchmarks/results/quantizers.json

Every contender runs in a process of its own, one after the other, in several rounds. A figure is the median over all
rounds, with the quartiles beside it. Before any ratio, NF4's dequantized weights must be those of bitsandbytes, bit for
bit. `--cpu-time` counts processor seconds instead of seconds: use it on a busy machine.
"""
import argparse
import hashlib
import json
import sys
import time
from dataclasses import replace

from benchmarks.processes import ROOT, add_arguments, facts, gather, summary, trees_of, write

PHRASES = ("nf@64x1-4bit", "nf@64x1-3bit", "nf@64x1-2bit", "nf@64x1-4bit+double-quant", "icq@64x1-4bit",
           "minmax@4x8-4bit", "minmax@32x1-4bit", "minmax@4x8-3bit", "minmax@4x8-2bit", "minmax@4x8-8bit",
           "intminmax@32x1-4bit", "absmax@64x1-4bit", "absmax@64x1-8bit")
PEER = "bitsandbytes"
COPIED = 1 << 26      # bytes, more than a cache holds


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


def tiled(quantized, times: int):
    """The same rows again and again; factors are plain tensors if times > 1."""
    from quant.grid import QuantizedWeight
    if times == 1:
        return quantized
    scale, offset = (factor.repeat(times, 1) for factor in quantized.grid.factors())
    return QuantizedWeight(quantized.codes.repeat(times, 1), replace(quantized.grid, scale=scale, offset=offset))


def measure_ours(given: argparse.Namespace) -> dict:
    import torch

    from quant.linear import QuantLinear
    from quant.spec import QuantSpec
    weight, rows = random_weight(given), {}
    for phrase in PHRASES:
        quantizer = QuantSpec.parse(phrase).new_quantizer()
        part = weight[:32] if phrase.startswith("icq") else weight  # icq searches 201 offsets a block
        layer = QuantLinear.from_weight(tiled(quantizer.quantize(part), len(weight) // len(part)))
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


# ---- one process after the other ----------------------------------------------------------------------------------

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has bitsandbytes")
    parser.add_argument("--shape", default="1536x576", metavar="D_OUTxD_IN")
    parser.add_argument("--seconds", type=float, default=0.25, help="for each figure in each round")
    add_arguments(parser, rounds=3)
    given = parser.parse_args()
    if given.child:
        import torch
        torch.set_num_threads(1)
        grow_heap()
        print(json.dumps(measure_peer(given) if given.child == PEER else measure_ours(given)))
        return
    contenders = {name: ("ours", tree, sys.executable) for name, tree in trees_of(given).items()}
    found = gather(__file__, {**contenders, PEER: (PEER, ROOT, given.peer_python)}, given.rounds)
    report = {"shape": given.shape, **facts(given), **throughput(found)}
    print_throughput(report)
    write(report, given.out)


if __name__ == "__main__":
    main()
