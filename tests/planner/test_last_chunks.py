"""Last chunks in the POOL: they may fill half of it, and beyond that the oldest are like any other chunk."""

from __future__ import annotations

from llmaas.kvchunks.ledger import Ledger
from llmaas.planner.last_chunks import LastChunks
from llmaas.records import ChunkKey, ContextId
from tests.support.planner_world import run_call, world

A = ContextId("a")


def test_they_may_fill_half_of_the_pool_and_the_oldest_are_let_go() -> None:
    ledger, gone = Ledger(1000), []
    last, keys = LastChunks(ledger), [ChunkKey(bytes([i]) * 16) for i in range(4)]
    assert not last
    for key in keys:
        ledger.ref(key)
        ledger.begin_pool(key, 200)
        ledger.arrive_pool(key, 200)
        gone += last.add(A, key)
    assert gone == [(A, keys[0]), (A, keys[1])]
    assert last and [key in last for key in keys] == [False, False, True, True]
    last.remove(keys[3])
    last.remove(ChunkKey(bytes(16)) * 2)  # none of them
    assert [key in last for key in keys] == [False, False, True, False]
    assert not last.add(A, keys[3]) and not last.add(A, keys[3]), "the same one takes its room once"
    assert last.add(A, keys[0]) == [(A, keys[2])]


def test_one_is_written_before_the_pool_loses_it_to_the_chunks_of_another_context() -> None:
    w = world(pool_bytes=60_000, n_cells=512, ctx_limit=512)
    w.tick, w.token_s = 0.002, 0.01
    short, long = w.open(), w.open()
    run_call(w, short, 50, 0)
    assert not w.disk, "it is not, as long as the POOL has room"
    run_call(w, long, 480, 0)
    assert w.planner.tiers(short.id) == (0, 0, 50, 0)
    request = w.call(short, 8, 0)
    w.settle()
    assert w.sources[request].recomputed == 0
