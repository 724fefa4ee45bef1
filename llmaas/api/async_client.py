"""AsyncClient: many requests at once on one connection, from asyncio.

Law: a thin shell around ``session.Session``. Every await ends when its reply comes or the connection is lost; errors
of the daemon are raised as the classes of ``llmaas.errors``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from llmaas.api import messages as msg
from llmaas.api import replies
from llmaas.api.client_session import Exchange, Session
from llmaas.calls import DEFAULT_TERMS, Done, Piece, Sampling, Terms
from llmaas.errors import LlmaasError, NotServing, UnknownRequest
from llmaas.records import AdapterInfo, ContextDetail, ContextInfo, Message

Messages = Iterable[Message | Mapping[str, str]]
GREEDY = Sampling()


class _Link(asyncio.Protocol):
    """Bytes of the socket to the session."""

    def __init__(self, session: Session, path: Path) -> None:
        self._session = session
        self._path = path
        self._transport: asyncio.Transport
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._session.receive(data)
        if self._session.fault is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._session.lose(NotServing(f"the connection to the daemon at {self._path} was lost"))
        self.lost.set()


class AsyncStream:
    """An answer as it comes: iterate it for its pieces, then ``await done()``.

    Who leaves it early should use ``async with`` or ``aclose()``: that cancels the rest. A stream that is
    just dropped runs to its end in the daemon. Iteration raises the error that ended the answer, Cancelled included.
    """

    def __init__(self, client: AsyncClient, exchange: Exchange, changed: asyncio.Event) -> None:
        self._client = client
        self._exchange = exchange
        self._changed = changed

    @property
    def text(self) -> str:
        """The text that has come so far."""
        return self._exchange.text

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Piece:
        while not self._exchange.pieces:
            if self._exchange.ended:
                self._exchange.result()
                raise StopAsyncIteration
            await _more(self._changed)
        return self._exchange.pieces.popleft()

    async def done(self) -> Done:
        """The terminal reply, when it has come; pieces that nobody took are let go (``text`` has them)."""
        await _end(self._exchange, self._changed)
        self._exchange.pieces.clear()
        return replies.result(Done, self._exchange.result())

    async def cancel(self) -> None:
        """End the answer; returns when it has ended. Tokens that were streamed stay in the context.

        ``done()`` then raises Cancelled, or gives Done if the answer was complete already.
        """
        if not self._exchange.ended and not self._exchange.cancelling:
            self._exchange.cancelling = True
            try:
                await self._client._ask(msg.Cancel(self._exchange.request_id))
            except UnknownRequest:
                pass  # it ended while we asked
            except LlmaasError:
                if not self._exchange.ended:
                    raise
        await _end(self._exchange, self._changed)

    async def prioritize(self, priority: int) -> None:
        """Change how urgent the answer is: 0 (most urgent) .. 9. No effect if it has ended."""
        with contextlib.suppress(UnknownRequest):
            await self._client._ask(msg.checked(msg.Prioritize, self._exchange.request_id, priority))

    async def aclose(self) -> None:
        await self.cancel()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class AsyncClient:
    """A connection of one app to the daemon. Make it with ``await AsyncClient.connect(...)``."""

    def __init__(self, session: Session, link: _Link, transport: asyncio.Transport, server: Mapping[str, Any]) -> None:
        self.server = server
        """The daemon's hello: its version, model and limits."""
        self._session = session
        self._link = link
        self._transport = transport

    @classmethod
    async def connect(cls, socket: Path | str, *, app: str, timeout: float = 10) -> AsyncClient:
        """Raises NotServing, VersionMismatch, BadRequest (the app's name), Busy. ``timeout`` is in seconds."""
        session = Session(app)
        try:
            transport, link = await asyncio.wait_for(_open(session, Path(socket)), timeout)
        except asyncio.TimeoutError:
            raise NotServing(f"the daemon at {socket} does not answer within {timeout:g} s") from None
        return cls(session, link, transport, replies.result_map(session.greeting.result()))

    async def create(self, *, name: str | None = None, system: str | None = None, adapter: str = "") -> ContextInfo:
        return replies.result(ContextInfo, await self._ask(msg.Create(name, system, adapter)))

    async def append(
        self, context: str, messages: Messages = (), prompt: str | None = None, *, terms: Terms = DEFAULT_TERMS
    ) -> Done:
        """Add to a context without an answer."""
        request = msg.checked(msg.Append, context, msg.as_messages(messages), prompt, **msg.terms_map(terms))
        return replies.result(Done, await self._ask(request))

    def generate(
        self,
        context: str,
        messages: Messages = (),
        *,
        prompt: str | None = None,
        max_tokens: int = 256,
        sampling: Sampling = GREEDY,
        stop: Iterable[str] = (),
        terms: Terms = DEFAULT_TERMS,
        logprobs: int | None = None,
        on_full: str = "error",
    ) -> AsyncStream:
        """Add to a context, and stream the model's answer. The request is on its way when this returns.

        With ``logprobs`` each piece has log probabilities, and so many alternatives for each token. ``on_full``
        "shift" lets go of the oldest messages where the context would be full.
        """
        limits: dict[str, Any] = {"max_tokens": max_tokens, "sampling": sampling, "stop": stop, "terms": terms}
        more: dict[str, Any] = {"logprobs": logprobs, "on_full": on_full, **limits}
        exchange, changed = self._start(msg.generate_request(context, messages, prompt=prompt, **more))
        return AsyncStream(self, exchange, changed)

    async def fork(self, context: str, *, name: str | None = None) -> ContextInfo:
        """A new context with the same conversation; it shares the chunks of the old one."""
        return replies.result(ContextInfo, await self._ask(msg.Fork(context, name)))

    async def truncate(
        self, context: str, *, n_tokens: int | None = None, n_messages: int | None = None
    ) -> ContextInfo:
        """Keep the first ``n_tokens`` tokens, or the first ``n_messages`` messages."""
        request = msg.checked(msg.Truncate, context, n_tokens, n_messages)
        return replies.result(ContextInfo, await self._ask(request))

    async def contexts(self, everyone: bool = False) -> list[ContextInfo]:
        """The app's contexts; those of every app for the user who runs the daemon."""
        return replies.result_list(ContextInfo, await self._ask(msg.ListContexts(everyone)))

    async def show(self, context: str, *, everyone: bool = False) -> ContextDetail:
        return replies.result(ContextDetail, await self._ask(msg.Show(context, everyone)))

    async def hint(self, context: str) -> None:
        """Say that the context will be used soon (its app comes to the foreground), so that it is back by then.

        Returns at once. The daemon takes it as a wish: calls come first.
        """
        await self._ask(msg.Hint(context))

    async def delete(self, context: str, *, everyone: bool = False) -> None:
        await self._ask(msg.Delete(context, everyone))

    async def stats(self) -> dict[str, Any]:
        return replies.result_map(await self._ask(msg.Stats()))

    async def budget(self, *, pool_bytes: int | None = None, disk_bytes: int | None = None) -> dict[str, Any]:
        """Set what the daemon's POOL and DISK may hold, and see what holds now; for the user who runs the daemon."""
        return replies.result_map(await self._ask(msg.checked(msg.Budget, pool_bytes, disk_bytes)))

    async def limit(self, app: str | None = None, rate: float | None = None) -> dict[str, Any]:
        """Set how many tokens per second an app (``uid/name``), or without ``app`` all together, may generate.

        For the user who runs the daemon. ``rate`` None: no limit.
        """
        return replies.result_map(await self._ask(msg.checked(msg.Limit, app, rate)))

    async def adapters(self) -> list[AdapterInfo]:
        """The LoRA adapters that ``create`` and ``terms`` may name."""
        return replies.result_list(AdapterInfo, await self._ask(msg.ListAdapters()))

    async def adapter_add(self, name: str, path: Path) -> AdapterInfo:
        """Register an adapter's file, also for later starts of the daemon; for the user who runs it."""
        return replies.result(AdapterInfo, await self._ask(msg.AdapterAdd(name, str(path))))

    async def adapter_remove(self, name: str) -> None:
        """Contexts that use it stay, and refuse calls until they name another one. For the daemon's user."""
        await self._ask(msg.AdapterRemove(name))

    async def ping(self) -> None:
        await self._ask(msg.Ping())

    async def close(self) -> None:
        """Close the connection; what still runs on it is cancelled."""
        self._session.lose(NotServing("this client was closed", hint="Connect again."))
        self._transport.abort()
        await self._link.lost.wait()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _start(self, request: msg.Request) -> tuple[Exchange, asyncio.Event]:
        exchange, data = self._session.start(request)
        changed = asyncio.Event()
        exchange.changed = changed.set
        self._transport.write(data)
        return exchange, changed

    async def _ask(self, request: msg.Request) -> object:
        exchange, changed = self._start(request)
        try:
            await _end(exchange, changed)
        except asyncio.CancelledError:
            if exchange.cancellable:
                with contextlib.suppress(LlmaasError):
                    self._start(msg.Cancel(exchange.request_id))
            raise
        return exchange.result()


async def _more(changed: asyncio.Event) -> None:
    changed.clear()
    await changed.wait()


async def _end(exchange: Exchange, changed: asyncio.Event) -> None:
    while not exchange.ended:
        await _more(changed)


async def _open(session: Session, path: Path) -> tuple[asyncio.Transport, _Link]:
    """Connect and say hello. Raises what the daemon refuses with, or NotServing."""
    try:
        loop = asyncio.get_running_loop()
        transport, link = await loop.create_unix_connection(lambda: _Link(session, path), str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotServing(f"no daemon serves {path}") from None
    except OSError as e:
        raise NotServing(f"cannot connect to {path}: {e.strerror or e}") from e
    try:
        changed = asyncio.Event()
        session.greeting.changed = changed.set
        transport.write(session.hello())
        await _end(session.greeting, changed)
        session.greeting.result()
    except BaseException:
        transport.abort()
        raise
    return transport, link
