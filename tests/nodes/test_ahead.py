"""An iterator that is taken from on a thread: items in order, errors where they belong, and an end."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from llmaas.nodes.ahead import ahead


def test_items_come_in_order_and_few_are_held() -> None:
    made = []

    def items() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    with ahead(items()) as found:
        first = next(found)
        assert first == 0 and len(made) < 10
        assert list(found) == list(range(1, 100))


def test_an_error_comes_after_what_was_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("two")

    seen = []
    with pytest.raises(KeyError), ahead(items()) as found:
        for item in found:
            seen.append(item)
    assert seen == [1]


@pytest.mark.parametrize("n_taken", [0, 1, 50])
def test_who_stops_early_leaves_no_thread(n_taken: int) -> None:
    before = threading.active_count()
    with ahead(iter(range(10_000))) as found:
        for _ in range(n_taken):
            next(found)
    assert threading.active_count() == before
