"""Exports loaded by transformers, PEFT and llama.cpp compute the run's logits. A test is skipped if its tool is not
installed (tests/interop/requirements.txt).

    python -m pytest tests/interop/test_exports.py
"""
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adapters.peft_in import attach_peft, read_peft
from interop.comparison import TEXTS, logits_of, token_rows
from interop.trained import Trained
from model.checkpoint import load_model, save_model
from model.config_json import config_to_json
from model.directory import load_config, weight_files
from model.files import write_json
from model.stored_names import joined
from model.tensor_files import write_safetensors
from model.tokenizer_files import copy_tokenizer
from tests.export_runs import as_trained, export, made_run
from tests.gguf_files import ODD_HEADS, gguf, strong_model, write_gguf
from tests.model.test_families import GEMMA2, GEMMA3, GRANITE

LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 8192}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
# The original length is that of llama.cpp's context in these tests: it decides by its context, not by the text.
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.5, 3.0], "long_factor": [1.0, 2.0, 9.0],
            "original_max_position_embeddings": 256, "attention_factor": 1.25}
ONE_THREAD = {"n_threads": 1, "n_threads_batch": 1}
HEADS = {"llama.attention.value_length": 16, "llama.rope.dimension_count": 16}  # head_dim is not hidden_size / heads
FAMILIES = {"llama": {}, "llama 3.1": {"rope_scaling": LLAMA_3},
            "linear": {"rope_scaling": LINEAR, "tie_word_embeddings": False},
            "mistral": {"model_type": "mistral"}, "qwen2": {"model_type": "qwen2", "attention_bias": True,
                                                            "head_dim": 8},
            "biases": {"attention_bias": True, "o_bias": True, "mlp_bias": True},
            "gemma2": {**GEMMA2, "query_pre_attn_scalar": 16, "embedding_scale": 32 ** 0.5},
            "yarn": {"rope_scaling": YARN}, "qwen2 yarn": {"model_type": "qwen2", "attention_bias": True, "head_dim": 8,
                                                           "rope_scaling": YARN},
            "qwen3": {"model_type": "qwen3", "qk_norm": True},
            "gemma3": {**GEMMA3, "query_pre_attn_scalar": 16, "embedding_scale": 32 ** 0.5, "num_hidden_layers": 6,
                       "windowed_layers": (0, 1, 2, 3, 4), "sliding_window": 12},
            "smollm3": {"model_type": "smollm3", "num_hidden_layers": 4, "unrotated_layers": (3,)},
            "phi3": {"model_type": "phi3", "tie_word_embeddings": False, "head_dim": 8},
            "phi3 longrope": {"model_type": "phi3", "head_dim": 8, "partial_rotary_factor": 0.75,
                              "rope_scaling": LONGROPE},
            "granite": {**GRANITE, "rope_scaling": LINEAR}}


def made_base(path: Path, small_base: Path, family: str = "llama") -> Path:
    model = strong_model(replace(ODD_HEADS, **FAMILIES[family]))
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.data.normal_(generator=torch.Generator().manual_seed(0))
    write_json(path / "config.json", config_to_json(model.config))
    save_model(model, path / "model.safetensors")
    copy_tokenizer(small_base, path)
    return path


def rows_of(place: Path) -> list[list[int]]:
    return token_rows(Trained.at(place))


def largest(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


def hub_logits(model, rows) -> list[torch.Tensor]:
    """The logits of a model of transformers or PEFT."""
    with torch.inference_mode():
        return [model(torch.tensor([row])).logits[0].float() for row in rows]


# ---- transformers -------------------------------------------------------------------------------------------------

@pytest.mark.slow  # the import of transformers
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_a_dense_export_and_computes_the_same(tmp_path, small_base, family):
    transformers = pytest.importorskip("transformers", reason="pip install -r tests/interop/requirements.txt")
    run = made_run(tmp_path / "run", made_base(tmp_path / "base", small_base, family), "--method", "qablora", "--block",
                   "32x1", "--lam", "32x8")
    export(run, "safetensors", tmp_path / "out", "--dtype", "float32")
    theirs, rows = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out"), rows_of(run)
    assert theirs.dtype == torch.float32  # the type in config.json
    ours = logits_of(as_trained(run), rows)
    assert largest(ours, hub_logits(theirs, rows)) < 2e-4 < 0.1 < largest(
        ours, logits_of(Trained.at(tmp_path / "base").load(), rows))
    if not family.startswith(("qwen", "gemma")):  # their classes expect another kind of tokenizer than the small base's
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
        assert [tokenizer(text).input_ids[:64] for text in TEXTS] == rows


# ---- PEFT ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("flags", [["lora"], ["blora"], ["qlora", "--block", "32x1"],
                                   ["qblora", "--block", "32x1", "--lora-alpha", "24"],
                                   ["irqlora", "--block", "32x1"], ["qalora", "--quantizer", "minmax", "--rank", "3"],
                                   ["qablora"]], ids=lambda flags: flags[0])
