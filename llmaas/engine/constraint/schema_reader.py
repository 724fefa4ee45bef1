"""JSON schemas in one plain form, from which both kinds of constraint are made.

Law: the plain form has the keywords of ``Plain`` only. A keyword that would change what is valid is in it, or the
schema is refused; those that say nothing of validity are dropped. Each subschema that a reference names is read once.

The plain form may allow less than the schema, never more: patterns and formats are narrowed to what everybody reads
alike (``pattern.py``, ``formats.py``), and so are limits of numbers that rounding could break.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from llmaas.engine.constraint.formats import FORMATS, LIMITS, PATTERNS, UNBOUNDED, UNLIMITED
from llmaas.engine.constraint.limits import MAX_COUNT, MAX_SCHEMA_DEPTH, MAX_SCHEMAS, MAX_VALUES, refuse
from llmaas.engine.constraint.pattern import Regex, read_pattern, reads_alike
from llmaas.engine.constraint.schema_closing import close_objects
from llmaas.engine.constraint.schema_graph import TYPES, Plain, Proofs, is_of, refuse_endless
from llmaas.engine.constraint.schema_numbers import Multiples, read_limits
from llmaas.engine.constraint.schema_text import Document, Json
from llmaas.errors import BadRequest
from llmaas.frozen import frozen

_NAMES = ("not", "if", "then", "else", "contains", "minContains", "maxContains", "unevaluatedItems")
_MORE = ("unevaluatedProperties", "dependentRequired", "dependentSchemas", "dependencies", "$dynamicRef")
_RARE = ("$dynamicAnchor", "$recursiveRef", "$recursiveAnchor", "extends", "disallow", "divisibleBy")
_REFUSED = frozenset({*_NAMES, *_MORE, *_RARE})
"""Keywords that say something of validity and are not supported."""
_ANNOTATIONS = frozenset({"title", "description", "default", "examples", "deprecated", "$comment"})
_MAX_BRANCHES = 100
"""Of a ``oneOf``, which are compared with each other."""


@frozen
class PlainSchema:
    """``definitions``: what ``$ref``s name, by number. ``texts``: all keys, and strings in ``enum``. ``has_open_keys``:
    whether an object with properties may have others."""

    root: Plain
    definitions: dict[str, Plain]
    texts: frozenset[str]
    has_open_keys: bool

    def as_json(self) -> dict[str, Any]:
        """One schema of draft 2020-12."""
        root = self.root if isinstance(self.root, dict) else {} if self.root else {"enum": []}
        return {**root, "$defs": self.definitions}


def read_schema(text: str) -> PlainSchema:
    """Raises BadRequest, with what is wrong, for a schema that cannot be used."""
    reader = _SchemaReader(Document(text))
    root = reader.read_all()
    refuse_endless(root, reader.definitions)
    has_open_keys = close_objects(root, reader.definitions)
    return PlainSchema(root, reader.definitions, frozenset(reader.texts), has_open_keys)


class _SchemaReader:
    """Reads what can be reached from the root of ``document``."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._names: dict[int, str] = {}
        """The numbers of schemas that a reference names, by identity."""
        self._unread: list[tuple[str, Json]] = []
        self.definitions: dict[str, Plain] = {}
        self.texts: set[str] = set()
        self._n_schemas = self._n_values = 0
        self._multiples = Multiples()
        self._one_ofs: list[dict[str, Any]] = []
        self._take: dict[str, Callable[[dict[str, Json], dict[str, Any], int], None]] = {
            "enum": self._enum,
            "$ref": self._reference,
            "properties": self._properties,
            "items": self._items,
            "pattern": self._texts_of,
        }

    def read_all(self) -> Plain:
        root = self._read(self._document.root, 0)
        while self._unread:
            name, schema = self._unread.pop()
            self.definitions[name] = self._read(schema, 0)
        proofs = Proofs(self.definitions)
        for plain in self._one_ofs:  # now that every reference is known
            _one_of(plain, proofs)
        return root

    def _read(self, schema: Json, depth: int) -> Plain:
        self._count(1)
        if depth > MAX_SCHEMA_DEPTH:
            raise refuse(f"the json_schema is nested deeper than {MAX_SCHEMA_DEPTH}")
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise refuse(f"the json_schema has {schema!r:.80} where a schema belongs")
        _refuse_unsupported(schema, self._document)
        if "$ref" in schema and self._document.dialect <= 7:
            schema = {"$ref": schema["$ref"]}  # those drafts ignore what is beside a reference
        plain: dict[str, Any] = {}
        if "type" in schema:
            plain["type"] = _types(schema["type"])
        for take in self._take.values():
            take(schema, plain, depth + 1)
        for name in ("anyOf", "allOf", "oneOf"):
            if name in schema:
                plain[name] = [self._read(one, depth + 1) for one in _list(schema, name, "schemas", least=1)]
        if "oneOf" in plain:
            self._one_ofs.append(plain)
        read_limits(schema, plain, self._multiples)
        return plain["allOf"][0] if list(plain) == ["allOf"] and len(plain["allOf"]) == 1 else plain

    def _count(self, n: int) -> None:
        self._n_schemas += n
        if self._n_schemas > MAX_SCHEMAS:
            raise refuse(f"the json_schema has more than {MAX_SCHEMAS} subschemas")

    # -- keywords

    def _enum(self, schema: dict[str, Json], plain: dict[str, Any], _: int) -> None:
        if "const" not in schema and "enum" not in schema:
            return
        values = _list(schema, "enum", "values") if "enum" in schema else [schema["const"]]
        if "const" in schema:
            values = [value for value in values if _same(value, schema["const"])]
        types = plain.pop("type", TYPES)
        plain["enum"] = [value for value in values if is_of(value, types)]
        self._n_values += len(values)
        if self._n_values > MAX_VALUES:
            raise refuse(f"the json_schema has more than {MAX_VALUES} values in enum")
        self._record_texts(values)

    def _record_texts(self, values: list[Json]) -> None:
        todo = list(values)
        while todo:
            value = todo.pop()
            if isinstance(value, str):
                self.texts.add(value)
            elif isinstance(value, list):
                todo += value
            elif isinstance(value, dict):
                todo += [*value, *value.values()]

    def _reference(self, schema: dict[str, Json], plain: dict[str, Any], _: int) -> None:
        if "$ref" not in schema:
            return
        if not isinstance(schema["$ref"], str):
            raise refuse("the json_schema's $ref must be a string")
        target = self._document.resolve(schema["$ref"])
        if isinstance(target, bool):
            plain["allOf"] = [target]
        else:
            plain["$ref"] = self._refer(target)

    def _refer(self, target: dict[str, Json]) -> str:
        """A reference to a schema of the document, which is then read later, once."""
        name = self._names.get(id(target))
        if name is None:
            name = self._names[id(target)] = str(len(self._names))
            self._unread.append((name, target))
        return f"#/$defs/{name}"

    def _properties(self, schema: dict[str, Json], plain: dict[str, Any], depth: int) -> None:
        for name in ("properties", "patternProperties"):
            if name in schema:
                if not isinstance(schema[name], dict):
                    raise refuse(f"the json_schema's {name} must be an object")
                plain[name] = {key: self._read(value, depth) for key, value in schema[name].items()}
        if "patternProperties" in plain:
            plain["patternProperties"] = {_key_pattern(k): v for k, v in plain["patternProperties"].items()}
        if "required" in schema:
            required = _list(schema, "required", "strings")
            if not all(isinstance(name, str) for name in required):
                raise refuse("the json_schema's required must be a list of strings")
            plain["required"] = list(dict.fromkeys(required))
        if "additionalProperties" in schema:
            plain["additionalProperties"] = self._read(schema["additionalProperties"], depth)
        if "propertyNames" in schema:
            self._property_names(schema, plain)
        self.texts.update(plain.get("properties", ()), plain.get("required", ()))
        _property_counts(schema, plain)

    def _property_names(self, schema: dict[str, Json], plain: dict[str, Any]) -> None:
        """Say of an object's keys what ``propertyNames`` does: which ones there may be, or a pattern."""
        if "properties" in plain or "patternProperties" in plain:
            raise refuse("the json_schema's propertyNames is not supported beside properties and patternProperties")
        names = self._document.follow(schema["propertyNames"])
        if names is True or names == {}:
            return
        others = schema.get("additionalProperties", {})
        values: Plain = others if isinstance(others, bool) else {"$ref": self._refer(others)}
        said = {name for name in names if name not in _ANNOTATIONS} if isinstance(names, dict) else {"false"}
        if said <= {"type", "enum", "const"} and names.get("type", "string") == "string" and said != {"type"}:
            keys = names["enum"] if isinstance(names.get("enum"), list) else [names.get("const")]
            if "const" in names:
                keys = [key for key in keys if _same(key, names["const"])]
            self._count(len(keys))
            plain["properties"] = {key: values for key in keys if isinstance(key, str)}
        elif said <= {"type", "pattern", "format"} and names.get("type", "string") == "string":
            found: dict[str, Any] = {}
            self._texts_of(names, found, 0)
            if "allOf" in found:
                raise refuse("the json_schema's propertyNames has a pattern and a format; one of them is supported")
            if "pattern" not in found:
                return
            plain["patternProperties"] = {found["pattern"]: values}
        else:
            raise refuse("the json_schema's propertyNames is supported for enum, const, pattern and format only")
        plain["additionalProperties"] = False

    def _items(self, schema: dict[str, Json], plain: dict[str, Any], depth: int) -> None:
        items, first = schema.get("items"), schema.get("prefixItems")
        old = self._document.dialect < 2020
        if old:
            first = None
            if isinstance(items, list):
                first, items = items, schema.get("additionalItems")
        elif isinstance(items, list):
            raise refuse("the json_schema's items is a list, as in old drafts: write prefixItems, or say $schema")
        if first is not None:
            if not isinstance(first, list):
                raise refuse("the json_schema's prefixItems must be a list")
            plain["prefixItems"] = [self._read(one, depth) for one in first]
        if items is not None:
            plain["items"] = self._read(items, depth)
        _counts(schema, plain, "minItems", "maxItems")
        if schema.get("uniqueItems", False) is not False:
            raise refuse("the json_schema's uniqueItems is not supported")

    def _texts_of(self, schema: dict[str, Json], plain: dict[str, Any], _: int) -> None:
        _counts(schema, plain, "minLength", "maxLength")
        patterns: list[str] = []
        for name in ("pattern", "format"):
            if name in schema and not isinstance(schema[name], str):
                raise refuse(f"the json_schema's {name} must be a string")
        if "pattern" in schema:
            patterns.append(PATTERNS.get(schema["pattern"]) or schema["pattern"])
        if "format" in schema:
            patterns += _patterns_of(schema["format"])
        regexes = [Regex(read_pattern(pattern)) for pattern in patterns]
        if regexes:
            plain["pattern"] = regexes[0]
        if len(regexes) > 1:
            plain["allOf"] = [*plain.get("allOf", ()), {"pattern": regexes[1]}]


