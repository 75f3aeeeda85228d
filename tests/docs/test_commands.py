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
# These import other engines; their flags are looked up in their source.
NEEDS_MORE = ("tests.interop.gguf_round_trip", "tests.interop.mlx_score")


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
    return [(main_of(module), arguments) for module, arguments in found if module not in NOT_OURS]


def main_of(module: str) -> str:
    """`python -m X` of a package runs X.__main__."""
    return f"{module}.__main__" if (ROOT / module.replace(".", "/") / "__main__.py").is_file() else module


def choices() -> dict[str, set[str]]:
    from export import FORMATS
    from finetune.methods import METHODS, TARGETS
    from quant import QUANTIZERS
    from tasks import TASKS
    return {"--method": set(METHODS), "--task": set(TASKS), "--targets": set(TARGETS),
            "--quantizer": {"none", "gptq", *QUANTIZERS}, "--bits": {"2", "3", "4", "5", "6", "8"},
            "--format": set(FORMATS)}


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


def check_flags_together(module: str, words: list[str]) -> None:
    """The checks of train.py and eval.py that need no file. Raises ValueError for flags that do not go together.
    The embedded base stands for every model, because most pages name one that is not on this machine."""
    import eval as scoring  # not at the top: `usage` imports scripts by name
    import train
    from finetune.command_line import train_parser
    from finetune.config import EMBEDDED_BASE
    from finetune.data import calibration_of, check_needs, task_of
    from finetune.resolve import resolve_run, resolve_scoring
    words = [str(EMBEDDED_BASE) if before == "--model" else word
             for before, word in zip(["", *words], words, strict=False)]
    try:
        given = train_parser().given(words) if module == "train" else scoring.eval_parser().given(words)
    except SystemExit as error:
        raise ValueError(error.code) from None
    if "list_tasks" in given:
        return
    if "resume" in given:
        if len(given) > 1:
            train.reopened(given)
        return
    if "compare" in given:
        return scoring.refuse_beside_compare(given)
    if module == "train":
        config = resolve_run(given)
    else:
        scoring.restoration_of(given)
        if given["run"]:  # a run's own flags are in its directory: only a task that the command names is known here
            config = resolve_scoring({k: v for k, v in given.items() if k in ("task", "data", "test_data", "protocol")})
            if "task" not in given:
                return
        else:
            scoring.refuse_flags_of_runs(given)
            config = resolve_scoring(scoring.of_configuration(given))
    task = task_of(config.data)
    check_needs(task, config.data)
    if config.base.by_gptq and not task.trains and config.base.calibration is None:
        calibration_of(config, None, [], 1)  # no training rows, and no text file in their place


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_flags_of_every_command_go_together(page):
    for module, words in commands(page.read_text(encoding="utf-8")):
        if module in ("train", "eval"):
            try:
                check_flags_together(module, words)
            except ValueError as error:
                pytest.fail(f"python {module}.py {shlex.join(words)}: {error}")


@pytest.mark.parametrize("module, command, message", [
    ("eval", "--model DIR --quantizer gptq --bits 3 --task mmlu --data d.jsonl --test-data t.jsonl", "--calibration"),
    ("eval", "runs/x --task mmlu --test-data t.jsonl", "needs --data"),
    ("eval", "runs/x --merge", "goes with --restore only"),
    ("eval", "--model DIR --requantize gptq --task banking77", "needs a run"),
    ("train", "--method lora --bits 4", "does not|do not go with it"),
    ("train", "--task gsm8k", "needs --data"),
    ("train", "--resume runs/x --lr 1", "give it alone"),
    ("train", "--no-such-flag", "unrecognized"),
])
def test_flags_that_clash_would_be_noticed(module, command, message):
    with pytest.raises(ValueError, match=message):
        check_flags_together(module, command.split())


def test_a_wrong_command_would_be_noticed():
    text = "    python train.py --method qlora \\\n        --no-such-flag 3   # words\n"
    assert commands(text) == [("train", ["--method", "qlora", "--no-such-flag", "3"])]
    assert "--no-such-flag" not in usage("train") and "--method" in usage("train")
