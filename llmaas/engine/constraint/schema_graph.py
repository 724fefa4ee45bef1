"""What can be told of plain schemas without a text: whether two exclude each other, and whether one has an end.

Law: pure functions. "Disjoint" and "endless" are proofs; what cannot be proved in a few steps is not said.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmaas.engine.constraint.limits import refuse

Plain = dict[str, Any] | bool
"""A schema in plain form: a boolean, or keywords of draft 2020-12:

``type`` (a list), ``enum``, ``anyOf``, ``allOf``, ``$ref`` (to ``#/$defs/N``), ``properties``, ``required``,
``additionalProperties``, ``patternProperties``, ``minProperties`` (1), ``maxProperties``, ``items``, ``prefixItems``,
``minItems``, ``maxItems``, ``minLength``, ``maxLength``, ``pattern``, ``minimum``, ``maximum``, and ``multipleOf``.
"""
Definitions = Mapping[str, Plain]
"""What references name, by number."""

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_MAX_STEPS = 10
"""References, alternatives and properties that a proof follows into one another."""
_MAX_PROOF = 100_000
"""Schemas that all proofs for one document look at."""


def type_of(value: Any) -> str:
    """The type of a JSON value, "integer" for whole numbers without a point."""
    if value is None:
        return "null"
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return kinds[type(value)]


def is_of(value: Any, types: Sequence[str]) -> bool:
    """Whether a value is of one of the types."""
    kind = type_of(value)
    return kind in types or (kind == "integer" and "number" in types)


def target(plain: dict[str, Any], definitions: Definitions) -> Plain:
    """What the reference names."""
    return definitions[plain["$ref"].rpartition("/")[2]]


# -- whether two schemas exclude each other


class Proofs:
    """Proofs that schemas exclude each other, with _MAX_PROOF steps for all of them together."""

    def __init__(self, definitions: Definitions) -> None:
        self._definitions = definitions
        self._left = _MAX_PROOF

    def disjoint(self, one: Plain, other: Plain, types: Sequence[str] = TYPES) -> bool:
        """Whether it can be shown that no value of these types is valid by both."""
        return self._disjoint(one, other, set(types), _MAX_STEPS)

    def keep_apart(self, one: Plain, other: Plain, types: Sequence[str] = TYPES) -> bool:
        """Whether no value is valid by both, or by both and the first of them with a property required of which the two
        say different things. It then becomes required in both: generators leave a tag with a default out of
        ``required``, and without it nobody could tell which of the two is meant.
        """
        return self._keep_apart(one, other, set(types), _MAX_STEPS)

    def _keep_apart(self, one: Plain, other: Plain, types: set[str], steps: int) -> bool:
        if self._disjoint(one, other, types, steps):
            return True
        if isinstance(one, bool) or isinstance(other, bool) or steps == 0 or self._left < 0:
            return False
        parts, others = list(self._parts(one, steps)), list(self._parts(other, steps))
        for branches in map(_branches, parts):
            if branches and all(self._keep_apart(branch, other, types, steps - 1) for branch in branches):
                return True
        for branches in map(_branches, others):
            if branches and all(self._keep_apart(one, branch, types, steps - 1) for branch in branches):
                return True
        if types & _type_set(parts) & _type_set(others) != {"object"}:
            return False
        return any(self._require_tag(part, twin, steps) for part in parts for twin in others)

    def _require_tag(self, one: dict[str, Any], other: dict[str, Any], steps: int) -> bool:
        """Make a property required of which the two say different things. False: there is none."""
        ones, others = one.get("properties", {}), other.get("properties", {})
        for name in ones:
            if name in others and self._disjoint(ones[name], others[name], set(TYPES), steps - 1):
                for each in (one, other):
                    each["required"] = list(dict.fromkeys([*each.get("required", ()), name]))
                return True
        return False

    def _disjoint(self, one: Plain, other: Plain, types: set[str], steps: int) -> bool:
        if one is False or other is False:
            return True
        self._left -= 1
        if isinstance(one, bool) or isinstance(other, bool) or steps == 0 or self._left < 0:
            return False
        parts, others = list(self._parts(one, steps)), list(self._parts(other, steps))
        for branches in map(_branches, parts):
            if branches and all(self._disjoint(branch, other, types, steps - 1) for branch in branches):
                return True
        for branches in map(_branches, others):
            if branches and all(self._disjoint(one, branch, types, steps - 1) for branch in branches):
                return True
        common = types & _type_set(parts) & _type_set(others)
        if not common:
            return True
        values, other_values = _values(parts), _values(others)
        if values is not None and other_values is not None:
            return not values & other_values
        return common == {"object"} and self._by_property(parts, others, steps)

    def _parts(self, plain: dict[str, Any], steps: int) -> Iterator[dict[str, Any]]:
        """The schema and all that must be valid with it."""
        yield plain
        self._left -= 1
        if steps == 0 or self._left < 0:
            return
        more = [target(plain, self._definitions)] if "$ref" in plain else []
        for part in [*more, *plain.get("allOf", ())]:
            if isinstance(part, dict):
                yield from self._parts(part, steps - 1)

    def _by_property(self, parts: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], steps: int) -> bool:
        """Whether a property that one of the two requires has no value that is valid by both."""
        required = [name for part in [*parts, *others] for name in part.get("required", ())]
        for name in dict.fromkeys(required):
            ones = [part["properties"][name] for part in parts if name in part.get("properties", ())]
            twos = [part["properties"][name] for part in others if name in part.get("properties", ())]
            if any(self._disjoint(a, b, set(TYPES), steps - 1) for a in ones for b in twos):
                return True
        return False


def _branches(part: dict[str, Any]) -> list[Plain]:
    """Schemas of which one at least must be valid, if there are any."""
    found: list[Plain] = part.get("anyOf") or part.get("oneOf") or []
    return found


def _type_set(parts: Sequence[dict[str, Any]]) -> set[str]:
    found = set(TYPES)
    for part in parts:
        if "type" in part:
            types = set(part["type"])
            found &= types | {"integer"} if "number" in types else types
            if types == {"integer"}:
                found = {"integer"} & found
        if "enum" in part:
            found &= {type_of(value) for value in part["enum"]} | (
                {"number"} if any(isinstance(v, int) for v in part["enum"]) else set()
            )
    # 1.0 is an integer, too: a number and an integer are never apart.
    return found | {"number", "integer"} if found & {"number", "integer"} else found


def _values(parts: Sequence[dict[str, Any]]) -> set[str] | None:
    """All values that may be valid, as JSON; None: not a list."""
    found: set[str] | None = None
    for part in parts:
        if "enum" in part:
            values = {_key(value) for value in part["enum"]}
            found = values if found is None else found & values
    return found


def _key(value: Any) -> str:
    """Equal for values that JSON schemas call equal, like 1 and 1.0."""
    if isinstance(value, float) and value == int(value):
        value = int(value)
    return json.dumps(value, sort_keys=True)


# -- whether a schema has an end


def refuse_endless(root: Plain, definitions: Definitions) -> None:
    """Raise BadRequest if no value that ends is valid, as far as can be told: ``{"$ref": "#"}`` has none."""
    users: dict[str, list[str]] = {name: [] for name in definitions}
    for name, plain in definitions.items():
        for used in _references(plain):
            users[used].append(name)
    ends = dict.fromkeys(definitions, False)
    todo = list(definitions)
    while todo:
        name = todo.pop()
        if not ends[name] and _ends(definitions[name], ends):
            ends[name] = True
            todo += users[name]
    if not _ends(root, ends):
        raise refuse("no value is valid by the json_schema, or only one without an end")


def _references(plain: Any) -> set[str]:
    """The numbers that are named anywhere in a schema."""
    found, todo = set(), [plain]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                found.add(node["$ref"].rpartition("/")[2])
            todo += [value for key, value in node.items() if key != "enum" or isinstance(value, dict)]
        elif isinstance(node, list):
            todo += node
    return found


def _ends(plain: Plain, ends: Mapping[str, bool]) -> bool:
    if isinstance(plain, bool):
        return plain
    if "$ref" in plain and not ends[plain["$ref"].rpartition("/")[2]]:
        return False
    if "enum" in plain and not plain["enum"]:
        return False
    if not all(_ends(part, ends) for part in plain.get("allOf", ())):
        return False
    if "anyOf" in plain and not any(_ends(part, ends) for part in plain["anyOf"]):
        return False
    return any(_type_ends(kind, plain, ends) for kind in plain.get("type", TYPES))


def _type_ends(kind: str, plain: dict[str, Any], ends: Mapping[str, bool]) -> bool:
    if kind == "object":
        properties, others = plain.get("properties", {}), plain.get("additionalProperties", True)
        return all(_ends(properties.get(name, others), ends) for name in plain.get("required", ()))
    if kind == "array":
        first, least = plain.get("prefixItems", []), plain.get("minItems", 0)
        wanted = first[:least] + ([plain.get("items", True)] if least > len(first) else [])
        return all(_ends(item, ends) for item in wanted)
    return True
