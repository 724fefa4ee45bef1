"""Fifty JSON schemas as pydantic 2 writes them: what programs ask a language model to fill in.

Law: data only. Each has the shape that ``model_json_schema`` gives: titles, defaults, ``$defs``, ``anyOf`` for optional
fields, ``const`` and ``enum`` for literals, ``discriminator`` for unions.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_STR: Schema = {"type": "string"}
_INT: Schema = {"type": "integer"}
_NUM: Schema = {"type": "number"}
_BOOL: Schema = {"type": "boolean"}
_NULL: Schema = {"type": "null"}


def _short(most: int = 20, least: int | None = None) -> Schema:
    return {"maxLength": most, **({} if least is None else {"minLength": least}), "type": "string"}


def _optional(schema: Schema) -> Schema:
    return {"anyOf": [schema, _NULL], "default": None}


def _list(items: Schema, most: int = 3, least: int | None = None) -> Schema:
    return {"items": items, "maxItems": most, **({} if least is None else {"minItems": least}), "type": "array"}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _enum(*values: object, title: str = "Kind") -> Schema:
    return {"enum": list(values), "title": title, "type": "string" if isinstance(values[0], str) else "integer"}


def _const(value: str) -> Schema:
    return {"const": value, "default": value, "type": "string"}


def _model(title_: str, defs: dict[str, Schema] | None = None, /, **fields: Schema) -> Schema:
    """A model; fields with a default are not required."""
    properties = {
        field: schema if "$ref" in schema else {**schema, "title": field.replace("_", " ").title()}
        for field, schema in fields.items()
    }
    required = [field for field, schema in fields.items() if "default" not in schema or "const" in schema]
    head = {"$defs": defs} if defs else {}
    return {**head, "properties": properties, "required": required, "title": title_, "type": "object"}


def _closed(schema: Schema) -> Schema:
    """With ``ConfigDict(extra="forbid")``."""
    return {**schema, "additionalProperties": False}


def _map(values: Schema) -> Schema:
    return {"additionalProperties": values, "type": "object"}


def _tuple(*items: Schema) -> Schema:
    return {"maxItems": len(items), "minItems": len(items), "prefixItems": list(items), "type": "array"}


def _union(tag: str, **models: Schema) -> Schema:
    mapping = {schema["properties"][tag]["const"]: f"#/$defs/{name}" for name, schema in models.items()}
    return {"discriminator": {"mapping": mapping, "propertyName": tag}, "oneOf": [_ref(name) for name in models]}


_ADDRESS = _model("Address", street=_short(), city=_short(), zip={"pattern": "^\\d{5}$", "type": "string"})
_PERSON = _model("Person", name=_short(), age={"minimum": 0, "maximum": 130, "type": "integer"})
_CAT = _closed(_model("Cat", kind=_const("cat"), lives={"minimum": 1, "maximum": 9, "type": "integer"}))
_DOG = _closed(_model("Dog", kind=_const("dog"), name=_short(), barks={**_BOOL, "default": True}))
_NODE = _closed(_model("Node", value=_short(8), children={"items": _ref("Node"), "maxItems": 2, "type": "array"}))
_LINK = _closed(_model("Link", value=_INT, next=_optional(_ref("Link"))))
_NUMBER = _closed(_model("Number", op=_const("number"), value=_INT))
_ADD = _closed(_model("Add", op=_const("add"), left=_ref("Number"), right=_ref("Number")))
_TEXT = _closed(_model("Text", type=_const("text"), text=_short()))
_CLICK = _closed(_model("Click", type=_const("click"), x=_INT, y=_INT))

SCHEMAS: dict[str, Schema] = {
    "person": _PERSON,
    "person, closed": _closed(_PERSON),
    "one text": _model("Answer", answer=_short(40)),
    "free text": _closed(_model("Note", text=_STR)),
    "yes or no": _closed(_model("Verdict", ok=_BOOL, reason=_short(40))),
    "optional fields": _closed(_model("Profile", nick=_optional(_short(12)), age=_optional(_INT), admin=_BOOL)),
    "all optional": _closed(_model("Filter", name=_optional(_short(9)), limit={**_INT, "default": 10})),
    "literal": _closed(_model("Mood", mood=_enum("happy", "sad", "angry"))),
    "literal of one": _closed(_model("Ping", kind=_const("ping"), n=_INT)),
    "literal of numbers": _closed(_model("Stars", stars=_enum(1, 2, 3, 4, 5))),
    "mixed literal": _closed(_model("Value", value={"enum": [1, "one", None, True, 2.5]})),
    "enum class": _closed(_model("Shirt", {"Size": _enum("S", "M", "L", title="Size")}, size=_ref("Size"), n=_INT)),
    "enum class with default": _closed(
        _model("Job", {"Level": _enum("low", "high", title="Level")}, level={**_ref("Level"), "default": "low"})
    ),
    "nested model": _closed(_model("Customer", {"Address": _ADDRESS}, name=_short(), home=_ref("Address"))),
    "optional nested model": _closed(_model("Guest", {"Address": _ADDRESS}, home=_optional(_ref("Address")), n=_INT)),
    "list of models": _closed(_model("Team", {"Person": _PERSON}, people=_list(_ref("Person"), 2, 1))),
    "list of texts": _closed(_model("Tags", tags=_list(_short(10), 4))),
    "list of literals": _closed(_model("Days", days=_list(_enum("mon", "tue", "wed"), 3, 2))),
    "list of numbers": _closed(_model("Vector", values=_list(_NUM, 3, 3))),
    "list without limits": _closed(_model("Ids", ids={"items": _INT, "type": "array"})),
    "list of anything": _closed(_model("Args", args={"items": {}, "maxItems": 2, "type": "array"})),
    "list of lists": _closed(_model("Grid", rows=_list(_list(_INT, 2, 2), 2, 1))),
    "tuple": _closed(_model("Point", at=_tuple(_INT, _INT), name=_short(6))),
    "tuple of kinds": _closed(_model("Pair", pair=_tuple(_short(6), _BOOL))),
    "map of integers": _closed(_model("Counts", counts=_map(_INT))),
    "map of models": _closed(_model("People", {"Person": _closed(_PERSON)}, by_name=_map(_ref("Person")))),
    "plain dict": _closed(_model("Config", options={"additionalProperties": True, "type": "object"}, n=_INT)),
    "any": _closed(_model("Set", key=_short(8), value={})),
    "union of types": _closed(_model("Cell", cell={"anyOf": [_INT, _short(8), _BOOL]})),
    "union of models": _closed(_model("Owner", {"Cat": _CAT, "Dog": _DOG}, pet={"anyOf": [_ref("Cat"), _ref("Dog")]})),
    "discriminated union": _closed(_model("Zoo", {"Cat": _CAT, "Dog": _DOG}, pet=_union("kind", Cat=_CAT, Dog=_DOG))),
    "list of a discriminated union": _closed(
        _model("Script", {"Click": _CLICK, "Text": _TEXT}, steps=_list(_union("type", Click=_CLICK, Text=_TEXT), 2, 1))
    ),
    "tree": {"$defs": {"Node": _NODE}, "$ref": "#/$defs/Node"},
    "linked list": {"$defs": {"Link": _LINK}, "$ref": "#/$defs/Link"},
    "expression": _closed(_model("Sum", {"Number": _NUMBER, "Add": _ADD}, sum=_union("op", Number=_NUMBER, Add=_ADD))),
    "bounds of integers": _closed(_model("Dice", roll={"exclusiveMinimum": 0, "maximum": 6, "type": "integer"})),
    "multiples": _closed(_model("Price", cents={"multipleOf": 5, "minimum": 0, "maximum": 9995, "type": "integer"})),
    "bounds of fractions": _closed(_model("Score", score={"minimum": 0.0, "maximum": 1.0, "type": "number"})),
    "exclusive bounds": _closed(_model("Rate", rate={"exclusiveMinimum": 0, "exclusiveMaximum": 1, "type": "number"})),
    "lengths": _closed(_model("Code", code=_short(8, 3), pin=_short(4, 4))),
    "pattern": _closed(_model("Plate", plate={"pattern": "^[A-Z]{1,3}-[A-Z]{1,2} \\d{1,4}$", "type": "string"})),
    "pattern of words": _closed(_model("Slug", slug={"pattern": "^[\\w.-]{3,12}$", "type": "string"})),
    "date and time": _closed(
        _model("Event", day={"format": "date", "type": "string"}, at={"format": "date-time", "type": "string"})
    ),
    "uuid and email": _closed(
        _model("Account", id={"format": "uuid", "type": "string"}, mail={"format": "email", "type": "string"})
    ),
    "duration and address": _closed(
        _model("Route", took={"format": "duration", "type": "string"}, via={"format": "ipv4", "type": "string"})
    ),
    "secret and path": _closed(
        _model(
            "Login",
            password={"format": "password", "maxLength": 12, "type": "string", "writeOnly": True},
            file={"format": "path", "maxLength": 20, "type": "string"},
        )
    ),
    "descriptions": _closed(
        _model(
            "Todo",
            title={**_short(30), "description": "What is to be done", "examples": ["Buy milk"]},
            priority={"default": 3, "description": "1 is urgent", "maximum": 5, "minimum": 1, "type": "integer"},
        )
    ),
    "list at the top": {"items": _ref("Person"), "maxItems": 2, "type": "array", "$defs": {"Person": _closed(_PERSON)}},
    "union at the top": {"anyOf": [_ref("Cat"), _ref("Dog")], "$defs": {"Cat": _CAT, "Dog": _DOG}},
    "deeply nested": _closed(
        _model(
            "Order",
            {
                "Item": _closed(_model("Item", sku={"pattern": "^[a-z]{3}-\\d{3}$", "type": "string"}, n=_INT)),
                "Address": _closed(_ADDRESS),
                "Person": _closed(_model("Person", name=_short(), home=_ref("Address"))),
            },
            buyer=_ref("Person"),
            items=_list(_ref("Item"), 2, 1),
            gift={**_BOOL, "default": False},
        )
    ),
}
