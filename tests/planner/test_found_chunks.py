"""What the store holds at the start comes with the contexts that contain it."""

from __future__ import annotations

from llmaas.planner import events as ev
from llmaas.planner.actions import DropDisk
from llmaas.planner.planner import Planner
from llmaas.records import AppId, ChunkKey, ContextId
from tests.support.planner_world import settings


def keys(name: str, n: int = 2) -> tuple[ChunkKey, ...]:
    return tuple(ChunkKey(f"{name}{i}".encode().ljust(16)) for i in range(n))


def opened(planner: Planner, name: str, *, coldest: bool = True) -> None:
    found = tuple((key, 100, None) for key in keys(name))
    event = ev.ContextOpened(ContextId(name), AppId("0/a"), keys(name), 128, 1.0, found, coldest)
    assert planner.handle(event, 0.0) == []


def test_contexts_that_are_found_later_are_the_first_whose_chunks_go() -> None:
    planner = Planner(settings())
    for name in ("warm", "cool", "cold"):
        opened(planner, name)
    opened(planner, "new", coldest=False)
    assert planner.disk_used == 800
    dropped = planner.handle(ev.BudgetChanged(disk_bytes=500), 1.0)
    assert dropped == [DropDisk((keys("cold")[1], keys("cold")[0], keys("cool")[1]))]
    assert planner.check() == []
    dropped = planner.handle(ev.BudgetChanged(disk_bytes=200), 1.0)
    assert dropped == [DropDisk((keys("cool")[0], keys("warm")[1], keys("warm")[0]))]


def test_what_is_found_beyond_the_quota_goes_at_once() -> None:
    planner = Planner(settings(disk_bytes=250))
    opened(planner, "warm")
    event = ev.ContextOpened(ContextId("x"), AppId("0/a"), keys("x"), 128, 1.0, ((keys("x")[0], 100, None),), True)
    assert planner.handle(event, 0.0) == [DropDisk((keys("x")[0],))]
    assert planner.disk_used == 200 and planner.check() == []


def test_a_change_brings_what_the_store_holds_of_the_new_chunks_and_the_rest_is_dropped() -> None:
    planner = Planner(settings())
    planner.handle(ev.ContextOpened(ContextId("c"), AppId("0/a")), 0.0)
    change = ev.ContextChanged(ContextId("c"), 0, keys("c"), 128, ((keys("c")[1], 70, None),))
    assert planner.handle(change, 0.0) == []
    assert planner.tiers(ContextId("c")) == (0, 0, 64, 64) and planner.disk_used == 70
    rest = ev.ChunksFound(((keys("other")[0], 100, None),))
    assert planner.handle(rest, 0.0) == [DropDisk((keys("other")[0],))]
