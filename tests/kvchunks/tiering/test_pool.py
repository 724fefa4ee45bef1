"""The pool with a real store and codec, on an engine that can be made to refuse."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmaas.engine.base import BatchItem, CellsFull
from llmaas.engine.fake import FakeEngine
from llmaas.engine.thread import EngineThread
from llmaas.errors import StoreFailed
from llmaas.kv_arrays import KvSlab
from llmaas.kvchunks.codec.codec import Codec, SoundChunk
from llmaas.kvchunks.store.store import Store
from llmaas.kvchunks.tiering.pool import Pool
from llmaas.planner.actions import (
    ChunkSource,
    ChunkTarget,
    FetchChunks,
    LoadChunks,
    LowerChunks,
    SaveChunks,
    StopLoad,
    WriteChunks,
)
from llmaas.planner.events import FAILED, Stored
from llmaas.records import ChunkKey, ContextId, Precision, Tier

N = 10
KEYS = [ChunkKey(bytes([i]) * 16) for i in range(N)]


class Refusing(FakeEngine):
    """Refuses every load that has the position ``refuse_at``."""

    refuse_at: int | None = None

    def load(self, seq: int, start: int, slab: KvSlab) -> None:
        if self.refuse_at is not None and start <= self.refuse_at < start + slab.n_tokens:
            raise CellsFull("as the test wants")
        super().load(seq, start, slab)

    def begin_load(self, seq: int, start: int, n_tokens: int) -> list[KvSlab] | None:
        if self.refuse_at is not None and start <= self.refuse_at < start + n_tokens:
            raise CellsFull("as the test wants")
        return super().begin_load(seq, start, n_tokens)


class Bench:
    def __init__(self, root: Path, *, in_place: bool, workers: int = 2) -> None:
        self.in_place = in_place
        self.thread = EngineThread(lambda: Refusing(in_place=in_place))
        self.engine = self.thread.engine
        assert isinstance(self.engine, Refusing)
        self.root = root
        self.store = Store(root)
        self.codec = Codec(self.engine.info.geometry)
        self.pool = Pool(self.thread, self.codec, self.store, workers=workers)

    def wait(self, begin: Callable[..., None], action: Any) -> Any:
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        begin(action, answers.put)
        return answers.get(timeout=10)

    def fill(self) -> None:
        """N chunks: computed in sequence 0, saved, written, and sequence 0 emptied."""
        tokens = [i % 250 for i in range(64 * N)]
        for start in range(0, len(tokens), 320):
            self.thread.submit(self.engine.step, [BatchItem(0, start, tokens[start : start + 320])]).result()
        targets = tuple(ChunkTarget(k, 64 * i, 64 * i + 64, Precision(4, 4)) for i, k in enumerate(KEYS))
        saved = self.wait(self.pool.save, SaveChunks(1, ContextId("c"), 0, targets))
        written = self.wait(self.pool.write, WriteChunks(2, ContextId("c"), tuple(KEYS), (None,) * len(KEYS)))
        sizes = (self.codec.encoded_size(64, Precision(4, 4), sinks=int(i == 0)) for i in range(N))
        assert saved.outcomes == written.outcomes == tuple(map(Stored, sizes))
        self.thread.submit(self.engine.drop, 0, 0).result()

    def load(self, tiers: list[Tier], *, keep: bool = False) -> Any:
        sources = tuple(
            ChunkSource(k, 64 * i, 64 * i + 64, t, keep and t is Tier.DISK)
            for i, (k, t) in enumerate(zip(KEYS, tiers, strict=False))
        )
        return self.wait(self.pool.load, LoadChunks(3, ContextId("c"), 0, sources))

    def length(self) -> int:
        return self.thread.submit(self.engine.length, 0).result()


@pytest.fixture(params=["pieces", "in place", "in place, one worker"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """With an engine whose cells are written by others, and with one that copies into its cells."""
    kind: str = request.param
    bench = Bench(tmp_path, in_place=kind != "pieces", workers=1 if "one" in kind else 2)
    bench.fill()
    yield bench
    bench.pool.close()
    bench.thread.close()
    bench.store.close()


def test_chunks_from_both_tiers_come_back_in_order(bench: Bench) -> None:
    loaded = bench.load([Tier.POOL, Tier.DISK] * (N // 2))
    assert (loaded.n_loaded, loaded.damaged) == (N, ())
    assert bench.length() == 64 * N


def test_a_chunk_read_from_disk_is_kept_if_asked_and_counted_once(bench: Bench) -> None:
    before = bench.pool.nbytes
    bench.pool.drop(KEYS)
    assert bench.pool.nbytes == 0
    bench.load([Tier.DISK] * N)
    assert bench.pool.nbytes == 0
    bench.thread.submit(bench.engine.drop, 0, 0).result()
    bench.load([Tier.DISK] * N, keep=True)
    assert bench.pool.nbytes == before


def test_fetched_chunks_are_in_the_pool_and_damaged_ones_are_not(bench: Bench) -> None:
    bench.pool.drop(KEYS)
    bench.store.discard([KEYS[3]])
    file = next(bench.root.glob("payload/*.kv"))
    with file.open("r+b") as payload:  # within the last chunk
        payload.seek(-100, 2)
        payload.write(b"damage")
    fetched = bench.wait(bench.pool.fetch, FetchChunks(4, ContextId("c"), tuple(KEYS)))
    assert [i for i, outcome in enumerate(fetched.outcomes) if outcome is FAILED] == [3, N - 1]
    assert bench.pool.nbytes == sum(outcome.nbytes for outcome in fetched.outcomes if outcome is not FAILED)
    loaded = bench.load([Tier.POOL] * 3)
    assert (loaded.n_loaded, loaded.damaged) == (3, ())


def test_the_first_damaged_chunk_ends_the_load_and_is_named(bench: Bench) -> None:
    bench.store.discard([KEYS[6]])
    loaded = bench.load([Tier.DISK] * N)
    assert (loaded.n_loaded, loaded.damaged) == (6, (KEYS[6],))
    assert bench.length() == 64 * 6


def test_chunks_may_lie_on_disk_in_any_order(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    order = [KEYS[i] for i in (7, 2, 9, 0, 5, 1, 8, 3, 6, 4)]
    bench.store.discard(KEYS)
    bench.wait(bench.pool.write, WriteChunks(5, ContextId("c"), tuple(order), (None,) * N))
    assert [place.key for place in bench.store.places([ChunkKey(b"?" * 16), *KEYS])] == order
    asked: list[ChunkKey] = []
    read = bench.store.read
    monkeypatch.setattr(bench.store, "read", lambda places, once: asked.extend(p.key for p in places) or read(places))
    assert bench.load([Tier.DISK] * N).n_loaded == N == bench.length() // 64
    if bench.in_place:
        assert asked == order
    bench.thread.submit(bench.engine.drop, 0, 0).result()
    bench.store.discard([KEYS[3], KEYS[7]])
    loaded = bench.load([Tier.DISK] * N)
    assert (loaded.n_loaded, loaded.damaged, bench.length()) == (3, (KEYS[3],), 64 * 3)
    bench.thread.submit(bench.engine.drop, 0, 0).result()
    loaded = bench.load([Tier.DISK, Tier.POOL, Tier.DISK, Tier.POOL, *[Tier.DISK] * 6], keep=True)
    assert (loaded.n_loaded, loaded.damaged, bench.length()) == (7, (KEYS[7],), 64 * 7)


def test_where_chunks_are_may_be_unknown(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(keys: Any) -> Any:
        raise StoreFailed("as the test wants")

    monkeypatch.setattr(bench.store, "places", fails)
    assert bench.load([Tier.DISK] * N).n_loaded == N == bench.length() // 64


def test_a_load_from_the_pool_asks_the_store_for_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise AssertionError("the store was asked")

    for method in ("places", "read", "open", "get"):
        monkeypatch.setattr(bench.store, method, fails)
    loaded = bench.load([Tier.POOL] * N)
    assert (loaded.n_loaded, loaded.damaged) == (N, ())


@pytest.mark.parametrize("chunk", [0, 3, N - 1])
def test_an_engine_that_refuses_a_chunk_leaves_a_true_count(bench: Bench, chunk: int) -> None:
    bench.engine.refuse_at = 64 * chunk  # type: ignore[attr-defined]
    loaded = bench.load([Tier.POOL] * N)
    assert (loaded.n_loaded, loaded.damaged) == (chunk, ())
    assert bench.length() == 64 * chunk


def test_values_that_no_group_can_hold_are_not_kept(bench: Bench) -> None:
    slab = bench.engine.blank(64)
    slab.k[:], slab.v[:] = 0, np.float16(np.inf)

    def export(seq: int, start: int, stop: int) -> KvSlab:
        return slab

    bench.engine.export = export  # type: ignore[method-assign]
    target = ChunkTarget(ChunkKey(b"x" * 16), 0, 64, Precision(4, 4))
    saved = bench.wait(bench.pool.save, SaveChunks(9, ContextId("c"), 0, (target,)))
    assert saved.outcomes == (FAILED,)


@pytest.mark.parametrize("bits", [4, 16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_chunk_of_no_numbers_is_not_kept_at_any_precision(bench: Bench, bits: int, value: float) -> None:
    def export(seq: int, start: int, stop: int) -> KvSlab:
        slab = bench.engine.blank(stop - start)
        slab.k[:] = slab.v[:] = 1.0
        if start:
            slab.v[-1, -1, -1] = value
        return slab

    bench.engine.export = export  # type: ignore[method-assign]
    keys = [ChunkKey(bytes([200 + i]) * 16) for i in range(2)]
    targets = tuple(ChunkTarget(key, 64 * i, 64 * i + 64, Precision(bits, bits)) for i, key in enumerate(keys))
    before = bench.pool.nbytes
    saved = bench.wait(bench.pool.save, SaveChunks(1, ContextId("c"), 0, targets))
    assert isinstance(saved.outcomes[0], Stored) and saved.outcomes[1] is FAILED
    assert bench.pool.nbytes == before + saved.outcomes[0].nbytes


def test_chunks_coded_again_are_smaller_and_come_back_and_what_cannot_be_stays(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [len(payload) for payload in bench.store.get(KEYS) if payload is not None]  # as in the POOL
    target = ChunkTarget(KEYS[4], 64 * 4, 64 * 5, Precision(4, 4))
    slab = bench.engine.blank(64)
    slab.k[:] = slab.v[:] = 0.0
    with monkeypatch.context() as patch:
        patch.setattr(bench.engine, "export", lambda *_: slab)
        patch.setattr(bench.codec, "encode", lambda *_: b"damaged")
        assert bench.wait(bench.pool.save, SaveChunks(8, ContextId("c"), 0, (target,))).outcomes == (Stored(7),)
    chunks = tuple((k, Precision(3, 2)) for k in KEYS[:6])
    lowered = bench.wait(bench.pool.lower, LowerChunks(5, chunks))
    assert [outcome is not FAILED for outcome in lowered.outcomes] == [True] * 4 + [False, True]
    smaller = zip(lowered.outcomes, before, strict=False)
    assert all(0 < new.nbytes < old for i, (new, old) in enumerate(smaller) if i != 4)
    loaded = bench.load([Tier.POOL] * 4)
    assert (loaded.n_loaded, loaded.damaged) == (4, ())


def test_a_load_that_finds_no_memory_leaves_a_true_count(bench: Bench) -> None:
    blank, left = bench.engine.blank, [2]  # of three pieces

    def short_of_memory(n_tokens: int) -> KvSlab:
        left[0] -= 1
        if left[0] < 0:
            raise MemoryError
        return blank(n_tokens)

    bench.engine.blank = short_of_memory  # type: ignore[method-assign]
    bench.engine.begin_load = lambda *_: None  # type: ignore[method-assign]
    loaded = bench.load([Tier.POOL] * N)
    assert loaded.damaged == ()  # the chunk is sound: it may be asked for again
    assert bench.length() == 64 * loaded.n_loaded < 64 * N


@pytest.mark.parametrize("chunk", [0, 1, 4, 5, N - 1])
def test_a_load_counts_what_is_in_cells_whatever_fails_behind_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    sound, get = bench.codec.sound, bench.store.get

    def no_decoding(payload: Any, key: ChunkKey, n_tokens: int) -> SoundChunk:
        if key == KEYS[chunk]:
            raise RuntimeError("as the test wants")
        return sound(payload, key, n_tokens)

    with monkeypatch.context() as patch:
        patch.setattr(bench.codec, "sound", no_decoding)
        loaded = bench.load([Tier.POOL] * N)
    assert (loaded.n_loaded, loaded.damaged, bench.length()) == (chunk, (), 64 * chunk)
    bench.thread.submit(bench.engine.drop, 0, 0).result()

    def wrong_number(keys: Any) -> Any:
        return get(keys) if KEYS[chunk] not in keys else []

    def not_opened(sealed: Any) -> Any:
        if sealed.place.key == KEYS[chunk]:
            raise MemoryError("as the test wants")
        return sealed.data

    with monkeypatch.context() as patch:
        patch.setattr(bench.store, "get", wrong_number)
        patch.setattr(bench.store, "open", not_opened)
        loaded = bench.load([Tier.DISK] * N)
    assert bench.length() == 64 * loaded.n_loaded <= 64 * chunk and loaded.damaged == ()


def test_what_could_not_be_discarded_is_not_taken_for_what_is_written_next(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = bench.store.get(KEYS[:1])[0]
    bench.wait(bench.pool.lower, LowerChunks(5, ((KEYS[0], Precision(3, 2)),)))

    def fails(keys: Any) -> int:
        raise StoreFailed("as the test wants")

    discard = bench.store.discard
    monkeypatch.setattr(bench.store, "discard", fails)
    bench.pool.drop_disk(KEYS[:1])
    assert bench.wait(bench.pool.write, WriteChunks(6, ContextId("c"), (KEYS[0],), (None,))).outcomes == (FAILED,)
    assert bench.store.get(KEYS[:1]) == [old]
    monkeypatch.setattr(bench.store, "discard", discard)
    written = bench.wait(bench.pool.write, WriteChunks(7, ContextId("c"), (KEYS[0],), (None,)))
    new = bench.store.get(KEYS[:1])[0]
    assert new is not None and old is not None and written.outcomes == (Stored(len(new)),) and len(new) < len(old)


def test_a_chunk_that_cannot_be_coded_again_for_whatever_reason_stays(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(bench.codec, "lower", fails)
    lowered = bench.wait(bench.pool.lower, LowerChunks(5, ((KEYS[0], Precision(3, 2)),)))
    assert lowered.outcomes == (FAILED,)
    assert bench.load([Tier.POOL]).n_loaded == 1


def test_a_load_that_nobody_wants_any_more_waits_neither_for_the_disk_nor_for_its_turn(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, mended = threading.Event(), threading.Event()
    get, read = bench.store.get, bench.store.read

    def hangs(keys: Any) -> Any:
        asked.set()
        assert mended.wait(10)
        return get(keys)

    def hangs_too(places: Any, *, once: bool) -> Any:
        asked.set()
        assert mended.wait(10)
        return read(places)

    monkeypatch.setattr(bench.store, "get", hangs)
    monkeypatch.setattr(bench.store, "read", hangs_too)
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for load in range(3):  # two at a time
        sources = tuple(ChunkSource(k, 64 * i, 64 * i + 64, Tier.DISK, True) for i, k in enumerate(KEYS))
        bench.pool.load(LoadChunks(load, ContextId("c"), load, sources), answers.put)
    assert asked.wait(10)
    held = bench.pool.nbytes
    for load in range(3):
        bench.pool.stop_load(StopLoad(load))
        bench.pool.stop_load(StopLoad(load))
    stopped = [answers.get(timeout=5) for _ in range(3)]
    assert sorted((e.load, e.n_loaded, e.damaged) for e in stopped) == [(n, 0, ()) for n in range(3)]
    mended.set()
    loaded = bench.load([Tier.DISK] * N, keep=True)
    assert (loaded.n_loaded, bench.length()) == (N, 64 * N) and bench.pool.nbytes == held
    bench.pool.stop_load(StopLoad(loaded.load))


def test_a_save_rests_while_it_is_told_to_but_not_for_ever(bench: Bench) -> None:
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    action = SaveChunks(9, ContextId("c"), 0, (ChunkTarget(KEYS[0], 0, 64, Precision(4, 4)),))
    compute = [BatchItem(0, 0, [i % 250 for i in range(64)])]
    bench.thread.submit(bench.engine.step, compute).result()
    bench.pool.rest.told(True)
    bench.pool.save(action, answers.put)
    with pytest.raises(queue.Empty):
        answers.get(timeout=0.1)
    bench.thread.submit(bench.engine.drop, 0, 0).result()  # what is to be coded was copied
    bench.pool.rest.told(False)
    assert isinstance(answers.get(timeout=10).outcomes[0], Stored)
    bench.thread.submit(bench.engine.step, compute).result()
    bench.pool.rest.told(True)
    bench.pool.save(action, answers.put)
    assert isinstance(answers.get(timeout=10).outcomes[0], Stored)
