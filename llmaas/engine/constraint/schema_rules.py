"""JSON schemas as rules, for the machine: what stands in for llguidance where that is not installed.

Law: every text that the rules allow is valid by the schema. What they cannot express exactly or narrower is refused.

They are narrower in that an object has its properties in the order of the schema, and others only if it names none.
"""

from __future__ import annotations

import math
from typing import Any

from llmaas.engine.constraint.json_rules import JsonRules
from llmaas.engine.constraint.limits import refuse
from llmaas.engine.constraint.pattern import lengths
from llmaas.engine.constraint.rules import Rules, Symbols
from llmaas.engine.constraint.schema_graph import TYPES, Plain, is_of, target
from llmaas.engine.constraint.schema_reader import PlainSchema

_OF_TYPE = {
    "object": ("properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern"),
    "number": ("minimum", "maximum", "multipleOf"),
}
_OF_TYPE["integer"] = _OF_TYPE["number"]
_WITHOUT = "; it needs llguidance, which is not installed"
_NEED = " need llguidance, which is not installed"


def schema_rules(schema: PlainSchema) -> tuple[Rules, int]:
    """The rules and the number of the first one. Raises BadRequest for what they cannot express."""
    compiler = _Compiler(schema)
    root = compiler.rules.add(compiler.schema(schema.root))
    compiler.define_all()
    compiler.rules.finish(root)
    return compiler.rules, root


