"""Whose connection gives way to a newcomer's when all places are taken."""

from __future__ import annotations

import pytest

from llmaas.api.connection_places import ConnectionPlaces
from llmaas.api.limits import Limits
from llmaas.errors import Busy


class Connection:
    """One that is idle since ``idle_since``."""

    def __init__(
        self, places: ConnectionPlaces, app: str, idle_since: float | None, uid: int = 1000, has_asked: bool = True
    ) -> None:
        self.places, self.app, self.idle_since, self.over = places, app, idle_since, False
        self.has_asked = has_asked
        places.enter(self)
        places.seat(self, uid, app)

    def give_way(self) -> None:
        self.over = True
        self.places.unseat(self)

    def drop(self) -> None:
        self.places.leave(self)


def places(n: int) -> ConnectionPlaces:
    return ConnectionPlaces(Limits(max_connections=n))


def test_as_many_names_as_places_take_none_from_an_app_that_uses_two() -> None:
    table = places(10)
    two = [Connection(table, "mail", 100.0 + i) for i in range(2)]
    crowd = [Connection(table, f"mallory-{i}", i) for i in range(8)]
    for i in range(20):
        crowd.append(Connection(table, f"mallory-{8 + i}", 50.0 + i))
    assert not any(c.over for c in two)
    assert [c.over for c in crowd] == [True] * 20 + [False] * 8
    Connection(table, "calendar", 200.0)
    assert crowd[20].over


def test_a_crowd_that_never_asks_anything_gives_way_before_whoever_did() -> None:
    table = places(10)
    two = [Connection(table, "mail", 1.0 + i) for i in range(2)]
    crowd = [Connection(table, f"mallory-{i}", 50.0 + i, has_asked=False) for i in range(30)]
    assert not any(c.over for c in two)
    assert [c.over for c in crowd] == [True] * 22 + [False] * 8


def test_the_app_with_most_gives_way_however_busy_it_was() -> None:
    table = places(10)
    quiet = Connection(table, "mail", 1.0)
    many = [Connection(table, "mallory", 100.0 + i) for i in range(9)]
    Connection(table, "calendar", 200.0)
    assert many[0].over and not quiet.over


def test_who_has_as_many_as_the_others_gets_no_more() -> None:
    table = places(3)
    for name in ("mail", "calendar", "notes"):
        Connection(table, name, 1.0)
    with pytest.raises(Busy, match="3 connections already"):
        Connection(table, "mail", 2.0)
