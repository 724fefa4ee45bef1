"""A sandbox for chat templates in which every rendering ends, after bounded work and within bounded memory.

Law: no llama_cpp, no files. A template comes with a model file from anywhere, and what it does may depend on what an
app says: neither may hold up others for long, nor fill the memory.

Jinja's own sandbox bounds ``range`` and no more: not nested loops, macros that call themselves twice, a text that is
doubled forty times, or ``'x' * 10**10``. Here whatever may be repeated (loops, calls, filters, tests) and
whatever makes texts or lists is counted, and the clock is looked at now and then. What would make much of little in one
go is estimated before.
Rejected: rendering in a process of its own that can be killed. It takes 17 MB more for as long as the daemon runs.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmaas.engine.llama.template_sizes import (
    MOST_NESTED,
    MOST_SIZE,
    SCALARS,
    TemplateLimit,
    check_power,
    length_of,
    product_size,
    replaced_size,
    weight,
    widths,
)
from llmaas.errors import ShuttingDown

MOST_CPU_S = 2.0
"""CPU time of one rendering. 4,000 messages take the templates of large models 0.3 s, or 1.5 s on a small board."""
MOST_MADE = 1 << 30
"""Characters and items that one rendering may make, all together."""
_LOOK_EVERY = 256
"""Units of work after which the clock is looked at. A loop's turn is one, and so are 1,024 characters."""

_NO_FILTERS = frozenset(["center", "filesizeformat", "forceescape", "pprint", "random", "striptags"])
_NO_FILTERS |= {"urlencode", "urlize", "wordwrap", "xmlattr"}
"""No chat template is known that uses these, and each would need an estimate of its own."""
_NO_METHODS = frozenset(["expandtabs", "format_map", "maketrans", "translate"])
"""Methods of texts for which the same holds."""
_LOOK_INTO_NOTHING = frozenset(["attr", "count", "d", "default", "first", "in_time", "items", "last", "length", "list"])
_LOOK_INTO_NOTHING |= {"map", "reject", "rejectattr", "reverse", "select", "selectattr"}
"""Filters that neither write nor compare what their value holds."""
_COMPARE = frozenset(["==", "eq", "equalto", "!=", "ne", ">", "gt", ">=", "ge", "<", "lt", "<=", "le", "in"])
"""Tests that compare."""


@dataclass(slots=True)
class _Meter:
    """What one rendering has done. ``cpu_end``: when it must have ended, by its thread's clock."""

    cpu_end: float
    units: int = 0
    made: int = 0


