"""A queue of many owners: each gets one item out before any gets a second.

Law: items of one owner come out in the order in which they went in. For one thread at a time.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """False if it is empty.

    >>> queue = FairQueue[int]()
    >>> for owner, item in (("a", 1), ("a", 2), ("b", 3)):
    ...     queue.add(owner, item)
    >>> [queue.pop() for _ in range(3)], bool(queue)
    ([1, 3, 2], False)
    """

    def __init__(self) -> None:
        self._items: OrderedDict[str, deque[T]] = OrderedDict()
        """Of each owner that has any; whose turn it is stands first."""

    def __bool__(self) -> bool:
        return bool(self._items)

    def __contains__(self, owner: str) -> bool:
        """Whether the owner has any items."""
        return owner in self._items

    def add(self, owner: str, item: T) -> None:
        self._items.setdefault(owner, deque()).append(item)

    def pop(self) -> T:
        """The next item. Raises KeyError if there is none."""
        owner, items = self._items.popitem(last=False)
        item = items.popleft()
        if items:
            self._items[owner] = items  # behind the others
        return item

    def take_all(self) -> list[T]:
        """All items; the queue is empty then."""
        items = [item for each in self._items.values() for item in each]
        self._items.clear()
        return items
