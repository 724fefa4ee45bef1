"""AsyncClient: many requests at once on one connection, from asyncio.

Law: a shell around ``client_session`` and ``operations``. Every await ends when its reply comes or the connection is
lost; errors of the daemon are raised as the classes of ``llmaas.errors``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from llmaas.api import messages as msg
from llmaas.api import operations, questions, replies
from llmaas.api.async_link import AsyncLink, more, open_link, until_ended
from llmaas.api.bound_context import NO_MATTER, BoundContext, of_context
from llmaas.api.client_session import Exchange, Session
from llmaas.api.daemon_address import client_identity, daemon_address, hello_timeout
from llmaas.api.direct_taker import DirectTaker
from llmaas.api.operation import Operation, Question, as_method
from llmaas.api.operations import AsyncOperations
from llmaas.api.retrying import LOST, NOT_YET, Retries, repeatable
from llmaas.api.transport_choice import by_slots
from llmaas.calls import Done, Loading, Piece
from llmaas.errors import LlmaasError, NotServing, UnknownRequest
from llmaas.records import ContextInfo

P = ParamSpec("P")
T = TypeVar("T")
_HANG_UP_S = 5.0
"""Seconds within which a daemon that has said it stops should end the connection."""


class AsyncStream:
    """An answer as it comes: iterate over it for its pieces, then ``await done()``.

    To leave it early, use ``async with`` or ``aclose()``: that cancels the rest. A stream that is just dropped runs to
    its end in the daemon. Iteration raises the error that ended the answer, Cancelled included.
    """

    def __init__(self, client: AsyncClient, exchange: Exchange, changed: asyncio.Event) -> None:
        self._client = client
        self._exchange = exchange
        self._changed = changed

    @property
    def text(self) -> str:
        """The text that has come so far."""
        return self._exchange.text

    @property
    def idempotency_key(self) -> str | None:
        """The request's key, also one that the client has given it to make it again."""
        request = self._exchange.request
        return request.idempotency_key if isinstance(request, msg.Generate) else None

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Piece:
        while not self._exchange.pieces:
            if not self._exchange.ended:
                await more(self._changed)
            elif not await self._client._begin_again(self._exchange):
                self._exchange.result()
                raise StopAsyncIteration
        return self._exchange.pieces.popleft()

    async def pass_to(self, take: Callable[[Piece], Awaitable[None] | None]) -> None:
        """Call ``take`` with every piece that is left; returns, or raises, where iteration would end.

        It is called on the event loop as a piece comes. What it returns, if anything, is awaited before it is called
        again. Iteration wakes a task up for each piece: that takes a turn of the loop more, and about as much of the
        CPU as all that a small ``take`` does.
        """
        taker = DirectTaker(self._exchange, take, self._changed.set)
        while True:
            if (rest := taker.begin()) is not None:
                await rest
            elif not self._exchange.ended:
                try:
                    await more(self._changed)
                finally:
                    taker.end()
                taker.raise_failure()
            elif not await self._client._begin_again(self._exchange):
                self._exchange.result()
                return

    async def done(self) -> Done:
        """The terminal reply; waits for it, and discards pieces that were not taken (``text`` has them)."""
        await self._client._finish(self._exchange, self._changed)
        self._exchange.pieces.clear()
        return replies.result(Done, self._exchange.result())

    async def cancel(self) -> None:
        """End the answer; returns when it has ended. Tokens that were streamed stay in the context.

        ``done()`` then raises Cancelled, or returns Done if the answer was complete already.
        """
        if not self._exchange.ended and not self._exchange.cancelling:
            self._exchange.cancelling = True
            try:
                await self._client._ask(operations.cancel(self._exchange.request_id))
            except UnknownRequest:
                pass  # it ended while we asked
            except LlmaasError:
                if not self._exchange.ended:
                    raise
        self._exchange.cancelling = True  # it is not to be made again
        await until_ended(self._exchange, self._changed)

    async def prioritize(self, priority: int) -> None:
        """Change how urgent the answer is: 0 (most urgent) .. 9. No effect if it has ended."""
        with contextlib.suppress(UnknownRequest):
            await self._client._ask(operations.prioritize(self._exchange.request_id, priority))

    async def aclose(self) -> None:
        """As ``cancel``."""
        await self.cancel()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _streams(operation: Callable[P, msg.Generate]) -> Callable[Concatenate[AsyncClient, P], AsyncStream]:
    """A method that sends the request of ``operation``, and returns the stream of its answer at once."""

    @as_method(operation, returns="AsyncStream")
    def method(client: AsyncClient, /, *args: P.args, **named: P.kwargs) -> AsyncStream:
        return AsyncStream(client, *client._start(operation(*args, **named)))

    return method


