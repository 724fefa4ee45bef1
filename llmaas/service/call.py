"""One call of a context: what was asked, and the parts of it that change while it is served.

Law: each part that changes has one writer. A call's reply is resolved exactly once. Text leaves through ``emit``, on
the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from llmaas.calls import CallSpec, Done, FinishReason, Piece, SwitchReport
from llmaas.engine.adapter_cache import AdapterFile
from llmaas.engine.base import Prepared
from llmaas.errors import LlmaasError
from llmaas.frozen import frozen
from llmaas.kvchunks.store.store import Span
from llmaas.planner.actions import Finish, Outcome, Switched
from llmaas.records import RequestId, Tier
from llmaas.service.answer import Answer
from llmaas.service.live_context import LiveContext
from llmaas.service.pending_turn import PendingTurn

REASONS = {
    Outcome.STOP: FinishReason.STOP,
    Outcome.LENGTH: FinishReason.LENGTH,
    Outcome.CONTEXT_FULL: FinishReason.CONTEXT_FULL,
    Outcome.APPENDED: FinishReason.APPENDED,
}


class Successor(Protocol):
    """See ``succession.Succession``."""

    def cancel(self) -> None: ...

    async def run(self, call: Call) -> Done: ...


@dataclass(slots=True, eq=False)
class CallControl:
    """How far the runner has come with a call. Written by the runner, on the event loop."""

    reply: asyncio.Future[Done]
    priority: int
    cancelled: bool = False
    told_again: bool = False
    """It was answered with what was stored under its idempotency key."""
    successor: Successor | None = None
    """Who goes on with the answer, if it is interrupted because its context moves."""
    pushed_out: bool = False
    """It was cancelled because another app needs its place."""
    planned: bool = False
    """The planner knows the call: from now on it decides on cancellation and deadline."""
    finished: asyncio.Future[Finish] | None = None
    """Resolved by the interpreter when the planner has finished with the call."""
    task: asyncio.Task[None] | None = None
    """The coroutine that serves the call."""
    deadline_timer: asyncio.TimerHandle | None = None
    """It also goes off while the call waits for its context."""
    adapter: AdapterFile | None = None
    """What the call computes with; None: the bare model."""
    constraint: Prepared | None = None
    """The grammar or schema of the answer; held here, it stays ready."""


@dataclass(slots=True, eq=False)
class LoadSpan:
    """Chunks that came from one tier into CELLS: from when to when."""

    tier: Tier
    tokens: int
    began: float
    ended: float | None = None


@dataclass(slots=True, eq=False)
class CallProgress:
    """What the planner has said of a call. Written by the interpreter, on the event loop. Times are of the service's
    clock, in seconds; None: not yet."""

    admitted: float | None = None
    switched: float | None = None
    sources: Switched | None = None
    """Where the context's tokens came from, all switches of the call together."""
    n_paused: int = 0
    has_sampler: bool = False
    first_step: float | None = None
    """When the engine was first given a step of the call."""
    loads: list[LoadSpan] = field(default_factory=list)
    """The first loads of the call; ``ended`` of them is written on a worker's thread."""


@dataclass(slots=True, eq=False)
class AdapterHold:
    """Whether the adapter of a call is loaded for it, and why the call fails. Written on the engine's thread, and
    where the answer is streamed."""

    held: bool = False
    error: LlmaasError | None = None
    """Why the adapter could not be loaded, or the answer not be completed or streamed."""


@frozen(eq=False)
class Call:
    """A call from submission to its terminal reply.

    =============  =====================================================================================
    part           writer
    =============  =====================================================================================
    ``control``    the runner, on the event loop
    ``pending``    the runner, on the event loop
    ``progress``   the interpreter, on the event loop
    ``answer``     the engine's thread while a step runs; the event loop streams it (see ``Answer``)
    ``hold``       the engine's thread
    =============  =====================================================================================
    """

    id: RequestId
    live: LiveContext
    spec: CallSpec
    emit: Callable[[Piece], None]
    submitted: float
    """Seconds, on the service's clock."""
    hint: bool
    """Nobody waits for this call: it only brings the context back to CELLS."""
    control: CallControl
    pending: PendingTurn
    answer: Answer
    progress: CallProgress = field(default_factory=CallProgress)
    hold: AdapterHold = field(default_factory=AdapterHold)


def answer_spans(call: Call) -> list[Span]:
    """The answer as the app was told it and the store keeps it: an assistant's message, or raw text after raw text."""
    turn, answer = call.spec.turn, call.answer
    if call.spec.generation is None:
        return []
    if turn.prompt is None and (turn.messages or call.live.marks):
        return [Span(tuple(answer.kept), "assistant", answer.text, True)]
    return [Span(tuple(answer.kept), text=answer.text, open=True)] if answer.kept else []


def done(call: Call, outcome: Outcome, now: float) -> Done:
    """The terminal reply of a call that ended well, by ``REASONS``, and was admitted before ``now``."""
    progress, answer, shift = call.progress, call.answer, call.pending.shift
    sources = progress.sources or Switched(call.id, 0, 0, 0, 0)
    admitted = now if progress.admitted is None else progress.admitted
    switched = admitted if progress.switched is None else progress.switched
    first = now if answer.first_token is None else answer.first_token
    return Done(
        context=call.live.id,
        reason=REASONS[outcome],
        n_tokens=len(call.live.tokens),
        n_prompt=call.pending.n_prompt,
        n_generated=len(answer.drawn),
        switch=SwitchReport(sources.cells, sources.pool, sources.disk, sources.recomputed, (switched - admitted) * 1e3),
        queue_ms=(admitted - call.submitted) * 1e3,
        ttft_ms=(first - call.submitted) * 1e3,
        decode_tps=answer.tokens_per_second(),
        n_paused=progress.n_paused,
        n_dropped=shift.dropped if shift else 0,
        n_kept=len(answer.kept),
        stop=answer.stopped_by,
    )
