"""Grammars and JSON schemas of calls: made ready before the calls are planned, and held until they end.

Law: on the event loop; the reading itself is on a thread of its own, on which apps take turns. A call that is cancelled
does not wait for it.
"""

from __future__ import annotations

from llmaas.errors import Busy
from llmaas.fair_thread import FairThread
from llmaas.service.call import Call
from llmaas.service.parts import ServiceParts

MAX_APP_BYTES = 16 << 20
"""Memory of all grammars and schemas with which calls of one app wait or run."""

_REST = 2.0
"""While more grammars and schemas wait, the thread that reads them works a third of the time: it is Python throughout,
and others wait for the interpreter lock. Beside eight connections that sent one schema after another the longest of
twenty first tokens came after 67 ms, in the mean of five runs, and without rests after 88 ms; undisturbed after 42 ms.
(Rests of the threads that turn text into tokens brought nothing: they are short, and wait for others anyway.)"""


class ConstraintHolder:
    """Begins its thread when it is made; ``close`` ends it."""

    def __init__(self, parts: ServiceParts) -> None:
        self._engine, self._calls = parts.engine, parts.calls
        self._thread = FairThread("constraints", _REST, parts.clock.now)  # other threads read them, within a time

    async def prepare(self, call: Call) -> None:
        """Make ready what the call's answer must keep to. Raises BadRequest, Busy, ShuttingDown.

        One at a time: each takes some milliseconds, and a few seconds at most.
        """
        if call.spec.generation is None or not call.spec.is_constrained:
            return
        app, sampling = call.live.row.app, call.spec.generation.sampling
        call.control.constraint = await self._thread.run(app, self._engine.check_sampling, sampling)
        others = [other.control.constraint for other in self._calls.values() if other.live.row.app == app]
        held = {id(one): one.n_bytes for one in others if one is not None}
        if len(held) > 1 and sum(held.values()) > MAX_APP_BYTES:
            call.control.constraint = None
            raise Busy("the app's other requests hold too many large grammars and schemas")

    def close(self) -> None:
        """End the thread, and do not wait for what it is at; calls that wait for it get ShuttingDown."""
        self._thread.close(finish=False, wait=False)
