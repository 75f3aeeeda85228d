"""What is fast on a GPU gives what is plain: the compiled pass, and recordings of training and of generation."""
import pytest
import torch

import finetune.resolve
import model.recorded_decoding as decoding
import quant.one_pass as one_pass
import train as train_script
from finetune.config import EMBEDDED_BASE
from finetune.methods import METHODS
from model.checkpoint import load_model
from model.directory import load_config, weight_files
from model.generate import Sampling, generate
from model.recorded import Recorded, warm_up
from model.tokenizer import load_tokenizer
from quant.grid import dequantize, inexact_zeros
from quant.linear import QuantLinear
from quant.spec import QuantSpec
from tests.cli import call, few, interrupted_after
from tests.cuda.device import DEVICE, ON, same
from tests.cuda.test_methods import GPTQ_MAY_DIFFER, run
from tests.cuda.test_models import PROMPTS, TEXTS
from tests.model.test_model import CASES, FIXTURES

pytestmark = pytest.mark.usefixtures("elsewhere")
CUDA = torch.device(DEVICE).type == "cuda"
PHRASES = ("nf@64x1-4bit", "nf@64x1-4bit+double-quant", "nf@64x1-3bit", "minmax@4x8-4bit", "minmax@4x8-3bit",
           "minmax@32x1-2bit", "intminmax@32x1-4bit", "absmax@rowx1-8bit", "icq@64x1-4bit")


@pytest.fixture
def allowed(monkeypatch):
    """Tried out without a GPU, recordings are computed anew each time."""
    if not CUDA:
        monkeypatch.setattr(finetune.resolve, "check_graphs", lambda *rest: None)


# ---- one pass -------------------------------------------------------------------------------------------------------

