"""The planner's steps on the engine's thread: what they draw is taken into the answers and streamed.

Law: ``run`` is on the engine's thread, everything else on the event loop. A step that has begun ends in tokens for all
of its items or in an exception, never in between.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field

from llmaas.engine.base import Aborted, BatchItem, Row, Undrawn
from llmaas.engine.row_pipe import RowPipe, Telling
from llmaas.errors import Internal, LlmaasError, NoNumbers
from llmaas.planner.actions import RunStep
from llmaas.planner.events import CancelRequested, Drawn, Event
from llmaas.service.call import Call
from llmaas.service.loop_bridge import LoopBridge
from llmaas.service.parts import ServiceParts

log = logging.getLogger(__name__)

_STREAM_S, _CROWDED_STREAM_S = 0.05, 0.06
"""Tokens that are drawn within this time share one wake-up of the event loop, as each contends with the engine for the
GIL. Where other programs have CPUs that the engine could use, what passes a piece on, here and in the client, takes its
time from the engine: there pieces are larger."""


_ROW_S = 0.25
"""How long steps run in a row, about, while the engine tells by itself what they draw. In between it is looked on how
many threads the next should run, and what it costs is small: Python finds nothing in the caches after a step."""
_UNDRAWN = {None: Drawn.NOTHING, Undrawn.LATER: Drawn.LATER}


class NotBegun(Aborted):
    """The step was given up before it began."""


@dataclass(slots=True, eq=False)
class _Burst:
    """Steps in a row with the same calls. Of the engine's thread, if not said otherwise."""

    step: RunStep
    calls: list[Call]
    items: list[BatchItem]
    """Of the next step."""
    n_done: int = 0
    drawn: list[Drawn] = field(default_factory=list)
    """What the last step drew, parallel to ``items``."""
    n_sent: int = 0
    """Steps that were sent to the event loop, or told by the engine."""
    unsent: list[list[int | None]] = field(default_factory=list)
    """Of each step after them the tokens to stream; None: there is none."""
    n_streamed: int = 0
    """Steps that were streamed. Of the event loop."""
    waiting: dict[int, Sequence[Sequence[int | None]]] = field(default_factory=dict)
    """Steps that wait for those before them, by how many these are. Of the event loop."""

    @property
    def number(self) -> int:
        """It is told apart from others by this in what the engine tells."""
        return self.step.step & 0x7FFFFFFF

    def advance(self, row: Row, n_steps: int) -> None:
        """Prepare the items of the step after ``n_steps`` more, the last of which drew ``row``."""
        self.items = [
            BatchItem(item.seq, item.pos + len(item.tokens) + n_steps - 1, (token,), item.sampler)
            for item, token in zip(self.items, row, strict=True)
            if isinstance(token, int)
        ]

    def were_told(self, n: int) -> None:
        """The engine has told the first so many of the unsent steps."""
        self.n_sent += n
        del self.unsent[:n]

    def streamable(self, first: int, rows: Sequence[Sequence[int | None]]) -> list[Sequence[int | None]]:
        """What can be streamed now that the rows of steps have come before which there were ``first``. On the event
        loop: they come in two ways, of which each keeps the order."""
        if rows:
            self.waiting[first] = rows
        found: list[Sequence[int | None]] = []
        while (more := self.waiting.pop(self.n_streamed, None)) is not None:
            self.n_streamed += len(more)
            found += more
        return found


