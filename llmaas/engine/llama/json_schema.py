"""JSON schemas as grammars, by llama-cpp-python's converter.

Law: a schema that would keep the converter or llama.cpp busy without end is refused before it is converted.
"""

from __future__ import annotations

import json
import re
from typing import Any

from llmaas.engine.llama.gbnf import HINT
from llmaas.engine.llama.lib import SchemaConverter
from llmaas.errors import BadRequest

_MAX_DEPTH = 50
_MAX_COUNT = 1000
"""Most items, characters or repetitions that a schema may count: each becomes a piece of grammar."""
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")


def schema_gbnf(text: str) -> str:
    """The grammar, as GBNF, of a JSON schema. Raises BadRequest for what the converter cannot do."""
    try:
        schema = json.loads(text)
        _check_schema(schema, _MAX_DEPTH)
        converter = SchemaConverter(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
        converter._format_literal = _literal
        converter.visit(converter.resolve_refs(schema, ""), "")
        return str(converter.format_grammar()).encode().decode()  # raises for lone surrogates
    except BadRequest:
        raise
    except RecursionError:
        raise BadRequest("the json_schema is nested too deep, or has too many optional properties", hint=HINT) from None
    except Exception as error:  # the converter asserts, and trips over what it does not know
        raise BadRequest(f"the json_schema cannot be used: {error!r:.300}", hint=HINT) from None


def _literal(text: str) -> str:
    """A string of GBNF. The converter's own function leaves backslashes as they are: it writes "a\\nb" as two lines."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r") + '"'


def _check_schema(node: Any, depth: int) -> None:
    """Raise BadRequest for depth, counts and patterns that would become huge grammars or endless loops."""
    if depth == 0:
        raise BadRequest(f"the json_schema is nested deeper than {_MAX_DEPTH}", hint=HINT)
    if isinstance(node, list):
        for item in node:
            _check_schema(item, depth - 1)
    if not isinstance(node, dict):
        return
    for name, value in node.items():
        if name in _COUNTS and isinstance(value, (int, float)) and not 0 <= value <= _MAX_COUNT:
            raise BadRequest(f"the json_schema's {name} must be an integer in [0, {_MAX_COUNT}]", hint=HINT)
        if name == "pattern" and isinstance(value, str):
            _check_pattern(value)
        _check_schema(value, depth - 1)


def _check_pattern(pattern: str) -> None:
    """Refuse stray brackets, over which the converter loops for ever, and large counts, which it writes out."""
    plain = re.sub(r"\\.|\[(?:\\.|[^\]\\])*\]", "", pattern)
    counts = re.findall(r"\{([0-9, ]*)\}", plain)
    if re.search(r"[\[\]{}]", re.sub(r"\{[0-9, ]*\}", "", plain)):
        raise BadRequest(f"the json_schema's pattern {pattern!r:.80} has a stray bracket", hint=HINT)
    if any(int(n) > _MAX_COUNT for each in counts for n in each.split(",") if n.strip()):
        raise BadRequest(f"the json_schema's pattern {pattern!r:.80} counts beyond {_MAX_COUNT}", hint=HINT)
