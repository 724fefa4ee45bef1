"""The store against a model of it, and its promises one by one."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from llmaas.errors import BadRequest, ContextExists, StoreFailed, UnknownContext
from llmaas.kvchunks.store.cipher import OVERHEAD
from llmaas.kvchunks.store.store import AdapterRow, ContextRow, MasterKey, Span, Store
from llmaas.records import AppId, ChunkKey, ChunkMeta, ChunkSensitivity, ContextId, Precision

NOISE = random.Random(1).randbytes(700_000)


def key(name: object) -> ChunkKey:
    return ChunkKey(hashlib.blake2b(repr(name).encode(), digest_size=16).digest())


def data(seed: int, size: int) -> bytes:
    return NOISE[seed : seed + size]


def row(ctx: str, name: str | None = None, app: str = "1000/notes") -> ContextRow:
    return ContextRow(ContextId(ctx), AppId(app), name or ctx, "tiny", "vocab-1", 10.0, 10.0, 0)


def glue(*tokens: int) -> Span:
    return Span(tuple(tokens))


def payload_files(root: Path) -> list[Path]:
    return sorted((root / "payload").iterdir())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


# -- against a model


spans_of_a_turn = st.lists(
    st.builds(
        Span,
        st.lists(st.integers(-(2**31), 2**31 - 1), max_size=6).map(tuple),
        st.sampled_from([None, "user", "assistant"]),
        st.one_of(st.none(), st.text(max_size=8)),
        st.booleans(),
    ),
    max_size=4,
)
keys_of_a_call = st.lists(st.integers(0, 11).map(key), max_size=8)


class StoreIsADict(RuleBasedStateMachine):
    """Every call does to the store what it does to two dicts."""

    alive = Bundle("alive")
    master: MasterKey | None = None

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="llmaas-store-"))
        self.store = Store(self.root, master=self.master, wal_limit=64 * 1024)
        self.contexts: dict[ContextId, tuple[ContextRow, list[Span]]] = {}
        self.chunks: dict[ChunkKey, tuple[int, bytes]] = {}
        self.n_made = 0

    def _new_row(self) -> ContextRow:
        self.n_made += 1
        return row(f"{self.n_made:016x}")

    @rule(target=alive, spans=spans_of_a_turn)
    def create(self, spans: list[Span]) -> ContextId:
        new = self._new_row()
        self.store.create_context(new, spans)
        self.contexts[new.id] = (new, list(spans))
        return new.id

    @rule(target=alive, src=alive)
    def fork(self, src: ContextId) -> ContextId:
        new = self._new_row()
        self.store.fork(src, new)
        self.contexts[new.id] = (new, list(self.contexts[src][1]))
        return new.id

    @rule(ctx=alive, spans=spans_of_a_turn, now=st.floats(0, 1e9))
    def append(self, ctx: ContextId, spans: list[Span], now: float) -> None:
        before, held = self.contexts[ctx]
        count = sum(len(s.tokens) for s in held)
        total = self.store.append(ctx, spans, expect=count, now=now)
        held += spans
        assert total == sum(len(s.tokens) for s in held)
        self.contexts[ctx] = (replace(before, last_used=now), held)

    @rule(ctx=alive, share=st.floats(0, 1))
    def truncate(self, ctx: ContextId, share: float) -> None:
        before, held = self.contexts[ctx]
        total = sum(len(s.tokens) for s in held)
        keep, start = int(share * total), 0
        kept: list[Span] = held if keep == total else []
        for span in held if keep < total else []:
            if start > keep or (start == keep and span.tokens):
                break
            whole = start + len(span.tokens) <= keep
            kept.append(span if whole else glue(*span.tokens[: keep - start]))
            start += len(span.tokens)
        self.store.truncate(ctx, keep, 77.0)
        self.contexts[ctx] = (replace(before, last_used=77.0), kept)

    @rule(ctx=consumes(alive))
    def delete(self, ctx: ContextId) -> None:
        self.store.delete_context(ctx)
        del self.contexts[ctx]

    @rule(ctx=st.integers(0, 2), keys=keys_of_a_call, seed=st.integers(0, 99), big=st.booleans())
    def put(self, ctx: int, keys: list[ChunkKey], seed: int, big: bool) -> None:
        items = [(k, 64 - i, data(seed + i, 400_000 if big else 300 + i)) for i, k in enumerate(dict.fromkeys(keys))]
        written = self.store.put(ContextId(f"ctx{ctx}"), items)
        new = {k: (n, blob) for k, n, blob in items if k not in self.chunks}
        assert written >= sum(len(blob) for _, blob in new.values())
        assert bool(written) == bool(new)
        self.chunks |= new

    @rule(keys=keys_of_a_call)
    def get(self, keys: list[ChunkKey]) -> None:
        found = self.store.get(keys)
        assert [None if v is None else bytes(v) for v in found] == [self.chunks.get(k, (0, None))[1] for k in keys]

    @rule(keys=keys_of_a_call)
    def discard(self, keys: list[ChunkKey]) -> None:
        before = self.store.stats().file_bytes
        freed = self.store.discard(keys)
        assert before - self.store.stats().file_bytes == freed
        for k in keys:
            self.chunks.pop(k, None)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store(self.root, master=self.master, wal_limit=64 * 1024)

    @invariant()
    def chunks_agree(self) -> None:
        assert {k: (n, size) for k, n, size, _ in self.store.chunks()} == {
            k: (n, len(blob)) for k, (n, blob) in self.chunks.items()
        }
        stats = self.store.stats()
        overhead = OVERHEAD * len(self.chunks) if self.master else 0
        assert stats.live_bytes == sum(len(blob) for _, blob in self.chunks.values()) + overhead
        assert stats.dead_bytes <= stats.live_bytes + (1 << 20) * len(payload_files(self.root))

    @invariant()
    def contexts_agree(self) -> None:
        rows = self.store.contexts()
        assert {r.id for r in rows} == set(self.contexts)
        for r in rows:
            want, spans = self.contexts[r.id]
            tokens = [t for s in spans for t in s.tokens]
            assert r == replace(want, n_tokens=len(tokens))
            assert self.store.spans(r.id) == spans
            assert self.store.tokens(r.id) == array("i", tokens)

    def teardown(self) -> None:
        try:
            assert self.store.check().problems == ()
            assert self.store.stats().damaged == 0
        finally:
            self.store.close()
            shutil.rmtree(self.root)


StoreIsADict.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_the_store_does_what_two_dicts_do = StoreIsADict.TestCase


class SealedStoreIsADict(StoreIsADict):
    master = MasterKey(bytes(32))


SealedStoreIsADict.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
test_a_sealed_store_does_what_two_dicts_do = SealedStoreIsADict.TestCase


# -- contexts


def test_a_conversation_comes_back_in_order_after_reopening(root: Path) -> None:
    first = [glue(1), Span((2, 3), "user", "hi \N{SNOWMAN} \0 there"), glue(4)]
    second = [Span((5, 6), "assistant", "yes", open=True)]
    with Store(root) as store:
        store.create_context(row("a"), first)
        assert store.append(ContextId("a"), second, expect=4, now=20.0) == 6
    with Store(root) as store:
        assert store.spans(ContextId("a")) == first + second
        assert store.tokens(ContextId("a")) == array("i", [1, 2, 3, 4, 5, 6])
        assert store.contexts() == [replace(row("a"), n_tokens=6, last_used=20.0)]


def test_a_lost_update_is_refused(root: Path) -> None:
    with Store(root) as store:
        store.create_context(row("a"), [glue(1, 2)])
        with pytest.raises(StoreFailed, match="holds 2 tokens where 1 were expected"):
            store.append(ContextId("a"), [glue(3)], expect=1, now=0.0)
        assert list(store.tokens(ContextId("a"))) == [1, 2]


def test_a_conversation_is_rewritten_as_a_whole_or_not_at_all(root: Path) -> None:
    new = [glue(7), Span((8, 9), "user", "again")]
    with Store(root) as store:
        store.create_context(row("a"), [glue(1, 2)])
        store.create_context(row("b"), [glue(3)])
        with pytest.raises(StoreFailed, match="holds 2 tokens where 1 were expected"):
            store.rewrite(ContextId("a"), new, expect=1, now=0.0)
        with pytest.raises(OverflowError):
            store.rewrite(ContextId("a"), [glue(7), glue(1 << 40)], expect=2, now=0.0)
        assert store.spans(ContextId("a")) == [glue(1, 2)]
        store.rewrite(ContextId("a"), new, expect=2, now=5.0)
    with Store(root) as store:
        assert store.spans(ContextId("a")) == new and store.spans(ContextId("b")) == [glue(3)]
        assert store.contexts()[0] == replace(row("a"), n_tokens=3, last_used=5.0)


def test_a_name_is_taken_once_per_app(root: Path) -> None:
    with Store(root) as store:
        store.create_context(row("a", "todo"))
        with pytest.raises(ContextExists, match="todo"):
            store.create_context(row("b", "todo"), [glue(1)])
        with pytest.raises(ContextExists, match="todo"):
            store.fork(ContextId("a"), row("b", "todo"))
        store.create_context(row("b", "todo", app="1000/mail"))
        assert [r.id for r in store.contexts()] == ["a", "b"]


def test_a_cut_inside_a_message_leaves_glue_and_a_cut_at_its_end_leaves_the_message(root: Path) -> None:
    said = Span((3, 4, 5), "assistant", "abc", open=True)
    with Store(root) as store:
        store.create_context(row("a"), [glue(1, 2), said, glue(6)])
        store.truncate(ContextId("a"), 5, 30.0)
        assert store.spans(ContextId("a")) == [glue(1, 2), said]
        store.truncate(ContextId("a"), 4, 31.0)
        assert store.spans(ContextId("a")) == [glue(1, 2), glue(3, 4)]
        with pytest.raises(BadRequest, match="has 4 tokens"):
            store.truncate(ContextId("a"), 5, 32.0)
        with pytest.raises(BadRequest):
            store.truncate(ContextId("a"), -1, 32.0)
        assert store.contexts()[0].last_used == 31.0


def test_an_unknown_context_is_named_in_the_error(root: Path) -> None:
    ghost = ContextId("ghost")
    with Store(root) as store:
        for call in (
            lambda: store.tokens(ghost),
            lambda: store.spans(ghost),
            lambda: store.append(ghost, [glue(1)], expect=0, now=0.0),
            lambda: store.truncate(ghost, 0, 0.0),
            lambda: store.fork(ghost, row("b")),
            lambda: store.delete_context(ghost),
        ):
            with pytest.raises(UnknownContext, match="ghost"):
                call()
        assert store.contexts() == []


def test_deleting_a_context_forgets_its_tokens_and_keeps_its_chunks(root: Path) -> None:
    with Store(root) as store:
        store.create_context(row("a"), [glue(1)])
        store.put(ContextId("a"), [(key(1), 64, b"abc")])
        store.delete_context(ContextId("a"))
        assert store.contexts() == []
        assert [k for k, *_ in store.chunks()] == [key(1)]
        store.create_context(row("a"))
        assert list(store.tokens(ContextId("a"))) == []


# -- chunks


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


# -- damage


def test_a_flipped_payload_comes_back_as_it_is_and_the_deep_check_reports_it(root: Path) -> None:
    with Store(root) as store:
        store.put(ContextId("a"), [(key(i), 64, data(i, 5000)) for i in range(3)])
        flipped = bytearray(data(1, 5000))
        flipped[17] ^= 4
        with payload_files(root)[0].open("r+b") as file:
            file.seek(5000)
            file.write(flipped)
        assert bytes(store.get([key(1)])[0] or b"") == flipped
        assert store.check(deep=False).problems == ()
        report = store.check()
        assert len(report.problems) == 1 and key(1).hex() in report.problems[0]
        assert store.check(repair=True).repaired
        assert store.check().problems == ()
        assert [v is None for v in store.get([key(0), key(1), key(2)])] == [False, True, False]


def test_a_torn_payload_file_costs_only_the_chunks_behind_the_tear(root: Path) -> None:
    keys = [key(i) for i in range(4)]
    with Store(root) as store:
        store.put(ContextId("a"), [(k, 64, data(i, 5000)) for i, k in enumerate(keys)])
        os.truncate(payload_files(root)[0], 12_000)
        assert len(store.check(deep=False).problems) == 2
        assert [v is None for v in store.get(keys)] == [False, False, True, True]
        assert store.stats().damaged == 2
        assert store.check().problems == ()
        store.put(ContextId("a"), [(keys[2], 64, b"again")])
        assert bytes(store.get(keys[2:3])[0] or b"") == b"again"


def test_a_missing_payload_file_is_a_miss_found_by_get_or_by_opening(root: Path) -> None:
    store = Store(root)
    for ctx in "ab":
        store.put(ContextId(ctx), [(key((ctx, i)), 64, data(i, 5000)) for i in range(2)])
    a, b = payload_files(root)
    a.unlink()
    assert [v is None for v in store.get([key(("a", 0)), key(("b", 0))])] == [True, False]
    assert store.stats().damaged == 1
    store.close()
    b.unlink()
    with Store(root) as store:
        assert list(store.chunks()) == []
        assert store.stats().damaged == 3
        assert store.check().problems == ()
        store.put(ContextId("b"), [(key(("b", 0)), 64, b"new")])
        assert bytes(store.get([key(("b", 0))])[0] or b"") == b"new"


def test_an_append_to_a_file_that_lost_its_tail_never_shows_other_bytes_under_the_lost_keys(root: Path) -> None:
    with Store(root) as store:
        store.put(ContextId("a"), [(key(1), 64, data(1, 5000)), (key(2), 64, data(2, 5000))])
        os.truncate(payload_files(root)[0], 5000)
        store.put(ContextId("a"), [(key(3), 64, data(3, 5000))])
        lost, new = store.get([key(2), key(3)])
        assert lost is None or not bytes(lost).strip(b"\0")
        assert bytes(new or b"") == data(3, 5000)


def test_orphan_payload_files_are_reported_and_swept_at_opening(root: Path) -> None:
    orphan = root / "payload" / "000000ff.kv"
    with Store(root) as store:
        store.put(ContextId("a"), [(key(1), 64, b"abc")])
        orphan.write_bytes(b"left by a crash")
        orphan.chmod(0o600)
        assert store.check().problems == (f"{orphan}: no row names it",)
        assert store.check(repair=True).problems
        assert not orphan.exists()
        orphan.write_bytes(b"left by a crash")
    with Store(root) as store:
        assert not orphan.exists()
        store.put(ContextId("b"), [(key(2), 64, b"def")])
        assert not orphan.exists()  # its number is not used again either
        assert store.check().problems == ()


def test_check_finds_wrong_counts_overlaps_and_loose_modes_and_repairs_them(root: Path) -> None:
    with Store(root) as store:
        store.create_context(row("a"), [glue(1, 2, 3)])
        store.put(ContextId("a"), [(key(1), 64, b"abcd"), (key(2), 64, b"efgh")])
    with sqlite3.connect(root / "index.sqlite") as con:
        con.execute("UPDATE contexts SET n_tokens = 9")
        con.execute("UPDATE chunks SET offset = 2 WHERE key = ?", (key(2),))
    con.close()
    with Store(root) as store:
        payload_files(root)[0].chmod(0o644)
        problems = " / ".join(store.check(repair=True).problems)
        assert "3 tokens, but counted as 9" in problems
        assert "overlaps" in problems
        assert "mode 0644" in problems
        assert store.check().problems == ()
        assert list(store.tokens(ContextId("a"))) == [1, 2, 3]
        assert store.contexts()[0].n_tokens == 3
        assert [k for k, *_ in store.chunks()] == [key(1)]


# -- the folder


def test_everything_is_private_whatever_the_umask(root: Path) -> None:
    before = os.umask(0)
    try:
        with Store(root) as store:
            store.create_context(row("a"), [glue(1)])
            store.put(ContextId("a"), [(key(1), 64, b"abc")])
            found = {p: stat.S_IMODE(p.stat().st_mode) for p in [root, *root.rglob("*")]}
            assert store.check().problems == ()
    finally:
        os.umask(before)
    assert {p.name for p in found} >= {"index.sqlite", "index.sqlite-wal", "lock", "payload", "00000001.kv"}
    assert {p for p, mode in found.items() if mode != (0o700 if p.is_dir() else 0o600)} == set()


def test_a_second_store_on_the_folder_is_told_who_holds_it(root: Path) -> None:
    with Store(root):
        with pytest.raises(StoreFailed, match=f"in use by process {os.getpid()}"):
            Store(root)
        with pytest.raises(StoreFailed, match="in use"):
            Store.repair_index(root)
        code = "import sys, pathlib; from llmaas.kvchunks.store.store import Store; Store(pathlib.Path(sys.argv[1]))"
        env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        other = subprocess.run([sys.executable, "-c", code, str(root)], env=env, capture_output=True, text=True)
        assert other.returncode == 1
        assert f"in use by process {os.getpid()}" in other.stderr
    with Store(root) as store:
        assert store.check().problems == ()


def test_a_closed_store_says_so(root: Path) -> None:
    store = Store(root)
    store.close()
    store.close()
    with pytest.raises(StoreFailed, match="closed"):
        store.contexts()
    with pytest.raises(StoreFailed, match="closed"):
        store.create_context(row("a"))


def test_a_log_left_behind_is_recovered(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    with Store(root) as store:
        store.create_context(row("a"), [glue(1, 2)])
        store.put(ContextId("a"), [(key(1), 64, b"abc")])
        assert (root / "index.sqlite-wal").stat().st_size > 0
        shutil.copytree(root, copy)  # what a crash at this moment leaves
    with Store(copy) as store:
        assert list(store.tokens(ContextId("a"))) == [1, 2]
        assert bytes(store.get([key(1)])[0] or b"") == b"abc"
        assert store.check().problems == ()


def test_evicting_the_page_cache_changes_nothing_that_can_be_seen(root: Path) -> None:
    with Store(root) as store:
        store.put(ContextId("a"), [(key(1), 64, data(1, 300_000))])
        store.evict_page_cache()
        assert bytes(store.get([key(1)])[0] or b"") == data(1, 300_000)


# -- many threads, many chunks


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
        notes = {key(1): ChunkMeta(Precision(3, 4), measured), key(2): ChunkMeta(Precision(2, 2))}
        store.put(ContextId("a"), [(key(n), 64, big) for n in range(8)], notes)
        store.persist_sensitivity({key(1): later, key(99): measured})
        store.discard([key(n) for n in (0, *range(3, 8))])
        assert store.stats().dead_bytes == 0, "the file was rewritten"
    with Store(root) as store:
        assert {c.key: c.meta for c in store.chunks()} == {
            key(1): ChunkMeta(Precision(3, 4), later),
            key(2): ChunkMeta(Precision(2, 2)),
        }


def test_an_index_of_the_first_version_is_taken_over_with_its_chunks(root: Path) -> None:
    with Store(root) as store:
        store.create_context(row("a"), [glue(1, 2)])
        store.put(ContextId("a"), [(key(1), 64, b"data")])
    with closing(sqlite3.connect(root / "index.sqlite")) as con, con:
        for column in ("k_bits", "v_bits", "k_change", "v_change", "density", "weight", "measured_at"):
            con.execute(f"ALTER TABLE chunks DROP COLUMN {column}")
        con.execute("DROP INDEX files_of_seal")
        con.execute("ALTER TABLE files DROP COLUMN seal")
        con.execute("DROP TABLE keys")
        con.execute("DROP TABLE adapters")
        con.execute("ALTER TABLE contexts DROP COLUMN adapter")
        con.execute("PRAGMA user_version = 1")
    with Store(root) as store:
        assert list(store.chunks()) == [(key(1), 64, 4, None)]
        assert bytes(store.get([key(1)])[0] or b"") == b"data"
        assert store.tokens(ContextId("a")) == array("i", [1, 2])
        assert [found.adapter for found in store.contexts()] == [""]
        assert store.check().problems == ()


def test_a_context_keeps_its_adapter_and_an_adapter_its_file(root: Path) -> None:
    mail, old = AdapterRow("mail", "/somewhere/mail.gguf", "f1"), AdapterRow("old", "/old.gguf", "f0")
    with Store(root) as store:
        store.create_context(replace(row("a"), adapter="old"), [glue(1, 2)])
        store.create_context(row("b"))
        store.append(ContextId("a"), [], expect=2, now=11.0, adapter="mail")
        store.append(ContextId("a"), [glue(3)], expect=2, now=12.0)
        store.append(ContextId("b"), [glue(3)], expect=0, now=12.0, adapter="old")
        store.append(ContextId("b"), [], expect=1, now=12.0, adapter="")
        for adapter in (old, mail, AdapterRow("mail", "/else.gguf", "f2"), mail):
            store.adapters.save(adapter)
        store.adapters.delete("old")
        store.adapters.delete("never there")
    with Store(root) as store:
        assert {found.id: found.adapter for found in store.contexts()} == {"a": "mail", "b": ""}
        assert store.adapters.all() == [mail]
        store.fork(ContextId("a"), replace(row("c"), adapter="mail"))
        assert store.contexts()[-1].adapter == "mail"
        assert store.check().problems == ()
