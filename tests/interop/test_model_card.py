"""The model card beside an export: what the hub reads of it, what a reader learns, and what it does not tell."""
import json
import shutil
from pathlib import Path

import pytest
import yaml

import eval as eval_script
import export as export_script
from finetune.config import EMBEDDED_BASE
from interop.base_facts import FRONT, facts_of_place, stated_license
from interop.model_card import without_directories
from model.files import write_json, write_record
from model.hub import HubModel
from tests.cli import call, few, train_once
from tests.export_runs import export, made_run
from tests.gguf_files import strong_model, write_gguf

pytestmark = pytest.mark.usefixtures("elsewhere")
COMMIT = "0123456789abcdef" * 2 + "01234567"


def card_of(place: Path) -> tuple[dict, str]:
    text = (place / "README.md" if place.is_dir() else place.with_suffix(".README.md")).read_text()
    return yaml.safe_load(FRONT.match(text)[1]), text


@pytest.fixture
def cached_base(small_base, tmp_path) -> Path:
    """As huggingface_hub keeps a model."""
    place = tmp_path / "cache" / "models--org--small" / "snapshots" / COMMIT
    shutil.copytree(small_base, place)
    (place / "README.md").write_text("---\nlicense: other\nlicense_name: small-1\nlicense_link: https://x.org/l\n"
                                     "tags: [a]\n---\n# Small\n")
    return place


@pytest.mark.parametrize("form,relation,library", [("safetensors", "finetune", "transformers"),
                                                   ("peft", "adapter", "peft"), ("gguf", "finetune", None)])
def test_front_matter_names_the_base_its_licence_the_data_and_what_loads_it(cached_base, tmp_path, form, relation,
                                                                           library):
    pytest.importorskip("gguf")
    run = made_run(tmp_path / "run", cached_base, "--method", "lora")
    to = tmp_path / ("x.gguf" if form == "gguf" else "out")
    export(run, form, to)
    front, text = card_of(to)
    assert front["base_model"] == "org/small" and front["base_model_relation"] == relation
    assert {key: front[key] for key in front if key.startswith("license")} == {
        "license": "other", "license_name": "small-1", "license_link": "https://x.org/l"}
    assert front.get("library_name") == library and front["tags"] == [form, "lora", "banking77"]
    assert COMMIT in text and "licence is small-1 (stated in README.md)" in text
    assert "licence of the data set: CC BY 4.0" in text


@pytest.mark.parametrize("stated", [{}, {"stopped_by": "patience"}])
def test_the_card_tells_that_patience_ended_the_training(small_base, tmp_path, stated):
    """tests/finetune/test_flags.py: training.json of such a run states it."""
    run = made_run(tmp_path / "run", small_base, "--method", "lora", "--patience", "3")
    write_record(run / "training.json", {"trainable_parameters": 7, "tokens": 5, "seconds": 1.0, **stated})
    export(run, "peft", tmp_path / "out")
    assert ("; --patience 3 ended the training early" in card_of(tmp_path / "out")[1]) == bool(stated)


def test_the_card_tells_the_scaling_of_the_adapter(small_base, tmp_path):
    export(made_run(tmp_path / "run", small_base, "--method", "lora", "--scaling", "rslora"), "peft", tmp_path / "out")
    assert "rank 16, lora_alpha 16.0, scaling rslora" in card_of(tmp_path / "out")[1]


def test_a_run_without_test_rows_has_its_validation_losses_until_it_is_scored(small_base, tmp_path):
    run = made_run(tmp_path / "run", small_base, "--method", "lora")
    rows = [{"state": "base", "title": "base", "scores": {}, "validation_loss": 2.5},
            {"state": "trained", "title": "as trained", "scores": {}, "validation_loss": 1.25}]
    write_json(run / "results.json", {"test_rows": 0, "protocol": "p", "rows": rows})
    export(run, "peft", tmp_path / "a")
    text = card_of(tmp_path / "a")[1]
    assert "| model | validation loss |" in text and "| base | 2.5000 |" in text and "| as trained | 1.2500 |" in text
    scored = {"state": "trained", "title": "as trained", "scores": {"accuracy": 0.5}}
    write_json(run / "eval.json", {"test_rows": 4, "protocol": "p", "rows": [scored]})
    export(run, "peft", tmp_path / "b")
    text = card_of(tmp_path / "b")[1]
    assert "| as trained | 50.00% | - |" in text and "4 test rows" in text and "1.2500" not in text


@pytest.mark.slow
def test_the_card_tells_method_data_steps_scores_and_commands(small_base, tmp_path):
    train_once(small_base, "--method", "qlora", *few("full"), "--block", "16x1", "--seed", "5")
    export(tmp_path / "x", "safetensors", tmp_path / "out", "--dtype", "float32")
    front, text = card_of(tmp_path / "out")
    assert front["tags"] == ["safetensors", "qlora", "banking77", "4-bit"] and "base_model" not in front
    assert "license" not in front and "No licence of the base is stated" in text
    results = json.loads(Path("x/results.json").read_text())
    for row in results["rows"]:
        assert f"| {row['title']} | {row['scores']['accuracy']:.2%} ±" in text
        assert f"{row['validation_loss']:.4f} |" in text
    assert results["base"] in text
    assert "seed: 5" in text and "nf@16x1-4bit" in text and "step 3 of 3 was kept" in text
    assert "    python train.py --method qlora --quantizer nf --block 16x1 --dtype float32" in text
    assert "--seed 5" in text and "    python export.py x --format safetensors --dtype float32 --to out\n" in text
    assert "torch 2." in text


