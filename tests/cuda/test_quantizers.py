"""Quantizers, packing, dequantization and GPTQ on a GPU give what they give on the CPU."""
import pytest
import torch

from quant import QUANTIZERS
from quant.gptq import Hessian, quantize_by_gptq
from quant.grid import Block
from quant.linear import QuantLinear
from quant.packing import SUPPORTED_BITS, pack, unpack
from quant.spec import QuantSpec
from tests.cuda.device import DEVICE, same

D_OUT, D_IN = 96, 256
EVERY = [(name, bits) for name, kind in QUANTIZERS.items() for bits in kind.allowed_bits]
TIES = 1e-3  # share of the codes that may differ, where a weight lies in the middle of two levels


def weight(seed=0, shape=(D_OUT, D_IN)):
    return 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layers(quantizer, dtype):
    """The same weight, quantized on the CPU and on the device."""
    w = weight().to(dtype)
    return [QuantLinear.from_weight(quantizer.quantize(w.to(device))) for device in ("cpu", DEVICE)]


def check_same_layer(cpu: QuantLinear, ours: QuantLinear) -> None:
    assert {t.device.type for t in (*ours.buffers(), ours.dequantize())} == {torch.device(DEVICE).type}
    for name, buffer in cpu.named_buffers():
        assert ours.get_buffer(name).dtype == buffer.dtype and ours.get_buffer(name).shape == buffer.shape, name
    codes = [layer.quantized_weight().codes.cpu() for layer in (cpu, ours)]
    assert (codes[0] != codes[1]).float().mean() <= TIES


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [None, "32x1", "rowx1", "4x8"])
@pytest.mark.parametrize("name,bits", EVERY)
def test_codes_and_weights_are_those_of_the_cpu(name, bits, block, dtype):
    kind = QUANTIZERS[name]
    cpu, ours = layers(kind(bits, Block.parse(block) if block else kind.usual_block), dtype)
    check_same_layer(cpu, ours)
    same(ours.dequantize(), cpu.dequantize(), 1e-2 if bits < 4 else 5e-3)
    moved = cpu.to(DEVICE)  # the same codes: nothing but the rounding of one product and one sum may differ
    same(moved.dequantize(torch.bfloat16), cpu.cpu().dequantize(torch.bfloat16), 1e-3)
    moved = cpu.to(DEVICE)
    same(moved.dequantize(), cpu.cpu().dequantize(), 1e-6)


@pytest.mark.parametrize("name", ["nf", "icq"])
def test_double_quantization(name):
    cpu, ours = layers(QUANTIZERS[name](4, Block(64, 1), double_quant=True), torch.float32)
    check_same_layer(cpu, ours)
    same(ours.dequantize(), cpu.dequantize(), 5e-3)


@pytest.mark.parametrize("bits", SUPPORTED_BITS)
@pytest.mark.parametrize("n", [1, 7, 4096])
def test_packing(bits, n):
    codes = torch.randint(0, 2 ** bits, (n,), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    packed = pack(codes.to(DEVICE), bits)
    assert torch.equal(packed.cpu(), pack(codes, bits)) and torch.equal(unpack(packed, bits, (n,)).cpu(), codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_quantized_layer_and_its_gradient(name, dtype):
    kind = QUANTIZERS[name]
    layer = QuantLinear.from_weight(kind(4, kind.usual_block).quantize(weight()))
    x = torch.randn(5, D_IN, generator=torch.Generator().manual_seed(1))
    results = []
    for device, at in (("cpu", torch.float64), (DEVICE, dtype)):
        given = x.to(device, at).requires_grad_()
        y = layer.to(device)(given)
        y.square().sum().backward()
        results.append((y, given.grad))
    for ours, exact in zip(results[1], results[0], strict=True):
        same(ours, exact, 1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("phrase", ["gptq:minmax@32x1-4bit", "gptq:minmax@4x8-4bit", "gptq:nf@64x1-3bit+double-quant",
                                    "gptq:intminmax@32x1-2bit+act-order", "gptq:absmax@rowx1-8bit",
                                    "gptq:icq@64x1-2bit"])
def test_gptq_errs_less_than_rounding_and_as_much_as_on_the_cpu(phrase):
    spec, reports = QuantSpec.parse(phrase), []
    x = torch.randn(512, D_IN, generator=torch.Generator().manual_seed(2)) @ weight(3, (D_IN, D_IN)) * 10
    x[:, 7] = 0  # a dead input
    for device in ("cpu", DEVICE):
        hessian = Hessian(D_IN, device=device)
        hessian.add(x.to(device))
        w, quantizer = weight().to(device), spec.new_quantizer()
        quantized, report = quantize_by_gptq(w, hessian, quantizer, spec.act_order, "layer")
        assert quantized.codes.device.type == torch.device(device).type
        reports.append(report)
    cpu, ours = reports
    assert ours.dead_columns == cpu.dead_columns == 1 and ours.damping == cpu.damping
    assert ours.rounding_error == pytest.approx(cpu.rounding_error, rel=1e-3)
    assert ours.gptq_error < ours.rounding_error and ours.gptq_error == pytest.approx(cpu.gptq_error, rel=0.05)


@pytest.mark.parametrize("phrase", ["gptq:minmax@32x1-2bit+act-order", "gptq:nf@64x1-3bit+double-quant"])
def test_recorded_columns_give_the_codes_of_columns_launched_one_by_one(phrase, monkeypatch):
    spec, found = QuantSpec.parse(phrase), []
    for failed in ([], ["switched off to be compared"]):
        monkeypatch.setattr("quant.gptq_recorded._failed", failed)
        hessian = Hessian(D_IN, device=DEVICE)
        hessian.add(torch.randn(512, D_IN, generator=torch.Generator().manual_seed(2)).to(DEVICE))
        found.append(quantize_by_gptq(weight().to(DEVICE), hessian, spec.new_quantizer(), spec.act_order, "layer")[0])
        assert len(failed) == (1 if failed else 0)
    assert torch.equal(found[0].codes, found[1].codes)


def test_a_layer_that_cannot_be_quantized_is_named():
    bad = weight().to(DEVICE)
    bad[3, 5] = torch.nan
    with pytest.raises(ValueError, match="layer a.b"):
        QUANTIZERS["minmax"](4, Block(4, 8)).quantize(bad, "a.b")
    with pytest.raises(ValueError, match="underflows"):
        QUANTIZERS["minmax"](4, Block(4, 8)).quantize(weight().to(DEVICE) * 1e-7, "a.b")