def _patterns_of(name: str) -> list[str]:
    """What a format says of texts."""
    if name in FORMATS:
        return [FORMATS[name]]
    if name not in UNBOUNDED and name not in LIMITS and name not in UNLIMITED:
        known = ", ".join(sorted([*FORMATS, *UNBOUNDED, *LIMITS, *UNLIMITED]))
        raise refuse(f"the json_schema's format {name!r:.80} is not known; known are {known}")
    return []


def _one_of(plain: dict[str, Any], proofs: Proofs) -> None:
    """Make ``anyOf`` of a ``oneOf`` no two of whose branches can be valid at once, or need be: a property by which they
    can be told apart becomes required, if it is not."""
    branches, types = plain.pop("oneOf"), plain.get("type", TYPES)
    if len(branches) > _MAX_BRANCHES:
        raise refuse(f"the json_schema's oneOf has more than {_MAX_BRANCHES} schemas")
    for i, one in enumerate(branches):
        if not all(proofs.keep_apart(one, other, types) for other in branches[:i]):
            raise refuse(
                "two schemas of a oneOf may both be valid: give them different types, or a property with different"
                " constants, or write anyOf"
            )
    if "anyOf" in plain:
        plain["allOf"] = [*plain.get("allOf", ()), {"anyOf": branches}]
    else:
        plain["anyOf"] = branches


