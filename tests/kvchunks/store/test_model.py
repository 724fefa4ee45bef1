"""The store against a model of it: two dicts."""

from __future__ import annotations

import shutil
import tempfile
from array import array
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from llmaas.kvchunks.store.cipher import OVERHEAD
from llmaas.kvchunks.store.store import ContextRow, MasterKey, Span, Store
from llmaas.records import ChunkKey, ContextId
from tests.support.store_data import data, glue, key, payload_files, row

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


class EncryptedStoreIsADict(StoreIsADict):
    master = MasterKey(bytes(32))


EncryptedStoreIsADict.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
test_an_encrypted_store_does_what_two_dicts_do = EncryptedStoreIsADict.TestCase
