"""Objects that say nothing of other keys are taken to have none.

Law: only what is valid anyway is left out, and never anything that a schema names.

By JSON Schema such an object may have any other keys. Hardly anybody means that: models then invent keys without end.
An object that is valid by several schemas at once (``allOf``, or a reference beside other keywords) stays open, since
each of them may name keys that the others do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llmaas.engine.constraint.schema_graph import Plain, target

_OF_OBJECTS = ("properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties")


def close_objects(root: Plain, definitions: Mapping[str, Plain]) -> bool:
    """Give objects with properties ``additionalProperties``. True if some with properties stay open."""
    together: dict[int, bool] = {}
    """Of each schema, by identity, whether it holds together with others."""
    schemas: dict[int, dict[str, Any]] = {}
    todo = [(root, False)]
    while todo:
        plain, joined = todo.pop()
        if isinstance(plain, bool) or together.get(id(plain)) in (True, joined):
            continue
        together[id(plain)], schemas[id(plain)] = joined, plain
        n_parts = sum(name in plain for name in ("$ref", "anyOf")) + len(plain.get("allOf", ()))
        joined |= n_parts + any(name in plain for name in _OF_OBJECTS) > 1
        together[id(plain)] |= joined
        todo += [(part, joined) for part in _within(plain, definitions)]
    for key, plain in schemas.items():
        if not together[key]:
            _close(plain)
    return any(_is_open(plain) for plain in schemas.values())


def _within(plain: dict[str, Any], definitions: Mapping[str, Plain]) -> Iterator[Plain]:
    """The schemas that a schema consists of."""
    if "$ref" in plain:
        yield target(plain, definitions)
    for name in ("anyOf", "allOf", "prefixItems"):
        yield from plain.get(name, ())
    for name in ("properties", "patternProperties"):
        yield from plain.get(name, {}).values()
    for name in ("items", "additionalProperties"):
        if name in plain:
            yield plain[name]


def _close(plain: dict[str, Any]) -> None:
    named, patterns = plain.get("properties", {}), plain.get("patternProperties", {})
    if "additionalProperties" in plain or not (named or patterns):
        return
    if patterns and not named.keys() >= set(plain.get("required", ())):
        return
    for name in plain.get("required", ()):
        named.setdefault(name, True)
    plain["additionalProperties"] = False


def _is_open(plain: dict[str, Any]) -> bool:
    return ("properties" in plain or "required" in plain) and plain.get("additionalProperties") is not False
