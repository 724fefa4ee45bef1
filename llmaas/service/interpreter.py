"""The planner's interpreter in real time: events in, actions carried out.

Law: it decides nothing. It alone joins planner, engine thread and pool. It lives on one event loop, and nothing on that
loop waits for the engine, the disk or a worker: their answers come back as events.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from llmaas.clock import Clock
from llmaas.engine.adapter_cache import AdapterCache, AdapterFile
from llmaas.engine.base import Aborted, BatchItem
from llmaas.engine.thread import EngineThread
from llmaas.errors import LlmaasError
from llmaas.kvchunks.codec.codec import Codec
from llmaas.kvchunks.store.store import Store
from llmaas.kvchunks.tiering.pool import Pool
from llmaas.kvchunks.tiering.sensitivity_worker import SensitivityWorker
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
from llmaas.planner.events import CancelRequested, Drawn, Event, StepDone, StepFailed, Woken
from llmaas.planner.planner import Planner
from llmaas.planner.settings import PlannerSettings
from llmaas.records import RequestId
from llmaas.service.call import Call
from llmaas.service.contexts import Directory, tell_changed
from llmaas.service.host_share import HostShare
from llmaas.service.recorder import Recorder

log = logging.getLogger(__name__)


_PARCEL_S = 0.05
"""Tokens that come faster than this are told of together: each telling takes a core from the model for a moment."""


class LoopBridge:
    """A thread that brings calls from the engine's thread to the event loop, in order.

    ``call_soon_threadsafe`` writes to a pipe and so gives up the GIL, which the woken loop then holds while the engine
    waits to begin its next step: 0.1 ms per token. The bridge writes while that step runs.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._sent: SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="loop-bridge", daemon=True)
        self._thread.start()

    def send(self, call: Callable[..., None], *args: object) -> None:
        self._sent.put((call, args))

    def close(self) -> None:
        self._sent.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (sent := self._sent.get()) is not None:
            self._loop.call_soon_threadsafe(sent[0], *sent[1])


