"""README.md: its size, its ten lines, its table of results."""
import json
import re

from tests.docs.pages import README, ROOT

TEXT = README.read_text(encoding="utf-8")


def test_the_readme_is_one_page():
    lines = TEXT.splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []


def test_the_idea_in_ten_lines_runs_as_printed():
    block, = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    statements = [line for line in block.splitlines() if line and not line.startswith(("import ", "from "))]
    assert len(statements) == 10
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_the_table_of_the_main_job_is_the_recorded_one_and_narrow():
    record = json.loads((ROOT / "experiments" / "results" / "main_job.json").read_text(encoding="utf-8"))
    table, = record["tables"]
    for row in (table["columns"], *table["rows"]):
        line = f"| {' | '.join(row)} |"
        assert line in TEXT.splitlines() and len(line) <= 90


def test_the_readme_has_a_row_for_every_method_and_its_file():
    from finetune.methods import METHODS
    for name, method in METHODS.items():
        row, = re.findall(rf"^\| `{name}` \|.*$", TEXT, re.MULTILINE)
        assert method.adapter is None or f"](adapters/{method.adapter}.py)" in row
