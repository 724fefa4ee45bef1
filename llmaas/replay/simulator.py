"""The planner's interpreter in virtual time: a trace, a cost model, no model and no I/O.

Law: the very planner that serves decides here; only the prices are invented, and they are all in ``replay/prices``.
Engine, loader, coder and disk are each one server that works in order, as in the live service.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmaas.errors import BadRequest
from llmaas.kvchunks.codec.codec import Codec, sinks_at
from llmaas.planner.actions import (
    AbortStep,
    Admitted,
    DropCells,
    DropDisk,
    DropPool,
    FetchChunks,
    Finish,
    LoadChunks,
    LowerChunks,
    MeasureChunks,
    Outcome,
    Paused,
    PersistSensitivity,
    RunStep,
    SaveChunks,
    StopLoad,
    StopWrite,
    Switched,
    WakeAt,
    WriteChunks,
)
from llmaas.planner.events import (
    CancelRequested,
    ContextChanged,
    ContextOpened,
    Drawn,
    Event,
    Fetched,
    Loaded,
    Lowered,
    Measured,
    Saved,
    StepDone,
    Stored,
    Submitted,
    Woken,
    Written,
)
from llmaas.planner.planner import Planner
from llmaas.planner.settings import PlannerSettings
from llmaas.planner.tally import Tally
from llmaas.policies.eviction import EvictionPolicy
from llmaas.policies.eviction.belady import Belady
from llmaas.policies.prefetch import Successors
from llmaas.records import CHUNK_TOKENS, AppId, ChunkKey, ContextId, RequestId, Tier
from llmaas.replay.prices import Costs
from llmaas.replay.trace import TraceCall

_IDLE_S = 1.0
"""Seconds after a call until it is guessed who comes next."""


@dataclass(slots=True)
class CallReport:
    """What became of a call; times are virtual seconds, source counts are tokens."""

    call: TraceCall
    submitted: float = 0.0
    admitted: float = 0.0
    switched: float = 0.0
    first_token: float = 0.0
    done: float = 0.0
    sources: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Tokens that came from CELLS, POOL, DISK, and by recomputing."""
    paused: int = 0
    """How often it had to leave CELLS to others."""
    outcome: Outcome | None = None

    @property
    def switch_s(self) -> float:
        return self.switched - self.admitted


@dataclass(slots=True)
class ReplayHints:
    """What came of bringing contexts back ahead of their calls."""

    guesses: int = 0
    right: int = 0
    """Guesses that named the next call's context."""
    tokens_moved: int = 0
    """Tokens that hints brought back to CELLS."""


@dataclass(frozen=True, slots=True)
class ReplayReport:
    calls: tuple[CallReport, ...]
    tally: Tally
    problems: tuple[str, ...]
    """Of the planner's books at the end; empty when they balance."""


@dataclass(slots=True, eq=False)
class _Context:
    id: ContextId
    number: int
    n_tokens: int = 0
    n_kv: int = 0
    waiting: deque[CallReport] = field(default_factory=deque)
    running: CallReport | None = None

    def keys(self, n_kv: int, first: int) -> tuple[ChunkKey, ...]:
        """A replay has no tokens: a chunk is named by its place and length."""
        ends = (min(start + CHUNK_TOKENS, n_kv) for start in range(first * CHUNK_TOKENS, n_kv, CHUNK_TOKENS))
        return tuple(ChunkKey(struct.pack("<QII", self.number, i, end)) for i, end in enumerate(ends, start=first))


def unbounded(trace: Sequence[TraceCall], settings: PlannerSettings, costs: Costs | None = None) -> ReplayReport:
    """The trace with a POOL that holds everything: no eviction policy gives shorter switches."""
    return Replay(dataclasses.replace(settings, pool_bytes=1 << 60), costs).run(trace)


def belady(trace: Sequence[TraceCall], settings: PlannerSettings, costs: Costs | None = None) -> ReplayReport:
    """The trace with an eviction policy that knows it: no other gives fewer tokens from DISK (``eviction.belady``)."""
    returns: dict[ContextId, list[float]] = {}
    for report in unbounded(trace, settings, costs).calls:
        if sum(report.sources[1:]):
            returns.setdefault(context_id(report.call), []).append(report.admitted)
    return Replay(settings, costs, eviction=Belady(returns)).run(trace)


def context_id(call: TraceCall) -> ContextId:
    return ContextId(f"0/{call.app}/{call.context}")