class _Compiler:
    def __init__(self, schema: PlainSchema) -> None:
        self.rules = Rules()
        self._json = JsonRules(self.rules)
        self._definitions = schema.definitions
        self._numbers = {name: self.rules.reserve() for name in schema.definitions}

    def define_all(self) -> None:
        for name, plain in self._definitions.items():
            self.rules.define(self._numbers[name], [self.schema(plain)])

    def schema(self, plain: Plain) -> Symbols:
        """What is valid by a schema."""
        if isinstance(plain, bool):
            return (self._json.value,) if plain else ((),)
        kinds = [name for name in ("$ref", "enum", "anyOf", "allOf") if name in plain]
        if not kinds:
            return self._one_of_types(plain)
        if kinds == ["enum"]:
            values = [value for value in plain["enum"] if self._fits(value, plain)]
            return (self.rules.add(*map(self._json.literal, values)),)
        if len(kinds) > 1 or len(plain) > 1 + self._says_the_same(plain, kinds[0]):
            raise refuse(f"the json_schema's {kinds[0]} beside other keywords cannot be used{_WITHOUT}")
        if kinds == ["$ref"]:
            return (self._numbers[plain["$ref"].rpartition("/")[2]],)
        if kinds == ["allOf"] and len(plain["allOf"]) > 1:
            raise refuse(f"the json_schema's allOf cannot be used{_WITHOUT}")
        return (self.rules.add(*map(self.schema, plain[kinds[0]])),)

    def _says_the_same(self, plain: dict[str, Any], kind: str) -> bool:
        """Whether a ``type`` beside alternatives or a reference says no more than they do."""
        if "type" not in plain:
            return False
        branches = [target(plain, self._definitions)] if kind == "$ref" else plain[kind]
        types = set(plain["type"]) | ({"integer"} if "number" in plain["type"] else set())
        return all(isinstance(branch, dict) and set(branch.get("type", TYPES)) <= types for branch in branches)

    def _fits(self, value: Any, plain: dict[str, Any]) -> bool:
        """Whether a value of an ``enum`` is valid by what is beside it. Raises BadRequest if that cannot be told."""
        if set(plain) - {"enum", "type"}:
            raise refuse(f"the json_schema's enum beside other keywords cannot be used{_WITHOUT}")
        return is_of(value, plain.get("type", TYPES))

    def _one_of_types(self, plain: dict[str, Any]) -> Symbols:
        types = list(plain.get("type", TYPES))
        if "number" in types and "integer" in types:
            types.remove("integer")
        if "type" not in plain:
            said = [kind for kind in types if any(name in plain for name in _OF_TYPE.get(kind, ()))]
            if not said:
                return (self._json.value,)
            types = said  # a value of another type would be valid, too, but is hardly what is wanted
        ways = [self._type(kind, plain) for kind in types]
        return ways[0] if len(ways) == 1 else (self.rules.add(*ways),)

    def _type(self, kind: str, plain: dict[str, Any]) -> Symbols:
        match kind:
            case "null":
                return self.rules.text("null")
            case "boolean":
                return (self.rules.add(self.rules.text("true"), self.rules.text("false")),)
            case "integer":
                return self._integer(plain)
            case "number":
                return self._number(plain)
            case "string":
                return self._string(plain)
            case "array":
                return self._array(plain)
            case _:
                return self._object(plain)

    def _integer(self, plain: dict[str, Any]) -> Symbols:
        if "multipleOf" in plain:
            raise refuse(f"the json_schema's multipleOf cannot be used{_WITHOUT}")
        low, high = plain.get("minimum"), plain.get("maximum")
        if low is None and high is None:
            return (self._json.integer,)
        if low is not None and high is not None and low > high:
            return ((),)
        return self._json.between(None if low is None else int(low), None if high is None else int(high))

    def _number(self, plain: dict[str, Any]) -> Symbols:
        if "minimum" not in plain and "maximum" not in plain:
            return self._json.number()
        low, high = (plain.get(name) for name in ("minimum", "maximum"))
        if any(limit is not None and limit != int(limit) for limit in (low, high)):
            raise refuse(f"limits that are no whole numbers, or exclusive, of numbers that need not be{_NEED}")
        if low is not None and high is not None and low > high:
            return ((),)
        return self._json.fraction_between(None if low is None else int(low), None if high is None else int(high))

    def _string(self, plain: dict[str, Any]) -> Symbols:
        if "pattern" not in plain:
            return self._json.string(plain.get("minLength", 0), plain.get("maxLength"))
        least, most = lengths(plain["pattern"].choice)
        if least < plain.get("minLength", 0) or most > plain.get("maxLength", math.inf):
            raise refuse(f"the json_schema's pattern beside a length cannot be used{_WITHOUT}")
        return self._json.matching(plain["pattern"].choice)

    def _array(self, plain: dict[str, Any]) -> Symbols:
        least, most = plain.get("minItems", 0), plain.get("maxItems")
        items = plain.get("items", True)
        first = plain.get("prefixItems", [])
        if items is False and least > len(first):
            return ((),)
        if not first:
            return self._json.array(() if items is False else self.schema(items), least, 0 if items is False else most)
        if least > len(first) or (most is not None and most < len(first)):
            raise refuse(f"the json_schema's prefixItems beside such counts cannot be used{_WITHOUT}")
        rules, space = self.rules, self._json.space
        symbols: Symbols = ()
        for number, item in enumerate(first):
            comma = (space, *rules.text(","), space) if number else ()
            symbols += (*comma, *self.schema(item))
        return (*rules.text("["), space, *symbols, space, *rules.text("]"))

    def _object(self, plain: dict[str, Any]) -> Symbols:
        properties, others = plain.get("properties", {}), plain.get("additionalProperties", True)
        patterns, required = plain.get("patternProperties", {}), plain.get("required", [])
        named = {**properties, **{name: others for name in required if name not in properties}}
        if patterns and (named or others is not False or len(patterns) > 1):
            raise refuse(f"the json_schema's patternProperties beside other keys cannot be used{_WITHOUT}")
        if not named:
            return self._map(plain, *next(iter(patterns.items()), (None, others)))
        for name in ("minProperties", "maxProperties"):
            if name in plain:
                raise refuse(f"the json_schema's {name} cannot be used beside properties{_WITHOUT}")
        return self._members({key: self.schema(value) for key, value in named.items()}, set(required))

    def _map(self, plain: dict[str, Any], pattern: Any, values: Plain) -> Symbols:
        """An object whose keys are any, or match a pattern, and whose values are all alike."""
        least, most = plain.get("minProperties", 0), plain.get("maxProperties")
        if values is False:
            return self.rules.text("{}") if least == 0 else ((),)
        key = self._json.string() if pattern is None else self._json.matching(pattern.choice)
        return self._json.map(key, self.schema(values), least, most)

    def _members(self, values: dict[str, Symbols], required: set[str]) -> Symbols:
        """An object with these keys in this order; those that are not required may be missing.

        Two rules for each key, from the last one on: what may follow if something stood before it, and if nothing did.
        """
        rules, space = self.rules, self._json.space
        end = rules.text("}")
        after = rules.add((space, *end))
        alone = rules.add(end)
        for key in reversed(values):
            member = (*self._json.literal(key), space, *rules.text(":"), space, *values[key])
            first, then = (*member, after), (space, *rules.text(","), space, *member, after)
            if key in required:
                alone, after = rules.add(first), rules.add(then)
            else:
                alone, after = rules.add(first, (alone,)), rules.add(then, (after,))
        return (*rules.text("{"), space, alone)
