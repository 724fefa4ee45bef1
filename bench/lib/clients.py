"""Clients for benches of many clients: one that calls the service in this process, and one of a daemon's socket.

Law: an answer records when each of its tokens was there, as its client sees it, and nothing else happens meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from llmaas.api.async_client import AsyncClient, AsyncStream
from llmaas.calls import DEFAULT_TERMS, CallSpec, Done, Generation, Piece, Terms, Turn
from llmaas.engine.thread import EngineThread
from llmaas.errors import Cancelled
from llmaas.kvchunks.codec.codec import Codec
from llmaas.kvchunks.store.store import Store
from llmaas.planner.settings import PlannerChoices
from llmaas.records import AppId, ContextId
from llmaas.service.service import Service
from llmaas.service.settings import ServiceSettings


@dataclass(eq=False)
class Answer:
    """An answer under way. ``begin`` and ``arrivals`` are in seconds of ``perf_counter``."""

    begin: float = field(default_factory=perf_counter)
    arrivals: list[float] = field(default_factory=list)
    reply: asyncio.Future[Done] | None = None
    stop: Callable[[], Awaitable[None]] | None = None

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.arrivals[0] - self.begin

    def record(self, piece: Piece) -> None:
        """The tokens of ``piece`` are there now."""
        self.arrivals += [perf_counter()] * len(piece.tokens)

    @property
    def ended(self) -> bool:
        return self.reply is not None and self.reply.done()

    async def done(self) -> Done:
        """The terminal reply."""
        assert self.reply is not None
        return await self.reply

    async def cancel(self) -> None:
        """End the answer early; returns when it has ended."""
        assert self.stop is not None
        await self.stop()
        with suppress(Cancelled):
            await self.done()


class BenchClient(Protocol):
    """What a bench does with one app's contexts, over whichever interface."""

    async def create(self) -> ContextId: ...

    async def append(self, context: ContextId, prompt: str, terms: Terms = DEFAULT_TERMS) -> Done: ...

    def generate(self, context: ContextId, prompt: str | None, n_new: int, terms: Terms = DEFAULT_TERMS) -> Answer:
        """Begin an answer of ``n_new`` tokens. Without a prompt it continues the context."""

    async def fork(self, context: ContextId, n_tokens: int) -> ContextId:
        """A context with the first ``n_tokens`` tokens of ``context``."""

    async def truncate(self, context: ContextId, n_tokens: int) -> None: ...

    async def delete(self, context: ContextId) -> None: ...

    async def wait_idle(self) -> None:
        """Return when chunks that left CELLS are coded and written, or have had the time for it."""

    async def counts(self) -> dict[str, int]:
        """The planner's counters."""


class InProcessClient:
    """A client of a service on this event loop."""

    def __init__(self, service: Service, app: str = "0/bench") -> None:
        self._service, self._app = service, AppId(app)

    async def create(self) -> ContextId:
        return (await self._service.create(self._app, name=None, system=None)).id

    async def append(self, context: ContextId, prompt: str, terms: Terms = DEFAULT_TERMS) -> Done:
        spec = CallSpec(Turn(prompt=prompt), None, terms)
        _, reply = self._service.submit(self._app, context, spec, lambda piece: None)
        return await reply

    def generate(self, context: ContextId, prompt: str | None, n_new: int, terms: Terms = DEFAULT_TERMS) -> Answer:
        answer = Answer()
        spec = CallSpec(Turn(prompt=prompt), Generation(max_tokens=n_new), terms)
        request, answer.reply = self._service.submit(self._app, context, spec, answer.record)

        async def stop() -> None:
            self._service.cancel(request)

        answer.stop = stop
        return answer

    async def fork(self, context: ContextId, n_tokens: int) -> ContextId:
        found = (await self._service.fork(self._app, context, name=None)).id
        await self.truncate(found, n_tokens)
        return found

    async def truncate(self, context: ContextId, n_tokens: int) -> None:
        await self._service.truncate(self._app, context, n_tokens=n_tokens, n_messages=None)

    async def delete(self, context: ContextId) -> None:
        await self._service.delete(self._app, context)

    async def wait_idle(self) -> None:
        await self._service.wait_idle()

    async def counts(self) -> dict[str, int]:
        return _counts(self._service.stats())


class SocketClient:
    """A client of a daemon, over its socket."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(self) -> ContextId:
        return (await self._client.create()).id

    async def append(self, context: ContextId, prompt: str, terms: Terms = DEFAULT_TERMS) -> Done:
        return await self._client.append(context, prompt=prompt, terms=terms)

    def generate(self, context: ContextId, prompt: str | None, n_new: int, terms: Terms = DEFAULT_TERMS) -> Answer:
        answer = Answer()
        stream = self._client.generate(context, prompt=prompt, max_tokens=n_new, terms=terms)
        answer.reply = asyncio.ensure_future(_read(stream, answer))
        answer.stop = stream.cancel
        return answer

    async def fork(self, context: ContextId, n_tokens: int) -> ContextId:
        found = (await self._client.fork(context)).id
        await self.truncate(found, n_tokens)
        return found

    async def truncate(self, context: ContextId, n_tokens: int) -> None:
        await self._client.truncate(context, n_tokens=n_tokens)

    async def delete(self, context: ContextId) -> None:
        await self._client.delete(context)

    async def wait_idle(self) -> None:
        """Wait until the daemon's counters stand still.

        A daemon does not say that nothing is left to save or write, so its counters are read twice, 0.3 s apart:
        saving what one turn leaves takes far less.
        """
        before = None
        while (now := await self.counts()) != before:
            before = now
            await asyncio.sleep(0.3)

    async def counts(self) -> dict[str, int]:
        return _counts(await self._client.stats())


async def _read(stream: AsyncStream, answer: Answer) -> Done:
    async for piece in stream:
        answer.record(piece)
    return await stream.done()


def _counts(stats: dict[str, Any]) -> dict[str, int]:
    return dict(stats["counts"])


@asynccontextmanager
async def serving(
    thread: EngineThread, store: Store, *, record: Path | None = None, codec: Codec | None = None, **choices: Any
) -> AsyncIterator[Service]:
    """A service for the time of the block. ``choices`` are of PlannerChoices; ``record`` is a file for its events.

    At the end of the block its books must balance, and the engine is left without cells. Raises RuntimeError.
    """
    settings = ServiceSettings(planner=PlannerChoices(**choices), record=record)
    service = Service(thread, store, settings, codec=codec)
    await service.start()
    try:
        yield service
        await service.wait_idle()
        if problems := service.check():
            raise RuntimeError(f"the books do not balance: {problems}")
    finally:
        await service.stop()
    await asyncio.wrap_future(thread.submit(_drop_all, thread))


def _drop_all(thread: EngineThread) -> None:
    for seq in range(thread.engine.n_seqs):
        thread.engine.drop(seq, 0)