class _MeteredCode(CodeGenerator):
    """Python code of a template in which joining and comparing go through the sandbox."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self._call("joined", node.nodes, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        operands = [node.expr, *(operand.expr for operand in node.ops)]
        names = [f"c{i}" for i in range(len(operands))]
        signs = [jinja2.compiler.operators[operand.op] for operand in node.ops]
        terms = "".join(f" {sign} {name}" for sign, name in zip(signs, names[1:], strict=True))
        self.write(f"(lambda {', '.join(names)}: {names[0]}{terms})(*")
        self._call("compared", operands, frame)
        self.write(")")

    def _call(self, name: str, arguments: Iterable[nodes.Expr], frame: Frame) -> None:
        self.write(f"environment.{name}(")
        for argument in arguments:
            self.visit(argument, frame)
            self.write(", ")
        self.write(")")


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Renders within ``metered()``. Safe on any thread. After ``stop`` they end soon, with ShuttingDown."""

    code_generator_class = _MeteredCode
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, finalize=self._written)
        self._of_thread = threading.local()
        self._stopped = False
        self.concat = self._concat  # type: ignore[method-assign]
        self.globals.pop("lipsum")
        found = {name: function for name, function in self.filters.items() if name not in _NO_FILTERS}
        self.filters = {}
        for name, function in found.items():
            self.add_filter(name, function)
        self.filters["in_time"] = self._in_time
        tests: Any = self.tests
        self.tests = {name: self._test(name, function) for name, function in tests.items()}

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Let templates use a filter, whose result and, unless it is Jinja's own, whose value are weighed."""
        skip = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def filtered(*args: Any, **named: Any) -> Any:
            if name not in _LOOK_INTO_NOTHING and isinstance(args[skip], Iterator):
                args = (*args[:skip], list(self._in_time(args[skip])), *args[skip + 1 :])
            self._check_filter(name, args[skip:], named)
            result = function(*args, **named)
            self._spend(length_of(result))
            return result

        self.filters[name] = filtered

    @contextmanager
    def metered(self, cpu_s: float = MOST_CPU_S) -> Iterator[None]:
        """Bounds the rendering in the block; ``cpu_s``: the CPU time that it may take."""
        self._of_thread.meter = _Meter(time.thread_time() + cpu_s)
        try:
            yield
        finally:
            self._of_thread.meter = None

    def stop(self) -> None:
        """End what renders, soon. From any thread."""
        self._stopped = True

    # -- counting

    def _spend(self, size: int = 0) -> None:
        """Count something that was made, or is about to be; and one unit of work. Raises TemplateLimit."""
        if size > MOST_SIZE:
            raise TemplateLimit(f"it makes a text or list of more than {MOST_SIZE} characters or items")
        meter: _Meter | None = getattr(self._of_thread, "meter", None)
        if meter is None:  # constants, while the template is compiled
            return
        meter.units += 1 + (size >> 10)
        meter.made += size
        if meter.units >= _LOOK_EVERY:
            meter.units = 0
            if self._stopped:
                raise ShuttingDown("the daemon is stopping")
            if meter.made > MOST_MADE:
                raise TemplateLimit(f"it makes texts and lists of more than {MOST_MADE} characters and items")
            if time.thread_time() > meter.cpu_end:
                raise TemplateLimit("it takes too long")

    def _in_time(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._spend()
            yield item

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, "in_time", [], [], None, None, lineno=loop.lineno)
        tree.set_environment(self)
        return tree

    # -- what templates do

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return super().is_safe_attribute(obj, attr, value) and not (isinstance(obj, str) and attr in _NO_METHODS)

    def call(self, /, *args: Any, **named: Any) -> Any:
        context, function, *given = args
        self._check_call(function, given, named)
        result = super().call(context, function, *given, **named)
        self._spend(length_of(result))
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        match operator:
            case "*":
                self._spend(product_size(left, right))
            case "**":
                check_power(left, right)
            case "%" if isinstance(left, str):
                self._spend(len(left) + widths(left) + weight(right))
        result = super().call_binop(context, operator, left, right)
        self._spend(length_of(result))
        return result

    def joined(self, *values: Any) -> str:
        """``a ~ b``"""
        self._spend(sum(map(weight, values)))
        return "".join(map(str, values))

    def compared(self, *values: Any) -> tuple[Any, ...]:
        """The operands of a comparison."""
        if sum(not isinstance(value, SCALARS) for value in values) > 1:
            self._spend(sum(map(weight, values)))
        return values

    def _written(self, value: Any) -> Any:
        """A value that becomes text."""
        if not isinstance(value, SCALARS):
            self._spend(weight(value))
        return value

    def _concat(self, parts: Iterable[str]) -> str:
        """The text of a template, a macro or a block."""
        found, size = [], 0
        for part in parts:
            size += len(part)
            self._spend()
            if size > MOST_SIZE:
                break
            found.append(part)
        self._spend(size)
        return "".join(found)

    def _test(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        skip = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def tested(*args: Any) -> Any:
            self._spend()
            if name in _COMPARE:
                self.compared(*args[skip:])
            return function(*args)

        return tested

    # -- estimates

    def _check_call(self, function: Any, given: list[Any], named: dict[str, Any]) -> None:
        self._spend()
        wrapped = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
        text, name = getattr(wrapped, "__self__", None), getattr(wrapped, "__name__", "")
        if not isinstance(text, str):
            return
        match name:
            case "format":
                self._spend(len(text) + widths(text) + sum(map(weight, [*given, *named.values()])))
            case "join" if given:
                given[0] = list(self._in_time(given[0]))
                self._spend(len(text) * len(given[0]) + weight(given[0]))
            case "replace" if len(given) > 1:
                self._spend(replaced_size(text, given[0], given[1]))
            case "center" | "ljust" | "rjust" | "zfill" if given:
                self._spend(given[0] if isinstance(given[0], int) else MOST_SIZE + 1)

    def _check_filter(self, name: str, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._spend()
        if name in _LOOK_INTO_NOTHING or not args:
            return
        value, *rest = args
        rest += named.values()
        size = 0 if isinstance(value, SCALARS) else weight(value)
        texts = [each for each in rest if isinstance(each, str)]
        numbers = [each for each in rest if isinstance(each, int)]
        match name:
            case "join":
                size += max(map(len, texts), default=0) * (len(value) if hasattr(value, "__len__") else MOST_NESTED)
            case "replace" if len(rest) > 1:
                size += replaced_size(str(value), rest[0], rest[1])
            case "indent":
                size += (str(value).count("\n") + 1) * max([4, *numbers, *map(len, texts)])
            case "format":
                size += widths(str(value)) + sum(map(weight, rest))
            case "tojson":
                size *= 2 + max(numbers, default=0)
            case "sum" if any(not isinstance(each, SCALARS) for each in rest):
                raise TemplateLimit("it sums lists")
            case "batch" | "slice":
                size += max(numbers, default=0)
        self._spend(size)
