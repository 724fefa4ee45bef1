"""Events per second of the planner, with few and with very many idle contexts.

Run: ``pytest bench/micro/test_planner_bench.py``. A world without model, disk or threads answers every action at once,
in order. Contexts of 64 chunks take turns in cells that hold two of them and a POOL that holds four, so every call
evicts, loads 64 chunks (from DISK mostly), prefills, decodes, saves and writes; none is a cheap repeat.

The bar: 50 000 events a second, and the cost of an event flat in the number of idle contexts.
"""

from __future__ import annotations

from collections import deque

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from llmaas.kvchunks.codec.codec import Codec
from llmaas.planner import actions as act
from llmaas.planner import events as ev
from llmaas.planner.planner import Planner
from llmaas.planner.settings import PlannerSettings
from llmaas.records import CHUNK_TOKENS, AppId, ChunkKey, ContextId, Geometry, Precision, RequestId

GEOMETRY = Geometry(n_layer=30, k_dim=192, v_dim=192, head_dim_k=64, head_dim_v=64)
CHUNKS = 64
TOKENS = CHUNKS * CHUNK_TOKENS
PROMPT, ANSWER = 600, 40
NBYTES = Codec(GEOMETRY).encoded_size(CHUNK_TOKENS, Precision(4, 4))
SETTINGS = PlannerSettings(
    n_cells=2 * TOKENS + 2048,
    n_seqs=8,
    pool_bytes=4 * CHUNKS * NBYTES,
    spending="uniform",
    ctx_limit=TOKENS + 1024,
    geometry=GEOMETRY,
)
ACTIVE = 12
"""Contexts that take turns; all the others are idle."""
ROUNDS = 200
TOKEN_S = 3e-3
"""Seconds that a token takes: computing must not look cheaper than loading."""


class World:
    """Answers the planner's actions at once. ``served`` counts the events that it took."""

    def __init__(self, n_contexts: int) -> None:
        self.planner = Planner(SETTINGS)
        self.contexts = [ContextId(f"{i:016x}") for i in range(n_contexts)]
        self.served = 0
        self._todo: deque[act.Action] = deque()
        self._now = 0.0
        self._next = 0
        for i, context in enumerate(self.contexts):
            self.send(ev.ContextOpened(context, AppId("0/bench"), self.keys(i), TOKENS))
        chunks = [(key, NBYTES, None) for i in range(n_contexts) for key in self.keys(i)]
        self.send(ev.ChunksFound(tuple(chunks)))

    @staticmethod
    def keys(i: int, first: int = 0, n_tokens: int = TOKENS, version: int = 0) -> tuple[ChunkKey, ...]:
        last = -(-n_tokens // CHUNK_TOKENS)
        return tuple(ChunkKey((i << 48 | version << 16 | j).to_bytes(16, "little")) for j in range(first, last))

    def send(self, event: ev.Event) -> None:
        self._now += 0.001
        self.served += 1
        self._todo.extend(self.planner.handle(event, self._now))

    def call(self) -> None:
        """A whole call of the next active context, then back to 64 chunks; ends with the planner at rest."""
        self._next += 1
        i = self._next % ACTIVE
        self.send(ev.Submitted(RequestId(self._next), self.contexts[i], TOKENS + PROMPT, ANSWER))
        while self._todo:
            self._answer(self._todo.popleft(), i)
        self.send(ev.ContextChanged(self.contexts[i], CHUNKS, (), TOKENS))
        self._todo.clear()  # what is dropped needs no answer
        assert self.planner.idle

    def _answer(self, action: act.Action, i: int) -> None:
        match action:
            case act.RunStep(step=step, items=items):
                self._now += TOKEN_S * sum(item.stop - item.start for item in items)
                drawn = [ev.Drawn.TOKEN if item.sample else ev.Drawn.NOTHING for item in items]
                self.send(ev.StepDone(step, tuple(drawn)))
            case act.LoadChunks(load=load, chunks=chunks):
                self.send(ev.Loaded(load, len(chunks)))
            case act.SaveChunks(save=save, chunks=chunks):
                self.send(ev.Saved(save, tuple(ev.Stored(NBYTES) for _ in chunks)))
            case act.WriteChunks(write=write, keys=keys):
                self.send(ev.Written(write, tuple(ev.Stored(NBYTES) for _ in keys)))
            case act.Finish(context=context, n_kv=n_kv):
                fresh = self.keys(i, CHUNKS, n_kv, version=self._next)
                self.send(ev.ContextChanged(context, CHUNKS, fresh, n_kv))


@pytest.mark.parametrize("n_contexts", [ACTIVE, 1_000, 10_000])
def test_whole_calls(benchmark: BenchmarkFixture, n_contexts: int) -> None:
    world = World(n_contexts)
    for _ in range(2 * ACTIVE):
        world.call()
    served = world.served
    benchmark.pedantic(world.call, rounds=ROUNDS, iterations=1)  # type: ignore[no-untyped-call]
    events_per_call = (world.served - served) / ROUNDS
    benchmark.extra_info["events_per_call"] = events_per_call
    if benchmark.stats:
        benchmark.extra_info["events_per_second"] = round(events_per_call / benchmark.stats.stats.median)
    assert world.planner.tally.tokens_from_disk > 0
    assert world.planner.tally.tokens_recomputed == 0
    assert world.planner.check() == []


@pytest.mark.parametrize("n_contexts", [ACTIVE, 10_000])
def test_one_decode_step(benchmark: BenchmarkFixture, n_contexts: int) -> None:
    """The event that comes once for every token of every answer."""
    world = World(n_contexts)
    world.call()
    request, context = RequestId(1 << 20), world.contexts[0]
    actions = world.planner.handle(ev.Submitted(request, context, TOKENS, 1000), 0.0)
    steps: list[act.RunStep] = []

    def answer(action: act.Action) -> None:
        if isinstance(action, act.LoadChunks):
            for one in world.planner.handle(ev.Loaded(action.load, len(action.chunks)), 0.0):
                answer(one)
        elif isinstance(action, act.RunStep):
            steps.append(action)

    for action in actions:
        answer(action)

    def step() -> None:
        done = ev.StepDone(steps.pop().step, (ev.Drawn.TOKEN,))
        for action in world.planner.handle(done, 0.0):
            answer(action)

    benchmark.pedantic(step, rounds=900, iterations=1, warmup_rounds=20)  # type: ignore[no-untyped-call]
    assert len(steps) == 1