def _refuse_unsupported(schema: dict[str, Json], document: Document) -> None:
    for name in schema:
        if name in _REFUSED:
            raise refuse(f"the json_schema's {name} is not supported")
    nested = schema is not document.root
    names = ("$id", "id") if document.dialect == 4 else ("$id",)
    if nested and any(isinstance(schema.get(name), str) and not schema[name].startswith("#") for name in names):
        raise refuse("the json_schema has an $id within it; references would mean something else there")


def _types(value: Json) -> list[str]:
    types = value if isinstance(value, list) else [value]
    for one in types:
        if one not in TYPES:
            raise refuse(f"the json_schema's type {one!r:.80} is not known; known are {', '.join(TYPES)}")
    if not types:
        raise refuse("the json_schema's type is an empty list")
    return list(dict.fromkeys(types))


def _list(schema: dict[str, Json], name: str, what: str, *, least: int = 0) -> list[Json]:
    if not isinstance(schema[name], list) or len(schema[name]) < least:
        raise refuse(f"the json_schema's {name} must be a list of {what}")
    return list(schema[name])


def _counts(schema: dict[str, Json], plain: dict[str, Any], *names: str) -> None:
    for name in names:
        if name in schema:
            plain[name] = _count(schema[name], name)
    low, high = (plain.get(name) for name in names)
    if low is not None and high is not None and low > high:
        raise refuse(f"the json_schema's {names[0]} is greater than its {names[1]}")


def _count(value: Json, name: str) -> int:
    whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value)
    if not whole or not 0 <= value <= MAX_COUNT:
        raise refuse(f"the json_schema's {name} must be an integer in [0, {MAX_COUNT}]")
    return int(value)


def _property_counts(schema: dict[str, Json], plain: dict[str, Any]) -> None:
    """A key may come twice where keys are free, and then counts once, so a least number cannot be kept to."""
    if "minProperties" in schema:
        least = _count(schema["minProperties"], "minProperties")
        if least > max(1, len(plain.get("required", ()))):
            raise refuse("the json_schema's minProperties is not supported beyond 1 and the required ones")
        if least > len(plain.get("required", ())):
            plain["minProperties"] = least
    if "maxProperties" in schema:
        plain["maxProperties"] = _count(schema["maxProperties"], "maxProperties")


def _key_pattern(pattern: str) -> str:
    """Of a key the pattern must be exact: a key beyond it would be taken for another kind of key."""
    if not reads_alike(pattern):
        raise _inexact(pattern)
    return Regex(read_pattern(pattern))


def _inexact(pattern: str) -> BadRequest:
    return refuse(f"the json_schema's patternProperties {pattern!r:.80}: write sets like [a-z0-9] for '.' and classes")


def _same(a: Json, b: Json) -> bool:
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
