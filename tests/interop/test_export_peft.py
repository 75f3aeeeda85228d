"""export.py --format peft and PEFT's adapters read: every additive adapter is a plain LoRA."""
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import eval as eval_script
import sample as sample_script
import train as train_script
from adapters import ADAPTERS
from adapters.adapted import adapted_layers
from adapters.irqlora import IRQLoRA
from adapters.lam import Lam
from adapters.peft_in import attach_peft, read_peft
from interop.peft import PEFTExport
from model.checkpoint import load_model
from model.directory import load_config, weight_files
from model.files import read_json, write_json
from tests.cli import call, rows_of
from tests.export_runs import as_trained, difference, export, made_run, refusal
from tests.model import test_hub

pytestmark = pytest.mark.usefixtures("elsewhere")
fake = test_hub.fake  # the hub made of local folders
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ALL = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"


def loaded(directory):
    return load_model(weight_files(directory), load_config(directory), torch.float32)


def with_adapter(base, directory):
    model = loaded(base)
    attach_peft(model, read_peft(directory, model.config))
    return model


def by_hand(base, directory):
    """W + lora_alpha / r * B A, or over sqrt(r) with use_rslora, as PEFT defines it. The end of a layer's name selects
    r and lora_alpha."""
    model, stated, tensors = loaded(base), read_json(directory / CONFIG), load_file(directory / WEIGHTS)
    for name in {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in tensors}:
        kind = name.rpartition(".")[2]
        A, B = (tensors[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
        rank, alpha = stated["rank_pattern"].get(kind,
                                                 stated["r"]), stated["alpha_pattern"].get(kind, stated["lora_alpha"])
        assert A.shape[0] == B.shape[1] == rank and A.dtype == B.dtype == torch.float32
        assert kind in stated["target_modules"]
        weight = model.get_submodule(name).weight
        weight.data = weight.data.float() + alpha / (rank ** 0.5 if stated["use_rslora"] else rank) * B @ A
    return model


# ---- the mathematics ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name,options", [
    ("lora", {"lam": Lam(1, 1)}), ("blora", {"lam": Lam(2, 2)}),
    ("blora", {"lam": Lam(2, 2), "operators": "truncation"}),
    ("blora", {"lam": Lam(4, 4), "operators": "interval"}), ("qalora", {"lam": Lam(8, 1)}),
    ("irqlora", {"lam": Lam(1, 1)}),
    ("qablora", {"lam": Lam(4, 8)}), ("qablora", {"lam": Lam(2, 1)}),
    ("qablora", {"lam": Lam(4, 8), "operators": "truncation"}),
    ("qablora", {"lam": Lam(2, 1), "operators": "interval"})])
def test_every_additive_adapter_is_a_plain_lora(name, options):
    """In float64, with random non-zero parameters. QA-BLoRA's core is once wider than high, once higher than wide."""
    torch.manual_seed(0)
    adapter = ADAPTERS[name](D_out=16, D_in=24, rank=4, lora_alpha=6, **options).double()
    for p in adapter.parameters():
        torch.nn.init.normal_(p)
    A, B = adapter.lora_factors()
    assert torch.allclose(adapter.scaling * B @ A, adapter.delta_weight(), rtol=0, atol=1e-10)
    core = {"blora": 4 * options["lam"].lam_in, "qablora": min(16 // options["lam"].lam_out,
                                                               24 // options["lam"].lam_in)}
    assert A.shape == (core.get(name, 4), 24) and B.shape == (16, core.get(name, 4))


def test_leaving_the_shortcuts_of_iec_out_gives_another_matrix():
    adapter = IRQLoRA(8, 8, Lam(1, 1), 2, 2)
    for p in adapter.parameters():
        torch.nn.init.normal_(p)
    assert not torch.allclose(adapter.scaling * adapter.B @ adapter.A, adapter.delta_weight(), atol=0.1)


# ---- out ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("flags,rank", [
    (["lora"], f"16 ({ALL})"), (["blora", "--scaling", "rslora", "--rank", "8"], f"16 ({ALL})"),
    (["blora", "--lora-alpha", "24"], f"32 ({ALL})"),
    (["qlora", "--block", "32x1"], f"16 ({ALL})"),
    (["qblora", "--block", "32x1", "--targets", "attention"], "32 (q_proj, k_proj, v_proj, o_proj)"),
    (["irqlora", "--block", "32x1"], f"16 ({ALL})"),
    (["qalora", "--quantizer", "minmax", "--rank", "3"], f"3 ({ALL})"),
    (["qablora"], "2 (k_proj, v_proj); 4 (q_proj, o_proj, down_proj); 8 (gate_proj, up_proj)")],
    ids=lambda value: str(value[0]))
