"""The planner's interpreter in real time: events in, actions carried out.

Law: it decides nothing. It alone joins planner, engine thread and pool. It lives on one event loop, and nothing on that
loop waits for the engine, the disk or a worker: their answers come back as events.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from llmaas.engine.adapter_cache import AdapterFile
from llmaas.engine.base import BatchItem
from llmaas.errors import LlmaasError, assert_never
from llmaas.kvchunks.codec.codec import Codec
from llmaas.kvchunks.tiering.pool import Pool
from llmaas.kvchunks.tiering.sensitivity_worker import SensitivityWorker
from llmaas.planner.actions import (
    AbortStep,
    Action,
    Admitted,
    ChunkAction,
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
from llmaas.service.call import Call
from llmaas.service.live_context import publish_kv
from llmaas.service.loop_bridge import LoopBridge
from llmaas.service.parts import ServiceParts
from llmaas.service.recorder import Recorder
from llmaas.service.step_runner import StepRunner

log = logging.getLogger(__name__)


class Interpreter:
    """Carries out the planner's actions. ``record``: a file for every event; ``write_rate``: bytes a second to DISK."""

    def __init__(self, parts: ServiceParts, settings: PlannerSettings, *, record: Path | None, write_rate: int) -> None:
        self.planner = Planner(settings)
        codec = Codec(settings.geometry, parts.engine.rope)
        self.pool = Pool(parts.engine_thread, codec, parts.store, write_rate=write_rate, clock=parts.clock)
        self._sensitivity = SensitivityWorker(parts.engine_thread, codec)
        self._thread, self._engine, self._clock = parts.engine_thread, parts.engine, parts.clock
        self._calls, self._directory = parts.calls, parts.directory
        self._adapter_cache = parts.adapters.cache
        self._recorder = Recorder(record, settings) if record else None
        self._loop = asyncio.get_running_loop()
        self._idle = asyncio.Event()
        self._waker = self._loop.call_later(0, lambda: None)
        self._bridge = LoopBridge(self._loop)
        self._steps = StepRunner(parts, self._bridge)

    def dispatch(self, event: Event) -> None:
        """Give the planner an event, and begin what it asks for. On the event loop's thread only."""
        now = self._clock.now()
        self._thread.halt.set()  # a burst of steps ends early: what the planner knows has changed
        if self._recorder:
            self._recorder.write(event, now)
        for action in self.planner.handle(event, now):
            self._perform(action)
        if self.planner.idle:
            self._idle.set()
        else:
            self._idle.clear()

    async def wait_idle(self) -> None:
        """Return when the planner has nothing running, waiting, or being swapped out."""
        while not self.planner.idle:
            await self._idle.wait()

    def release(self, call: Call) -> None:
        """The call has ended: the engine need not keep its sampler."""
        if call.progress.has_sampler:
            self._in_engine(self._engine.set_sampler, call.id, None)

    def close(self) -> None:
        """End the workers; blocks until what they do now is done."""
        self._waker.cancel()
        self._sensitivity.close()
        self.pool.close()
        self._bridge.close()
        if self._recorder:
            self._recorder.close()

    # -- actions

    def _perform(self, action: Action) -> None:
        match action:
            case RunStep():  # first: by far the most frequent
                self._run_step(action)
            case Admitted():
                self._admitted(action)
            case Switched():
                self._switched(action)
            case Paused():
                self._paused(action)
            case Finish():
                self._finish(action)
            case AbortStep():
                self._steps.abort(action.step)
            case WakeAt():
                self._wake_at(action)
            case _:
                self._perform_on_chunks(action)

    def _perform_on_chunks(self, action: ChunkAction) -> None:
        match action:
            case LoadChunks():
                self.pool.load(action, self._answer)
            case FetchChunks():
                self.pool.fetch(action, self._answer)
            case SaveChunks():
                self.pool.save(action, self._answer)
            case WriteChunks():
                self.pool.write(action, self._answer)
            case LowerChunks():
                self.pool.lower(action, self._answer)
            case MeasureChunks():
                self._sensitivity.measure(action, self._answer)
            case StopLoad():
                self.pool.stop_load(action)
            case StopWrite():
                self.pool.stop_write(action)
            case PersistSensitivity():
                self.pool.persist_sensitivity(action)
            case DropPool():
                self.pool.drop(action.keys)
            case DropDisk():
                self.pool.drop_disk(action.keys)
            case DropCells():
                self._sensitivity.stop(action.seq)
                self._in_engine(self._engine.drop, action.seq, action.start)
            case _:
                assert_never(action)

    def _answer(self, event: Event) -> None:
        """An action has been carried out, on another thread."""
        self._loop.call_soon_threadsafe(self.dispatch, event)

    def _wake_at(self, action: WakeAt) -> None:
        self._waker.cancel()
        self._waker = self._loop.call_later(max(0.0, action.when - self._clock.now()), self.dispatch, Woken())

    # -- steps

    def _run_step(self, action: RunStep) -> None:
        items, calls = [], []
        for item in action.items:
            tokens = self._directory.by_id(item.context).tokens[item.start : item.stop]
            items.append(BatchItem(item.seq, item.start, tokens, item.request if item.sample else None))
            calls.append(self._calls[item.request])
        self._thread.halt.clear()
        future = self._thread.submit(self._steps.run, action, items, calls)
        future.add_done_callback(lambda f: self._bridge.send(self._stepped, action, f))

    def _stepped(self, action: RunStep, future: Future[tuple[list[Drawn], int]]) -> None:
        error = future.exception()
        if error is None:
            drawn, steps = future.result()
            self.dispatch(StepDone(action.step, tuple(drawn), steps))
        elif self._steps.was_aborted(action.step, error):
            self.dispatch(StepFailed(action.step, aborted=True))
        else:
            log.error("step %d of %d items failed: %r", action.step, len(action.items), error)
            self.dispatch(StepFailed(action.step))

    # -- calls

    def _admitted(self, action: Admitted) -> None:
        call = self._calls[action.request]
        progress, adapter = call.progress, call.control.adapter
        if progress.admitted is None:
            progress.admitted = self._clock.now()
        if adapter is not None:
            self._in_engine(self._acquire_adapter, call, adapter)
        if call.spec.generation and not progress.has_sampler:  # a call that was paused goes on with the sampler it had
            progress.has_sampler = True
            sampling = call.spec.generation.sampling
            past = call.live.tokens[-sampling.penalty_last_n :] if sampling.penalises else ()
            self._in_engine(self._engine.set_sampler, call.id, sampling, past)

    def _switched(self, action: Switched) -> None:
        progress = self._calls[action.request].progress
        if progress.switched is None:
            progress.switched = self._clock.now()
        progress.sources = action if progress.sources is None else _sum(progress.sources, action)

    def _paused(self, action: Paused) -> None:
        self._leave_cells(self._calls[action.request])
        self._loop.call_soon(self._publish_paused, action)  # later: the planner may not get an event within an action

    def _publish_paused(self, action: Paused) -> None:
        live = self._directory.by_id(action.context)
        self._calls[action.request].progress.n_paused += 1
        publish_kv(live, max(live.n_kv, action.n_kv), self.dispatch)

    def _finish(self, action: Finish) -> None:
        call = self._calls[action.request]
        self._leave_cells(call)
        assert call.control.finished is not None
        call.control.finished.set_result(action)

    # -- adapters, on the engine's thread

    def _leave_cells(self, call: Call) -> None:
        """The call leaves CELLS; the next calls may need the room of its adapter."""
        if call.control.adapter is not None:
            self._in_engine(self._release_adapter, call, call.control.adapter)

    def _acquire_adapter(self, call: Call, adapter: AdapterFile) -> None:
        """Load the adapter before the call's steps. If that fails, the call ends, and only calls with this adapter."""
        try:
            self._adapter_cache.acquire(adapter)
            call.hold.held = True
        except LlmaasError as e:
            log.warning("request %d has no adapter: %s", call.id, e.message)
            call.hold.error = e
            self._answer(CancelRequested(call.id))

    def _release_adapter(self, call: Call, adapter: AdapterFile) -> None:
        if call.hold.held:
            call.hold.held = False
            self._adapter_cache.release(adapter.fingerprint)

    def _in_engine(self, do: Callable[..., None], *args: object) -> None:
        self._thread.submit(do, *args).add_done_callback(_log_failure)


def _sum(a: Switched, b: Switched) -> Switched:
    """An answer that was paused comes back more than once."""
    return Switched(a.request, a.cells + b.cells, a.pool + b.pool, a.disk + b.disk, a.recomputed + b.recomputed)


def _log_failure(future: Future[None]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.error("engine: %r", error)
