"""Every command on a page names a script that exists, flags that it has, and values that they take."""
import contextlib
import importlib
import io
import re
import shlex
import sys
from functools import cache

import pytest

from tests.docs.pages import PAGES, ROOT, code_lines, name_of

NOT_OURS = ("pytest",)                        # `python -m pytest`
NEEDS_MORE = ("tests.interop.gguf_round_trip",)  # imports llama_cpp; its flags are looked up in its source


@cache
def usage(module: str) -> str:
    """What `--help` prints."""
    if module in NEEDS_MORE:
        return (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    kept, sys.argv, text = sys.argv, [module, "--help"], io.StringIO()
    try:
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            getattr(importlib.import_module(module), "main", str)()  # a script without flags may have no main
    finally:
        sys.argv = kept
    return text.getvalue()


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(module, arguments) of each `python X.py ...` and `python -m X ...`."""
    found = []
    for line in code_lines(text):
        words = shlex.split(line) if line.startswith("python ") else []
        if words[1:2] == ["-m"]:
            found.append((words[2], words[3:]))
        elif words:
            found.append((words[1].removesuffix(".py"), words[2:]))
    return [(module, arguments) for module, arguments in found if module not in NOT_OURS]


def choices() -> dict[str, set[str]]:
    from finetune.methods import METHODS, TARGETS
    from quant import QUANTIZERS
    from tasks import TASKS
    return {"--method": set(METHODS), "--task": set(TASKS), "--targets": set(TARGETS),
            "--quantizer": {"none", "gptq", *QUANTIZERS}, "--bits": {"2", "3", "4", "8"},
            "--format": {"safetensors", "peft", "gguf"}}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_names_a_script_and_flags_that_exist(page):
    unknown = []
    for module, arguments in commands(page.read_text(encoding="utf-8")):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
        known = set(re.findall(r"--[a-z][a-z0-9-]*", usage(module)))
        unknown += [f"{module} {word}" for word in arguments if word.startswith("--") and word not in known]
    assert unknown == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_value_of_a_flag_with_choices_is_one_of_them(page):
    allowed = choices()
    for _, arguments in commands(page.read_text(encoding="utf-8")):
        for name, value in zip(arguments, arguments[1:], strict=False):
            assert name not in allowed or value in allowed[name], f"{name} {value}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_way_to_quantize_on_a_page_is_read_by_the_parser(page):
    from quant.spec import QuantSpec
    for _, arguments in commands(page.read_text(encoding="utf-8")):
        for name, value in zip(arguments, arguments[1:], strict=False):
            if name in ("--requantize", "--restore-quantizer"):
                QuantSpec.parse(value)


def test_a_wrong_command_would_be_noticed():
    text = "    python train.py --method qlora \\\n        --no-such-flag 3   # words\n"
    assert commands(text) == [("train", ["--method", "qlora", "--no-such-flag", "3"])]
    assert "--no-such-flag" not in usage("train") and "--method" in usage("train")