class Replay:
    """Runs one trace. Use ``run``."""

    def __init__(
        self,
        settings: PlannerSettings,
        costs: Costs | None = None,
        *,
        eviction: EvictionPolicy | None = None,
        hint_s: float = 0.0,
        guess_from: float | None = None,
    ) -> None:
        """``eviction``: a policy in place of the one that the settings name.

        ``hint_s``: each call is hinted at so many seconds before it comes. ``guess_from``: between calls, whoever is
        expected next with at least this confidence is hinted at.
        """
        self._settings, self._costs = settings, costs or Costs()
        self._planner = Planner(settings, eviction=eviction)
        self._size = Codec(settings.geometry).encoded_size
        self._now = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._free_at = dict.fromkeys(("engine", "loader", "coder", "disk"), 0.0)
        self._contexts: dict[ContextId, _Context] = {}
        self._running: dict[RequestId, tuple[_Context, CallReport]] = {}
        self._requests = itertools.count(1)
        self._hint_s, self._guess_from = hint_s, guess_from
        self._successors = Successors()
        self._hinting: dict[ContextId, RequestId] = {}
        self._guessed: ContextId | None = None
        self.hints = ReplayHints()
        self._pool: dict[ChunkKey, int] = {}
        self._disk: dict[ChunkKey, int] = {}
        self._perform: dict[type, Callable[[Any], None]] = {
            RunStep: self._run_step,
            LoadChunks: self._load,
            FetchChunks: self._fetch,
            SaveChunks: self._save,
            MeasureChunks: lambda a: self._answer(self._now, Measured(a.measure, ())),
            LowerChunks: self._lower,
            WriteChunks: self._write,
            PersistSensitivity: lambda a: None,
            StopLoad: lambda a: None,  # a load takes its whole time here
            StopWrite: lambda a: None,
            DropPool: lambda a: _forget(self._pool, a.keys),
            DropDisk: lambda a: _forget(self._disk, a.keys),
            DropCells: lambda a: None,
            AbortStep: lambda a: None,  # the step ends as if that came too late
            WakeAt: lambda a: self._answer(a.when, Woken()),
            Paused: self._paused,
            Admitted: self._admitted,
            Switched: self._switched,
            Finish: self._finish,
        }

    def run(self, trace: Iterable[TraceCall]) -> ReplayReport:
        """All calls of the trace, to their ends and the last byte swapped out."""
        reports = [CallReport(call) for call in trace]
        for report in reports:
            self._at(report.call.t, lambda r=report: self._arrive(r))  # type: ignore[misc]
            if self._hint_s:
                when = max(0.0, report.call.t - self._hint_s)
                self._at(when, lambda r=report: self._hint(context_id(r.call)))  # type: ignore[misc]
        while self._queue:
            self._now, _, act = heapq.heappop(self._queue)
            act()
        return ReplayReport(tuple(reports), self._planner.tally, tuple(self._planner.check()))

    # -- time

    def _at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (when, next(self._order), act))

    def _work(self, server: str, seconds: float, *, after: float = 0.0) -> float:
        """A job of one server, which works in order; when it will be done."""
        self._free_at[server] = max(self._now, after, self._free_at[server]) + seconds
        return self._free_at[server]

    def _answer(self, when: float, event: Event) -> None:
        self._at(when, lambda: self._dispatch(event))

    def _dispatch(self, event: Event) -> None:
        for action in self._planner.handle(event, self._now):
            self._perform[type(action)](action)

    # -- calls

    def _arrive(self, report: CallReport) -> None:
        call = report.call
        name = context_id(call)
        context = self._contexts.get(name)
        if context is None:
            context = self._contexts[name] = _Context(name, len(self._contexts))
            self._dispatch(ContextOpened(name, AppId(f"0/{call.app}")))
        report.submitted = self._now
        self.hints.right += self._guessed == name
        self._guessed = None
        self._successors.called(name)
        if (hint := self._hinting.get(name)) is not None:
            self._dispatch(CancelRequested(hint))  # what it has brought back stays
        context.waiting.append(report)
        self._next_call(context)

    def _hint(self, name: ContextId) -> None:
        """Bring the context back if nobody does, as ``Service.hint``."""
        context = self._contexts.get(name)
        if context is None or context.running is not None or context.waiting or not context.n_tokens:
            return
        request = self._hinting[name] = RequestId(next(self._requests))
        context.running = CallReport(TraceCall(self._now, "hint", name, 0, 1))
        self._running[request] = context, context.running
        self._dispatch(Submitted(request, name, context.n_tokens, 0, 9))

    def _guess(self) -> None:
        """After a call: bring back who comes next, if that is likely enough."""
        guess = self._successors.guess()
        if self._guess_from is None or guess is None or guess.confidence < self._guess_from or self._running:
            return
        self._guessed = guess.context
        self.hints.guesses += 1
        self._hint(guess.context)

    def _next_call(self, context: _Context) -> None:
        if context.running is not None or not context.waiting:
            return
        report = context.running = context.waiting.popleft()
        call = report.call
        total = context.n_tokens + call.prompt
        if total + call.generate > self._settings.ctx_limit:
            raise BadRequest(f"trace: context {context.id} grows beyond {self._settings.ctx_limit} tokens")
        request = RequestId(next(self._requests))
        self._running[request] = context, report
        context.n_tokens = total
        deadline = None if call.deadline_s is None else self._now + call.deadline_s
        self._dispatch(Submitted(request, context.id, total, call.generate, call.priority, deadline, call.rate))

    def _admitted(self, action: Admitted) -> None:
        report = self._running[action.request][1]
        report.admitted = report.admitted or self._now

    def _switched(self, action: Switched) -> None:
        report = self._running[action.request][1]
        now = action.cells, action.pool, action.disk, action.recomputed
        report.switched = report.switched or self._now
        report.sources = tuple(a + b for a, b in zip(report.sources, now, strict=True))  # type: ignore[assignment]

    def _paused(self, action: Paused) -> None:
        context, report = self._running[action.request]
        report.paused += 1
        self._keep(context, action.n_kv)

    def _keep(self, context: _Context, n_kv: int) -> None:
        """What the call has computed becomes chunks."""
        first = min(context.n_kv, n_kv) // CHUNK_TOKENS
        context.n_kv = max(context.n_kv, n_kv)
        self._answer(self._now, ContextChanged(context.id, first, context.keys(context.n_kv, first), context.n_kv))

    def _finish(self, action: Finish) -> None:
        context, report = self._running.pop(action.request)
        report.done, report.outcome = self._now, action.outcome
        report.first_token = report.first_token or self._now
        context.running = None
        if self._hinting.pop(context.id, None) is not None:
            self.hints.tokens_moved += sum(report.sources[1:])
        else:
            self._at(self._now + _IDLE_S, self._guess)
        self._keep(context, action.n_kv)
        self._at(self._now, lambda: self._next_call(context))

    # -- prices

    def _run_step(self, action: RunStep) -> None:
        c = self._costs
        tokens = [item.stop - item.start for item in action.items]
        prefill = sum(n for n, item in zip(tokens, action.items, strict=True) if n > 1 or not item.sample)
        done = self._work("engine", c.step + c.prefill_token * prefill + c.decode_token * (sum(tokens) - prefill))
        drawn = tuple(Drawn.TOKEN if item.sample else Drawn.NOTHING for item in action.items)

        def stepped() -> None:
            for item in action.items:
                if item.sample:
                    context, report = self._running[item.request]
                    context.n_tokens += 1
                    report.first_token = report.first_token or self._now
            self._dispatch(StepDone(action.step, drawn))

        self._at(done, stepped)

    def _load(self, action: LoadChunks) -> None:
        c = self._costs
        on_disk = sum(self._disk[s.key] for s in action.chunks if s.tier is Tier.DISK)
        coded = on_disk + sum(self._pool[s.key] for s in action.chunks if s.tier is Tier.POOL)
        cells = (action.chunks[-1].stop - action.chunks[0].start) * self._settings.geometry.token_bytes
        read = self._work("disk", c.disk_latency + on_disk * c.disk_read_byte) if on_disk else self._now
        decoded = self._work("loader", coded * c.code_byte, after=read)
        done = self._work("engine", cells * c.cell_byte, after=decoded)
        self._pool.update((s.key, self._disk[s.key]) for s in action.chunks if s.keep)
        self._answer(done, Loaded(action.load, len(action.chunks)))

    def _fetch(self, action: FetchChunks) -> None:
        sizes = tuple(self._disk[key] for key in action.keys)
        done = self._work("disk", self._costs.disk_latency + sum(sizes) * self._costs.disk_read_byte)
        self._pool.update(zip(action.keys, sizes, strict=True))
        self._answer(done, Fetched(action.fetch, tuple(map(Stored, sizes))))

    def _save(self, action: SaveChunks) -> None:
        c = self._costs
        sizes = tuple(self._size(t.stop - t.start, t.precision, sinks_at(t.start)) for t in action.chunks)
        cells = sum(t.stop - t.start for t in action.chunks) * self._settings.geometry.token_bytes
        exported = self._work("engine", cells * c.cell_byte)
        done = self._work("coder", sum(sizes) * c.code_byte, after=exported)
        self._pool.update(zip((t.key for t in action.chunks), sizes, strict=True))
        self._answer(done, Saved(action.save, tuple(map(Stored, sizes))))

    def _lower(self, action: LowerChunks) -> None:
        before = [self._pool[key] for key, _ in action.chunks]
        sizes = [min(old, self._size(CHUNK_TOKENS, p, 0)) for old, (_, p) in zip(before, action.chunks, strict=True)]
        done = self._work("coder", (sum(before) + sum(sizes)) * self._costs.code_byte)
        self._pool.update((key, n) for (key, _), n in zip(action.chunks, sizes, strict=True))
        self._answer(done, Lowered(action.lower, tuple(map(Stored, sizes))))

    def _write(self, action: WriteChunks) -> None:
        sizes = tuple(self._pool[key] for key in action.keys)
        done = self._work("disk", self._costs.disk_latency + sum(sizes) * self._costs.disk_write_byte)
        self._disk.update(zip(action.keys, sizes, strict=True))
        self._answer(done, Written(action.write, tuple(map(Stored, sizes))))


def _forget(held: dict[ChunkKey, int], keys: Iterable[ChunkKey]) -> None:
    for key in keys:
        held.pop(key, None)
