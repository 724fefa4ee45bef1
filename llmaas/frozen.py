"""``@frozen``: a frozen dataclass with slots, whose making takes a quarter of the time.

``@dataclass(frozen=True, slots=True)`` does the same, but compiles six functions per class (up to Python 3.12: 0.65 ms
on a small x86 machine), of which five say the same for all classes. A program that says ``from llmaas import Client``
makes eighty of these classes, the daemon 350, before it does anything. Here only ``__init__`` is compiled.

Law: what ``dataclasses`` says of a class (``fields``, ``replace``, ``asdict``, ``is_dataclass``, ``field``) holds here,
and copying and pickling. Of the options there are those in use; a field that is not an argument of ``__init__`` and
has a default is not among them.

>>> @frozen
... class Point:
...     x: int
...     y: int = 0
>>> Point(1)
Point(x=1, y=0)
>>> Point(1) == Point(1, 0), len({Point(1), Point(1, 0), Point(2)})
(True, 2)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar, overload

T = TypeVar("T")
if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:  # what type checkers read need not be installed

    def dataclass_transform(**_options: Any) -> Any:
        return lambda decorator: decorator


_set = object.__setattr__


@overload
def frozen(cls: type[T], /) -> type[T]: ...
@overload
def frozen(*, eq: bool = True, repr: bool = True, kw_only: bool = False) -> Callable[[type[T]], type[T]]: ...
@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: Any = None, /, *, eq: bool = True, repr: bool = True, kw_only: bool = False) -> Any:
    """``eq``: equal if all fields are, and a hash to match; else each is equal to itself alone. ``repr``: with a text
    that names the fields. ``kw_only``: fields are given by name."""

    def make(cls: Any) -> Any:
        bare = cls.__doc__ is None
        if bare:
            cls.__doc__ = cls.__name__  # the standard decorator would look for a signature, which takes 0.5 ms
        made = dataclass(init=False, repr=False, eq=False, slots=True, kw_only=kw_only)(cls)
        all_fields = fields(made)
        _add(made, __init__=_initializer(made, all_fields), __setattr__=_refuse_to_set, __delattr__=_refuse_to_delete)
        _add(made, __getstate__=_getstate, __setstate__=_setstate)
        if eq:
            values = _values_of([each.name for each in all_fields if each.compare])
            _add(made, __eq__=_comparison(values), __hash__=_hashing(values))
        if bare:
            made.__doc__ = f"{cls.__name__}({', '.join(f'{each.name}: {each.type}' for each in all_fields)})"
        if repr:
            _add(made, __repr__=_text(tuple(each.name for each in all_fields if each.repr)))
        return made

    return make if cls is None else make(cls)


def _add(cls: Any, **methods: Any) -> None:
    for name, method in methods.items():
        setattr(cls, name, method)


def _initializer(cls: Any, all_fields: tuple[Field[Any], ...]) -> Any:
    """``__init__``, as ``dataclasses`` makes it."""
    names: dict[str, Any] = {"_set": _set, "_MISSING": MISSING}
    arguments: list[str] = []
    by_name: list[str] = []
    body: list[str] = []
    for each in all_fields:
        if not each.init:
            continue
        name, default = each.name, ""
        value = name
        if each.default is not MISSING:
            names[f"_default_{name}"], default = each.default, f"=_default_{name}"
        elif each.default_factory is not MISSING:
            names[f"_make_{name}"], default = each.default_factory, "=_MISSING"
            value = f"_make_{name}() if {name} is _MISSING else {name}"
        (by_name if each.kw_only else arguments).append(name + default)
        body.append(f"_set(self, {name!r}, {value})")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    given = ", ".join(["self", *arguments, *(["*", *by_name] if by_name else [])])
    exec(f"def __init__({given}):\n " + "\n ".join(body or ["pass"]), names)
    made = names["__init__"]
    made.__module__, made.__qualname__ = cls.__module__, f"{cls.__qualname__}.__init__"
    made.__annotations__ = {each.name: each.type for each in all_fields if each.init} | {"return": None}
    return made


def _refuse_to_set(self: Any, name: str, value: object) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_to_delete(self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _getstate(self: Any) -> list[Any]:
    return [getattr(self, each.name) for each in fields(self)]


def _setstate(self: Any, state: list[Any]) -> None:
    for each, value in zip(fields(self), state, strict=True):
        _set(self, each.name, value)


def _values_of(names: list[str]) -> Callable[[Any], Any]:
    if len(names) > 1:
        return attrgetter(*names)  # a tuple
    return lambda self: tuple(getattr(self, name) for name in names)


def _comparison(values: Callable[[Any], Any]) -> Any:
    def __eq__(self: Any, other: Any) -> Any:
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    return __eq__


def _hashing(values: Callable[[Any], Any]) -> Any:
    def __hash__(self: Any) -> int:
        return hash(values(self))

    return __hash__


def _text(names: tuple[str, ...]) -> Any:
    def __repr__(self: Any) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    return __repr__