def _reads(operation: Callable[P, Question[T]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """A method that waits for the whole answer to the request of ``operation``, and returns what is read from it."""

    @as_method(operation)
    async def method(client: AsyncClient, /, *args: P.args, **named: P.kwargs) -> T:
        question = operation(*args, **named)
        async with AsyncStream(client, *client._start(question.request)) as stream:  # cancelled with its caller
            done = await stream.done()
            return question.read(stream.text, done)

    return method


def _opens(
    operation: Callable[P, Operation[ContextInfo]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, AsyncClientContext]]:
    """A method that returns the AsyncClientContext that the result of ``operation`` is about."""

    @as_method(operation, returns="AsyncClientContext")
    async def method(client: AsyncClient, /, *args: P.args, **named: P.kwargs) -> AsyncClientContext:
        return AsyncClientContext(client, await client._ask(operation(*args, **named)))

    return method


async def _move_to_slot(session: Session, link: AsyncLink, timeout: float) -> None:
    from llmaas.api.async_slot import move_to_slot

    try:
        await asyncio.wait_for(move_to_slot(session, link), timeout)
    except BaseException as error:
        link.transport.abort()
        if isinstance(error, asyncio.TimeoutError):
            raise NotServing(f"the daemon gives no slot within {timeout:g} s") from None
        raise


class AsyncClient(AsyncOperations):
    """A connection of one app to the daemon. Make it with ``await AsyncClient.connect(...)``."""

    def __init__(
        self,
        session: Session,
        link: AsyncLink,
        reconnect: Callable[[], Awaitable[tuple[Session, AsyncLink]]],
        retries: Retries,
    ) -> None:
        self.server: Mapping[str, Any] = replies.result_map(session.greeting.result())
        """The daemon's hello: its version, model and limits."""
        self._session, self._link = session, link
        self._open, self._retries = reconnect, retries
        self._connecting = asyncio.Lock()
        self._closed = False

    @classmethod
    async def connect(
        cls,
        socket: Path | str | None = None,
        *,
        app: str | None = None,
        token: str | None = None,
        timeout: float = 10,
        daemon_uid: int | None = None,
        admin: bool = False,
        on_behalf_of: int | None = None,
        retry_s: float = 0,
        model: str | None = None,
        on_loading: Callable[[Loading], None] | None = None,
        transport: str = "socket",
    ) -> AsyncClient:
        """Raises NotServing, VersionMismatch, BadRequest (the app's name), BadToken, ConfigError, Busy, and NotTrusted,
        before anything is sent, unless the daemon runs as this user, as root, or as ``daemon_uid``. ``timeout`` is in
        seconds.
        ``socket``, ``app``, ``token``, ``model``, ``on_loading`` and ``transport``: see Client.

        ``admin`` connects to the operator's socket beside ``socket``, as its user or root: ``everyone``, ``limit``,
        ``budget``, ``adapter_add`` and ``adapter_remove`` work there only. With ``on_behalf_of``, a uid, as well, the
        connection is the app's of that user, with its rights and in its share, and not the operator's.

        With ``retry_s`` the client connects again when the connection was lost or the daemon has stopped; see Client.
        """
        slots = by_slots(transport)
        address, who = daemon_address(socket, daemon_uid, admin=admin), client_identity(app, token, operator=admin)

        async def connected() -> tuple[Session, AsyncLink]:
            session = Session(who.app, on_behalf_of, who.token, model, on_loading)
            link = await open_link(session, address.socket, hello_timeout(timeout, model), address.uid)
            if slots:
                await _move_to_slot(session, link, timeout)
            return session, link

        return cls(*await connected(), connected, Retries(retry_s))

    generate = _streams(operations.generate)
    ask = _reads(questions.ask)
    ask_json = _reads(questions.ask_json)
    context = _opens(operations.context)

    @property
    def is_open(self) -> bool:
        """Whether the connection is there, as far as is known. Without ``retry_s`` a lost one is not made anew."""
        return self._session.fault is None

    async def close(self) -> None:
        """Close the connection; what still runs on it is cancelled."""
        self._closed = True
        self._session.lose(NotServing("this client was closed", hint="Connect again."))
        await self._link.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _start(self, request: msg.Request) -> tuple[Exchange, asyncio.Event]:
        request, changed = self._retries.prepared(request), asyncio.Event()
        try:
            exchange, data = self._session.start(request)
        except LOST as e:
            if not self._can_retry or not repeatable(request):
                raise
            exchange = self._session.lost_exchange(request, e)
        else:
            self._link.transport.writelines(data)
        exchange.changed = changed.set
        return exchange, changed

    async def _ask(self, operation: Operation[T]) -> T:
        result, after = await self._result(operation.request)
        while request := operation.next_request(after):
            more, after = await self._result(request)
            result = operation.joined(result, more)
        return operation.read(result)

    async def _result(self, request: msg.Request) -> tuple[object, str | None]:
        """The result of a request, and where its next page begins."""
        if self._session.fault is not None and not isinstance(request, msg.ControlRequest):
            async with self._connecting:
                await self._reconnect()
        exchange, changed = self._start(request)
        try:
            await self._finish(exchange, changed)
        except asyncio.CancelledError:
            if exchange.cancellable and not exchange.ended:
                with contextlib.suppress(LlmaasError):
                    self._start(msg.Cancel(exchange.request_id))
            raise
        return exchange.result(), exchange.next

    # -- when the connection was lost

    @property
    def _can_retry(self) -> bool:
        return self._retries.seconds > 0 and not self._closed

    async def _finish(self, exchange: Exchange, changed: asyncio.Event) -> None:
        """Return when the exchange has ended and is not to be made again."""
        await until_ended(exchange, changed)
        while await self._begin_again(exchange):
            await until_ended(exchange, changed)

    async def _reconnect(self) -> bool:
        """Connect again, unless others have, if this client does so and a daemon serves in time."""
        if self._session.fault is None:
            return True
        for pause in self._retries.pauses() if self._can_retry else ():
            await asyncio.sleep(pause)
            with contextlib.suppress(*NOT_YET):
                self._session, self._link = await self._open()
                self.server = replies.result_map(self._session.greeting.result())
                return True
        return False

    async def _begin_again(self, exchange: Exchange) -> bool:
        """Make a request again that was refused, or whose connection was lost; False if it has failed for good."""
        if exchange.refused:
            return await self._try_later(exchange)
        if not exchange.lost or not self._can_retry:
            return not exchange.ended
        async with self._connecting:
            if exchange.session is self._session:
                # The daemon has said that it stops. Others on this connection get their replies first.
                await self._link.hung_up(_HANG_UP_S)
                self._session.lose(NotServing("the daemon has stopped"))
            if not exchange.lost:  # meanwhile somebody else has made it again
                return not exchange.ended
            if not await self._reconnect():
                return False
            self._link.transport.writelines(self._session.begin_again(exchange))
        return True

    async def _try_later(self, exchange: Exchange) -> bool:
        """Make a request again for which the daemon had no room, after a while; False if the time for that is up."""
        exchange.waits = exchange.waits or self._retries.waits()
        wait = None if self._closed else next(exchange.waits, None)
        if wait is None:
            return False
        await asyncio.sleep(wait)
        if exchange.cancelling:
            return False
        try:
            self._link.transport.writelines(self._session.begin_again(exchange))
        except LOST as e:
            exchange.fail(e)
            return await self._begin_again(exchange)
        return True


class AsyncClientContext(BoundContext[AsyncClient]):
    """A context of a client: its operations, without the context's name. Made by ``AsyncClient.context``."""

    append = of_context(operations.append, AsyncClient.append)
    generate = of_context(operations.generate, AsyncClient.generate)
    ask = of_context(questions.ask, AsyncClient.ask)
    ask_json = of_context(questions.ask_json, AsyncClient.ask_json)
    truncate = of_context(operations.truncate, AsyncClient.truncate)
    show = of_context(operations.show, AsyncClient.show)
    hint = of_context(operations.hint, AsyncClient.hint)
    delete = of_context(operations.delete, AsyncClient.delete)

    async def fork(self, *, name: str | None = None, n_messages: int | None = None) -> AsyncClientContext:
        """Make a new context with the same conversation, or with its first ``n_messages`` messages."""
        return AsyncClientContext(self.client, await self.client.fork(self.id, name=name, n_messages=n_messages))

    @contextlib.asynccontextmanager
    async def forked(self) -> AsyncIterator[AsyncClientContext]:
        """A fork for the time of an ``async with`` block, to try something: it is deleted at its end."""
        fork = await self.fork()
        try:
            yield fork
        finally:
            with contextlib.suppress(*NO_MATTER):
                await fork.delete()
