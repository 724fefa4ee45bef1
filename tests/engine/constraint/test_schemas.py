"""JSON schemas: every answer that they allow is valid by ``jsonschema``, or they are refused; with llguidance, and
without it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bench.lib.pydantic_schemas import SCHEMAS
from llmaas.calls import Sampling
from llmaas.engine.constraint.compiler import Constraints
from llmaas.engine.constraint.guidance import is_installed
from llmaas.engine.constraint.port import Constraint
from llmaas.errors import BadRequest

SUITE: list[tuple[str, str, Any, list[Any]]] = json.loads(
    (Path(__file__).parent / "suite" / "draft2020-12.json").read_text("utf-8")
)
SUPPORTED = (
    "anyOf",
    "const",
    "enum",
    "items",
    "minLength",
    "oneOf",
    "pattern",
    "properties",
    "ref",
    "required",
    "type",
)
"""Keywords of which at least one case is not refused, with llguidance or without it."""

Takes = Callable[[Constraints, Sampling, str], bool]
Wander = Callable[[Constraint, int], "str | None"]


def by(schema: Any) -> Sampling:
    return Sampling(json_schema=json.dumps(schema))


def is_valid(data: Any, schema: Any) -> bool:
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    return bool(validator(schema).is_valid(data))


def begin(constraints: Constraints, schema: Any) -> Constraint | None:
    """None: the schema is refused."""
    try:
        return constraints.begin(by(schema))
    except BadRequest:
        return None


@pytest.mark.parametrize("keyword", sorted({case[0] for case in SUITE}))
def test_the_official_suite_finds_no_invalid_answer(
    constraints: Constraints, takes: Takes, wander: Wander, keyword: str
) -> None:
    n_taken = 0
    for _, description, schema, data in [case for case in SUITE if case[0] == keyword]:
        if begin(constraints, schema) is None:
            continue
        n_taken += 1
        for value in data:
            for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
                assert is_valid(value, schema) or not takes(constraints, by(schema), text), (description, text)
        for seed in range(4):
            constraint = begin(constraints, schema)
            assert constraint is not None
            said = wander(constraint, seed)
            assert said is None or is_valid(json.loads(said), schema), (description, said)
    assert n_taken or keyword not in SUPPORTED


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_of_pydantic_give_valid_answers_only(constraints: Constraints, wander: Wander, name: str) -> None:
    schema = SCHEMAS[name]
    n_ended = 0
    for seed in range(8):
        constraint = begin(constraints, schema)
        if constraint is None:
            pytest.skip("this schema needs llguidance")
        said = wander(constraint, seed)
        if said is not None:
            n_ended += 1
            jsonschema.validate(json.loads(said), schema)
    assert n_ended


def test_llguidance_refuses_no_schema_of_pydantic_and_the_machine_few(constraints: Constraints) -> None:
    refused = {name for name, schema in SCHEMAS.items() if begin(constraints, schema) is None}
    assert refused <= {"multiples", "exclusive bounds"}


def closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


ONE_LAST_NAME = {
    **closed(a={"$ref": "#/$defs/A/properties/id"}, b={"$ref": "#/$defs/B/properties/id"}),
    "$defs": {"A": closed(id=closed(n={"type": "integer"})), "B": closed(id=closed(s={"type": "boolean"}))},
}
ALIKE = {
    **closed(x={"$ref": "#/$defs/a-b"}, y={"$ref": "#/definitions/a-b"}),
    "$defs": {"a-b": {"type": "boolean"}},
    "definitions": {"a-b": {"type": "integer"}},
}
TAGGED = {
    "oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}],
    "discriminator": {"propertyName": "k"},
    "$defs": {"A": closed(k={"const": "a"}, n={"type": "integer"}), "B": closed(k={"const": "b"})},
}
ANSWERS = {
    "a raw line end": ({"type": "string"}, ['"a\\nb"'], ['"a\nb"', '"a\tb"']),
    "an escaped letter": ({"type": "object"}, ["{}"], ['{"\\u0061":1}']),
    "two references with one last name": (
        ONE_LAST_NAME,
        ['{"a":{"n":1},"b":{"s":true}}'],
        ['{"a":{"n":1},"b":{"n":2}}'],
    ),
    "definitions alike": (ALIKE, ['{"x":true,"y":1}'], ['{"x":true,"y":true}']),
    "oneOf with a discriminator": (TAGGED, ['{"k":"a","n":1}', '{"k": "b"}'], ['{"k":"b","n":1}']),
    "an untyped property": (closed(v={"description": "anything"}), ['{"v":[1,{"a":null}]}'], ["{}"]),
    "items of any kind": ({"type": "array", "items": {}}, ['[1,"a",[]]'], ["{}"]),
    "everyday patterns": ({"type": "string", "pattern": "^\\d{3}\\-\\w+\\.\\w$"}, ['"123-ab.c"'], ['"12-ab.c"']),
    "a pattern anywhere": ({"type": "string", "pattern": "b.d"}, ['"abcde"'], ['"abd"']),
    "a type list": ({"type": ["integer", "null"]}, ["-7", "null"], ["1.5", '"a"']),
    "mixed values": ({"enum": [1, None, "a", [1], {"k": "v"}]}, ["1", "null", '{"k":"v"}'], ["2", "[]"]),
    "keys that need escapes": (
        closed(**{'a"b\\c\n\u540d': {"type": "null"}}),
        ['{"a\\"b\\\\c\\n\u540d":null}'],
        ["{}"],
    ),
    "a range": ({"type": "integer", "minimum": -12, "maximum": 205}, ["-12", "0", "199", "205"], ["-13", "206", "07"]),
    "lengths": ({"type": "string", "minLength": 2, "maxLength": 3}, ['"\u00e9\\n"'], ['"\U0001f600"', '"abcd"']),
    "counts": ({"type": "array", "items": {"type": "null"}, "minItems": 1.0, "maxItems": 2.0}, ["[null]"], ["[]"]),
    "nothing at all": (closed(), ["{}"], ['{"a":1}']),
    "an old tuple": (
        {"$schema": "http://json-schema.org/draft-07/schema#", "type": "array", "items": [{"type": "null"}]},
        ["[null]"],
        ["[1]"],
    ),
    "two days that are none": (
        {"type": "string", "format": "date"},
        ['"2024-03-31"'],
        ['"2024-02-30"', '"2023-02-29"', '"2024-04-31"'],
    ),
}


@pytest.mark.parametrize(("schema", "good", "bad"), ANSWERS.values(), ids=ANSWERS)
def test_what_a_schema_allows(
    constraints: Constraints, takes: Takes, schema: Any, good: list[str], bad: list[str]
) -> None:
    assert [text for text in good if not takes(constraints, by(schema), text)] == []
    assert [text for text in bad if takes(constraints, by(schema), text)] == []


REFUSED = {
    "no JSON": ("{", "not JSON"),
    "NaN": ('{"const": NaN}', "not JSON"),
    "a list": ("[]", "must be an object"),
    "an unknown type": ('{"type": "frob"}', "frob"),
    "not": ('{"not": {"type": "string"}}', "not is not supported"),
    "if": ('{"if": {"type": "string"}}', "if is not supported"),
    "uniqueItems": ('{"type": "array", "uniqueItems": true}', "uniqueItems"),
    "oneOf beside properties": (
        '{"properties": {"act": {"enum": ["go"]}}, "oneOf": [{"required": ["x"]}, {"required": ["y"]}]}',
        "may both be valid",
    ),
    "oneOf of numbers": ('{"oneOf": [{"type": "integer"}, {"type": "number"}]}', "may both be valid"),
    "a reference to the net": ('{"$ref": "https://example.org/x"}', "not allowed"),
    "a reference to nothing": ('{"$ref": "#/a"}', "names no schema"),
    "a reference to itself": ('{"$ref": "#"}', "without an end"),
    "references in a ring": (
        '{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}',
        "without an end",
    ),
    "a required self": ('{"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}', "without an end"),
    "depth": ('{"items":' * 60 + "{}" + "}" * 60, "nested deeper"),
    "JSON too deep": ("[" * 30_000, "nested too deep"),
    "a huge count": ('{"type": "string", "minLength": 1000000000}', "minLength"),
    "counts the wrong way round": ('{"type": "string", "minLength": 2, "maxLength": 1}', "greater"),
    "a huge count in a pattern": ('{"type": "string", "pattern": "^a{100000}$"}', "beyond 1000"),
    "a stray bracket": ('{"type": "string", "pattern": "^}$"}', "not where it can be used"),
    "look-ahead": ('{"type": "string", "pattern": "(?=a)b"}', "look-around"),
    "a word boundary": ('{"type": "string", "pattern": "\\\\bfoo"}', "not supported"),
    "a lone surrogate": ('{"type": "string", "pattern": "^\\ud800$"}', "surrogate"),
    "no alternatives": ('{"enum": []}', "no value is valid"),
    "nothing": ("false", "no value is valid"),
    "a list of items": ('{"type": "array", "items": [{"type": "null"}]}', "prefixItems"),
    "a fraction's multiple": ('{"type": "number", "multipleOf": 0.1}', "multipleOf"),
    "a great multiple": ('{"type": "integer", "multipleOf": 1000003}', "multipleOf"),
    "an unknown format": ('{"type": "string", "format": "iban"}', "iban"),
    "an unknown dialect": ('{"$schema": "https://example.org/mine"}', "not known"),
    "llguidance's own options": ('{"type": "object", "x-guidance": {"lenient": true}, "not": {}}', "not supported"),
}


@pytest.mark.parametrize(("text", "why"), REFUSED.values(), ids=REFUSED)
def test_a_schema_that_cannot_be_kept_to_is_refused_with_the_reason(
    constraints: Constraints, text: str, why: str
) -> None:
    with pytest.raises(BadRequest, match=why):
        constraints.check(Sampling(json_schema=text))


def test_without_llguidance_the_reason_says_that_it_would_help(without_guidance: Constraints) -> None:
    with pytest.raises(BadRequest, match="needs llguidance, which is not installed"):
        without_guidance.check(by({"allOf": [{"type": "object"}, {"required": ["a"]}]}))


@pytest.mark.skipif(not is_installed(), reason="llguidance is not installed")
def test_a_control_character_in_a_constant_closes_keys(constraints: Constraints, takes: Takes) -> None:
    """With ``\\uXXXX`` in strings llguidance takes an escaped "a" for another key than "a"."""
    open_keys = {"type": "object", "properties": {"a": {"const": "\x01"}}}
    assert begin(constraints, open_keys) is None or not takes(constraints, by(open_keys), '{"\\u0061":1}')
    assert takes(constraints, by(closed(a={"const": "\x01"})), '{"a":"\\u0001"}')
