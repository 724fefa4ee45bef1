"""Which connections a server keeps when more come than it has places for.

Law: values only. A connection that has said hello takes a place of its app; until then, and when it is over, it stands
among those that wait. Neither kind can use up the places of the other.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple, Protocol

from llmaas.api.limits import Limits
from llmaas.errors import Busy

MODEST = 4
"""Connections of one app that are not many."""


class PlacedConnection(Protocol):
    """A connection, as this module knows it."""

    has_asked: bool
    """Whether there was a request after the hello."""

    @property
    def idle_since(self) -> float | None:
        """When its last request ended, or it said hello; None while one runs."""

    def give_way(self) -> None:
        """Another connection needs the place: end, and say why."""

    def drop(self) -> None:
        """End at once."""


class _Seat(NamedTuple):
    uid: int
    app: str


class ConnectionPlaces:
    """``enter`` when a connection is made, ``seat`` at its hello, ``unseat`` when it is over, ``leave`` when it is
    closed."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: dict[PlacedConnection, None] = {}
        """Oldest first."""
        self._seated: dict[PlacedConnection, _Seat] = {}
        self._of_user: Counter[int] = Counter()
        self._of_app: Counter[str] = Counter()

    def enter(self, connection: PlacedConnection) -> None:
        """The connection waits for its hello, or to be closed. The one that waits longest is dropped if there are too
        many: whoever means it says hello at once."""
        oldest = next(iter(self._waiting), None)
        self._waiting[connection] = None
        if oldest is not None and len(self._waiting) > self._limits.waiting_connections:
            del self._waiting[oldest]
            oldest.drop()

    def seat(self, connection: PlacedConnection, uid: int, app: str) -> None:
        """The connection has said that it is ``app``'s, of user ``uid``. Raises Busy.

        If all places are taken, a user and app with fewer connections than another gets one of the other's, the one
        that is idle for longest.
        """
        if self._of_app[app] >= self._limits.app_connections:
            raise Busy(
                f"the app {app} has {self._of_app[app]} connections already",
                hint="Close some, or send several requests on one: a connection takes many at once.",
            )
        seat = _Seat(uid, app)
        if len(self._seated) >= self._limits.max_connections:
            if (other := self._to_give_way(seat)) is None:
                raise Busy(f"the daemon serves {len(self._seated)} connections already")
            self._waiting.pop(connection, None)  # before the other waits to be closed: the oldest may be dropped then
            other.give_way()
        self._waiting.pop(connection, None)
        self._seated[connection] = seat
        self._of_user[uid] += 1
        self._of_app[app] += 1

    def unseat(self, connection: PlacedConnection) -> None:
        """The connection is over, and its place is free."""
        if (seat := self._seated.pop(connection, None)) is not None:
            self._of_user -= Counter([seat.uid])
            self._of_app -= Counter([seat.app])
            self.enter(connection)

    def leave(self, connection: PlacedConnection) -> None:
        self.unseat(connection)
        self._waiting.pop(connection, None)

    def _to_give_way(self, newcomer: _Seat) -> PlacedConnection | None:
        """The longest idle connection of the user and app that have most; None if they have no more than ``newcomer``.

        Where each app has ``MODEST`` connections or fewer, one that never asked anything gives way, else the longest
        idle one: so whoever takes all places under as many names locks nobody out, and takes no place from an app that
        uses two.
        """
        idle = [(c, seat, since) for c, seat in self._seated.items() if (since := c.idle_since) is not None]
        if not idle:
            return None

        def many(each: tuple[PlacedConnection, _Seat, float]) -> tuple[int, int, bool, float]:
            connection, seat, since = each
            of_user, of_app = self._share(seat)
            return of_user, max(of_app, MODEST), not connection.has_asked, -since

        found, seat, _ = max(idle, key=many)
        theirs, mine = self._share(seat), self._share(newcomer)
        has_more = theirs[1] > mine[1] if seat.uid == newcomer.uid else theirs[0] > mine[0]
        return found if has_more else None

    def _share(self, seat: _Seat) -> tuple[int, int]:
        return self._of_user[seat.uid], self._of_app[seat.app]
