"""Client: one request at a time, for programs without asyncio; no thread, no loop.

Law: Ctrl-C (KeyboardInterrupt) may end any wait, and never harms the connection: bytes are taken from the socket and
put on it with SIGINT deferred. What an interrupted or abandoned call left running is cancelled before the next.

Not for several threads at once: give each its own Client.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket as sockets
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llmaas.api import messages as msg
from llmaas.api import replies
from llmaas.api.client_session import Exchange, Session
from llmaas.calls import DEFAULT_TERMS, Done, Piece, Sampling, Terms
from llmaas.errors import NotServing
from llmaas.old_paths import keep_old_names
from llmaas.records import AdapterInfo, ContextDetail, ContextInfo, Message

keep_old_names(__name__)

Messages = Iterable[Message | Mapping[str, str]]
GREEDY = Sampling()
_READ = 65536


class Stream:
    """An answer as it comes: iterate it for its pieces, then read ``done``.

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
        """The terminal reply; waits for it, and lets pieces that nobody took go (``text`` has them)."""
        self._client._finish(self._exchange)
        self._exchange.pieces.clear()
        return replies.result(Done, self._exchange.result())

    def cancel(self) -> None:
        """End the answer; returns when it has ended. Tokens that were streamed stay in the context.

        ``done`` then raises Cancelled, or gives Done if the answer was complete already.
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


class Client:
    """A connection of one app to the daemon.

    Raises NotServing, VersionMismatch, BadRequest (the app's name), Busy. ``timeout`` (seconds) bounds connecting and
    sending; an answer may take as long as it takes.
    """

    def __init__(self, socket: Path | str, *, app: str, timeout: float = 10) -> None:
        self._path = Path(socket)
        self._timeout = timeout
        self._session = Session(app)
        self._sock = _connect(self._path, timeout)
        self._in, self._out = select.poll(), select.poll()
        self._in.register(self._sock, select.POLLIN)
        self._out.register(self._sock, select.POLLOUT)
        try:
            self._send(self._session.hello())
            while not self._session.greeting.ended:
                self._read(timeout)
            self.server: Mapping[str, Any] = replies.result_map(self._session.greeting.result())
            """The daemon's hello: its version, model and limits."""
        except BaseException:
            self.close()
            raise

    def create(self, *, name: str | None = None, system: str | None = None, adapter: str = "") -> ContextInfo:
        return replies.result(ContextInfo, self._ask(msg.Create(name, system, adapter)))

    def append(
        self, context: str, messages: Messages = (), prompt: str | None = None, *, terms: Terms = DEFAULT_TERMS
    ) -> Done:
        """Add to a context without an answer."""
        request = msg.checked(msg.Append, context, msg.as_messages(messages), prompt, **msg.terms_map(terms))
        return replies.result(Done, self._ask(request))

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
    ) -> Stream:
        """Add to a context, and stream the model's answer.

        With ``logprobs`` each piece has log probabilities, and so many alternatives for each token. ``on_full``
        "shift" lets go of the oldest messages where the context would be full.
        """
        limits: dict[str, Any] = {"max_tokens": max_tokens, "sampling": sampling, "stop": stop, "terms": terms}
        more: dict[str, Any] = {"logprobs": logprobs, "on_full": on_full, **limits}
        return Stream(self, self._start(msg.generate_request(context, messages, prompt=prompt, **more)))

    def fork(self, context: str, *, name: str | None = None) -> ContextInfo:
        """A new context with the same conversation; it shares the chunks of the old one."""
        return replies.result(ContextInfo, self._ask(msg.Fork(context, name)))

    def truncate(self, context: str, *, n_tokens: int | None = None, n_messages: int | None = None) -> ContextInfo:
        """Keep the first ``n_tokens`` tokens, or the first ``n_messages`` messages."""
        return replies.result(ContextInfo, self._ask(msg.checked(msg.Truncate, context, n_tokens, n_messages)))

    def contexts(self, everyone: bool = False) -> list[ContextInfo]:
        """The app's contexts; those of every app for the user who runs the daemon."""
        return replies.result_list(ContextInfo, self._ask(msg.ListContexts(everyone)))

    def show(self, context: str, *, everyone: bool = False) -> ContextDetail:
        return replies.result(ContextDetail, self._ask(msg.Show(context, everyone)))

    def hint(self, context: str) -> None:
        """Say that the context will be used soon (its app comes to the foreground), so that it is back by then.

        Returns at once. The daemon takes it as a wish: calls come first.
        """
        self._ask(msg.Hint(context))

    def delete(self, context: str, *, everyone: bool = False) -> None:
        self._ask(msg.Delete(context, everyone))

    def stats(self) -> dict[str, Any]:
        return replies.result_map(self._ask(msg.Stats()))

    def budget(self, *, pool_bytes: int | None = None, disk_bytes: int | None = None) -> dict[str, Any]:
        """Set what the daemon's POOL and DISK may hold, and see what holds now; for the user who runs the daemon."""
        return replies.result_map(self._ask(msg.checked(msg.Budget, pool_bytes, disk_bytes)))

    def limit(self, app: str | None = None, rate: float | None = None) -> dict[str, Any]:
        """Set how many tokens per second an app (``uid/name``), or without ``app`` all together, may generate.

        For the user who runs the daemon. ``rate`` None: no limit.
        """
        return replies.result_map(self._ask(msg.checked(msg.Limit, app, rate)))

    def adapters(self) -> list[AdapterInfo]:
        """The LoRA adapters that ``create`` and ``terms`` may name."""
        return replies.result_list(AdapterInfo, self._ask(msg.ListAdapters()))

    def adapter_add(self, name: str, path: Path) -> AdapterInfo:
        """Register an adapter's file, also for later starts of the daemon; for the user who runs it."""
        return replies.result(AdapterInfo, self._ask(msg.AdapterAdd(name, str(path))))

    def adapter_remove(self, name: str) -> None:
        """Contexts that use it stay, and refuse calls until they name another one. For the daemon's user."""
        self._ask(msg.AdapterRemove(name))

    def ping(self) -> None:
        self._ask(msg.Ping())

    def close(self) -> None:
        """Close the connection; what still runs on it is cancelled."""
        self._session.lose(NotServing("this client was closed", hint="Connect again."))
        self._sock.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the exchange of frames

    def _ask(self, request: msg.Request) -> object:
        exchange = self._start(request)
        self._finish(exchange)
        return exchange.result()

    def _start(self, request: msg.Request) -> Exchange:
        for left in self._session.live():
            self._cancel(left)
        return self._begin(request)

    def _begin(self, request: msg.Request) -> Exchange:
        with _uninterrupted():
            exchange, data = self._session.start(request)
            self._send(data)
        return exchange

    def _finish(self, exchange: Exchange) -> None:
        while not exchange.ended:
            self._read()

    def _cancel(self, exchange: Exchange) -> None:
        """See an exchange to its end, by cancelling it if that can be."""
        if exchange.cancellable and not exchange.ended and not exchange.cancelling:
            with _uninterrupted():
                exchange.cancelling = True
                self._begin(msg.Cancel(exchange.request_id))
        self._finish(exchange)

    def _send(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                if not self._out.poll(self._timeout * 1000):
                    self._lose(f"the daemon at {self._path} takes nothing more since {self._timeout:g} s")
                    return
                with contextlib.suppress(BlockingIOError):
                    left = left[self._sock.send(left) :]
        except OSError as e:
            self._hear()  # the daemon may have said why it hung up
            self._lose(f"the connection to the daemon at {self._path} was lost: {e.strerror or e}")

    def _read(self, timeout: float | None = None) -> None:
        """Wait until more has come, and take it in."""
        if not self._in.poll(None if timeout is None else timeout * 1000):
            raise NotServing(f"the daemon at {self._path} does not answer within {timeout:g} s")
        with _uninterrupted():
            self._hear()

    def _hear(self) -> None:
        try:
            data = self._sock.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lose(f"the connection to the daemon at {self._path} was lost")
            return
        self._session.receive(data)
        if self._session.fault is not None:
            self._sock.close()

    def _lose(self, what: str) -> None:
        self._session.lose(NotServing(what))
        self._sock.close()


def _connect(path: Path, timeout: float) -> sockets.socket:
    sock = sockets.socket(sockets.AF_UNIX)
    try:
        sock.settimeout(timeout)
        sock.connect(str(path))
        sock.setblocking(False)
        return sock
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        raise NotServing(f"no daemon serves {path}") from None
    except OSError as e:
        sock.close()
        raise NotServing(f"cannot connect to {path}: {e.strerror or e}") from e
    except BaseException:
        sock.close()
        raise


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put Ctrl-C off to the end of the block.

    Nothing to do off the main thread, where there is no KeyboardInterrupt, and where the handler is not Python's.
    """
    caught: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if before is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda number, _frame: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if caught:
            signal.raise_signal(signal.SIGINT)
