"""Last chunks in the POOL: they may fill half of it, and beyond that the oldest are like any other chunk."""

from __future__ import annotations

from llmaas.kvchunks.ledger import Ledger
from llmaas.planner.last_chunks import LastChunks
from llmaas.records import ChunkKey


def test_they_may_fill_half_of_the_pool_and_the_oldest_are_beyond() -> None:
    ledger = Ledger(1000)
    last, keys = LastChunks(ledger), [ChunkKey(bytes([i]) * 16) for i in range(4)]
    assert not last
    for key in keys:
        ledger.ref(key)
        ledger.begin_pool(key, 200)
        ledger.arrive_pool(key, 200)
        last.add(key)
    assert [last.is_beyond(key) for key in keys] == [True, True, False, False]
    assert last and all(key in last for key in keys)
    last.remove(keys[0])
    last.remove(keys[3])
    last.remove(ChunkKey(bytes(16)) * 2)  # none of them
    assert [key in last for key in keys] == [False, True, True, False]
    last.add(keys[3])
    assert [last.is_beyond(key) for key in keys[1:]] == [True, False, False]