def test_it_tells_no_directory_of_this_machine(small_base, tmp_path):
    rows = tmp_path / "private" / "rows.jsonl"
    rows.parent.mkdir()
    rows.write_text("".join(json.dumps({"instruction": f"q {i}", "intent": f"i{i % 3}"}) + "\n" for i in range(40)))
    run = made_run(tmp_path / "private" / "run", small_base, "--method", "qlora", "--block", "16x1", "--task", "bitext",
                   "--data", rows)
    export(run, "peft", tmp_path / "out")
    _, text = card_of(tmp_path / "out")
    assert "data: rows.jsonl" in text and "base: out/base, dequantized" in text and "--data rows.jsonl" in text
    assert not [secret for secret in (str(tmp_path), "private", str(small_base.parent), str(Path.home()) + "/")
                if secret in text]
    assert json.loads((tmp_path / "out/export.json").read_text())["source"] == "run"


def test_a_directory_of_codes_has_a_card_too(small_base, tmp_path):
    flags = ("--method", "qablora", "--bits", "5", "--block", "32x1", "--lam", "32x8")
    run = made_run(tmp_path / "run", small_base, *flags)
    export(run, "mlx", tmp_path / "out")
    front, text = card_of(tmp_path / "out")
    assert front["library_name"] == "mlx" and front["tags"] == ["mlx", "qablora", "banking77", "5-bit"]
    assert "for mlx-lm" in text and "layers of codes: 7" in text


def test_directories_go_and_addresses_stay(tmp_path):
    text = f"in {tmp_path}/a/b.txt, '/home/me/x y', (/srv/data/c.jsonl): https://huggingface.co/org/name and 1/2/3 a/b"
    assert without_directories(text, [tmp_path / "out"]) == \
        "in a/b.txt, 'x y', (c.jsonl): https://huggingface.co/org/name and 1/2/3 a/b"


def test_a_result_of_a_run_tells_of_the_run(small_base, tmp_path):
    train_once(small_base, "--method", "qablora", *few("full"), "--block", "16x1", "--lam", "16x8")
    export(tmp_path / "x" / "merged", "safetensors", tmp_path / "out")
    _, text = card_of(tmp_path / "out")
    assert "method: qablora" in text and "python export.py x/merged --format safetensors --to out" in text
    assert "--lam 16x8" in text and "--out x\n" in text


def test_a_gguf_file_as_base_gives_its_licence_and_repository(tmp_path):
    pytest.importorskip("gguf")
    base = write_gguf(tmp_path / "base.gguf", strong_model(), "Q4_1", metadata={
        "general.license": "mit", "general.base_model.0.repo_url": "https://huggingface.co/org/name"})
    run = made_run(tmp_path / "run", base, "--quantizer", "none", "--method", "qablora", "--lam", "32x8")
    export(run, "gguf", tmp_path / "x.gguf")
    front, text = card_of(tmp_path / "x.gguf")
    assert front["license"] == "mit" and front["base_model"] == "org/name"
    assert front["base_model_relation"] == "quantized" and "4-bit" in front["tags"]
    assert (tmp_path / "x.Modelfile").read_text().startswith("FROM ./x.gguf\n")
    assert "4 bits, block 32x1" in text


@pytest.mark.parametrize("files,expected", [
    ({"README.md": "---\nlicense: mit\n---\n", "LICENSE": "Apache License\nVersion 2.0"}, "mit"),
    ({"README.md": "no front matter", "LICENSE": "\n   Apache License\n  Version 2.0, January 2004"}, "apache-2.0"),
    ({"LICENSE.txt": "MIT License\n\nCopyright"}, "mit"), ({"LICENSE": "Our own terms"}, "other"),
    ({"README.md": "---\nlicense: [mit]\n: : x\n---\n"}, None), ({"README.md": "---\n- a\n---\n"}, None),
    ({"README.md": "---\n" + "[" * 1200 + "\n---\n"}, None), ({}, None)])
def test_the_licence_is_what_the_base_states(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert stated_license(tmp_path)[0].get("license") == expected


def test_a_model_of_the_hub_is_named_with_its_commit_also_without_the_cache():
    facts = facts_of_place(HubModel("no-such-org/no-such-name", COMMIT))
    assert (facts.repo, facts.commit, facts.license) == ("no-such-org/no-such-name", COMMIT, {})
    assert facts_of_place(EMBEDDED_BASE).repo is None


def test_damaged_records_and_a_base_that_is_gone_do_not_cost_the_export(small_base, tmp_path):
    run = made_run(tmp_path / "run", shutil.copytree(small_base, tmp_path / "base"), "--method", "full")
    (run / "results.json").write_text('{"rows": [')
    (run / "training.json").write_text("{}")
    shutil.rmtree(tmp_path / "base")
    export(run, "safetensors", tmp_path / "out")
    _, text = card_of(tmp_path / "out")
    assert "None: the run was not scored" in text and "Its base is `base`" in text


def test_a_card_beside_a_gguf_file_is_in_the_way_before_any_work(small_base, tmp_path):
    pytest.importorskip("gguf")
    run = made_run(tmp_path / "run", small_base, "--method", "lora")
    for name in ("x.README.md", "x.Modelfile"):
        (tmp_path / name).write_text("mine")
        message = call(export_script, run, "--format", "gguf", "--to", tmp_path / "x.gguf")
        assert f"{name} exists already" in message
        (tmp_path / name).unlink()


def test_an_exported_directory_is_still_a_model(small_base, tmp_path):
    run = made_run(tmp_path / "run", small_base, "--method", "lora")
    export(run, "safetensors", tmp_path / "out")
    assert "README.md" in (tmp_path / "out/SHA256SUMS").read_text()
    assert call(eval_script, "--model", "out", "--limit", "40", "--test-limit", "2", "--max-new-tokens", "1") is None