def both(phrase, shape, dtype, scale=None):
    """A layer's weight in one compiled pass, and by the plain equation on the same device."""
    weight = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    layer = QuantLinear.from_weight(QuantSpec.parse(phrase).new_quantizer().quantize(weight)).to(DEVICE)
    if scale:
        layer = layer.with_scale(layer.grid.factors()[0].float() * scale)
    grid = layer.grid
    found = one_pass.dequantize_in_one_pass(layer.codes, layer.bits, shape, grid.block.n_out, grid.levels,
                                            *grid.factors(), inexact_zeros(grid), dtype)
    assert not one_pass._failed and found is not None
    if CUDA:
        assert torch.equal(layer.dequantize(dtype), found)  # what a layer does by itself
    return found, dequantize(layer.quantized_weight().codes, grid, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("phrase", PHRASES)
def test_one_pass_gives_the_bits_of_the_equation(phrase, dtype, monkeypatch):
    monkeypatch.setattr(one_pass, "COMPILED_FROM", 1)
    for shape in ((96, 192), (192, 384)):
        found, expected = both(phrase, shape, dtype)
        if phrase.startswith("icq"):  # products that are not exact: one rounding or two
            same(found, expected, 1e-7 if dtype == torch.float32 else 1e-4)
        else:
            assert torch.equal(found, expected)


def test_one_pass_keeps_the_zeros_of_trained_scales(monkeypatch):
    monkeypatch.setattr(one_pass, "COMPILED_FROM", 1)
    found, expected = both("intminmax@32x1-4bit", (96, 192), torch.float32, scale=1.2345)
    same(found, expected, 1e-7)
    assert torch.equal(found == 0, expected == 0) and (found == 0).any()


# ---- recordings -----------------------------------------------------------------------------------------------------

def test_a_recording_is_launched_and_not_computed_again():
    x, calls = torch.ones(8, device=DEVICE), []

    def work():
        calls.append(1)
        return x.mul_(2).sum()
    if CUDA:
        before = torch.cuda.get_rng_state()
        warm_up(lambda: torch.rand(5, device=DEVICE), x.device)
        assert torch.equal(torch.cuda.get_rng_state(), before)
    recorded = Recorded(work, x.device)
    assert [recorded().item() for _ in range(3)] == [16, 32, 64] and len(calls) == (1 if CUDA else 3)


@pytest.mark.parametrize("dtype,flags", [("float32", ()), ("float32", ("--micro-batch", "3")), ("bfloat16", ())])
@pytest.mark.parametrize("method", METHODS)
def test_recorded_training_gives_the_losses_of_plain_training(small_base, tmp_path, allowed, method, dtype, flags):
    compare_recorded(small_base, method, dtype, *flags)


@pytest.mark.parametrize("flags", [(), ("--keep-residual",)])
@pytest.mark.parametrize("method", ["qlora", "qblora", "qalora"])
def test_so_does_training_through_the_rounding(small_base, tmp_path, allowed, method, flags):
    compare_recorded(small_base, method, "float32", "--merge-into", "codes", *flags)


def compare_recorded(base, method, dtype, *flags):
    steps, ends = run(base, method, "plain", *ON, "--dtype", dtype, *flags)
    recorded, recorded_ends = run(base, method, "recorded", *ON, "--dtype", dtype, *flags, "--cuda-graphs")
    within = GPTQ_MAY_DIFFER if METHODS[method].quantizer == "gptq" else 2e-4
    for ours, plain in zip(recorded + recorded_ends, steps + ends, strict=True):
        for name in {"loss", "validation_loss"} & set(plain):
            assert ours[name] == pytest.approx(plain[name], rel=within if dtype == "float32" else 3e-2)


@pytest.mark.parametrize("flags", [("--dropout", "0.2"), ("--micro-batch", "3")])
def test_a_recorded_run_that_is_resumed_ends_with_the_same_bytes(small_base, tmp_path, monkeypatch, allowed, flags):
    arguments = ["--method", "qlora", "--model", small_base, *few("qlora"), *ON, *flags, "--cuda-graphs",
                 "--steps", "5", "--save-every", "2"]
    assert call(train_script, *arguments, "--out", "whole") is None
    with interrupted_after(3, monkeypatch):
        assert "train.py --resume cut" in call(train_script, *arguments, "--out", "cut")
    assert call(train_script, "--resume", "cut") is None
    whole, cut = ((tmp_path / name / "adapter.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def answers(monkeypatch, recorded, llama, *arguments, **more):
    """`recorded`: also where a recording would not pay, but not where it cannot be made (longrope)."""
    possible = recorded and (llama.config.rope_scaling or {}).get("rope_type") != "longrope"
    monkeypatch.setattr(decoding, "records", lambda *rest: possible)
    return generate(llama, *arguments, **more)


def model_of(place, dtype=torch.float32):
    return load_model(weight_files(place), load_config(place), dtype, DEVICE)


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_recorded_generation_is_that_without(monkeypatch, capsys, batch_size):
    llama = model_of(EMBEDDED_BASE)
    stops = {t for text in TEXTS for t in load_tokenizer(EMBEDDED_BASE).encode(text)[-2:]}  # rows leave the batch
    for stop_ids in ((), stops):
        plain, recorded = (answers(monkeypatch, on, llama, PROMPTS, 24, stop_ids, batch_size) for on in (False, True))
        assert recorded == plain
    drawn = [answers(monkeypatch, on, llama, PROMPTS, 12, (), batch_size, sampling=Sampling(0.8, 0.9, seed=3))
             for on in (False, True)]
    assert sum(a == b for a, b in zip(*drawn, strict=True)) >= len(PROMPTS) - 1  # rounding may turn one draw
    assert "not recorded" not in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_recorded_generation_of_every_family(monkeypatch, capsys, case, dtype):
    llama = model_of(FIXTURES / case, dtype)
    plain, recorded = (answers(monkeypatch, on, llama, [[5, 6, 7], [3]], 20, (), 2) for on in (False, True))
    assert "not recorded" not in capsys.readouterr().err
    assert recorded == plain if dtype == torch.float32 else [len(a) for a in recorded] == [20, 20]