def test_peft_loads_an_exported_adapter_and_computes_the_same(tmp_path, small_base, flags):
    peft = pytest.importorskip("peft", reason="pip install -r tests/interop/requirements.txt")
    run = made_run(tmp_path / "run", made_base(tmp_path / "base", small_base), "--method", *flags)
    export(run, "peft", tmp_path / "out")
    rows, theirs = rows_of(run), peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ours = logits_of(as_trained(run), rows)
    assert largest(ours, hub_logits(theirs, rows)) < 1e-3
    with theirs.disable_adapter():
        assert largest(ours, hub_logits(theirs, rows)) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "gemma3", "smollm3", "phi3", "phi3 longrope", "granite"])
@pytest.mark.parametrize("flags", [["lora", "--targets", "attention"], ["qablora"]], ids=lambda flags: flags[0])
def test_peft_loads_an_adapter_of_every_family(tmp_path, small_base, family, flags):
    """Those of Phi-3 are for its joined layers: one LoRA of the ranks of its parts together."""
    peft = pytest.importorskip("peft", reason="pip install -r tests/interop/requirements.txt")
    base = made_base(tmp_path / "saved", small_base, family)
    model = load_model(weight_files(base), load_config(base), torch.float32)
    save_joined(model, base)
    run = made_run(tmp_path / "run", base, "--method", *flags)
    export(run, "peft", tmp_path / "out")
    rows, theirs = rows_of(run), peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ours = logits_of(as_trained(run), rows)
    assert largest(ours, hub_logits(theirs, rows)) < 1e-3
    with theirs.disable_adapter():
        assert largest(ours, hub_logits(theirs, rows)) > 0.05


def save_joined(model, directory: Path) -> None:
    """The weights as the family's own files have them."""
    tied = model.config.tie_word_embeddings
    tensors = {name: t for name, t in model.state_dict().items() if not (tied and name == "lm_head.weight")}
    write_safetensors(directory / "model.safetensors", joined(tensors, model.config))


@pytest.mark.slow
def test_a_peft_adapter_of_joined_layers_is_read_as_peft_computes_it(tmp_path, small_base):
    peft = pytest.importorskip("peft", reason="pip install -r tests/interop/requirements.txt")
    transformers = pytest.importorskip("transformers")
    base = made_base(tmp_path / "base", small_base, "phi3")
    ours = load_model(weight_files(base), load_config(base), torch.float32)
    save_joined(ours, base)
    torch.manual_seed(0)
    theirs = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        peft.LoraConfig(r=4, lora_alpha=12, target_modules=["qkv_proj", "gate_up_proj", "o_proj"],
                        init_lora_weights=False, task_type="CAUSAL_LM")).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    rows = rows_of(base)
    before = logits_of(ours, rows)
    attach_peft(ours, read_peft(tmp_path / "adapter", ours.config))
    after = hub_logits(theirs, rows)
    assert largest(logits_of(ours, rows), after) < 2e-4 < 0.05 < largest(before, after)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True},
                                     {"rank_pattern": {"mlp.up_proj": 2, "^model.layers.0.self_attn.q_proj": 6},
                                                               "alpha_pattern": {"layers.1.self_attn.v_proj": 5}}],
                                                               ids=["plain", "rslora", "patterns"])
def test_an_adapter_that_peft_saved_is_read_as_peft_computes_it(tmp_path, small_base, options):
    peft = pytest.importorskip("peft", reason="pip install -r tests/interop/requirements.txt")
    transformers = pytest.importorskip("transformers")
    base = made_base(tmp_path / "base", small_base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(0)
    theirs = peft.get_peft_model(model,
                                 peft.LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "v_proj", "up_proj"],
                                                 init_lora_weights=False,
                                                        task_type="CAUSAL_LM", **options)).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    ours, rows = load_model(weight_files(base), load_config(base), torch.float32), rows_of(base)
    before = logits_of(ours, rows)
    attach_peft(ours, read_peft(tmp_path / "adapter", ours.config))
    after = hub_logits(theirs, rows)
    assert largest(logits_of(ours, rows), after) < 2e-4 < 0.05 < largest(before, after)


