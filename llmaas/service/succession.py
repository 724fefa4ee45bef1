"""An answer that goes on elsewhere: its context has moved while it was given, and what is drawn there is told here.

Law: whoever asked sees one answer: no token is told twice, and none is missing. The call that was interrupted for it
ends with what the other one ends with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from llmaas.calls import CallSpec, Done, Piece, Turn
from llmaas.engine.base import Engine
from llmaas.errors import Cancelled, LlmaasError
from llmaas.planner.actions import Outcome
from llmaas.service.call import Call, done

GoOn = Callable[[Call], Awaitable[Done]]


class Succession:
    """Of one call. For one event loop."""

    def __init__(self) -> None:
        self._do: asyncio.Future[GoOn] = asyncio.get_running_loop().create_future()
        self._going: asyncio.Task[Done] | None = None
        self._cancelled = False

    def goes_on(self, do: GoOn) -> None:
        """The answer goes on by ``do``, unless it is known already how it does."""
        if not self._do.done():
            self._do.set_result(do)

    def fails(self, error: LlmaasError) -> None:
        async def fail(call: Call) -> Done:
            raise error

        self.goes_on(fail)

    def cancel(self) -> None:
        """Whoever asked does not want the answer any more."""
        self._cancelled = True
        if self._going is not None:
            self._going.cancel()

    async def run(self, call: Call) -> Done:
        """The end of the whole answer. Raises LlmaasError."""
        do = await self._do
        n_drawn = len(call.answer.drawn)
        if self._cancelled:
            raise Cancelled("the request was cancelled", n_generated=n_drawn)
        self._going = asyncio.ensure_future(_run(do, call))
        try:
            return await self._going
        except asyncio.CancelledError:
            if self._cancelled:
                raise Cancelled("the request was cancelled", n_generated=n_drawn) from None
            raise


async def _run(do: GoOn, call: Call) -> Done:
    return await do(call)


def may_succeed(call: Call) -> bool:
    """Whether the answer can be interrupted and go on elsewhere: it has begun, and depends on nothing but the tokens of
    its context, its sampling and how much of it there is."""
    spec, control = call.spec, call.control
    generation = spec.generation
    return (
        not (call.hint or control.cancelled or call.pending.shift)
        and control.planned
        and control.successor is None
        and bool(call.answer.drawn)
        and generation is not None
        and not generation.stop
        and generation.on_full == "error"
        and spec.idempotency_key is None
    )


def rest_of(call: Call) -> CallSpec | None:
    """What is left to be asked for; None if nothing is."""
    generation = call.spec.generation
    left = call.spec.max_new - len(call.answer.drawn)
    if generation is None or left <= 0:
        return None
    terms = replace(call.spec.terms, deadline_s=None, adapter=None)
    n_answered = call.spec.n_answered + len(call.answer.drawn)
    return CallSpec(Turn(), replace(generation, max_tokens=left), terms, n_answered=n_answered)


def tell_more(call: Call, found: Piece, engine: Engine) -> None:
    """Tell tokens that were drawn elsewhere, with their log probabilities if those were asked for; the text is made
    here."""
    call.answer.has_logprobs(found.logprobs or ())
    piece = call.answer.piece(found.tokens, engine)
    if piece is not None:
        call.emit(piece)


def ended_there(call: Call, there: Done | None, now: float) -> Done:
    """What the call ends with; ``there``: how the rest ended, None if there was none."""
    if (rest := call.answer.last_piece()) is not None:
        call.emit(rest)
    here = done(call, Outcome.LENGTH, now)
    if there is None:
        return here
    return replace(
        here,
        context=there.context,
        reason=there.reason,
        n_tokens=there.n_tokens,
        n_generated=here.n_generated + there.n_generated,
        n_kept=here.n_kept + there.n_kept,
        n_paused=here.n_paused + there.n_paused,
    )
