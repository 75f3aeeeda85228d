"""Every write of the product goes through model/durable.py, which flushes and renames. Benchmarks are no part of it."""
import ast
from collections.abc import Iterator

import pytest

from tests.test_imports import product

# Names of functions that write, rename or copy; a method counts as well as a function.
WRITERS = {"write_text", "write_bytes", "save_file", "serialize_file", "save_pretrained", "save_model_file", "tofile",
           "savez", "savetxt", "to_csv", "to_parquet", "to_json_file", "savefig", "copyfile", "copy2", "copytree",
           "copyfileobj", "symlink_to", "hardlink_to", "touch", "mkstemp", "mkdtemp", "NamedTemporaryFile",
           "GGUFWriter", "sendfile", "fdopen", "truncate"}
OF_MODULES = {("os", name) for name in ("open", "write", "replace", "rename", "renames", "link", "symlink", "mkdir",
                                        "makedirs", "truncate", "mkfifo")} | {
    ("shutil", "copy"), ("shutil", "move"), ("torch", "save"), ("numpy", "save"), ("np", "save"), ("json", "dump"),
    ("pickle", "dump")}
# What is used elsewhere, and why.
ALLOWED = {
    ("model.durable", None): "this is the place",
    ("model.published", None): "directories as a whole, in the same way",
    ("interop.gguf_writer", "GGUFWriter"): "writes into a scratch directory, which hand_over publishes",
    ("model.processes", "open"): "/dev/null in the place of the output of all processes but the first",
    ("experiments.cells.pool", "open"): "a worker's log, as it grows",
    ("experiments.cells.bases", "open"): "a lock is held on the file, not its contents",
    ("experiments.cells.work", "link"): "a second name of a base in a scratch directory",
    ("experiments.claims.pictures", "savefig"): "writes into the file that replace_file opened",
    ("experiments.shared", "open"): "the log of another process, as it grows",
    ("experiments.shared", "replace"): "that log, once the process is done",
    ("finetune.command", "mkstemp"): "a traceback that has no run to go to",
    ("finetune.command", "open"): "appends a traceback to it or to error.log; and /dev/null in the place of stdout",
    ("finetune.stop", "write"): "a line on stderr out of a signal handler",
    ("finetune.lock", "open"): "a lock is held on the file, not its contents",
    ("finetune.lock", "truncate"): "says who holds the lock; nothing depends on it",
    ("finetune.pictures", "savefig"): "writes into the file that replace_file opened",
}
OURS = {"write_text", "write_bytes"}  # model/files.py has functions of these names: as functions they are durable


def writes(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of every call that writes to a file by itself."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name):
            name, owner = called.id, None
        elif isinstance(called, ast.Attribute):
            name, owner = called.attr, called.value.id if isinstance(called.value, ast.Name) else ""
        else:
            continue
        if name == "open" and owner != "os":
            modes = [*node.args[owner is None:2], *(word.value for word in node.keywords if word.arg == "mode")]
            if any(isinstance(mode, ast.Constant) and isinstance(mode.value, str)
                   and set(mode.value) <= set("rwaxbt+") and set(mode.value) & set("wax+") for mode in modes):
                yield node.lineno, name
        elif (owner, name) in OF_MODULES or name in WRITERS and not (owner is None and name in OURS):
            yield node.lineno, name
        elif name in ("replace", "rename") and owner is not None and len(node.args) == 1 and not node.keywords:
            yield node.lineno, name  # Path.replace and Path.rename; str.replace has two arguments


def faults(modules: dict[str, str]) -> list[str]:
    return [f"{module}, line {line}: {name}" for module, source in modules.items() for line, name in writes(source)
            if (module, name) not in ALLOWED and (module, None) not in ALLOWED]


def test_nothing_writes_beside_the_one_place():
    modules = {name: source for name, source in product().items() if not name.startswith("benchmarks")}
    assert faults(modules) == []
    assert "model.durable" in modules and list(writes(modules["model.durable"]))  # control
    unused = [place for place in ALLOWED if place[1] and not any(
        name == place[1] for _, name in writes(modules[place[0]]))]
    assert unused == []


@pytest.mark.parametrize("source", [
    'open("x", "w")', 'open(path, mode="ab")', 'open("x", "r+b")', 'path.open("w")', 'path.write_text("x")',
    'Path("x").write_bytes(b"")', "save_file(tensors, path)", "safetensors.torch.save_file(tensors, path)",
    "model.save_pretrained(path)", "os.replace(a, b)", "os.rename(a, b)", "a.rename(b)", "(here / name).replace(b)",
    "shutil.copy(a, b)", "shutil.copytree(a, b)", "torch.save(x, path)", "json.dump(x, file)", "np.save(path, x)",
    "x.tofile(path)", "figure.savefig(path)", "os.open(path, os.O_WRONLY)", "shutil.move(a, b)", "path.touch()"])
def test_a_planted_write_is_found(source):
    assert faults({"finetune.run": f"def f(x):\n    {source}\n"})


@pytest.mark.parametrize("source", ['open("x")', 'open(path, "rb")', 'text.replace("a", "b")', "write_text(path, x)",
                                    "replace(config, base=base)", "dataclasses.replace(config, base=base)",
                                    "path.read_text()", "run.open(dtype, device)"])
def test_reading_and_other_replacing_is_not_writing(source):
    assert faults({"finetune.run": source}) == []
