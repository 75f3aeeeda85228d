"""(b) Quantize and dequantize: weights a second of every quantizer at its usual block, and share of the bandwidth.

    python -m benchmarks.gpu_quantization --out b.json

A dequantization must read the codes and the factors and write 16 bits a weight; the share is of the time that a copy of
so many bytes takes, and is that of ten calls launched as one. `same_bits`: bfloat16 and float32 beside the plain
equation."""
from collections.abc import Callable

import torch
from torch import Tensor

import quant.one_pass as one_pass
from benchmarks.measure import Report, arguments, forget_memory, limits, peak_megabytes, seconds_of, timed
from benchmarks.peers import missing, versions
from model.recorded import Recorded, warm_up
from quant import QUANTIZERS
from quant.gptq import Hessian, quantize_by_gptq
from quant.grid import dequantize
from quant.linear import QuantLinear, stored_bytes
from quant.quantizer import Quantizer
from quant.spec import QuantSpec

PHRASES = ("nf@64x1-4bit", "nf@64x1-4bit+double-quant", "minmax@4x8-4bit", "minmax@32x1-4bit", "intminmax@32x1-4bit",
           "absmax@64x1-4bit", "icq@64x1-4bit", "nf@64x1-3bit", "minmax@4x8-2bit", "minmax@4x8-3bit", "minmax@4x8-8bit",
           "absmax@rowx1-8bit", "minmax@32x8-4bit")
D_OUT, D_IN = 4096, 11008  # down_proj of Llama-2-7B


def ours(quantizer: Quantizer, weight: Tensor, device: str, bandwidth: float) -> dict:
    forget_memory(device)
    quantized = timed(device, lambda: quantizer.quantize(weight), seconds=0.4, warmup=1, most=20)
    peak = peak_megabytes(device)
    layer = QuantLinear.from_weight(quantizer.quantize(weight))
    forget_memory(device)
    first = seconds_of(device, lambda: layer.dequantize(torch.bfloat16))
    row = figures(lambda: layer.dequantize(torch.bfloat16), stored_bytes([layer]), weight, device, bandwidth)
    row |= {"first_call_seconds": first, **in_several_passes(layer, device)}
    error = ((layer.dequantize() - weight.float()).norm() / weight.float().norm()).item()
    return {"quantize_weights_per_second": weight.numel() / quantized["seconds"], "quantize_seconds":
            quantized["seconds"], "quantize_peak_mb": peak, **row, "weight_error": error}


def in_several_passes(layer: QuantLinear, device: str) -> dict:
    """What the compiled pass replaces, and whether its bits are those of the plain equation."""
    compiled = [layer.dequantize(dtype) for dtype in (torch.bfloat16, torch.float32)]
    failed = list(one_pass._failed)
    one_pass._failed[:] = ["switched off to be compared"]
    try:
        time = timed(device, lambda: layer.dequantize(torch.bfloat16), seconds=0.2, most=20)
    finally:
        one_pass._failed[:] = failed
    weight = layer.quantized_weight()
    plain = [dequantize(weight.codes, weight.grid, dtype) for dtype in (torch.bfloat16, torch.float32)]
    return {"several_passes_seconds": time["seconds"], "compiled": not failed, "why_not": failed,
            "same_bits": [torch.equal(a, b) for a, b in zip(compiled, plain, strict=True)]}


def in_a_recording(work: Callable[[], Tensor], device: str) -> dict:
    """Without the processor's part: ten calls, launched as one."""
    if not device.startswith("cuda"):
        return {}
    try:
        warm_up(work, torch.device(device))
        ten = Recorded(lambda: [work() for _ in range(10)][0], torch.device(device))
        return {"recorded_seconds": timed(device, ten, seconds=0.2)["seconds"] / 10}
    except Exception as error:
        return {"recorded_error": f"{type(error).__name__}: {error}"[:200]}


def figures(work: Callable[[], Tensor], stored: int, weight: Tensor, device: str, bandwidth: float) -> dict:
    time = timed(device, work, seconds=0.4, most=50)
    moved, alone = stored + 2 * weight.numel(), in_a_recording(work, device)
    best = alone.get("recorded_seconds", time["seconds"])
    return {**time, **alone, "dequantize_weights_per_second": weight.numel() / time["seconds"],
            "recorded_weights_per_second": weight.numel() / best, "bytes_moved_at_least": moved,
            "share_of_copy_bandwidth": moved / best / bandwidth,
            "dequantize_peak_mb": peak_megabytes(device)}


def theirs(weight: Tensor, device: str, bandwidth: float, double: bool) -> dict:
    from bitsandbytes import functional as bnb
    def quantize():
        return bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=double)
    quantized = timed(device, quantize, seconds=0.4, warmup=1, most=20)
    codes, state = quantize()
    blocks = weight.numel() // 64
    row = figures(lambda: bnb.dequantize_4bit(codes, state), codes.numel() + blocks * (1 if double else 4), weight,
                  device, bandwidth)
    error = ((bnb.dequantize_4bit(codes, state).float() - weight.float()).norm() / weight.float().norm()).item()
    return {"quantize_weights_per_second": weight.numel() / quantized["seconds"], **row, "weight_error": error}


def gptq_of_a_layer(device: str, shape: tuple[int, int]) -> dict:
    """The layer of a 1B model, calibrated on 4,096 tokens."""
    weight = 0.02 * torch.randn(shape, device=device)
    x = torch.randn(4096, shape[1], device=device)
    hessian = Hessian(shape[1], device=device)
    collected = timed(device, lambda: hessian.add(x), seconds=0.2, most=5)
    quantizer, reports = QuantSpec.parse("minmax@32x1-4bit").new_quantizer(), []
    time = timed(device, lambda: reports.append(quantize_by_gptq(weight, hessian, quantizer, False, "layer")[1]),
                 seconds=0.1, warmup=0, most=3)
    return {**time, "hessian_seconds": collected["seconds"], "gptq_error": reports[-1].gptq_error,
            "rounding_error": reports[-1].rounding_error}


def main() -> None:
    given = arguments(__doc__, ())
    device = given.device
    cuda = device.startswith("cuda")
    shape = (D_OUT, D_IN) if cuda else (512, 1024)
    machine = limits(device)
    report = Report(given.out, given.seconds, question="quantize and dequantize", machine=machine, shape=shape,
                    versions=versions("bitsandbytes"))
    weight = (0.02 * torch.randn(shape, device=device)).to(torch.bfloat16)
    for phrase in PHRASES:
        rows = 128 if phrase.startswith("icq") else shape[0]  # icq searches 201 offsets a block
        report.attempt(lambda p=phrase, n=rows: ours(QuantSpec.parse(p).new_quantizer(), weight[:n], device,
                                                     machine["copy_bandwidth"]), what=phrase, who="ours", rows=rows)
        if phrase.startswith("nf@64x1-4bit"):
            double = "double" in phrase
            if reason := missing("bitsandbytes"):
                report.attempt(lambda r=reason: {"not_installed": r}, what=phrase, who="bitsandbytes")
            else:
                report.attempt(lambda d=double: theirs(weight, device, machine["copy_bandwidth"], d), what=phrase,
                               who="bitsandbytes")
    assert set(QUANTIZERS) <= {phrase.split("@")[0] for phrase in PHRASES}
    report.attempt(lambda: gptq_of_a_layer(device, (2048, 2048) if cuda else (128, 256)), what="gptq:minmax@32x1-4bit",
                   who="ours")
    report.finish()


if __name__ == "__main__":
    main()
