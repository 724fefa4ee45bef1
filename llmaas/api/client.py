"""Client: one request at a time, for programs without asyncio; no thread, no loop.

Law: a shell around ``client_session`` and ``operations``. Ctrl-C (KeyboardInterrupt) may end any wait; a call that it
or the caller left running is cancelled before the next one.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from llmaas.api import messages as msg
from llmaas.api import operations, questions, replies
from llmaas.api.blocking_link import BlockingLink, Link, uninterrupted
from llmaas.api.bound_context import NO_MATTER, BoundContext, of_context
from llmaas.api.client_session import Exchange, Session
from llmaas.api.daemon_address import client_identity, daemon_address, hello_timeout
from llmaas.api.operation import Operation, Question, as_method
from llmaas.api.operations import BlockingOperations
from llmaas.api.retrying import LOST, NOT_YET, Retries
from llmaas.api.transport_choice import by_slots
from llmaas.calls import Done, Loading, Piece
from llmaas.errors import NotServing
from llmaas.old_paths import keep_old_names
from llmaas.records import ContextInfo

keep_old_names(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class Stream:
    """An answer as it comes: iterate over it for its pieces, then read ``done``.

    Iteration may go on after a KeyboardInterrupt. It raises the error that ended the answer, Cancelled included.
    """

    def __init__(self, client: Client, exchange: Exchange) -> None:
        self._client = client
        self._exchange = exchange

    @property
    def text(self) -> str:
        """The text that has come so far."""
        return self._exchange.text

    @property
    def idempotency_key(self) -> str | None:
        """The request's key, also one that the client has given it to make it again."""
        request = self._exchange.request
        return request.idempotency_key if isinstance(request, msg.Generate) else None

    @property
    def done(self) -> Done:
        """The terminal reply; waits for it, and discards pieces that were not taken (``text`` has them)."""
        self._client._finish(self._exchange)
        self._exchange.pieces.clear()
        return replies.result(Done, self._exchange.result())

    def cancel(self) -> None:
        """End the answer; returns when it has ended. Tokens that were streamed stay in the context.

        ``done`` then raises Cancelled, or returns Done if the answer was complete already.
        """
        self._client._cancel(self._exchange)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Piece:
        while not self._exchange.pieces:
            if not self._exchange.ended:
                self._client._read()
            elif not self._client._begin_again(self._exchange):
                self._exchange.result()
                raise StopIteration
        return self._exchange.pieces.popleft()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


class BegunRequest(Generic[T]):
    """A request that was sent. ``result`` waits for its reply, and returns what is read from it, or raises its error.
    It may be asked for at any time."""

    def __init__(self, client: Client, exchange: Exchange, operation: Operation[T]) -> None:
        self._client, self._exchange, self._operation = client, exchange, operation

    def result(self) -> T:
        self._client._finish(self._exchange)
        return self._operation.read(self._exchange.result())


def _streams(operation: Callable[P, msg.Generate]) -> Callable[Concatenate[Client, P], Stream]:
    """A method that sends the request of ``operation``, and returns the stream of its answer at once."""

    @as_method(operation, returns="Stream")
    def method(client: Client, /, *args: P.args, **named: P.kwargs) -> Stream:
        return Stream(client, client._start(operation(*args, **named)))

    return method


def _reads(operation: Callable[P, Question[T]]) -> Callable[Concatenate[Client, P], T]:
    """A method that waits for the whole answer to the request of ``operation``, and returns what is read from it."""

    @as_method(operation)
    def method(client: Client, /, *args: P.args, **named: P.kwargs) -> T:
        question = operation(*args, **named)
        stream = Stream(client, client._start(question.request))
        done = stream.done
        return question.read(stream.text, done)

    return method


def _opens(operation: Callable[P, Operation[ContextInfo]]) -> Callable[Concatenate[Client, P], ClientContext]:
    """A method that returns the ClientContext that the result of ``operation`` is about."""

    @as_method(operation, returns="ClientContext")
    def method(client: Client, /, *args: P.args, **named: P.kwargs) -> ClientContext:
        return ClientContext(client, client._ask(operation(*args, **named)))

    return method


