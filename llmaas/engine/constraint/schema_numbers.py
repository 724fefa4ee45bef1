"""The limits of numbers in JSON schemas.

Law: what is left of a limit is safe from rounding: a number that keeps to it as text still does as a binary fraction.
"""

from __future__ import annotations

import math
from typing import Any

from llmaas.engine.constraint.formats import LIMITS
from llmaas.engine.constraint.limits import MAX_MULTIPLE, refuse

_MOST = 2.0**53
"""Greater whole numbers are not exact in binary fractions."""
_STEP = 1e-4
"""How far an exclusive limit of a fraction is moved to become an inclusive one."""
_DIGITS = 6
"""Of a fraction, that limits may have: llguidance rounds longer ones."""
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


class Multiples:
    """The different ``multipleOf`` of a schema, of which the product is bounded."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def add(self, value: int) -> None:
        self._seen.add(value)
        if math.prod(self._seen) > MAX_MULTIPLE:
            raise refuse(f"the json_schema's multipleOf, all together multiplied, is greater than {MAX_MULTIPLE}")


def read_limits(schema: dict[str, Any], plain: dict[str, Any], multiples: Multiples) -> None:
    """Take over the limits of ``schema``. Where they may be for fractions, exclusive ones become inclusive."""
    whole = "type" in plain and "number" not in plain["type"]
    for name, limit in zip(("minimum", "maximum"), LIMITS.get(schema.get("format", ""), ()), strict=False):
        if limit is not None:
            _bound(name, limit, plain, whole)
    for name in _BOUNDS:
        if name in schema:
            _bound(name, _number(schema[name], name), plain, whole)
    if "multipleOf" in schema:
        value = _number(schema["multipleOf"], "multipleOf")
        if not whole or value != int(value) or value < 1:
            raise refuse("the json_schema's multipleOf is supported for integers only: fractions are rounded")
        multiples.add(int(value))
        plain["multipleOf"] = int(value)


def _bound(name: str, value: float, plain: dict[str, Any], whole: bool) -> None:
    lower = name in ("minimum", "exclusiveMinimum")
    if whole:
        exact = math.ceil(value) if lower else math.floor(value)
        if name.startswith("exclusive") and exact == value:
            exact += 1 if lower else -1
        value = exact
    else:
        away = 1 if lower else -1
        if name.startswith("exclusive"):
            value += away * _STEP
        if round(value, _DIGITS) != value:
            value = round(value + away * 10.0**-_DIGITS, _DIGITS)
    name = "minimum" if lower else "maximum"
    known = plain.get(name)
    plain[name] = value if known is None else max(known, value) if lower else min(known, value)
    if "e" in repr(plain[name]):
        raise refuse(f"the json_schema's {name} is too near to 0")


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise refuse(f"the json_schema's {name} must be a number")
    if abs(value) > _MOST:
        raise refuse(f"the json_schema's {name} is beyond 2**53")
    return value
