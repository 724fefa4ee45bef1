"""Schemas as programs write them: pydantic, Rust's schemars, OpenAPI. What they mean is taken, not refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from llmaas.calls import Sampling
from llmaas.engine.constraint.compiler import Constraints
from llmaas.engine.constraint.port import Constraint
from llmaas.errors import BadRequest
from tests.engine.constraint.test_bombs import measured

Takes = Callable[[Constraints, Sampling, str], bool]
Wander = Callable[[Constraint, int], "str | None"]


def model(**properties: Any) -> dict[str, Any]:
    """A pydantic model; properties with a default are not required."""
    required = [name for name, schema in properties.items() if "default" not in schema]
    return {"properties": properties, **({"required": required} if required else {}), "type": "object"}


def tag(value: str) -> dict[str, Any]:
    """``kind: Literal["cat"] = "cat"``"""
    return {"const": value, "default": value, "title": "Kind", "type": "string"}


CAT, DOG = model(kind=tag("cat"), lives={"type": "integer"}), model(kind=tag("dog"))
BIRD = model(kind={"enum": ["owl", "hen"], "type": "string"})
PETS = {"oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}], "$defs": {"Cat": CAT, "Dog": DOG}}
NESTED = {
    "oneOf": [{"oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]}, {"$ref": "#/$defs/Bird"}],
    "$defs": {"Cat": CAT, "Dog": DOG, "Bird": BIRD},
}
COLOR = {"enum": ["red", "green"], "title": "Color", "type": "string"}
BY_COLOR = {
    "$defs": {"Color": COLOR},
    "additionalProperties": {"type": "integer"},
    "propertyNames": {"$ref": "#/$defs/Color"},
    "type": "object",
}
UUID = "0b6fb7fe-1c1e-4d31-8f5c-3c1f4e9a7c11"
ANSWERS: dict[str, tuple[Any, list[str], list[str]]] = {
    "a tag with a default": (PETS, ['{"kind":"cat","lives":9}', '{"kind":"dog"}'], ['{"lives":9}', "{}"]),
    "a union in a union": (NESTED, ['{"kind":"dog"}', '{"kind":"owl"}'], ["{}", '{"kind":"cow"}']),
    "keys by an enum": (BY_COLOR, ['{"red":1}', '{"red":1,"green":2}', "{}"], ['{"blue":1}', '{"red":"a"}']),
    "keys by a format": (
        {"additionalProperties": {"type": "null"}, "propertyNames": {"format": "uuid"}, "type": "object"},
        [f'{{"{UUID}":null}}', "{}"],
        ['{"a":null}'],
    ),
    "keys by a pattern": (
        {"patternProperties": {"^[a-z]{2}$": {"type": "integer"}}, "type": "object"},
        ['{"ab":1}', "{}"],
        ['{"abc":1}', '{"ab":null}'],
    ),
    "keys of any kind": ({"propertyNames": {"type": "string"}, "type": "object"}, ['{"a":1}'], ["[]"]),
    "a map that is not empty": (
        {"additionalProperties": {"type": "null"}, "minProperties": 1, "maxProperties": 2, "type": "object"},
        ['{"a":null}', '{"a":null,"b":null}'],
        ["{}", '{"a":null,"b":null,"c":null}'],
    ),
    "a probability": (
        {"minimum": 0, "maximum": 1, "type": "number"},
        ["0", "0.25", "1", "1.0", "0.999999"],
        ["1.1", "2", "-0.5", "1.00001"],
    ),
    "a negative range": ({"minimum": -20, "maximum": -3, "type": "number"}, ["-3", "-19.5", "-20"], ["-2.9", "-20.1"]),
    "at most": ({"maximum": 5, "type": "number"}, ["5", "4.9", "-700.5", "0"], ["5.1", "6"]),
    "an HttpUrl": (
        {"format": "uri", "maxLength": 2083, "minLength": 1, "type": "string"},
        ['"https://example.org/a"'],
        ['"example"'],
    ),
    "a Decimal": ({"pattern": "^(?!^[-+.]*$)[+-]?0*\\d*\\.?\\d*$", "type": "string"}, ['"-12.50"'], ['""', '"."']),
    "a UUID4": ({"format": "uuid4", "type": "string"}, [f'"{UUID}"'], ['"0b6fb7fe-1c1e-1d31-8f5c-3c1f4e9a7c11"']),
    "an IPv4Network": ({"format": "ipv4network", "type": "string"}, ['"10.0.0.1/32"'], ['"10.0.0"']),
    "base64": ({"format": "base64", "type": "string"}, ['"aGVsbG8h"', '""'], ['"a"']),
    "an int32": ({"format": "int32", "type": "integer"}, ["2147483647", "-5"], ["2147483648", "1.5"]),
    "a uint32": ({"format": "uint32", "type": "integer"}, ["4294967295", "0"], ["-1", "4294967296"]),
    "a double": ({"format": "double", "type": "number"}, ["1.5e3"], ['"a"']),
}


@pytest.mark.parametrize(("schema", "good", "bad"), ANSWERS.values(), ids=ANSWERS)
def test_what_generators_mean_is_what_is_allowed(
    constraints: Constraints, takes: Takes, wander: Wander, schema: Any, good: list[str], bad: list[str]
) -> None:
    sampling, validator = Sampling(json_schema=json.dumps(schema)), jsonschema.Draft202012Validator(schema)
    assert [text for text in good if not takes(constraints, sampling, text)] == []
    assert [text for text in bad if takes(constraints, sampling, text)] == []
    for seed in range(10):
        constraint = constraints.begin(sampling)
        assert constraint is not None
        said = wander(constraint, seed)
        assert said is None or validator.is_valid(json.loads(said)), said


REFUSED = {
    "a set": ({"items": {"type": "string"}, "type": "array", "uniqueItems": True}, "uniqueItems is not supported"),
    "keys beside others": ({"properties": {"a": {}}, "propertyNames": {"enum": ["a"]}}, "beside properties"),
    "keys by a length": ({"propertyNames": {"maxLength": 3}}, "enum, const, pattern and format only"),
    "no keys": ({"propertyNames": False}, "enum, const, pattern and format only"),
    "keys in a ring": (
        {"propertyNames": {"$ref": "#/$defs/a"}, "$defs": {"a": {"$ref": "#/$defs/a"}}},
        "name one another in a ring",
    ),
    "tags alike": ({"oneOf": [CAT, model(kind=tag("cat"))]}, "may both be valid"),
    "a tag of one only": ({"oneOf": [CAT, model(name={"type": "string"})]}, "may both be valid"),
}


@pytest.mark.parametrize(("schema", "why"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_kept_to_is_refused(constraints: Constraints, schema: Any, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        constraints.check(Sampling(json_schema=json.dumps(schema)))


def test_a_union_of_a_hundred_models_is_told_apart(constraints: Constraints, takes: Takes) -> None:
    models = {f"M{i}": model(name={"type": "string"}, n={"type": "integer"}, kind=tag(f"k{i}")) for i in range(100)}
    sampling = Sampling(
        json_schema=json.dumps({"oneOf": [{"$ref": f"#/$defs/{name}"} for name in models], "$defs": models})
    )
    with measured():
        assert constraints.begin(sampling) is not None
    assert takes(constraints, sampling, '{"name":"a","n":1,"kind":"k7"}')
    assert not takes(constraints, sampling, '{"name":"a","n":1}')


def test_many_keys_with_one_large_value_are_no_bomb(constraints: Constraints) -> None:
    value = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(300)}}
    keys = [f"k{i}" for i in range(3_000)]
    schema = json.dumps({"propertyNames": {"enum": keys}, "additionalProperties": value})
    with measured(), contextlib.suppress(BadRequest):
        constraints.begin(Sampling(json_schema=schema))
