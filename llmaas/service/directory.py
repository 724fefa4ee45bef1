"""All contexts in memory, by id and by name.

Law: an app finds only its own contexts; the daemon's owner finds every one.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Collection, Iterator
from collections.abc import Set as AbstractSet

from llmaas.errors import UnknownContext
from llmaas.records import AppId, ChunkKey, ContextId
from llmaas.service.live_context import LiveContext, root_app

_ID = re.compile("[0-9a-fA-F]{16}")
_CREATING_APPS = 4096
"""More than can have creates under way at once."""


class Directory:
    """All contexts, by id and by (app, name). For one event loop."""

    def __init__(self) -> None:
        self._by_id: dict[ContextId, LiveContext] = {}
        self._by_number: dict[int, LiveContext] = {}
        """In the order of their numbers, which is that in which they came."""
        self._numbers = itertools.count(1)
        self._by_name: dict[tuple[AppId, str], LiveContext] = {}
        self._anonymous: dict[AppId, dict[LiveContext, None]] = {}
        self._last_number: dict[AppId, int] = {}
        """Number of the last name that was made up for an app; the app that asked last stands at the end."""

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[LiveContext]:
        return iter(self._by_id.values())

    def add(self, live: LiveContext) -> None:
        live.number = next(self._numbers)
        self._by_id[live.id] = self._by_number[live.number] = live
        self._by_name[live.row.app, live.row.name] = live
        if live.anonymous:
            self._anonymous.setdefault(live.row.app, {})[live] = None

    def remove(self, live: LiveContext) -> None:
        del self._by_id[live.id], self._by_number[live.number]
        del self._by_name[live.row.app, live.row.name]
        if (mine := self._anonymous.get(live.row.app)) is not None:
            mine.pop(live, None)
            if not mine:
                del self._anonymous[live.row.app]

    def ids(self, app: AppId) -> list[ContextId]:
        """The ids of the app's contexts."""
        return [live.id for live in self._by_id.values() if live.row.app == app]

    def anonymous(self, app: AppId) -> Collection[LiveContext]:
        """The app's anonymous contexts."""
        return self._anonymous.get(app, {}).keys()

    def after(self, number: int) -> Iterator[tuple[int, LiveContext]]:
        """The contexts with higher numbers than ``number``, in their order."""
        return ((n, live) for n, live in self._by_number.items() if n > number)

    def other_owners(self, live: LiveContext, keys: AbstractSet[ChunkKey]) -> dict[ChunkKey, ContextId]:
        """For each of ``keys`` that other contexts have too, one of those contexts."""
        found, app = dict[ChunkKey, ContextId](), root_app(live.row)
        for other in self._by_id.values():
            if other is not live and root_app(other.row) == app:
                found.update((key, other.id) for key in other.keys if key in keys)
        return found

    def by_id(self, context: ContextId) -> LiveContext:
        return self._by_id[context]

    def has_id(self, context: ContextId) -> bool:
        return context in self._by_id

    def find(self, app: AppId | None, ref: str) -> LiveContext:
        """By id or name. ``app`` None (the daemon's owner) finds anyone's by id. Raises UnknownContext.

        An id of the app wins: a store may hold a context that was named as another's id, before such names were
        refused, and who holds an id must reach that context and no other.
        """
        live = self._by_id.get(ContextId(ref))
        if app is not None and (live is None or live.row.app != app):
            live = self._by_name.get((app, ref))
        if live is None:
            raise UnknownContext(f"no context {ref!r}" + (f" of app {app}" if app else ""))
        return live

    def has_name(self, app: AppId, name: str) -> bool:
        return (app, name) in self._by_name

    def fresh_name(self, app: AppId) -> str:
        """A name that the app has not got and that is not given out twice, however many creates are under way."""
        n = self._last_number.pop(app, 0) + 1
        while self.has_name(app, f"context-{n}"):
            n += 1
        self._last_number[app] = n
        if len(self._last_number) > _CREATING_APPS:
            del self._last_number[next(iter(self._last_number))]
        return f"context-{n}"


def new_id() -> ContextId:
    return ContextId(secrets.token_hex(8))


def looks_like_id(name: str) -> bool:
    """Whether ``name`` might be the id of a context, now or later.

    >>> looks_like_id("6f1c0e52a9b34d77"), looks_like_id("inbox")
    (True, False)
    """
    return _ID.fullmatch(name) is not None
