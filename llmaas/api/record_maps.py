"""Records (dataclasses) to maps and back, by the types of their fields.

Law: pure, and generic: a new field of a record needs no code here. Fields may be str, int, float, bool, bytes, enums,
records, tuples of these, and any of them or None. A field of ``Bulk`` holds what came, a view perhaps; one of bytes
holds bytes of its own.

>>> from llmaas.records import Message
>>> to_map(Message("user", "Hello"))
{'role': 'user', 'content': 'Hello'}
>>> from_map(Message, {"role": "user", "content": "Hello"})
Message(role='user', content='Hello')
"""

from __future__ import annotations

import enum
import functools
import reprlib
import types
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from llmaas.api.bulk import Bulk
from llmaas.api.wire import Frame
from llmaas.errors import BadRequest

T = TypeVar("T")
_PLAIN = frozenset((str, int, float, bool, type(None)))
_KINDS: dict[object, tuple[tuple[type, ...], str]] = {
    str: ((str,), "a string"),
    int: ((int,), "an integer"),
    float: ((float, int), "a number"),
    bool: ((bool,), "true or false"),
    bytes: ((bytes, memoryview), "bytes"),
    Bulk: ((bytes, memoryview), "bytes"),
}


def to_map(record: object) -> Frame:
    """A record as a map: enums become their values, tuples lists, and records in it maps."""
    return {name: _plain(getattr(record, name)) for name in _plan(type(record))}


def _plain(value: Any) -> Any:
    if type(value) in _PLAIN:  # nearly all, and a page of a list has hundreds
        return value
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return to_map(value) if is_dataclass(value) else value


def from_map(cls: type[T], value: object, *, strict: bool = False, where: str = "") -> T:
    """The record of class ``cls`` that a map holds; ``strict`` refuses fields that ``cls`` does not have.

    ``where`` is the path of the map in its frame, for error messages. Raises BadRequest that names the field.
    """
    if type(value) is not dict:
        raise BadRequest(f"field {where!r} must be a map, not {type(value).__name__}")
    plan = _plan(cls)
    path = f"{where}." if where else ""
    for name in value:
        if strict and name not in plan:
            raise BadRequest(f"unknown field {reprlib.repr(path + name)}; known here: {', '.join(plan) or 'none'}")
    found = {}
    for name, (hint, required) in plan.items():
        if name in value:
            found[name] = _convert(hint, value[name], path + name, strict)
        elif required:
            raise BadRequest(f"field {path + name!r} is missing")
    try:
        return cls(**found)
    except ValueError as e:
        raise BadRequest(str(e)) from e


def _make_plan(cls: Any) -> dict[str, tuple[Any, bool]]:
    """For each field: its type, and whether a map must have it."""
    hints = get_type_hints(cls)
    return {f.name: (hints[f.name], f.default is MISSING and f.default_factory is MISSING) for f in fields(cls)}


_plan: Callable[[Any], dict[str, tuple[Any, bool]]] = functools.cache(_make_plan)


@functools.cache
def _shape(hint: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    """A type without the name that a NewType gives it, what it is made from, and of what. (Asked for each value.)"""
    hint = getattr(hint, "__supertype__", hint)
    return hint, get_origin(hint), get_args(hint)


def _convert(hint: Any, value: Any, where: str, strict: bool) -> Any:
    hint, origin, args = _shape(hint)
    if hint in _KINDS:
        kinds, words = _KINDS[hint]
        if type(value) not in kinds:
            raise BadRequest(f"field {where!r} must be {words}, not {type(value).__name__}")
        return value if type(value) is hint or hint == Bulk else hint(value)
    if origin in (Union, types.UnionType):
        (inner,) = (arg for arg in args if arg is not type(None))
        return None if value is None else _convert(inner, value, where, strict)
    if origin is tuple:
        if type(value) is not list or (args[-1] is not Ellipsis and len(value) != len(args)):
            raise BadRequest(f"field {where!r} must be a list{'' if args[-1] is Ellipsis else f' of {len(args)}'}")
        inners = args[:1] * len(value) if args[-1] is Ellipsis else args
        return tuple(_convert(inners[i], item, f"{where}[{i}]", strict) for i, item in enumerate(value))
    if issubclass(hint, enum.Enum):
        try:
            return hint(value)
        except ValueError:
            known = [member.value for member in hint]
            raise BadRequest(f"field {where!r} must be one of {known}, not {reprlib.repr(value)}") from None
    return from_map(hint, value, strict=strict, where=where)
