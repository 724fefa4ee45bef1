"""Client: one request at a time, for programs without asyncio; no thread, no loop.

Law: a shell around ``client_session`` and ``operations``. Ctrl-C (KeyboardInterrupt) may end any wait; a call that it
or the caller left running is cancelled before the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from llmaas.api import messages as msg
from llmaas.api import operations, replies
from llmaas.api.blocking_link import BlockingLink, uninterrupted
from llmaas.api.caller import admin_socket
from llmaas.api.client_session import Exchange, Session
from llmaas.api.operation import Operation, as_method
from llmaas.api.operations import BlockingOperations
from llmaas.calls import Done, Piece
from llmaas.errors import NotServing
from llmaas.old_paths import keep_old_names

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
            if self._exchange.ended:
                self._exchange.result()
                raise StopIteration
            self._client._read()
        return self._exchange.pieces.popleft()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


def _streams(operation: Callable[P, msg.Generate]) -> Callable[Concatenate[Client, P], Stream]:
    """A method that sends the request of ``operation``, and returns the stream of its answer at once."""

    @as_method(operation, returns="Stream")
    def method(client: Client, /, *args: P.args, **named: P.kwargs) -> Stream:
        return Stream(client, client._start(operation(*args, **named)))

    return method


class Client(BlockingOperations):
    """A connection of one app to the daemon. Not for several threads at once: give each its own Client.

    Raises NotServing, VersionMismatch, BadRequest (the app's name), Busy, and NotTrusted, before anything is sent,
    unless the daemon runs as this user, as root, or as ``daemon_uid``. ``timeout`` (seconds) bounds connecting and
    sending; an answer may take as long as it takes.

    ``admin`` connects to the operator's socket beside ``socket``, as its user or root: ``everyone``, ``limit``,
    ``budget``, ``adapter_add`` and ``adapter_remove`` work there only. With ``on_behalf_of``, a uid, as well, the
    connection is the app's of that user, with its rights and in its share, and not the operator's.

    >>> Client("/run/none/llmaas.sock", app="mail")
    Traceback (most recent call last):
    ...
    llmaas.errors.NotServing: no daemon serves /run/none/llmaas.sock
    """

    def __init__(
        self,
        socket: Path | str,
        *,
        app: str,
        timeout: float = 10,
        daemon_uid: int | None = None,
        admin: bool = False,
        on_behalf_of: int | None = None,
    ) -> None:
        path = admin_socket(Path(socket)) if admin else Path(socket)
        self._session = Session(app, on_behalf_of)
        self._link = BlockingLink(self._session, path, timeout, daemon_uid)
        try:
            self._link.send(self._session.hello())
            while not self._session.greeting.ended:
                self._link.read(timeout)
            self.server: Mapping[str, Any] = replies.result_map(self._session.greeting.result())
            """The daemon's hello: its version, model, limits, and how the model's makers suggest to sample."""
        except BaseException:
            self.close()
            raise

    generate = _streams(operations.generate)

    def close(self) -> None:
        """Close the connection; what still runs on it is cancelled."""
        self._session.lose(NotServing("this client was closed", hint="Connect again."))
        self._link.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        return self._begin(request)

    def _begin(self, request: msg.Request) -> Exchange:
        with uninterrupted():
            exchange, data = self._session.start(request)
            self._link.send(data)
        return exchange

    def _read(self) -> None:
        self._link.read()

    def _finish(self, exchange: Exchange) -> None:
        while not exchange.ended:
            self._read()

    def _cancel(self, exchange: Exchange) -> None:
        """Wait for the end of an exchange, after cancelling it if that is possible."""
        if exchange.cancellable and not exchange.ended and not exchange.cancelling:
            with uninterrupted():
                exchange.cancelling = True
                self._begin(msg.Cancel(exchange.request_id))
        self._finish(exchange)
