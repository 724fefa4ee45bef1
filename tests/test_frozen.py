"""``@frozen`` makes what ``@dataclass(frozen=True, slots=True)`` makes."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Generic, TypeVar

import pytest

from llmaas.frozen import frozen

T = TypeVar("T")


def _check(self: Any) -> None:
    if self.x < 0:
        raise ValueError("x must be 0 or more")


@frozen
class Ours:
    x: int
    y: int = 2
    tags: list[str] = field(default_factory=list, compare=False)
    secret: str = field(default="s", repr=False)
    __post_init__ = _check


@dataclass(frozen=True, slots=True)
class Theirs:
    x: int
    y: int = 2
    tags: list[str] = field(default_factory=list, compare=False)
    secret: str = field(default="s", repr=False)
    __post_init__ = _check


@frozen(eq=False)
class Itself:
    x: int


@frozen(repr=False)
class Silent:
    key: bytes


@frozen(kw_only=True)
class Named:
    low: int = 0
    high: int


@frozen
class Empty:
    """Nothing."""


@frozen
class Box(Generic[T]):
    value: T


@frozen
class Wider(Box[int]):
    more: int = 0


BOTH = pytest.mark.parametrize("cls", [Ours, Theirs])


@BOTH
def test_arguments_defaults_and_their_order(cls: Any) -> None:
    point = cls(1)
    assert (point.x, point.y, point.tags, point.secret) == (1, 2, [], "s")
    assert cls(1).tags is not point.tags
    assert cls(1, 3, ["a"], secret="t").tags == ["a"]
    assert [f.name for f in fields(cls)] == ["x", "y", "tags", "secret"]
    assert cls.__match_args__ == ("x", "y", "tags", "secret")
    assert list(inspect.signature(cls).parameters) == ["x", "y", "tags", "secret"]
    assert not hasattr(point, "__dict__")


@BOTH
def test_wrong_arguments_are_refused_by_name(cls: Any) -> None:
    with pytest.raises(TypeError, match=rf"{cls.__name__}.__init__\(\) missing 1 required positional argument: 'x'"):
        cls()
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        cls(1, z=2)
    with pytest.raises(ValueError, match="x must be"):
        cls(-1)


@BOTH
def test_equal_by_the_fields_that_compare(cls: Any) -> None:
    assert cls(1) == cls(1, tags=["other"]) != cls(2)
    assert hash(cls(1)) == hash(cls(1, tags=["other"]))
    assert len({cls(1), cls(1), cls(2)}) == 2
    assert cls(1) != (1, 2, "s")
    assert cls(1) != (Theirs if cls is Ours else Ours)(1), "only those of one class are equal"


@BOTH
def test_the_text_names_the_fields_that_may_be_seen(cls: Any) -> None:
    assert repr(cls(1)) == f"{cls.__name__}(x=1, y=2, tags=[])"


@BOTH
def test_nothing_can_be_changed(cls: Any) -> None:
    point = cls(1)
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'x'"):
        point.x = 2
    with pytest.raises(FrozenInstanceError, match="cannot delete field 'x'"):
        del point.x
    with pytest.raises((FrozenInstanceError, TypeError)):  # TypeError: theirs has a fault there before Python 3.12
        point.new = 1
    assert point.x == 1


@BOTH
def test_copies(cls: Any) -> None:
    point = cls(1, 3, ["a"], "t")
    for made in (copy.copy(point), copy.deepcopy(point), pickle.loads(pickle.dumps(point))):
        assert made == point
        assert made.tags == ["a"]
        assert made.secret == "t"
    assert replace(point, y=4) == cls(1, 4, ["a"], "t")
    with pytest.raises(ValueError, match="x must be"):
        replace(point, x=-1)
    assert asdict(point) == {"x": 1, "y": 3, "tags": ["a"], "secret": "t"}
    assert is_dataclass(cls)


def test_without_equality_each_is_itself() -> None:
    one = Itself(1)
    assert one == one != Itself(1)
    assert len({one, Itself(1)}) == 2
    assert repr(one) == "Itself(x=1)"


def test_without_a_text_there_is_none_of_the_fields() -> None:
    assert "key" not in repr(Silent(b"key"))
    assert Silent(b"key") == Silent(b"key")


def test_fields_by_name_only() -> None:
    assert (Named(high=2).low, Named(high=2).high) == (0, 2)
    with pytest.raises(TypeError, match="positional"):
        Named(1, 2)  # type: ignore[call-arg]


def test_no_fields() -> None:
    assert Empty() == Empty()
    assert hash(Empty()) == hash(Empty())
    assert repr(pickle.loads(pickle.dumps(Empty()))) == "Empty()"


def test_generic_and_inherited() -> None:
    assert Box[int](1) == Box(1)
    assert Wider(1, 2).value == 1
    assert Wider(1) != Box(1)
    assert repr(Wider(1)) == "Wider(value=1, more=0)"


def test_a_class_without_a_docstring_names_its_fields() -> None:
    assert Box.__doc__ == "Box(value: T)"
    assert Empty.__doc__ == "Nothing."
