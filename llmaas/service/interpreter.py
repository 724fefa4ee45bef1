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

from llmaas.calls import Piece, Progress
from llmaas.engine.base import BatchItem
from llmaas.errors import Internal, assert_never
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
from llmaas.planner.events import Drawn, Event, StepDone, StepFailed, Woken
from llmaas.planner.planner import Planner
from llmaas.planner.settings import PlannerSettings
from llmaas.records import ChunkKey
from llmaas.service import costs_file
from llmaas.service.call import Call
from llmaas.service.call_actions import CallActions
from llmaas.service.loop_bridge import LoopBridge
from llmaas.service.not_done import not_done
from llmaas.service.parts import ServiceParts
from llmaas.service.recorder import Recorder
from llmaas.service.step_runner import StepRunner
from llmaas.service.unclaimed import UnclaimedChunks

log = logging.getLogger(__name__)


class Interpreter:
    """Carries out the planner's actions. ``record``: a file for every event; ``costs``: a file for what was learned;
    ``write_rate``: bytes a second to DISK.
    """

    def __init__(
        self,
        parts: ServiceParts,
        settings: PlannerSettings,
        *,
        record: Path | None,
        costs: Path | None = None,
        write_rate: int,
    ) -> None:
        self.planner = Planner(settings)
        self.pool = Pool(parts.engine_thread, parts.codec, parts.store, write_rate=write_rate, clock=parts.clock)
        self._sensitivity = SensitivityWorker(parts.engine_thread, parts.codec)
        self._thread, self._engine, self._clock = parts.engine_thread, parts.engine, parts.clock
        self._calls, self._directory = parts.calls, parts.directory
        self._recorder = Recorder(record, settings) if record else None
        self._costs = costs
        self._loop = asyncio.get_running_loop()
        self._idle = asyncio.Event()
        self._waker = self._loop.call_later(0, lambda: None)
        self._bridge = LoopBridge(self._loop)
        self._steps = StepRunner(parts, self._bridge, self.dispatch)
        self._on_calls = CallActions(parts, self.dispatch)
        self._closed = False
        self.unclaimed = UnclaimedChunks()
        self.fault: Internal | None = None
        """Why no call can be served any more; every call fails with it."""
        self.on_fault: Callable[[], None] = lambda: None

    def dispatch(self, event: Event) -> None:
        """Give the planner an event, and begin what it asks for. On the event loop's thread only."""
        if self._closed:
            return
        if self.fault is not None:
            self._fail_calls(self.fault)
            return
        if self.unclaimed:
            event = self.unclaimed.claimed(event)
        now = self._clock.now()
        self._thread.halt.set()  # a burst of steps ends early: what the planner knows has changed
        if self._recorder:
            self._recorder.write(event, now)
        try:
            actions = self.planner.handle(event, now)
        except Exception as error:
            self._give_up(error)
            return
        for action in actions:
            self._begin(action)
        self._sensitivity.rest.told(self.planner.first_token_awaited)
        self.pool.rest.told(self.planner.saves_may_rest)
        if self.planner.idle:
            self._idle.set()
        else:
            self._idle.clear()

    def stored(self, key: ChunkKey) -> bool:
        """Whether the chunk has a copy in the POOL or on DISK, whoever made it."""
        return key in self.unclaimed or self.planner.stored(key)

    async def wait_idle(self) -> None:
        """Return when the planner has nothing running, waiting, or being swapped out."""
        while not self.planner.idle and self.fault is None:
            await self._idle.wait()

    def release(self, call: Call) -> None:
        """The call has ended: forget what was kept for it."""
        self._on_calls.release(call)

    def close(self) -> None:
        """End the workers; blocks until what they do now is done. Events that come later are of no interest."""
        self._closed = True
        self._waker.cancel()
        self._sensitivity.close()
        self.pool.close()
        self._bridge.close()
        self._loop.call_soon_threadsafe(self._steps.close)
        if self._recorder:
            self._recorder.close()
        if self._costs:
            costs_file.keep(self._costs, self._engine.info, self.planner.learned_costs)

    def _give_up(self, error: Exception) -> None:
        """The planner failed half-way, and its books may be wrong: no call can be served any more."""
        log.critical("the planner failed; the daemon must be started again", exc_info=error)
        self.fault = Internal(f"the planner failed: {error}", hint="The daemon must be started again; nothing is lost.")
        self._idle.set()
        self._fail_calls(self.fault)
        self.on_fault()

    def _fail_calls(self, fault: Internal) -> None:
        for call in self._calls.values():
            if call.control.finished is not None and not call.control.finished.done():
                call.control.finished.set_exception(fault)

    # -- actions

    def _begin(self, action: Action) -> None:
        """Perform an action. If it cannot be begun (no memory, a thread that has ended), it is answered as not done."""
        try:
            self._perform(action)
        except Exception:
            log.exception("cannot begin %s", type(action).__name__)
            if (answer := not_done(action)) is not None:
                self._loop.call_soon(self.dispatch, answer)

    def _perform(self, action: Action) -> None:
        match action:
            case RunStep():  # first: by far the most frequent
                self._run_step(action)
            case Admitted():
                self._on_calls.admitted(action)
            case Switched():
                self._on_calls.switched(action)
            case Paused():
                self._on_calls.paused(action)
            case Finish():
                self._on_calls.finish(action)
            case AbortStep():
                self._steps.abort(action.step)
            case WakeAt():
                self._wake_at(action)
            case _:
                self._perform_on_chunks(action)

    def _perform_on_chunks(self, action: ChunkAction) -> None:
        match action:
            case LoadChunks():
                self.pool.load(action, self._on_calls.loading(action, self._answer))
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
                self._on_calls.in_engine(self._engine.drop, action.seq, action.start)
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
            calls.append(call := self._calls[item.request])
            if call.progress.first_step is None:
                call.progress.first_step = self._clock.now()
        self._thread.halt.clear()
        future = self._thread.submit(self._steps.run, action, items, calls)
        future.add_done_callback(lambda f: self._bridge.send(self._stepped, action, f))

    def _tell_progress(self, action: RunStep) -> None:
        """A step is done: tell the calls that want to know how much of their context it has brought."""
        for item in action.items:
            call = None if item.sample else self._calls.get(item.request)
            if call is not None and call.spec.progress and call.answer.first_token is None:
                call.emit(Piece("", (), progress=Progress(item.stop, len(call.live.tokens))))

    def _stepped(self, action: RunStep, future: Future[tuple[list[Drawn], int]]) -> None:
        error = future.exception()
        self._steps.over()
        if error is None:
            drawn, steps = future.result()
            self._tell_progress(action)
            self.dispatch(StepDone(action.step, tuple(drawn), steps))
        elif self._steps.was_aborted(action.step, error):
            self.dispatch(StepFailed(action.step, aborted=True))
        else:
            log.error("step %d of %d items failed: %r", action.step, len(action.items), error)
            self.dispatch(StepFailed(action.step))
