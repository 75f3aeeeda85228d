"""Jinja for chat templates, which come with a model and are a stranger's program.

jinja2's sandbox keeps a template from Python. The bounds below keep it from taking all time and memory: a rendering
ends after SECONDS, and no text that it computes or writes is longer than LARGEST. Template, filters and globals are
those that Hugging Face's models expect: `raise_exception`, `strftime_now`, `tojson`, loop controls, and
`{% generation %}`, whose marks are dropped here.
"""
import json
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 5.0
LARGEST = 1 << 23           # characters of any text that a template computes or writes
LARGEST_TEMPLATE = 1 << 20  # characters; published templates have up to 20,000
LARGEST_POWER = 1 << 40


class TooMuch(Exception):
    """A template takes more time or memory than it may."""


class Refused(Exception):
    """The template's own `raise_exception`."""


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks what an assistant writes. Its body is rendered as it is."""
    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Joining(CodeGenerator):
    """`a ~ b` by a function that can refuse."""

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**", "%"))
    code_generator_class = Joining

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and (abs(left) > LARGEST_POWER or abs(right) > 64):
            raise TooMuch(f"it computes {left} ** {right}")
        if operator == "*":
            times = [n for n in (left, right) if isinstance(n, int)]
            text = [len(x) for x in (left, right) if isinstance(x, str | list | tuple)]
            if text and times and text[0] * times[0] > LARGEST:
                raise TooMuch(f"it makes a text of {text[0] * times[0]} characters")
        if operator == "%" and isinstance(left, str) and len(left) > 0 and any(c.isdigit() for c in left):
            raise TooMuch("it formats text to a width by %")
        return bounded(super().call_binop(context, operator, left, right))

    def call(self, context: Any, function: Any, *args: Any, **more: Any) -> Any:
        for value in (*args, *more.values()):
            if isinstance(value, int) and abs(value) > LARGEST and isinstance(getattr(function, "__self__", None), str):
                raise TooMuch(f"it makes a text of {value} characters")
        return bounded(super().call(context, function, *args, **more))

    def joined(self, parts: tuple) -> str:
        texts = [str(part) for part in parts]
        if sum(map(len, texts)) > LARGEST:
            raise TooMuch(f"it makes a text of more than {LARGEST} characters")
        return "".join(texts)


def bounded(value: Any) -> Any:
    if isinstance(value, str | list | tuple) and len(value) > LARGEST:
        raise TooMuch(f"it makes a text of {len(value)} characters")
    return value


def raise_exception(message: str) -> None:
    raise Refused(str(message))


def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
           sort_keys: bool = False) -> str:
    """Plain JSON. jinja2's own filter writes `<` as `\\u003c`, for web pages."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def compiled(text: str, day: date | None = None) -> jinja2.Template:
    """day: what `strftime_now` says; None: now. Raises ValueError for a text that is no template."""
    if len(text) > LARGEST_TEMPLATE:
        raise ValueError(f"the template has {len(text)} characters; at most {LARGEST_TEMPLATE} are read")
    sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
    sandbox.filters["tojson"] = tojson
    for name in ("center", "indent", "wordwrap"):  # they make a text as wide as they are told
        sandbox.filters[name] = narrow(sandbox.filters[name])
    sandbox.globals |= {"raise_exception": raise_exception,
                        "strftime_now": lambda how: (day or datetime.now()).strftime(how)}
    try:
        with in_time():
            return sandbox.from_string(text)
    except TemplateError as error:
        raise ValueError(f"not a jinja2 template (line {getattr(error, 'lineno', '?')}: {error})") from None
    except (TooMuch, RecursionError, MemoryError) as error:
        raise ValueError(f"the template cannot be compiled: {error or type(error).__name__}") from None


def narrow(filter: Any) -> Any:
    def checked(*args: Any, **more: Any) -> Any:
        if any(isinstance(value, int) and abs(value) > 10_000 for value in (*args, *more.values())):
            raise TooMuch("it makes a very wide text")
        return filter(*args, **more)
    return checked


def rendered(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """Raises ValueError if the template refuses, fails, or goes beyond the bounds."""
    pieces, size = [], 0
    try:
        with in_time():
            for piece in template.generate(**variables):
                pieces.append(piece)
                size += len(piece)
                if size > LARGEST:
                    raise TooMuch(f"it writes more than {LARGEST} characters")
    except Refused as error:
        raise ValueError(f"the chat template refuses it: {error}") from None
    except TooMuch as error:
        raise ValueError(f"the chat template is stopped: {error}") from None
    except Exception as error:  # a template is a program: it may fail in any way
        raise ValueError(f"the chat template fails on it ({type(error).__name__}: {str(error)[:200]})") from None
    return "".join(pieces)


@contextmanager
def in_time(seconds: float = SECONDS) -> Iterator[None]:
    """Raises TooMuch inside after so many seconds. Only a main thread of a system with SIGALRM has such a timer."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise TooMuch(f"it takes more than {seconds:g} seconds")
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
