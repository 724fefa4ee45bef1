"""How large what a chat template makes is, or would be: estimated before it is made, so that it need not be.

Law: pure.
"""

from __future__ import annotations

import re
from typing import Any

import jinja2
from jinja2.utils import Namespace

MOST_SIZE = 1 << 23
"""Characters of a text, or items of a list, that a template may make."""
MOST_NESTED = 1 << 18
"""Lists, maps and values that something may hold that is written as text or compared."""

SCALARS = (str, int, float, type(None), jinja2.Undefined)
_CONTAINERS: tuple[type, ...] = (dict, list, tuple, type({}.keys()), type({}.values()), type({}.items()))
_NUMBER = re.compile("[0-9]+")


class TemplateLimit(jinja2.TemplateRuntimeError):
    """A rendering takes too long, or makes too much."""


def length_of(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple, dict)) else 0


def weight(value: Any) -> int:
    """About how many characters the value has as text. Raises TemplateLimit: a list may hold another one twice, which
    holds another one twice."""
    if isinstance(value, str):
        return len(value)
    todo: list[Any] = [value]
    n = size = 0
    while todo:
        each: Any = todo.pop()
        n += 1
        if isinstance(each, str):
            size += len(each) + 4
        elif isinstance(each, int):
            size += each.bit_length() // 3 + 8
        elif isinstance(each, Namespace):
            raise TemplateLimit("it writes or compares a namespace")
        elif not _is_container(each):
            size += 32
        elif n + len(todo) + 2 * len(each) > MOST_NESTED:
            raise TemplateLimit(f"it writes or compares more than {MOST_NESTED} values at once")
        else:
            todo += [*each.keys(), *each.values()] if isinstance(each, dict) else each
    return size + n


def product_size(left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, int):
        return MOST_SIZE + 1 if left.bit_length() + right.bit_length() > 1 << 14 else 0
    if isinstance(left, int):
        left, right = right, left
    return length_of(left) * max(0, right) if isinstance(right, int) else 0


def check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > 1 << 14:
        raise TemplateLimit("it makes a number of more than 16384 bits")


def replaced_size(text: str, old: Any, new: Any) -> int:
    return len(text) + (text.count(old) * len(new) if isinstance(old, str) and isinstance(new, str) else 0)


def widths(template: str) -> int:
    """What the numbers in a format may add: of each is taken that it is a width."""
    if "*" in template or any(len(number) > 8 for number in _NUMBER.findall(template)):
        return MOST_SIZE + 1
    return sum(map(int, _NUMBER.findall(template)))


def _is_container(value: Any) -> bool:
    return isinstance(value, _CONTAINERS)
