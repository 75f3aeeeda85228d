"""docs/design.md, the table of targets, grids and formats: each cell by an export of a run with a large adapter."""
from pathlib import Path

import pytest
import torch

import export as export_script
from model.checkpoint import random_model, save_model
from model.config_json import config_to_json
from model.files import read_json, write_json
from model.tokenizer_files import copy_tokenizer
from tests.cli import call
from tests.export_runs import made_run
from tests.prebuilt import WIDE

pytestmark = pytest.mark.usefixtures("elsewhere")
PAGE = Path(__file__).parents[2] / "docs" / "design.md"
FORMATS = ("mlx", "gguf", "gptq", "compressed-tensors")
FLAGS = {"offset": ("--method", "qablora", "--lam", "32x8"), "scale": ("--method", "peqa"),
         "codes": ("--method", "qlora", "--merge-into", "codes"), "codes and offset": ("--method", "lota"),
         "scale and offset": ("--method", "scaleoffset"), "16 bits": ("--method", "qlora")}


GRIDS = ("minmax", "intminmax", "absmax", "nf", "icq")
TOGETHER = [(target, grid) for target in FLAGS for grid in
            {"scale": GRIDS[1:2], "codes and offset": GRIDS[:3]}.get(target, GRIDS)]


def table() -> dict[tuple[str, str], list[str]]:
    """(target, grid) -> what is said of each format."""
    lines = PAGE.read_text().partition("<!-- formats of targets: begin -->")[2].partition("<!--")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert rows[0] == ["target", "grid of the base", *FORMATS]
    return {(target.strip("`"), grid): cells for target, grids, *cells in rows[2:]
            for grid in grids.replace("`", "").split(", ")}


def stated(target: str, grid: str) -> list[str]:
    said, keys = table(), ((target, grid), (target, "any"), ("any of them", grid))
    found = [said[key] for key in keys if key in said]
    assert len({tuple(cells) for cells in found}) == 1, (target, grid)
    return found[0]


@pytest.fixture(scope="module")
def base(small_base, tmp_path_factory):
    path = tmp_path_factory.mktemp("wide")
    save_model(random_model(WIDE, torch.float32, seed=1), path / "model.safetensors")
    write_json(path / "config.json", config_to_json(WIDE))
    copy_tokenizer(small_base, path)
    return path


def test_the_table_has_only_targets_and_grids_that_go_together():
    every = {*TOGETHER, ("16 bits", "any"), ("any of them", "nf"), ("any of them", "icq")}
    assert set(table()) <= every and {target for target, _ in table()} - {"any of them"} == set(FLAGS)


@pytest.mark.parametrize("target,grid", TOGETHER)
def test_each_format_does_what_the_table_says(base, tmp_path, target, grid):
    run, found = made_run(tmp_path / "run", base, *FLAGS[target], "--quantizer", grid, "--block", "32x1"), []
    for form in FORMATS:
        to = tmp_path / ("x.gguf" if form == "gguf" else form)
        if said := call(export_script, run, "--format", form, "--to", to):
            assert said.startswith("error: ") and not to.exists()
            found.append("refused")
            continue
        report = read_json(to / "export.json" if to.is_dir() else to.with_suffix(".export.json"))
        found.append("exact" if report["largest_weight_difference"] < 1e-6 else "rounded")
        assert report["largest_weight_difference"] < 1e-6 or 1e-5 < report["training_lost"] < 0.1
    assert found == stated(target, grid)