def test_base_and_exported_adapter_compute_what_the_run_computes(small_base, tmp_path, flags, rank):
    run = made_run(tmp_path / "run", small_base, "--method", *flags)
    report = export(run, "peft", tmp_path / "out")
    base = tmp_path / "out/base" if flags[0].startswith(("q", "i")) else small_base
    ours = as_trained(run)
    assert difference(ours, by_hand(base, tmp_path / "out")) < 2e-4
    assert difference(ours, with_adapter(base, tmp_path / "out")) < 2e-4 < 0.05 < difference(ours, loaded(base))
    assert report["rank"] == rank and report["largest_logit_difference"] < 2e-4
    assert report["largest_weight_difference"] < 1e-5
    stated = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert stated["base_model_name_or_path"] == str(base.resolve()) and stated["task_type"] == "CAUSAL_LM"


def test_rslora_is_exported_as_such_with_the_runs_own_alpha(small_base, tmp_path):
    for flags, stated in (([], False), (["--scaling", "rslora"], True)):
        run = made_run(tmp_path / f"run-{stated}", small_base, "--method", "lora", "--rank", "6", *flags)
        export(run, "peft", tmp_path / f"out-{stated}")
        written = json.loads((tmp_path / f"out-{stated}" / CONFIG).read_text())
        assert (written["use_rslora"], written["lora_alpha"], written["r"]) == (stated, 16, 6)
    ours = {layer.adapter.scaling for layer in adapted_layers(as_trained(run)).values()}
    assert ours == {16 / 6 ** 0.5}


@pytest.mark.parametrize("flags,dropout", [([], 0.0), (["--dropout", "0.15"], 0.15)])
def test_the_runs_dropout_is_in_the_config_and_training_can_go_on_with_it(small_base, tmp_path, flags, dropout):
    run = made_run(tmp_path / "run", small_base, "--method", "lora", *flags)
    export(run, "peft", tmp_path / "out")
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["lora_dropout"] == dropout
    modules = [m for m in as_trained(run).modules() if isinstance(m, torch.nn.Dropout)]
    assert len(modules) == (7 if dropout else 0) and all(m.p == dropout for m in modules)


def test_an_adapter_that_does_not_read_as_it_was_written_gets_no_name(small_base, tmp_path, monkeypatch):
    """Control of the comparison: another alpha is written."""
    run, right = made_run(tmp_path / "run", small_base, "--method", "lora"), PEFTExport.config
    monkeypatch.setattr(PEFTExport, "config", lambda self, *rest: {**right(self, *rest), "lora_alpha": 17})
    assert "what was read again differs from the run by" in refusal(run, "peft", tmp_path / "out")


def test_the_base_of_codes_leaves_beside_the_adapter_as_it_was_trained_on(small_base, tmp_path, capsys):
    """The same adapter on the original 16-bit base is another model: it is restored, not as trained."""
    run = made_run(tmp_path / "run", small_base, "--method", "qlora", "--bits", "2", "--block", "32x1")
    report = export(run, "peft", tmp_path / "out")
    assert "out/base, dequantized to float32: load the adapter with this base" in report["base"]
    assert report["base"] in capsys.readouterr().out
    assert difference(as_trained(run), with_adapter(small_base, tmp_path / "out")) > 0.05
    half = export(run, "peft", tmp_path / "half", "--dtype", "bfloat16")
    assert 1e-5 < half["largest_weight_difference"] < 1e-2
    assert {t.dtype for t in load_file(tmp_path / "half/base/model.safetensors").values()} == {torch.bfloat16}


def test_only_an_adapter_of_the_original_names_the_repository_of_the_hub(fake, tmp_path):
    """A base of codes is exported beside its adapter: the repository holds another model."""
    adapters = {}
    for method in ("lora", "qlora"):
        run = made_run(tmp_path / method, "org/small", "--method", method, *["--block", "32x1"] * (method == "qlora"))
        export(run, "peft", tmp_path / f"{method}-out")
        stated = read_json(tmp_path / f"{method}-out" / CONFIG)
        adapters[method] = stated["base_model_name_or_path"], (tmp_path / f"{method}-out" / "base").is_dir()
    assert adapters == {"lora": ("org/small", False), "qlora": (str(tmp_path / "qlora-out" / "base"), True)}


def test_a_run_on_a_run_brings_its_base_too(small_base, tmp_path):
    """PEFT's readers cannot load a run directory: its config.json is not a model's."""
    first = made_run(tmp_path / "first", small_base, "--method", "full")
    second = made_run(tmp_path / "second", first, "--method", "lora")
    export(second, "peft", tmp_path / "out")
    assert difference(as_trained(second), by_hand(tmp_path / "out/base", tmp_path / "out")) < 1e-4


