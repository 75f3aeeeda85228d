"""No import goes up a floor, none goes sideways into another package, and no modules import one another in a circle."""
import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = (("threads",), ("quant",), ("model",), ("adapters", "tasks"), ("finetune",), ("scoring", "interop", "judging"),
          ("train", "eval", "sample", "export", "judge"), ("experiments", "benchmarks"))
FLOOR = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}


def product() -> dict[str, str]:
    """Module name -> source."""
    files = [file for package in FLOOR for file in (ROOT / package).rglob("*.py")]
    files += [ROOT / f"{name}.py" for name in FLOOR if (ROOT / f"{name}.py").is_file()]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file.read_text(
        encoding="utf-8")
            for file in files}


def imports(source: str, modules: Mapping[str, str]) -> Iterator[str]:
    """The modules of `modules` that a source imports, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield from (name for name in [whole if whole in modules else node.module] if name in modules)


def faults(modules: Mapping[str, str]) -> list[str]:
    graph = {name: set(imports(source, modules)) for name, source in modules.items()}
    found = []
    for name, others in graph.items():
        package = name.partition(".")[0]
        for other in sorted(others):
            of_other = other.partition(".")[0]
            if FLOOR[of_other] > FLOOR[package]:
                found.append(f"{name} imports {other}, which is above it")
            elif FLOOR[of_other] == FLOOR[package] and of_other != package:
                found.append(f"{name} imports {other}, of another package on its floor")
    return found + [f"a circle: {' -> '.join(circle)}" for circle in circles(graph)]


def circles(graph: Mapping[str, set[str]]) -> Iterator[list[str]]:
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> Iterator[list[str]]:
        if name in path:
            yield [*path[path.index(name):], name]
        elif name not in done:
            for other in sorted(graph[name]):
                yield from walk(other, [*path, name])
            done.add(name)
    for name in graph:
        yield from walk(name, [])


def test_imports_go_down_and_never_in_a_circle():
    modules = product()
    assert len(modules) > 80 and {name.partition(".")[0] for name in modules} == set(FLOOR)
    assert faults(modules) == []


GOOD = {"quant": "from quant.grid import Block", "quant.grid": "import torch", "adapters.lam": "import quant.grid",
        "tasks": "from quant import grid", "finetune.run": "from adapters.lam import Lam\nimport tasks",
        "train": "import finetune.run",
        "scoring.state": "from finetune.run import Run", "judging.local": "import json",
        "experiments.a": "import train"}


@pytest.mark.parametrize("module,source,fault", [
    ("quant.grid", "from finetune import run", "quant.grid imports finetune.run, which is above it"),
    ("quant.grid", "def f():\n    import train", "quant.grid imports train, which is above it"),
    ("finetune.run", "if TYPE_CHECKING:\n    from scoring.state import State",
     "finetune.run imports scoring.state, which is above it"),
    ("adapters.lam", "import tasks", "adapters.lam imports tasks, of another package on its floor"),
    ("judging.local", "from scoring import state",
     "judging.local imports scoring.state, of another package on its floor"),
    ("quant.grid", "def f():\n    from quant import QUANTIZERS", "a circle: quant -> quant.grid -> quant"),
    ("quant.grid", "if TYPE_CHECKING:\n    from quant.grid import Block", "a circle: quant.grid -> quant.grid")])
def test_a_wrong_import_is_found(module, source, fault):
    assert faults(GOOD) == []
    assert fault in faults({**GOOD, module: source})
