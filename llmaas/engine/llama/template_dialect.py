"""The dialect of Jinja that chat templates are written in: what ``transformers`` gives them, which authors rely on.

Law: no llama_cpp, no files. A template comes with a model file from anywhere, so it runs in a sandbox that bounds what
it takes (``template_sandbox``).
"""

from __future__ import annotations

import json
import re
import time
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from llmaas.engine.llama.template_sandbox import TemplateSandbox

_ESCAPED_MARK = re.compile(r"(?<!\\)((?:\\\\)*)\\u(fd[de][0-9a-f])")
"""Noncharacters, with which contents are marked: whoever reads the marks must find them."""


class GenerationTag(Extension):
    """``{% generation %} ... {% endgeneration %}`` marks for training what a model says; here it is its content."""

    tags = {"generation"}  # noqa: RUF012 (Jinja reads it; no type of a class variable fits its base class)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def environment() -> TemplateSandbox:
    """A sandbox with the settings and helpers of ``transformers``."""
    made = TemplateSandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationTag])
    made.globals["raise_exception"] = _refuse
    made.globals["strftime_now"] = time.strftime
    made.add_filter("tojson", _tojson)
    return made


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return _ESCAPED_MARK.sub(lambda found: found[1] + chr(int(found[2], 16)), text) if ensure_ascii else text