class Client(BlockingOperations):
    """A connection of one app to the daemon. Not for several threads at once: give each its own Client.

    Without ``socket`` the daemon is found as the command line finds it: by LLMAAS_SOCKET, the settings file, or where
    it serves by default. Contexts belong to ``app``, so give your program a name of its own: all that have none share
    the contexts of "python".

    An app that has a token (``llmaas app add``) is nobody's without it: give it as ``token``, or in the variable
    LLMAAS_TOKEN. ``app`` need not be given then.

    Raises NotServing, VersionMismatch, BadRequest (the app's name), BadToken, ConfigError, Busy, and NotTrusted, before
    anything is sent, unless the daemon runs as this user, as root, or as ``daemon_uid``. ``timeout`` (seconds) bounds
    connecting and sending; an answer may take as long as it takes.

    ``admin`` connects to the operator's socket beside ``socket``, as its user or root: ``everyone``, ``limit``,
    ``budget``, ``adapter_add`` and ``adapter_remove`` work there only. With ``on_behalf_of``, a uid, as well, the
    connection is the app's of that user, with its rights and in its share, and not the operator's.

    With ``retry_s`` the client connects again when the connection was lost or the daemon has stopped, for so many
    seconds, and makes again what can be made again: requests that only read, ``context``, ``resolve``, and ``append``
    and ``generate``, which get an ``idempotency_key`` if they have none (not with ``logprobs``). An answer then goes on
    from what was told of it. Other requests fail, and the next one connects. A request is made again 8 times at most.
    What the daemon refuses as Busy is asked for again, whatever it is, less and less often for so many seconds.

    ``model`` names one of several that the daemon serves (``llmaas model ls``); else it is the default one. One that is
    not in memory is loaded: the client waits two minutes for that, or ``timeout`` if that is more; ``on_loading`` is
    told about once a second how long it will take. Raises UnknownModel.

    With ``transport="slots"`` requests and answers go through shared memory (docs/slots.md), if the daemon has slots:
    else BadRequest is raised, or Busy if all are in use. Everything works as by the socket, and short requests take
    less time.

    >>> Client("/run/none/llmaas.sock", app="mail")
    Traceback (most recent call last):
    ...
    llmaas.errors.NotServing: no daemon serves /run/none/llmaas.sock
    """

    def __init__(
        self,
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
    ) -> None:
        self._slots = by_slots(transport)
        self._on_loading = on_loading
        self._address = daemon_address(socket, daemon_uid, admin=admin)
        self._identity = client_identity(app, token, operator=admin)
        self._on_behalf_of, self._timeout, self._model = on_behalf_of, timeout, model
        self._retries = Retries(retry_s)
        self._closed = False
        self._connect()

    generate = _streams(operations.generate)
    ask = _reads(questions.ask)
    ask_json = _reads(questions.ask_json)
    context = _opens(operations.context)

    def _connect(self) -> None:
        who = self._identity
        session = Session(who.app, self._on_behalf_of, who.token, self._model, self._on_loading)
        link: Link
        link = sock = BlockingLink(session, self._address.socket, self._timeout, self._address.uid)
        try:
            sock.send((session.hello(),))
            while not session.greeting.ended:
                sock.read(hello_timeout(self._timeout, self._model))
            self.server: Mapping[str, Any] = replies.result_map(session.greeting.result())
            """The daemon's hello: its version, model, limits, and how the model's makers suggest to sample."""
            if self._slots:
                link = self._slot(session, sock)
        except BaseException:
            link.close()
            raise
        self._session, self._link = session, link

    def _slot(self, session: Session, link: BlockingLink) -> Link:
        from llmaas.api.slot_link import SlotLink

        return SlotLink(session, link, self._address.socket, self._timeout)

    def close(self) -> None:
        """Close the connection; what still runs on it is cancelled."""
        self._closed = True
        self._session.lose(NotServing("this client was closed", hint="Connect again."))
        self._link.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, operation: Operation[T]) -> BegunRequest[T]:
        """Send the request of an operation, and return before its reply has come, so that the daemon has the next one
        while a reply is read. For a result that comes in one page, and not for calls, which ``generate`` begins. Every
        other method waits first until what was begun has ended."""
        if self._session.fault is not None:
            self._reconnect()
        return BegunRequest(self, self._begin(self._retries.prepared(operation.request)), operation)

    # -- the exchange of frames

    def _ask(self, operation: Operation[T]) -> T:
        result, after = self._result(operation.request)
        while request := operation.next_request(after):
            more, after = self._result(request)
            result = operation.joined(result, more)
        return operation.read(result)

    def _result(self, request: msg.Request) -> tuple[object, str | None]:
        """The result of a request, and where its next page begins."""
        exchange = self._start(request)
        self._finish(exchange)
        return exchange.result(), exchange.next

    def _start(self, request: msg.Request) -> Exchange:
        for left in self._session.live():
            self._cancel(left)
        if self._session.fault is not None:
            self._reconnect()
        return self._begin(self._retries.prepared(request))

    def _begin(self, request: msg.Request) -> Exchange:
        with uninterrupted():
            exchange, data = self._session.start(request)
            self._link.send(data)
        return exchange

    def _read(self) -> None:
        self._link.read()

    def _finish(self, exchange: Exchange) -> None:
        """Return when the exchange has ended and is not to be made again."""
        while not exchange.ended or self._begin_again(exchange):
            if not exchange.ended:
                self._read()

    def _reconnect(self) -> bool:
        """Connect again, if this client does so and a daemon serves in time."""
        for pause in self._retries.pauses() if not self._closed else ():
            threading.Event().wait(pause)
            with contextlib.suppress(*NOT_YET):
                self._connect()
                return True
        return False

    def _begin_again(self, exchange: Exchange) -> bool:
        """Make a request again that was refused, or whose connection was lost; False if it has failed for good."""
        if exchange.refused:
            return self._try_later(exchange)
        if not exchange.lost or not self._retries.seconds or self._closed:
            return False
        if exchange.session is self._session:  # a daemon that has said that it stops ends the connection soon
            self._session.lose(NotServing("the daemon has stopped"))
            self._link.close()
        if self._session.fault is not None and not self._reconnect():
            return False
        with uninterrupted():
            self._link.send(self._session.begin_again(exchange))
        return True

    def _try_later(self, exchange: Exchange) -> bool:
        """Make a request again for which the daemon had no room, after a while; False if the time for that is up."""
        exchange.waits = exchange.waits or self._retries.waits()
        wait = None if self._closed else next(exchange.waits, None)
        if wait is None:
            return False
        threading.Event().wait(wait)
        try:
            with uninterrupted():
                self._link.send(self._session.begin_again(exchange))
        except LOST as e:
            exchange.fail(e)
            return self._begin_again(exchange)
        return True

    def _cancel(self, exchange: Exchange) -> None:
        """Wait for the end of an exchange, after cancelling it if that is possible."""
        if exchange.cancellable and not exchange.ended and not exchange.cancelling:
            with uninterrupted():
                exchange.cancelling = True
                self._begin(msg.Cancel(exchange.request_id))
        exchange.cancelling |= exchange.cancellable  # it is not to be made again
        self._finish(exchange)


class ClientContext(BoundContext[Client]):
    """A context of a client: its operations, without the context's name. Made by ``Client.context``."""

    append = of_context(operations.append, Client.append)
    generate = of_context(operations.generate, Client.generate)
    ask = of_context(questions.ask, Client.ask)
    ask_json = of_context(questions.ask_json, Client.ask_json)
    truncate = of_context(operations.truncate, Client.truncate)
    show = of_context(operations.show, Client.show)
    hint = of_context(operations.hint, Client.hint)
    delete = of_context(operations.delete, Client.delete)

    def fork(self, *, name: str | None = None, n_messages: int | None = None) -> ClientContext:
        """Make a new context with the same conversation, or with its first ``n_messages`` messages."""
        return ClientContext(self.client, self.client.fork(self.id, name=name, n_messages=n_messages))

    @contextlib.contextmanager
    def forked(self) -> Iterator[ClientContext]:
        """A fork for the time of a ``with`` block, to try something: it is deleted at its end."""
        fork = self.fork()
        try:
            yield fork
        finally:
            with contextlib.suppress(*NO_MATTER):
                fork.delete()