@pytest.mark.parametrize("flags,arguments,message", [
    (["peqa"], [],
     "peqa trains the scale of its base, and a LoRA only adds to the base: export the merged model"),
    (["full"], [], "has no adapter, so --format peft has nothing to write: use --format safetensors"),
    (["lora"], ["--dtype", "float32"],
     "--dtype float32 is for a base that is exported with its adapter; this adapter uses the original base")])
def test_what_is_no_lora_is_refused_before_a_weight_is_loaded(small_base, tmp_path, monkeypatch, flags, arguments,
                                                              message):
    run = made_run(tmp_path / "run", small_base, "--method", *flags)
    monkeypatch.setattr("interop.trained.Trained.load", lambda self: pytest.fail("weights were loaded"))
    assert message in refusal(run, "peft", tmp_path / "out", *arguments)
    assert "has no adapter" in refusal(small_base, "peft", tmp_path / "out")


# ---- in -----------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def adapter(small_base, tmp_path_factory):
    """An adapter as PEFT writes it: q_proj has rank 4, down_proj has rank 2 and its own alpha."""
    path, generator = tmp_path_factory.mktemp("adapter"), torch.Generator().manual_seed(0)
    sizes = {"self_attn.q_proj": (4, 32, 32), "mlp.down_proj": (2, 32, 64)}
    save_file({f"base_model.model.model.layers.0.{name}.lora_{letter}.weight": torch.randn(shape, generator=generator)
               * 0.3
               for name, (r, D_out, D_in) in sizes.items() for letter, shape in (("A", (r, D_in)), ("B", (D_out, r)))},
               path / WEIGHTS)
    write_json(path / CONFIG, {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"],
                               "bias": "none",
                               "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"layers.0.mlp.down_proj": 6},
                               "use_dora": False,
                               "modules_to_save": None, "init_lora_weights": True, "lora_dropout": 0.1,
                               "task_type": "CAUSAL_LM"})
    return path


@pytest.mark.parametrize("rslora", [False, True])
def test_rank_and_scaling_of_each_layer_are_those_of_its_patterns(small_base, adapter, tmp_path, rslora):
    shutil.copytree(adapter, tmp_path / "a")
    write_json(tmp_path / "a" / CONFIG, {**read_json(adapter / CONFIG), "use_rslora": rslora})
    layers = adapted_layers(with_adapter(small_base, tmp_path / "a"))
    found = {name.rpartition(".")[2]: (len(layer.adapter.A), layer.adapter.scaling) for name, layer in layers.items()}
    root = math.sqrt if rslora else float
    assert found == {"q_proj": (4, pytest.approx(8 / root(4))), "down_proj": (2, pytest.approx(6 / root(2)))}


def test_an_adapter_on_codes_is_the_same_adapter(small_base, adapter, tmp_path):
    run = made_run(tmp_path / "run", small_base, "--method", "qablora", "--block", "16x1")
    shutil.copytree(small_base, tmp_path / "codes")
    shutil.copy(run / "base.safetensors", tmp_path / "codes/model.safetensors")
    export(tmp_path / "codes", "safetensors", tmp_path / "dense", "--dtype", "float32")
    assert difference(with_adapter(tmp_path / "codes", adapter), with_adapter(tmp_path / "dense", adapter)) < 1e-4
    assert difference(with_adapter(tmp_path / "codes", adapter), loaded(tmp_path / "codes")) > 0.01


