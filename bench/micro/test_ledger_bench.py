"""What the ledger's moves cost, whatever else it holds.

Run: ``pytest bench/micro/test_ledger_bench.py``. One "life" is what a chunk of a context sees in its first day: it is
owned, saved to the POOL, written to DISK, evicted, loaded again, and given up with its context.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from llmaas.kvchunks.ledger import Copy, Ledger
from llmaas.records import ChunkKey, Tier

CHUNKS = 64
NBYTES = 460_864
"""A full chunk of SmolLM2-135M at 4 bits."""
MOVES = 12
"""Ledger calls in a life, per chunk."""


def key(i: int) -> ChunkKey:
    return ChunkKey(i.to_bytes(16, "little"))


def ledger_with(n_others: int) -> Ledger:
    """``n_others`` chunks of idle contexts, all on DISK."""
    ledger = Ledger(4 * CHUNKS * NBYTES)
    for i in range(n_others):
        ledger.ref(key(i))
        ledger.found_on_disk(key(i), NBYTES)
    return ledger


def live(ledger: Ledger, keys: list[ChunkKey]) -> None:
    for k in keys:
        ledger.ref(k)
        ledger.begin_pool(k, NBYTES)
        ledger.arrive_pool(k, NBYTES)
    for k in keys:
        ledger.pin(k)
        ledger.begin_disk(k)
        ledger.arrive_disk(k, NBYTES)
        ledger.unpin(k)
    ledger.evict(keys, lambda k: NBYTES)
    for k in keys:
        ledger.begin_pool(k, NBYTES)
        ledger.arrive_pool(k, NBYTES)
    for k in keys:
        ledger.unref(k)
        ledger.sweep(k)


@pytest.mark.parametrize("n_others", [0, 640_000])
def test_the_life_of_64_chunks(benchmark: BenchmarkFixture, n_others: int) -> None:
    ledger = ledger_with(n_others)
    keys = [key(n_others + i) for i in range(CHUNKS)]
    benchmark(live, ledger, keys)
    if benchmark.stats:
        benchmark.extra_info["moves_per_second"] = round(MOVES * CHUNKS / benchmark.stats.stats.median)
    assert len(ledger) == n_others
    assert ledger.pool_used == 0
    assert ledger.disk_used == n_others * NBYTES


@pytest.mark.parametrize("n_others", [0, 640_000])
def test_ask_for_the_tier_of_64_chunks(benchmark: BenchmarkFixture, n_others: int) -> None:
    """What every switch asks of a whole context."""
    ledger = ledger_with(n_others)
    keys = [key(n_others + i) for i in range(CHUNKS)]
    for k in keys:
        ledger.ref(k)
        ledger.begin_pool(k, NBYTES)
        ledger.arrive_pool(k, NBYTES)
    tiers = benchmark(lambda: [ledger.tier(k) for k in keys])
    assert tiers == [Tier.POOL] * CHUNKS
    assert ledger.chunk(keys[0]).pool is Copy.PRESENT