@pytest.mark.parametrize("options,message",
                         [({"use_dora": True}, "use_dora True"), ({"bias": "lora_only"}, "bias 'lora_only'"),
                                             ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
                                             ({"lora_bias": True}, "lora_bias True")])
def test_what_peft_adds_to_lora_is_refused_by_name(tmp_path, small_base, options, message):
    peft = pytest.importorskip("peft", reason="pip install -r tests/interop/requirements.txt")
    transformers = pytest.importorskip("transformers")
    base = made_base(tmp_path / "base", small_base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM",
                                               **options)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=message):
        read_peft(tmp_path / "adapter", load_config(base))


# ---- llama.cpp ----------------------------------------------------------------------------------------------------

def llama_logits(path: Path, rows: list[list[int]]) -> tuple[list[torch.Tensor], list[list[int]]]:
    """llama.cpp's logits, with float32 keys and values, and its token ids of the texts."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="pip install -r tests/interop/requirements.txt")
    model, found = llama_cpp.Llama(str(path), n_ctx=128, logits_all=True, verbose=False, type_k=0, type_v=0,
                                   **ONE_THREAD), []
    for row in rows:
        model.reset()
        model.eval(row)
        found.append(torch.from_numpy(model.scores[:len(row)].copy()))
    ids = [model.tokenize(text.encode(), add_bos=True, special=True)[:64] for text in TEXTS]
    model.close()
    return found, ids


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_loads_a_dense_export_and_computes_the_same(tmp_path, small_base, family):
    """In float32, any error in names, rows of q and k, metadata or tokenizer shows. llama.cpp looks GELU up in a table
    of float16."""
    run = made_run(tmp_path / "run", made_base(tmp_path / "base", small_base, family), "--method", "qlora", "--block",
                   "32x1")
    export(run, "gguf", tmp_path / "out.gguf", "--dtype", "float32")
    rows = rows_of(run)
    theirs, ids = llama_logits(tmp_path / "out.gguf", rows)
    ours = logits_of(as_trained(run), rows)
    assert largest(ours, theirs) < (1e-2 if family == "gemma3" else 2e-3)
    assert largest(ours, logits_of(Trained.at(tmp_path / "base").load(), rows)) > 0.1
    assert ids == rows


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "gemma3", "smollm3", "phi3", "granite"])
def test_codes_of_every_architecture_go_out_and_come_back_and_train(tmp_path, small_base, family):
    """Phi-3's joined layers are rows of codes. A file is the base of a run whose adapters train a part of them."""
    first = made_run(tmp_path / "first", made_base(tmp_path / "base", small_base, family), "--method", "qablora",
                     "--block", "32x1", "--lam", "32x8")
    export(first, "gguf", tmp_path / "first.gguf")
    assert apart(first, tmp_path / "first.gguf") < 4e-2  # factors in float16
    second = made_run(tmp_path / "second", tmp_path / "first.gguf", "--method", "qablora", "--lam", "32x8",
                      "--quantizer", "none", "--targets", "attention")
    export(second, "gguf", tmp_path / "second.gguf")
    kept, changed = (
        {t.name: t.data for t in gguf.GGUFReader(tmp_path / name).tensors} for name in ("first.gguf", "second.gguf"))
    same = {name for name in kept if (kept[name] == changed[name]).all()}
    assert {name for name in kept if "ffn" in name or "norm" in name} <= same
    assert not any("attn_q" in name and "norm" not in name for name in same)
    assert apart(second, tmp_path / "second.gguf") < 4e-2


def apart(run: Path, file: Path) -> float:
    rows = rows_of(run)
    return largest(logits_of(as_trained(run), rows), logits_of(Trained.at(file).load(), rows))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Q4_1", "Q4_0"])
def test_llama_cpp_computes_the_fine_tuned_file_as_well_as_the_one_it_came_from(tmp_path, kind):
    """llama.cpp rounds activations to 8 bits if weights are codes. The base's logits differ as much as the export's."""
    path = write_gguf(tmp_path / "base.gguf", strong_model(), kind, metadata=HEADS)
    run = made_run(tmp_path / "run", path, "--quantizer", "none", "--method", "qablora", "--lam", "32x8")
    export(run, "gguf", tmp_path / "out.gguf")
    rows = rows_of(run)
    (base, ids), (tuned, new_ids) = llama_logits(path, rows), llama_logits(tmp_path / "out.gguf", rows)
    ours_before, ours = logits_of(Trained.at(path).load(), rows), logits_of(as_trained(run), rows)
    before, after = largest(ours_before, base), largest(ours, tuned)
    assert after < 2 * before and 3 * after < largest(ours_before, tuned)
    assert ids == new_ids == rows
