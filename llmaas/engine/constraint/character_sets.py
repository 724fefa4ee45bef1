"""Sets of characters as ranges of code points.

Law: pure functions; what they return is in ascending order, without overlaps.
"""

from __future__ import annotations

from collections.abc import Iterable

from llmaas.engine.constraint.rules import MAX_CHAR, Ranges


def ranges_of(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """The set of all characters in the ranges first - last; one that counts down is empty."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(pair for pair in pairs if pair[0] <= pair[1]):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(merged[-1][1], last)
        else:
            merged.append((first, last))
    return tuple(merged)


def complement(ranges: Ranges) -> Ranges:
    """All characters that are not in the set."""
    gaps, at = [], 0
    for first, last in ranges:
        gaps.append((at, first - 1))
        at = last + 1
    return ranges_of([*gaps, (at, MAX_CHAR)])


def union(*sets: Ranges) -> Ranges:
    return ranges_of(pair for ranges in sets for pair in ranges)


def difference(ranges: Ranges, without: Ranges) -> Ranges:
    return complement(union(complement(ranges), without))


def of_text(text: str) -> Ranges:
    """The set of the characters of a text."""
    return ranges_of((ord(c), ord(c)) for c in text)
