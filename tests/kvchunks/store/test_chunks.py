"""Chunks: put, get and discard, by many threads, and of many chunks."""

from __future__ import annotations

import random
import threading
import time
from array import array
from pathlib import Path

import pytest

from llmaas.kvchunks.store.store import Store
from llmaas.records import ChunkMeta, ChunkSensitivity, ContextId, Precision
from tests.support.store_data import NOISE, data, glue, key, payload_files, row


def test_neighbours_come_back_as_views_of_one_buffer(root: Path) -> None:
    blobs = {key(i): data(i, 1000 + i) for i in range(700)}  # more than one query, more than one pwritev
    with Store(root) as store:
        store.put(ContextId("a"), [(k, 64, blob) for k, blob in blobs.items()])
        found = store.get(list(blobs))
        assert [bytes(v) for v in found if v is not None] == list(blobs.values())
        assert len({id(v.obj) for v in found if v is not None}) == 1


def test_any_contiguous_buffer_can_be_put(root: Path) -> None:
    with Store(root) as store:
        store.put(
            ContextId("a"),
            [(key(1), 1, bytearray(b"ab")), (key(2), 1, memoryview(array("i", [7])).cast("B")), (key(3), 1, b"x")],
        )
        assert [bytes(v or b"") for v in store.get([key(3), key(2), key(1)])] == [
            b"x",
            array("i", [7]).tobytes(),
            b"ab",
        ]
        with pytest.raises(ValueError, match="at least one byte"):
            store.put(ContextId("a"), [(key(4), 1, b"")])


def test_a_key_twice_in_one_put_is_stored_once(root: Path) -> None:
    with Store(root) as store:
        store.put(ContextId("a"), [(key(1), 64, b"same"), (key(1), 64, b"same")])
        assert list(store.chunks()) == [(key(1), 64, 4, None)]
        assert store.stats().dead_bytes == 0


def test_discarding_everything_deletes_the_files_and_a_mostly_dead_file_is_rewritten(root: Path) -> None:
    keys = [key(i) for i in range(8)]
    with Store(root) as store:
        store.put(ContextId("a"), [(k, 64, data(i, 400_000)) for i, k in enumerate(keys)])
        (before,) = payload_files(root)
        assert store.discard(keys[:4]) == 0  # half dead is not mostly dead
        assert store.stats().dead_bytes == 1_600_000
        assert store.discard(keys[4:5]) == 2_000_000
        (after,) = payload_files(root)
        assert after != before
        assert store.stats().dead_bytes == 0
        assert [bytes(v or b"") for v in store.get(keys[5:])] == [data(i, 400_000) for i in (5, 6, 7)]
        assert store.check().problems == ()
        assert store.discard([*keys, key("unknown")]) == 1_200_000
        assert payload_files(root) == []


def test_what_put_reports_covers_what_the_process_really_wrote(root: Path) -> None:
    counters = Path("/proc/self/io")
    if not counters.exists():
        pytest.skip("needs /proc/self/io")

    def wrote() -> int:
        return int(dict(line.split(": ") for line in counters.read_text().splitlines())["wchar"])

    store = Store(root)
    before, real = store.stats().bytes_written, wrote()
    reported = 0
    for i in range(30):
        reported += store.put(ContextId(f"{i % 5}"), [(key((i, j)), 64, data(j, 50_000)) for j in range(10)])
    assert store.stats().bytes_written - before == reported
    store.close()  # copies the log into the database
    assert wrote() - real <= reported <= 1.1 * 30 * 10 * 50_000


def test_threads_that_get_while_others_put_discard_and_append_never_see_wrong_bytes(root: Path) -> None:
    names = [(ctx, i) for ctx in range(2) for i in range(10)]
    blobs = {key(name): data(n * 100, 150_000) for n, name in enumerate(names)}
    failures: list[BaseException] = []
    stop = threading.Event()

    def guarded(work: object) -> None:
        try:
            while not stop.is_set():
                work()  # type: ignore[operator]
        except BaseException as error:
            failures.append(error)

    with Store(root, wal_limit=100_000) as store:
        store.create_context(row("a"))

        def churn(ctx: int, rng: random.Random) -> None:
            some = [key(n) for n in rng.sample([n for n in names if n[0] == ctx], 6)]
            store.put(ContextId(str(ctx)), [(k, 64, blobs[k]) for k in some])
            store.discard(some[:4])

        def look() -> None:
            for k, view in zip(blobs, store.get(list(blobs)), strict=True):
                assert view is None or view == blobs[k]

        def talk() -> None:
            n = len(store.tokens(ContextId("a")))
            assert store.append(ContextId("a"), [glue(1)], expect=n, now=0.0) == n + 1

        jobs = [lambda: churn(0, rng0), lambda: churn(1, rng1), look, look, talk]
        rng0, rng1 = random.Random(0), random.Random(1)
        threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
        for t in threads:
            t.start()
        time.sleep(1.0)
        stop.set()
        for t in threads:
            t.join()
        assert failures == []
        assert store.stats().damaged == 0
        assert len(store.tokens(ContextId("a"))) > 0
        assert store.check().problems == ()


def test_a_store_of_64000_chunks_opens_in_under_a_second(root: Path) -> None:
    with Store(root) as store:
        for ctx in range(1000):
            store.put(ContextId(str(ctx)), [(key((ctx, i)), 64, b"coded") for i in range(64)])
    began = time.perf_counter()
    with Store(root) as store:
        took = time.perf_counter() - began
        assert sum(1 for _ in store.chunks()) == 64_000
    assert took < 1.0


def test_what_is_known_of_a_chunk_is_kept_with_it_and_moves_when_its_file_is_compacted(root: Path) -> None:
    measured, later = ChunkSensitivity(1e-3, 2e-3, 0.1, 30.0, 640), ChunkSensitivity(0.5, 2e-3, 0.1, 60.0, 1280)
    big = NOISE[:600_000]
    with Store(root) as store:
        meta = {key(1): ChunkMeta(Precision(3, 4), measured), key(2): ChunkMeta(Precision(2, 2))}
        store.put(ContextId("a"), [(key(n), 64, big) for n in range(8)], meta)
        store.persist_sensitivity({key(1): later, key(99): measured})
        store.discard([key(n) for n in (0, *range(3, 8))])
        assert store.stats().dead_bytes == 0, "the file was rewritten"
    with Store(root) as store:
        assert {c.key: c.meta for c in store.chunks()} == {
            key(1): ChunkMeta(Precision(3, 4), later),
            key(2): ChunkMeta(Precision(2, 2)),
        }
