"""Which contexts hold which beginnings of conversations.

Law: values only; for one event loop. A look-up takes a step for each message of the conversation that is looked for,
however many contexts there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from llmaas.frozen import frozen
from llmaas.service.history_keys import HistoryKey
from llmaas.service.live_context import LiveContext, MessageMark

_MOST = 64
"""Contexts that are compared where many hold one beginning: those that came to it last."""

_Contexts = LiveContext | dict[LiveContext, None]
"""One context, or several in the order in which they came: most beginnings are held by one, and a dict takes 200 bytes.
"""


@frozen
class Entry:
    """What is known of a context: ``marks`` are those of its messages up to the first raw text, ``keys`` has one key
    for each of them, behind the root. ``whole``: these messages are all that the context holds."""

    marks: Sequence[MessageMark]
    keys: tuple[HistoryKey, ...]
    whole: bool


NOTHING = Entry((), (), False)


class HistoryTable:
    """``put`` what a context holds, and look it up."""

    def __init__(self) -> None:
        self._through: dict[HistoryKey, _Contexts] = {}
        """The contexts that hold a beginning, and perhaps more."""
        self._ends: dict[HistoryKey, _Contexts] = {}
        """The contexts that hold just this."""
        self._entries: dict[LiveContext, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def n_keys(self) -> int:
        """How many different beginnings there are."""
        return len(self._through)

    def entry(self, live: LiveContext) -> Entry:
        return self._entries.get(live, NOTHING)

    def put(self, live: LiveContext, new: Entry) -> None:
        """The context holds this from now on, and nothing else."""
        old = self.entry(live)
        n_same = next((i for i, (a, b) in enumerate(zip(old.keys, new.keys, strict=False)) if a != b), None)
        n_same = min(len(old.keys), len(new.keys)) if n_same is None else n_same
        for key in old.keys[n_same:]:
            _remove(self._through, key, live)
        if old.whole:
            _remove(self._ends, old.keys[-1], live)
        for key in new.keys[n_same:]:
            _add(self._through, key, live)
        if new.whole:
            _add(self._ends, new.keys[-1], live)
        if new.keys:
            self._entries[live] = new
        else:
            self._entries.pop(live, None)

    def forget(self, live: LiveContext) -> None:
        self.put(live, NOTHING)

    def n_held(self, keys: Sequence[HistoryKey]) -> int:
        """How many of the keys, which are those of one conversation and begin with the root, some context holds."""
        n = len(keys)
        while n and keys[n - 1] not in self._through:
            n -= 1
        return n

    def holding(self, key: HistoryKey) -> list[LiveContext]:
        """Contexts that hold this beginning, and perhaps more."""
        return _some(self._through.get(key))

    def ending(self, key: HistoryKey) -> list[LiveContext]:
        """Contexts that hold just this."""
        return _some(self._ends.get(key))


def _add(table: dict[HistoryKey, _Contexts], key: HistoryKey, live: LiveContext) -> None:
    found = table.get(key)
    if found is None:
        table[key] = live
    elif isinstance(found, dict):
        found[live] = None
    elif found is not live:
        table[key] = {found: None, live: None}


def _remove(table: dict[HistoryKey, _Contexts], key: HistoryKey, live: LiveContext) -> None:
    found = table.get(key)
    if isinstance(found, dict):
        found.pop(live, None)
        if len(found) == 1:
            table[key] = next(iter(found))
    elif found is live:
        del table[key]


def _some(found: _Contexts | None) -> list[LiveContext]:
    if found is None:
        return []
    return list(islice(reversed(found), _MOST)) if isinstance(found, dict) else [found]
