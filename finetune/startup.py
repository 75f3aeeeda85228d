"""Imported first by every script: what goes wrong while the other modules are imported takes one line too.

Importing takes seconds, so Ctrl-C meets it; and a package can be missing. `command.py` handles all that follows.
"""
import sys
from pathlib import Path
from types import TracebackType

SCRIPTS = ("train.py", "eval.py", "sample.py", "export.py", "judge.py")


def one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if "--debug" in sys.argv:
        return sys.__excepthook__(kind, error, trace)
    if issubclass(kind, KeyboardInterrupt):
        line = "SIGINT while starting: nothing was written; give the same command again"
    elif issubclass(kind, ModuleNotFoundError):
        line = f"error: {error.name} is not installed: pip install -r requirements.txt"
    else:
        line = f"error: {kind.__name__}: {error} (--debug shows the traceback)"
    print(line, file=sys.stderr)


if Path(getattr(sys.modules["__main__"], "__file__", None) or "").name in SCRIPTS:  # not where a script is imported
    sys.excepthook = one_line