class StepRunner:
    """Runs steps, one ``run`` at a time."""

    def __init__(self, parts: ServiceParts, bridge: LoopBridge, dispatch: Callable[[Event], None]) -> None:
        self._thread, self._engine, self._host = parts.engine_thread, parts.engine, parts.host
        self._clock = parts.clock
        self._bridge, self._dispatch = bridge, dispatch
        self._last_sent = 0.0
        """When tokens were sent to the loop last. Of the engine's thread."""
        self._pipe = RowPipe()
        self._burst: _Burst | None = None
        """The one that runs. Written by the engine's thread, and by the event loop when it is over."""
        self._tells = self._engine.info.chunkable
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pipe.reads_at, self._told)
        self._aborted: int | None = None
        """The step that must not begin any more, or end at once. Of the event loop."""

    def abort(self, step: int) -> None:
        """End that step at once, if it has not ended. On the event loop."""
        self._aborted = step
        self._engine.abort()

    def was_aborted(self, step: int, error: BaseException) -> bool:
        """Whether a step that ended in ``error`` did so because it was meant to."""
        return isinstance(error, NotBegun) or (isinstance(error, Aborted) and self._aborted == step)

    def run(self, step: RunStep, items: list[BatchItem], calls: list[Call]) -> tuple[list[Drawn], int]:
        """Run the step, and more of the same calls up to ``step.burst``: what the last one drew per item, and how many
        there were. Raises what the engine raises at the first one, and NotBegun.

        Going back to the event loop after every token would cost 3 % of a small model's speed. So the loop only gets
        the pieces, while the next step runs already, and of a fast model several steps at a time.
        """
        if self._aborted == step.step or any(call.hold.error for call in calls):
            raise NotBegun("the step was given up before it began")  # a call without its adapter is being cancelled
        self._burst = burst = _Burst(step, calls, items)
        while True:
            try:
                rows, telling = self._draw(burst)
            except Exception as e:
                if not burst.n_done:
                    self._blame(calls, e)
                    raise
                log.warning("a burst ended after %d steps: %r", burst.n_done, e)
                self._send(burst)
                return burst.drawn, burst.n_done  # what was drawn stands; if the fault stays, the next step says so
            now = self._clock.now()
            try:
                self._take(rows, burst, now)
            except BaseException:  # such as no memory: the burst counts as failed, and its calls are undone
                for item in items:
                    self._engine.drop(item.seq, item.pos)
                raise
            if telling is not None and telling.told:
                burst.were_told(telling.told)
                self._last_sent = now - telling.since_s
            over = self._is_over(burst)
            first = any(len(call.answer.drawn) == len(rows) for call in calls)
            if over or first or now - self._last_sent > self._stream_s:
                self._send(burst)
                self._last_sent = now
            if over:
                return burst.drawn, burst.n_done  # whatever waits for the engine comes between two bursts
            burst.advance(rows[-1], len(rows))

    @property
    def _stream_s(self) -> float:
        return _CROWDED_STREAM_S if self._host.crowded else _STREAM_S

    def _blame(self, calls: list[Call], error: Exception) -> None:
        """The first step failed: its calls fail with what it failed with. If some of them caused that, only these are
        cancelled, and NotBegun is raised, so that the others go on."""
        some: NoNumbers | None = None
        if isinstance(error, NoNumbers) and len(error.items) < len(calls) and self._engine.info.chunkable:
            some, calls = error, [calls[i] for i in error.items]
        if isinstance(error, LlmaasError):
            for call in calls:
                call.hold.error = copy(error)
        if some is not None:
            log.error("requests %s: %s", [call.id for call in calls], some.message)
            self._bridge.send(self._cancel, calls)
            raise NotBegun("a part of the step was no numbers") from some

    def _cancel(self, calls: list[Call]) -> None:
        for call in calls:
            self._dispatch(CancelRequested(call.id))

    def _draw(self, burst: _Burst) -> tuple[Sequence[Row], Telling | None]:
        """What the next steps draw: one step, or some in a row where nobody has to look at each token. The engine may
        have told some of it already."""
        most, items, adapter = burst.step.burst - burst.n_done, burst.items, burst.step.adapter
        alone = most == 1 or any(len(item.tokens) > 1 or item.sampler is None for item in items)
        alone |= any(call.answer.needs_each_token or not call.answer.drawn for call in burst.calls)
        if alone or (burst.step.draw_s < math.inf and any(call.spec.is_constrained for call in burst.calls)):
            return [self._host.step(items, adapter, draw_s=burst.step.draw_s)], None
        left = max(0.0, self._last_sent + self._stream_s - self._clock.now())
        if not self._tells:
            return self._host.steps(items, most, left, self._thread.halt, adapter), None
        told = Telling(self._pipe.writes_at, burst.number, burst.n_sent, left, self._stream_s, burst.unsent)
        return self._host.steps(items, most, _ROW_S, self._thread.halt, adapter, told), told

    def _take(self, rows: Sequence[Row], burst: _Burst, now: float) -> None:
        """Take what steps drew into the answers."""
        engine, answers, drawn = self._engine, [call.answer for call in burst.calls], burst.drawn
        for row in rows:
            drawn = [
                answer.draw(token, item, engine, now) if isinstance(token, int) else _UNDRAWN[token]
                for item, (answer, token) in enumerate(zip(answers, row, strict=True))
            ]
            burst.unsent.append(
                [
                    token if isinstance(token, int) and what is not Drawn.END else None
                    for token, what in zip(row, drawn, strict=True)
                ]
            )
        for call, what in zip(burst.calls, drawn, strict=True):
            if what is Drawn.END and call.spec.is_constrained:
                call.hold.error = engine.sampler_failure(call.id)
        burst.drawn = drawn
        burst.n_done += len(rows)

    def _is_over(self, burst: _Burst) -> bool:
        """Whether the planner must be asked before there is another step."""
        stopped = self._thread.halt.is_set or self._thread.urgent_waiting
        return burst.n_done == burst.step.burst or stopped or any(what is not Drawn.TOKEN for what in burst.drawn)

    def _send(self, burst: _Burst) -> None:
        self._bridge.send(self._sent, burst, burst.n_sent, burst.unsent)
        burst.n_sent += len(burst.unsent)
        burst.unsent = []

    # -- on the event loop

    def close(self) -> None:
        """Take no more of what the engine tells. The pipe is there as long as a step may run."""
        self._loop.remove_reader(self._pipe.reads_at)

    def over(self) -> None:
        """The burst that ran is over, and all that it sent has come."""
        self._burst = None

    def _sent(self, burst: _Burst, first: int, rows: list[list[int | None]]) -> None:
        """These were sent, after ``first`` others, some of which the engine may have told."""
        if burst.n_streamed < first:
            self._told()
        self._stream(burst, first, rows)

    def _told(self) -> None:
        """The engine has told what it drew."""
        for number, first, rows in self._pipe.read():
            if (burst := self._burst) is not None and burst.number == number:
                self._stream(burst, first, rows)

    def _stream(self, burst: _Burst, first: int, rows: Sequence[Sequence[int | None]]) -> None:
        """Emit one piece to each call for what the steps drew that can be streamed now."""
        if not (ready := burst.streamable(first, rows)):
            return
        for i, call in enumerate(burst.calls):
            try:
                piece = call.answer.piece([token for row in ready if (token := row[i]) is not None], self._engine)
                if piece is not None:
                    call.emit(piece)
            except Exception as e:  # an answer with a gap is none
                log.exception("request %d cannot be streamed", call.id)
                call.hold.error = Internal(f"the answer cannot be streamed: {e!r}")
                self._dispatch(CancelRequested(call.id))
