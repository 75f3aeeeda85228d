"""docs/: pages that are generated, names that are cited, words that stay out."""
import re
from pathlib import Path

import pytest
import torch

from adapters.lam import Lam
from experiments import results_page
from tests.docs.pages import PAGES, ROOT, name_of

PAPERS = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
TESTS = {path: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")}
DEFINED = {name for text in TESTS.values() for name in re.findall(r"^\s*def (test_\w+)\(", text, re.MULTILINE)}
# What nobody outside this project can open. Written in parts, so that this file does not hold them.
ELSEWHERE = ["DESIGN" + ".md", "PROTOCOLS" + ".md", "STYLE" + ".md", "blora" + ".txt", "plr" + ".txt",
             "ptq_qlora" + ".txt", "../" + "shared", "/work/" + "shared", "shared" + "/data"]


def test_the_page_of_results_is_what_the_json_files_say():
    page = results_page.PAGE.read_text(encoding="utf-8")
    assert page == results_page.page(), "run python -m experiments.results_page"


def test_a_changed_figure_changes_the_page(monkeypatch):
    read = results_page.read

    def changed(name):
        record = read(name)
        if name == "main_job":
            record["tables"][0]["rows"][3][1] = "80.00%"
        return record
    monkeypatch.setattr(results_page, "read", changed)
    assert results_page.PAGE.read_text(encoding="utf-8") != results_page.page()


def test_every_json_file_of_results_is_on_the_page_with_its_provenance():
    every = {path.stem for path in results_page.RESULTS.glob("*.json")} - {"provenance"}
    files = {name for name in every if not name.startswith("cells")}  # what the sections of cells are made of
    shown = {file for name in results_page.order() for file in results_page.files_of(name)}
    assert files == shown
    for name, record in results_page.records().items():
        assert all(record[key] for key in ("title", "date", "machine", "commit", "command", "about", "tables")), name
        assert all(len(row) == len(table["columns"]) for table in record["tables"] for row in table["rows"]), name


def test_the_table_of_methods_is_what_the_code_says():
    from experiments.methods_table import table
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    between = text.partition("<!-- methods_table: begin -->")[2].partition("<!-- methods_table: end -->")[0]
    assert between.strip() == table(), "put what python -m experiments.methods_table prints between the markers"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_test_and_every_file_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    files = {path.name for path in TESTS}
    cited = set(re.findall(r"`(test_\w+(?:\.py)?)`", text))
    assert {name for name in cited if name not in DEFINED and name not in files} == set()
    paths = set(re.findall(r"`([\w]+(?:/[\w]+)+\.py)`", text))
    assert {path for path in paths if not (ROOT / path).is_file()} == set()


def test_every_name_beside_a_file_in_the_papers_table_is_in_that_file():
    pairs = re.findall(r"`([\w/]+\.py)`: ((?:`[\w]+`(?:, )?)+)", PAPERS)
    assert len(pairs) > 10
    for file, names in pairs:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert [name for name in re.findall(r"`(\w+)`", names) if not re.search(rf"\b{name}\b", text)] == [], file


def test_the_adapter_on_the_page_about_adding_a_method_is_one():
    """Beside its own file's imports it needs nothing; delta and delta_weight follow from the base class."""
    text = (ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
    block, = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    names: dict = {}
    exec(compile(block, "adding-a-method.md", "exec"), names)
    adapter = names["MeanLoRA"](8, 12, Lam(4, 2), rank=2, lora_alpha=3.0).double()
    assert not adapter.delta_weight().any()  # the base model at the start
    torch.nn.init.normal_(adapter.B)
    probed = adapter.delta(torch.eye(12, dtype=torch.float64)).T
    assert adapter.delta_weight().any()
    torch.testing.assert_close(probed, adapter.delta_weight(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lines_of_a_page_have_at_most_120_columns(page):
    """Rows of tables and lines that hold a link may be longer."""
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|") and "](" not in line] == []


FOLDERS = ("quant", "adapters", "model", "tasks", "finetune", "scoring", "interop", "judging", "experiments", "docs",
           "tests")


def product_files() -> list[Path]:
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    kinds = (".py", ".md", ".svg", ".txt", ".toml", ".cff")
    return [path for path in (*inside, *ROOT.glob("*")) if path.suffix in kinds]


def test_nothing_cites_a_file_that_is_not_in_the_repository():
    found = [f"{name_of(path)}: {name}" for path in product_files() for text in [path.read_text(encoding="utf-8")]
             for name in ELSEWHERE if name in text]
    assert found == []
