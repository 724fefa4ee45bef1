"""A world for the planner that answers late, out of order, and sometimes with failures.

It keeps its own books of cells, POOL and DISK and asserts at every action that what the planner asks is possible.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmaas.kvchunks.codec.codec import Codec, sinks_at
from llmaas.kvchunks.codec.states import coded_state_size
from llmaas.planner import actions as act
from llmaas.planner import events as ev
from llmaas.planner.planner import Planner
from llmaas.planner.settings import PlannerSettings
from llmaas.records import (
    CHUNK_TOKENS,
    AppId,
    ChunkKey,
    ChunkMeta,
    ChunkSensitivity,
    ContextId,
    Geometry,
    RequestId,
    Tier,
)

GEOMETRY = Geometry(n_layer=2, k_dim=64, v_dim=64, head_dim_k=32, head_dim_v=32)
APP = AppId("0/test")
ADAPTER_BYTES = 100
"""Of every adapter."""


def settings(**changes: object) -> PlannerSettings:
    values: dict[str, object] = {
        "n_cells": 1024,
        "n_seqs": 6,
        "pool_bytes": 60 * Codec(GEOMETRY).encoded_size(64, PlannerSettings.__dataclass_fields__["precision"].default),
        "ctx_limit": 1024,
        "geometry": GEOMETRY,
        "spending": "uniform",
        "max_batch": 128,
        "prefill_slice": 100,
        "max_running": 3,
    }
    return PlannerSettings(**{**values, **changes})  # type: ignore[arg-type]


@dataclass
class Ctx:
    id: ContextId
    number: int
    epoch: int = 0
    tokens: list[int] = field(default_factory=list)
    """One number per token: what it is, so that a replaced token makes other keys."""
    n_kv: int = 0
    busy: bool = False

    def keys(self, n_kv: int, first: int = 0) -> tuple[ChunkKey, ...]:
        ends = range(first * CHUNK_TOKENS, n_kv, CHUNK_TOKENS)
        return tuple(self.key(min(start + CHUNK_TOKENS, n_kv)) for start in ends)

    def key(self, end: int) -> ChunkKey:
        """Of the chunk that ends with token ``end``."""
        return ChunkKey(struct.pack("<Qq", self.number << 32 | end, hash(tuple(self.tokens[:end]))))


class World:
    def __init__(self, s: PlannerSettings, rng: random.Random, *, faults: float = 0.0) -> None:
        self.s, self.rng, self.faults = s, rng, faults
        self.planner = Planner(s)
        self.size = Codec(s.geometry).encoded_size
        self.ctxs: dict[ContextId, Ctx] = {}
        self.cells: dict[int, int] = {}
        self.pool: dict[ChunkKey, int] = {}
        self.disk: dict[ChunkKey, int] = {}
        self.due: list[act.Action] = []
        self.calls: dict[RequestId, tuple[Ctx, int, int]] = {}
        self.finished: dict[RequestId, act.Finish] = {}
        self.sources: dict[RequestId, act.Switched] = {}
        self.log: list[tuple[ev.Event, list[act.Action]]] = []
        self.times: list[float] = []
        self.now = 0.0
        self.tick = 1.0
        """Seconds between two events at most."""
        self.token_s = 0.0
        """Seconds that a token of a prompt takes."""
        self.aborted: set[int] = set()
        self.adapters: dict[RequestId, str] = {}
        self.running: set[RequestId] = set()
        self.serial = 0
        self.measurable = 0.8
        """Share of chunks whose sensitivity a measurement finds."""

    # -- what happens to the planner

    def send(self, event: ev.Event) -> None:
        self.now += self.tick * self.rng.random()
        actions = self.planner.handle(event, self.now)
        self.log.append((event, list(actions)))
        self.times.append(self.now)
        for action in actions:
            self.begin(action)

    def open(self, app: AppId = APP) -> Ctx:
        ctx = Ctx(ContextId(f"c{len(self.ctxs)}-{self.serial}"), len(self.ctxs) + 1)
        self.ctxs[ctx.id] = ctx
        self.send(ev.ContextOpened(ctx.id, app))
        return ctx

    def restart(self, metas: dict[ChunkKey, ChunkMeta], idle: float) -> None:
        """A new planner, which is given what the store holds; only at rest."""
        assert not self.due
        self.planner, self.pool, self.cells, self.log = Planner(self.s), {}, {}, []
        for ctx in self.ctxs.values():
            self.send(ev.ContextOpened(ctx.id, APP, ctx.keys(ctx.n_kv), ctx.n_kv, idle))
        self.send(ev.ChunksFound(tuple((k, n, metas.get(k)) for k, n in self.disk.items())))

    def fork(self, ctx: Ctx) -> Ctx:
        self.serial += 1
        twin = Ctx(ContextId(f"f{self.serial}"), ctx.number, 0, list(ctx.tokens), ctx.n_kv)
        self.ctxs[twin.id] = twin
        self.send(ev.ContextOpened(twin.id, APP, ctx.keys(ctx.n_kv), ctx.n_kv))
        return twin

    def call(
        self,
        ctx: Ctx,
        prompt: int,
        max_new: int,
        priority: int | None = None,
        deadline: float | None = None,
        rate: float | None = None,
        adapter: str = "",
    ) -> RequestId:
        assert not ctx.busy
        self.serial += 1
        request = RequestId(self.serial)
        ctx.busy = True
        base = len(ctx.tokens)
        ctx.tokens += [self.serial] * prompt
        self.calls[request] = (ctx, base, max_new)
        terms = self.rng.randrange(10) if priority is None else priority, deadline, rate
        self.adapters[request] = adapter
        nbytes = ADAPTER_BYTES if adapter else 0
        self.send(ev.Submitted(request, ctx.id, len(ctx.tokens), max_new, *terms, adapter, nbytes))
        return request

    def truncate(self, ctx: Ctx, n: int) -> None:
        del ctx.tokens[n:]
        self.changed(ctx, min(ctx.n_kv, n))

    def close(self, ctx: Ctx) -> None:
        del self.ctxs[ctx.id]
        self.send(ev.ContextClosed(ctx.id))

    def changed(self, ctx: Ctx, n_kv: int) -> None:
        first = min(ctx.n_kv, n_kv) // CHUNK_TOKENS
        ctx.n_kv = n_kv
        self.send(ev.ContextChanged(ctx.id, first, ctx.keys(n_kv, first), n_kv))

    def come(self, ctx: Ctx, indices: Sequence[int], nbytes: int = 1000) -> int:
        """Another node has sent these chunks of the context. Those that are stored already, or that DISK has no room
        for, are left out. How many came."""
        keys = [key for i, key in enumerate(ctx.keys(ctx.n_kv)) if i in indices and not self.planner.stored(key)]
        keys = keys[: self.planner.disk_room(APP) // nbytes]
        self.disk.update(dict.fromkeys(keys, nbytes))
        self.send(ev.ChunksCame(ctx.id, tuple((key, nbytes, None) for key in keys)))
        return len(keys)

    # -- what the planner asks

    def begin(self, action: act.Action) -> None:
        match action:
            case act.Admitted(request=request):
                self.running.add(request)
                names = {self.adapters.get(r, "") for r in self.running} - {""}
                assert len(names) * ADAPTER_BYTES <= self.s.adapter_bytes or len(names) == 1
            case act.Paused(request=request) | act.Finish(request=request):
                self.running.discard(request)
            case _:
                pass
        match action:
            case act.RunStep(items=items):
                assert sum(i.stop - i.start for i in items) <= self.s.max_batch
                for item in items:
                    assert self.cells.get(item.seq, 0) == item.start < item.stop
                    assert item.stop <= len(self.ctxs[item.context].tokens)
            case act.SaveChunks(seq=seq, chunks=chunks):
                assert all(c.stop <= self.cells[seq] for c in chunks)
                assert self.s.state is None or [(0, self.cells[seq])] == [(c.start, c.stop) for c in chunks]
            case act.LoadChunks(seq=seq, chunks=chunks):
                assert self.cells.get(seq, 0) == chunks[0].start
                for c in chunks:
                    assert c.key in (self.pool if c.tier is Tier.POOL else self.disk)
                    assert c.key == self.ctxs[action.context].key(c.stop)
            case act.FetchChunks(keys=keys):
                assert all(k in self.disk and k not in self.pool for k in keys)
            case act.MeasureChunks(seq=seq, chunks=spans):
                assert self.s.measure and spans[-1].stop <= self.cells[seq]
                assert [s.start for s in spans] == list(range(0, spans[-1].stop, CHUNK_TOKENS))
            case act.LowerChunks(chunks=chunks):
                assert all(k in self.pool for k, _ in chunks)
            case act.WriteChunks(keys=keys):
                assert all(k in self.pool for k in keys)
            case act.PersistSensitivity(sensitivities=changed):
                assert all(k in self.disk for k, _ in changed)
                return
            case act.DropPool(keys=keys):
                for k in keys:
                    del self.pool[k]
                return
            case act.DropDisk(keys=keys):
                for k in keys:
                    del self.disk[k]
                return
            case act.DropCells(seq=seq, start=start):
                assert self.cells[seq] > start
                self.cells[seq] = start
                return
            case act.Switched(request=request):
                self.sources[request] = action
                return
            case act.Admitted() | act.StopLoad():
                return
            case act.AbortStep(step=step):
                self.aborted.add(step)
                return
            case act.WakeAt():
                self.due = [other for other in self.due if not isinstance(other, act.WakeAt)]
        self.due.append(action)

    def answer_one(self, index: int | None = None) -> None:
        action = self.due.pop(self.rng.randrange(len(self.due)) if index is None else index)
        bad = self.rng.random() < self.faults
        match action:
            case act.RunStep():
                self.step(action, bad)
            case act.SaveChunks(chunks=chunks):
                outcomes = tuple(
                    ev.FAILED if bad and self.rng.random() < 0.5 else ev.Stored(self.saved_bytes(c)) for c in chunks
                )
                self.pool.update(stored([c.key for c in chunks], outcomes))
                self.send(ev.Saved(action.save, outcomes))
            case act.LoadChunks(chunks=chunks):
                self.load(action, bad)
            case act.FetchChunks(keys=keys):
                outcomes = tuple(
                    ev.FAILED if bad and self.rng.random() < 0.5 else ev.Stored(self.disk[k]) for k in keys
                )
                self.pool.update(stored(keys, outcomes))
                self.send(ev.Fetched(action.fetch, outcomes))
            case act.WriteChunks(keys=keys):
                outcomes = tuple(ev.FAILED if bad else ev.Stored(self.pool[k]) for k in keys)
                self.disk.update(stored(keys, outcomes))
                self.send(ev.Written(action.write, outcomes, full=bad and self.rng.random() < 0.5))
            case act.MeasureChunks(chunks=spans):
                measured = () if bad else tuple(s for s in spans if self.rng.random() < self.measurable)
                self.send(ev.Measured(action.measure, tuple((s.key, self.sensitivity()) for s in measured)))
            case act.LowerChunks(chunks=chunks):
                sizes = [self.size(CHUNK_TOKENS, precision) for _, precision in chunks]
                outcomes = tuple(
                    ev.FAILED if bad or n >= self.pool[k] else ev.Stored(n)
                    for n, (k, _) in zip(sizes, chunks, strict=True)
                )
                self.pool.update(stored([k for k, _ in chunks], outcomes))
                self.send(ev.Lowered(action.lower, outcomes))
            case act.WakeAt(when=when):
                self.now = max(self.now, when)
                self.send(ev.Woken())
            case act.Paused():
                self.paused(action)
            case act.Finish():
                for other in [a for a in self.due if isinstance(a, act.Paused) and a.request == action.request]:
                    self.due.remove(other)
                    self.paused(other)
                self.finish(action)
        self.assert_within_budgets()

    def saved_bytes(self, target: act.ChunkTarget) -> int:
        if self.s.state is not None:
            return coded_state_size(self.s.state.of(target.stop))
        return self.size(target.stop - target.start, target.precision, sinks_at(target.start))

    def paused(self, action: act.Paused) -> None:
        ctx = self.ctxs[action.context]
        self.changed(ctx, max(ctx.n_kv, action.n_kv))

    def step(self, action: act.RunStep, bad: bool) -> None:
        if action.step in self.aborted and self.rng.random() < 0.5:
            self.send(ev.StepFailed(action.step, aborted=True))
            return
        if bad:
            self.send(ev.StepFailed(action.step))
            return
        self.now += self.token_s * sum(i.stop - i.start for i in action.items if i.stop - i.start > 1)
        drawn = []
        steps = self.rng.randint(1, action.burst)
        for item in action.items:
            assert action.burst == 1 or (item.sample and item.stop == item.start + 1)
            self.cells[item.seq] = item.stop + steps - 1
            for _ in range(steps - 1):
                self.serial += 1
                self.ctxs[item.context].tokens.append(self.serial)
            if not item.sample:
                drawn.append(ev.Drawn.NOTHING)
                continue
            weights = {ev.Drawn.TOKEN: 20, ev.Drawn.END: 1, ev.Drawn.LAST: 1, ev.Drawn.LATER: 3 * (action.draw_s < 1)}
            what = self.rng.choices(list(weights), list(weights.values()))[0]
            if what is ev.Drawn.LATER:
                self.cells[item.seq] -= 1
            elif what is not ev.Drawn.END:
                self.serial += 1
                self.ctxs[item.context].tokens.append(self.serial)
            drawn.append(what)
        self.send(ev.StepDone(action.step, tuple(drawn), steps))

    def load(self, action: act.LoadChunks, bad: bool) -> None:
        n = self.rng.randrange(len(action.chunks)) if bad else len(action.chunks)
        done = action.chunks[:n]
        if done:
            self.cells[action.seq] = done[-1].stop
        self.pool.update({c.key: self.disk[c.key] for c in done if c.keep})
        self.send(ev.Loaded(action.load, n, (action.chunks[n].key,) if bad else ()))

    def finish(self, action: act.Finish) -> None:
        assert action.request not in self.finished, "a request finished twice"
        self.finished[action.request] = action
        ctx, base, _ = self.calls[action.request]
        ctx.busy = False
        failed = action.outcome in (act.Outcome.CANCELLED, act.Outcome.EXPIRED, act.Outcome.ENGINE_FAILED)
        if failed and self.rng.random() < 0.5:
            del ctx.tokens[base:]
        self.changed(ctx, min(len(ctx.tokens), max(ctx.n_kv, action.n_kv)))

    def sensitivity(self) -> ChunkSensitivity:
        """One of a chunk: K and V over many orders of magnitude."""
        k, v = (10 ** self.rng.uniform(-9, -1) for _ in "kv")
        return ChunkSensitivity(k, v, self.rng.random(), self.rng.uniform(0.1, 60), self.rng.randrange(2000))

    def settle(self) -> None:
        for _ in range(100_000):
            if not self.due:
                return
            self.answer_one()
        raise AssertionError("the planner never comes to rest")

    def assert_within_budgets(self) -> None:
        assert sum(self.cells.values()) <= self.s.n_cells, "cells overrun"
        assert self.planner.pool_used <= self.s.pool_bytes
        assert sum(self.pool.values()) <= self.s.pool_bytes
        assert sum(self.disk.values()) <= self.planner.disk_used <= self.s.disk_bytes


def stored(keys: Sequence[ChunkKey], outcomes: Sequence[ev.ChunkOutcome]) -> dict[ChunkKey, int]:
    """The bytes of each chunk that has a new copy."""
    return {k: o.nbytes for k, o in zip(keys, outcomes, strict=True) if isinstance(o, ev.Stored)}


def world(seed: int = 0, *, faults: float = 0.0, **changes: object) -> World:
    return World(settings(**changes), random.Random(seed), faults=faults)


def run_call(w: World, ctx: Ctx, prompt: int, max_new: int) -> act.Finish:
    request = w.call(ctx, prompt, max_new)
    w.settle()
    return w.finished[request]