@pytest.mark.parametrize("changed,message", [
    ({"peft_type": "IA3"}, r"peft_type 'IA3' is not read; LORA is"),
    ({"use_dora": True}, "use_dora True is not plain LoRA"),
    ({"bias": "all"}, "bias 'all' is not plain LoRA"),
    ({"modules_to_save": ["lm_head"]}, r"modules_to_save \['lm_head'\]"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out True"),
    ({"lora_alpha": None}, "lora_alpha is None, not a number above 0"),
    ({"layer_replication": [[0, 1]]}, "layer_replication"), ({"init_lora_weights": "pissa_niter_4"},
                                                             "init_lora_weights 'pissa_niter_4' is not plain LoRA"),
    ({"init_lora_weights": "olora"}, "init_lora_weights 'olora'"), ({"kasa_config": {"beta": 1}}, "kasa_config"),
    ({"r": 8}, r"q_proj.lora_A.weight has shape \[4, 32\] instead of \[8, 32\] \(r 8")])
def test_what_is_not_plain_lora_is_refused_by_name(small_base, adapter, tmp_path, changed, message):
    shutil.copytree(adapter, tmp_path / "a")
    write_json(tmp_path / "a" / CONFIG, {**read_json(adapter / CONFIG), **changed})
    with pytest.raises(ValueError, match=message) as error:
        read_peft(tmp_path / "a", load_config(small_base))
    assert str(tmp_path / "a") in str(error.value)


@pytest.mark.parametrize("name,shape,message", [
    ("model.layers.0.mlp.up_proj.lora_magnitude_vector.weight", (64,), "is no factor of a linear layer's LoRA"),
    ("model.embed_tokens.lora_embedding_A", (4, 9), "is no factor"),
    ("model.layers.7.mlp.up_proj.lora_A.weight", (4, 32), "for model.layers.7.mlp.up_proj, which is no"),
    ("lm_head.lora_A.weight", (4, 32), "for lm_head, which is no linear layer of its own"),
    ("model.layers.0.mlp.up_proj.lora_A.weight", (4, 32), r"up_proj.lora_B.weight has shape \[\] instead of")])
def test_tensors_that_have_no_place_are_refused_by_name(small_base, adapter, tmp_path, name, shape, message):
    shutil.copytree(adapter, tmp_path / "a")
    save_file({**load_file(adapter / WEIGHTS), f"base_model.model.{name}": torch.zeros(shape)},
              tmp_path / "a" / WEIGHTS)
    with pytest.raises(ValueError, match=message):
        read_peft(tmp_path / "a", load_config(small_base))


def test_a_directory_without_an_adapter_and_pickled_ones(small_base, adapter, tmp_path):
    with pytest.raises(FileNotFoundError, match="no PEFT adapter there"):
        read_peft(small_base, load_config(small_base))
    shutil.copy(adapter / CONFIG, tmp_path / CONFIG)
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(FileNotFoundError, match="pickled, and not read"):
        read_peft(tmp_path, load_config(small_base))


# ---- eval.py --adapter --------------------------------------------------------------------------------------------

FEW = ["--limit", "40", "--test-limit", "4", "--max-new-tokens", "2", "--dtype", "float32"]


def test_eval_scores_base_and_adapter_as_the_run_that_they_came_from(small_base, tmp_path):
    """The second base holds codes: QLoRA's quantized base, made again by the same quantizer."""
    run = tmp_path / "run"
    assert call(train_script, "--method", "qlora", "--model", small_base, "--block", "32x1", "--steps", "3", "--lr",
                "0.03", *FEW, "--out", run) is None
    states = rows_of(run)
    export(run, "peft", tmp_path / "peft")
    for model, quantizer, row in ((tmp_path / "peft/base", [], "base"),
                                  (small_base, ["--quantizer", "nf", "--block", "32x1"], "quantized-4bit-nf-32x1")):
        command = ["--model", model, "--adapter", tmp_path / "peft", *quantizer, *FEW, "--out", tmp_path / row]
        assert call(eval_script, *command) is None
        rows = rows_of(tmp_path / row)
        with_adapter = next(r for r in rows.values() if r["title"].endswith("with peft)"))
        assert with_adapter["validation_loss"] == pytest.approx(states["trained"]["validation_loss"], abs=1e-5)
        assert with_adapter["scores"] == states["trained"]["scores"]
        assert rows[row]["validation_loss"] == pytest.approx(
            states["quantized"]["validation_loss"], abs=1e-5) != with_adapter["validation_loss"]
    assert "holds the scores of another model" in call(eval_script, "--model", tmp_path / "peft/base", *FEW, "--out",
                                                       tmp_path / "base")


def test_sample_completes_a_prompt_with_an_adapter_beside_a_model(small_base, tmp_path, capsys):
    run = made_run(tmp_path / "run", small_base, "--method", "lora")
    export(run, "peft", tmp_path / "peft")
    capsys.readouterr()
    said = []
    for place in ([run], ["--model", small_base, "--adapter", tmp_path / "peft"], ["--model", small_base]):
        assert call(sample_script, *place, "--prompt", "Where is my card", "--max-new-tokens", "12", "--dtype",
                    "float32") is None
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]


def test_an_adapter_is_refused_beside_a_run_and_where_it_does_not_fit(small_base, tmp_path, adapter):
    run = made_run(tmp_path / "run", small_base, "--method", "lora")
    assert "--adapter" in call(eval_script, run, "--adapter", adapter)
    assert "--adapter is for a model without a run" in call(sample_script, run, "--adapter", adapter, "--prompt", "a")
    assert "no PEFT adapter there" in call(eval_script, "--model", small_base, "--adapter", small_base, *FEW)


def test_the_config_names_the_dropout_of_training(small_base, tmp_path):
    run = made_run(tmp_path / "run", small_base, "--method", "lora", "--dropout", "0.25")
    export(run, "peft", tmp_path / "peft")
    assert read_json(tmp_path / "peft" / CONFIG)["lora_dropout"] == 0.25