class Interpreter:
    """Carries out the planner's actions. ``calls`` and ``directory`` are the service's own, read here."""

    def __init__(
        self,
        thread: EngineThread,
        store: Store,
        settings: PlannerSettings,
        clock: Clock,
        calls: dict[RequestId, Call],
        directory: Directory,
        record: Path | None,
        write_rate: float,
        host: HostShare,
        adapter_cache: AdapterCache,
    ) -> None:
        self.planner = Planner(settings)
        codec = Codec(settings.geometry, thread.engine.rope)
        self.pool = Pool(thread, codec, store, write_rate=write_rate, clock=clock)
        self._meter = SensitivityWorker(thread, codec)
        self._adapter_cache = adapter_cache
        self._thread, self._engine, self._host = thread, thread.engine, host
        self._clock, self._calls, self._directory = clock, calls, directory
        self._recorder = Recorder(record, settings) if record else None
        self._loop = asyncio.get_running_loop()
        self._at_rest = asyncio.Event()
        self._told = 0.0
        """When the loop was last told of tokens."""
        self._aborted = -1
        """The step that must not begin any more, or end at once."""
        self._waker = self._loop.call_later(0, lambda: None)
        self._bridge = LoopBridge(self._loop)
        self._perform: dict[type, Callable[[Any], None]] = {
            RunStep: self._run_step,
            LoadChunks: lambda a: self.pool.load(a, self._tell),
            StopLoad: self.pool.stop_load,
            FetchChunks: lambda a: self.pool.fetch(a, self._tell),
            SaveChunks: lambda a: self.pool.save(a, self._tell),
            LowerChunks: lambda a: self.pool.lower(a, self._tell),
            WriteChunks: lambda a: self.pool.write(a, self._tell),
            StopWrite: self.pool.stop_write,
            PersistSensitivity: self.pool.persist_sensitivity,
            DropPool: lambda a: self.pool.drop(a.keys),
            DropDisk: lambda a: self.pool.drop_disk(a.keys),
            MeasureChunks: lambda a: self._meter.measure(a, self._tell),
            DropCells: self._drop_cells,
            AbortStep: self._abort_step,
            WakeAt: self._wake_at,
            Paused: self._pause,
            Admitted: self._admitted,
            Switched: self._switched,
            Finish: self._finish,
        }

    def dispatch(self, event: Event) -> None:
        """Tell the planner, and begin what it asks for. On the event loop's thread only."""
        now = self._clock.now()
        self._thread.halt.set()  # a burst of steps ends early: the planner has heard something
        if self._recorder:
            self._recorder.write(event, now)
        for action in self.planner.handle(event, now):
            self._perform[type(action)](action)
        if self.planner.idle:
            self._at_rest.set()
        else:
            self._at_rest.clear()

    async def wait_idle(self) -> None:
        """Return when the planner has nothing running, waiting, or being swapped out."""
        while not self.planner.idle:
            await self._at_rest.wait()

    def release(self, call: Call) -> None:
        """The call has ended: the engine need not keep its sampler."""
        if call.has_sampler:
            self._in_engine(self._engine.set_sampler, call.id, None)

    def close(self) -> None:
        """End the workers; blocks until what they do now is done."""
        self._waker.cancel()
        self._meter.close()
        self.pool.close()
        self._bridge.close()
        if self._recorder:
            self._recorder.close()

    def _tell(self, event: Event) -> None:
        """An answer from another thread."""
        self._loop.call_soon_threadsafe(self.dispatch, event)

    def _drop_cells(self, action: DropCells) -> None:
        self._meter.stop(action.seq)
        self._in_engine(self._engine.drop, action.seq, action.start)

    def _run_step(self, action: RunStep) -> None:
        items, calls = [], []
        for item in action.items:
            tokens = self._directory.by_id(item.context).tokens[item.start : item.stop]
            items.append(BatchItem(item.seq, item.start, tokens, item.request if item.sample else None))
            calls.append(self._calls[item.request])
        self._thread.halt.clear()
        future = self._thread.submit(self._burst, items, calls, action)
        future.add_done_callback(lambda f: self._bridge.send(self._stepped, action, f))

    def _burst(self, items: list[BatchItem], calls: list[Call], action: RunStep) -> tuple[list[Drawn], int]:
        """Steps on the engine's thread: what the last one drew per item, and how many there were.

        Going back to the event loop after every token would cost 3 % of a small model's speed. So the loop only hears
        the pieces, while the next step runs already, and of a fast model several at a time.
        """
        done = 0
        drawn: list[Drawn] = []
        parcel: list[tuple[Sequence[int | None], list[Drawn]]] = []
        while True:
            if not done and (self._aborted == action.step or any(call.fault for call in calls)):
                self._aborted = action.step  # a call without its adapter is being cancelled
                raise Aborted("the step was aborted before it began")
            try:
                rows = self._rows(items, calls, action, action.burst - done)
            except Exception as e:
                if not done:
                    raise
                log.warning("a burst ended after %d steps: %r", done, e)
                self._bridge.send(self._say, calls, parcel)
                return drawn, done  # what was drawn stands; if the fault stays, the next step says so
            now = self._clock.now()
            for row in rows:
                drawn = [
                    Drawn.NOTHING if token is None else call.draw(token, item, self._engine, now)
                    for item, (call, token) in enumerate(zip(calls, row, strict=True))
                ]
                parcel.append((row, drawn))
            done += len(rows)
            ends = any(what is not Drawn.TOKEN for what in drawn)
            over = done == action.burst or self._thread.halt.is_set or self._thread.urgent_waiting or ends
            if over or now - self._told > _PARCEL_S or any(len(call.drawn) == len(rows) for call in calls):
                self._bridge.send(self._say, calls, parcel)
                self._told, parcel = now, []
            if over:
                return drawn, done  # a load comes between two steps
            items = [
                BatchItem(item.seq, item.pos + len(item.tokens) + len(rows) - 1, (token,), item.sampler)
                for item, token in zip(items, rows[-1], strict=True)
                if token is not None
            ]

    def _rows(
        self, items: list[BatchItem], calls: list[Call], action: RunStep, most: int
    ) -> Sequence[Sequence[int | None]]:
        """What the next steps draw: one step, or some in a row where nobody has to look at each token."""
        if most == 1 or any(len(item.tokens) > 1 or item.sampler is None for item in items):
            return [self._host.step(items, action.adapter)]
        if any(call.looks or not call.drawn for call in calls):
            return [self._host.step(items, action.adapter)]
        left = max(0.0, self._told + _PARCEL_S - self._clock.now())
        return self._host.steps(items, most, left, self._thread.halt, action.adapter)

    def _say(self, calls: list[Call], parcel: list[tuple[Sequence[int | None], list[Drawn]]]) -> None:
        for i, call in enumerate(calls):
            said = [(tokens[i], drawn[i]) for tokens, drawn in parcel]
            piece = call.say([(token, what) for token, what in said if token is not None], self._engine)
            if piece is not None:
                call.emit(piece)

    def _stepped(self, action: RunStep, future: Future[tuple[list[Drawn], int]]) -> None:
        error = future.exception()
        if isinstance(error, Aborted) and self._aborted == action.step:
            self.dispatch(StepFailed(action.step, aborted=True))
            return
        if error is not None:
            log.error("step %d of %d items failed: %r", action.step, len(action.items), error)
            self.dispatch(StepFailed(action.step))
            return
        drawn, steps = future.result()
        self.dispatch(StepDone(action.step, tuple(drawn), steps))

    def _abort_step(self, action: AbortStep) -> None:
        self._aborted = action.step
        self._engine.abort()

    def _wake_at(self, action: WakeAt) -> None:
        self._waker.cancel()
        self._waker = self._loop.call_later(max(0.0, action.when - self._clock.now()), self.dispatch, Woken())

    def _finish(self, action: Finish) -> None:
        call = self._calls[action.request]
        self._leave(call)
        call.finished.set_result(action)

    def _leave(self, call: Call) -> None:
        """The call leaves CELLS; whoever comes next may need the room of its adapter."""
        if call.adapter is not None:
            self._in_engine(self._release_adapter, call, call.adapter)

    def _pause(self, action: Paused) -> None:
        self._leave(self._calls[action.request])
        self._loop.call_soon(self._paused, action)  # an action is no time to tell the planner something

    def _paused(self, action: Paused) -> None:
        live = self._directory.by_id(action.context)
        self._calls[action.request].n_paused += 1
        tell_changed(live, max(live.n_kv, action.n_kv), self.dispatch)

    def _admitted(self, action: Admitted) -> None:
        call = self._calls[action.request]
        call.admitted = call.admitted or self._clock.now()
        if call.adapter is not None:
            self._in_engine(self._acquire_adapter, call, call.adapter)
        if call.generation and not call.has_sampler:  # one that was interrupted goes on with what it had
            call.has_sampler = True
            sampling = call.generation.sampling
            past = call.live.tokens[-sampling.penalty_last_n :] if sampling.penalises else ()
            self._in_engine(self._engine.set_sampler, call.id, sampling, past)

    def _switched(self, action: Switched) -> None:
        call = self._calls[action.request]
        call.switched = call.switched or self._clock.now()
        call.sources = action if call.sources is None else _sum(call.sources, action)

    def _acquire_adapter(self, call: Call, adapter: AdapterFile) -> None:
        """Before the call's turn. If it fails, the call ends, and only those that want the same one."""
        try:
            self._adapter_cache.acquire(adapter)
            call.holds_adapter = True
        except LlmaasError as e:
            log.warning("request %d has no adapter: %s", call.id, e.message)
            call.fault = e
            self._tell(CancelRequested(call.id))

    def _release_adapter(self, call: Call, adapter: AdapterFile) -> None:
        if call.holds_adapter:
            call.holds_adapter = False
            self._adapter_cache.release(adapter.fingerprint)

    def _in_engine(self, do: Callable[..., None], *args: object) -> None:
        self._thread.submit(do, *args).add_done_callback(_log_failure)


def _sum(a: Switched, b: Switched) -> Switched:
    """An answer that was paused comes back more than once."""
    return Switched(a.request, a.cells + b.cells, a.pool + b.pool, a.disk + b.disk, a.recomputed + b.recomputed)


def _log_failure(future: Future[None]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.error("engine: %r", error)
