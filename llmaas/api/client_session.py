"""A client's side of a connection, without the socket: requests in, bytes out; bytes in, replies out.

Law: sans-I/O. Both clients are thin shells around this, so that they understand the same. Every Exchange ends exactly
once: by its terminal reply, or by ``lose``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from llmaas.api import messages as msg
from llmaas.api import replies
from llmaas.api.bulk import Parts
from llmaas.api.embed_message import Embed
from llmaas.api.hello import hello_frame, read_reply
from llmaas.api.retrying import LOST, MOST_TRIES, Retelling, repeatable
from llmaas.api.transfer_messages import ImportChunks
from llmaas.api.wire import MAX_FRAME, Decoder, Frame, encode, encode_bulk
from llmaas.calls import Loading, Piece
from llmaas.errors import BadRequest, Busy, EngineFailed, LlmaasError, MalformedFrame, ModelEnded
from llmaas.version import __version__


def _ignore() -> None:
    pass


class Exchange:
    """One request and what has come back so far. ``changed`` is called when more comes, and at the end."""

    def __init__(self, session: Session, request_id: int, request: msg.Request | None) -> None:
        self.session = session
        """Where it runs, or ran last."""
        self.request_id = request_id
        self.request = request
        self.pieces: deque[Piece] = deque()
        """Pieces that the caller has not taken yet."""
        self.ended = False
        self.cancelling = False
        """Set by the client that has sent a cancel for it."""
        self.changed: Callable[[], None] = _ignore
        self.take: Callable[[Piece], None] | None = None
        """Who takes pieces at once; None: they are kept in ``pieces``."""
        self._texts: list[str] = []
        self._tokens: list[int] | None = [] if repeatable(request) else None
        """All tokens so far, of a request that may be made again."""
        self._retelling: Retelling | None = None
        self.n_tries = 0
        """How often it was made again because it was lost."""
        self.waits: Iterator[float] | None = None
        """Seconds to wait before each time that it is made again because it was refused."""
        self.next: str | None = None
        """Where the rest of the result begins, if it comes in pages and there is more."""
        self._result: object = None
        self._error: LlmaasError | None = None

    @property
    def text(self) -> str:
        """All text so far, taken or not."""
        if len(self._texts) > 1:
            self._texts = ["".join(self._texts)]
        return self._texts[0] if self._texts else ""

    @property
    def cancellable(self) -> bool:
        return isinstance(self.request, msg.Append | msg.Generate | Embed)

    @property
    def lost(self) -> bool:
        """Whether it ended because the connection or the daemon did, and may be begun again."""
        if self.cancelling or self.n_tries >= MOST_TRIES or (self._retelling is not None and self._retelling.differs):
            return False
        return isinstance(self._error, LOST) and repeatable(self.request)

    @property
    def refused(self) -> bool:
        """Whether the daemon had no room for it, and has done nothing of it."""
        nothing_done = not self._texts and self._error is not None and self._error.n_tokens is None
        return isinstance(self._error, Busy) and nothing_done and not self.cancelling

    def fail(self, error: LlmaasError) -> None:
        """It has ended, and could not be made again because of ``error``."""
        self._error = error

    def begin_again(self, session: Session, request_id: int) -> None:
        """It was lost or refused, and is made again under this id. What was told of it is not told twice."""
        self.n_tries += not self.refused
        self.session = session
        self.request_id, self.ended, self._error, self.next = request_id, False, None, None
        if self._tokens:
            self._retelling = Retelling(self.text, list(self._tokens))

    def result(self) -> object:
        """The result of an exchange that has ended. Raises the error that it ended with."""
        assert self.ended, "result() before the end"
        if self._error is not None:
            raise self._error
        return self._result

    def add(self, piece: Piece) -> None:
        new = piece if self._retelling is None else self._retelling.rest(piece)
        if new is None:
            return
        self._texts.append(new.text)
        if self._tokens is not None:
            self._tokens += new.tokens
        if self.take is not None:
            self.take(new)
        else:
            self.pieces.append(new)
            self.changed()

    def end(self, result: object = None, error: LlmaasError | None = None) -> None:
        if not self.ended:
            self.ended, self._result, self._error = True, result, error
            if error is None and self._retelling is not None:
                self._error = self._retelling.end()
            self.changed()


class Session:
    """The protocol as a client speaks it. ``uid``: the user on whose behalf. Raises BadRequest."""

    def __init__(
        self,
        app: str | None,
        uid: int | None = None,
        token: str | None = None,
        model: str | None = None,
        on_loading: Callable[[Loading], None] | None = None,
    ) -> None:
        self._on_loading = on_loading
        told = True if model is not None or on_loading is not None else None  # older daemons know no such field
        self.greeting = Exchange(self, 0, None)
        """Ends with the hello reply."""
        self.fault: LlmaasError | None = None
        """Why the connection is over; None while it is not."""
        try:
            hello = hello_frame(app, f"llmaas-python/{__version__}", uid, token, model, told_of_loading=told)
            self._hello = encode(hello)
        except ValueError as e:
            raise BadRequest(str(e)) from e
        self._decoder = Decoder()
        self._max_frame = MAX_FRAME
        self._live: dict[int, Exchange] = {}
        self._last_id = 0

    def hello(self) -> bytes:
        """The first bytes to send."""
        return self._hello

    def live(self) -> list[Exchange]:
        """Exchanges that have not ended, oldest first."""
        return list(self._live.values())

    def start(self, request: msg.Request) -> tuple[Exchange, Parts]:
        """A new exchange and the bytes to send for it. Raises FrameTooLarge, BadRequest, or why the session is over."""
        if self.fault is not None:
            raise self.fault
        data = self._encoded(request)
        self._last_id += 1
        exchange = self._live[self._last_id] = Exchange(self, self._last_id, request)
        return exchange, data

    def lost_exchange(self, request: msg.Request, error: LlmaasError) -> Exchange:
        """An exchange that has ended with ``error``, since this session is over; it may be begun again."""
        exchange = Exchange(self, 0, request)
        exchange.end(error=error)
        return exchange

    def begin_again(self, exchange: Exchange) -> Parts:
        """The bytes to send for an exchange that was lost or refused. Raises why this session is over."""
        assert exchange.request is not None
        if self.fault is not None:
            raise self.fault
        data = self._encoded(exchange.request)
        self._last_id += 1
        exchange.begin_again(self, self._last_id)
        self._live[self._last_id] = exchange
        return data

    def _encoded(self, request: msg.Request) -> Parts:
        frame = msg.request_frame(self._last_id + 1, request)
        if isinstance(request, ImportChunks):
            return encode_bulk(frame, max_frame=self._max_frame)
        return (encode(frame, max_frame=self._max_frame),)

    def receive(self, data: bytes) -> None:
        """Read what the daemon sent. Never raises: a fault ends every exchange, and is kept in ``fault``."""
        self._take_all(lambda: self._decoder.feed(data))

    def room(self) -> memoryview | None:
        """Where to put what the daemon sends next, if it is of a large reply; ``received`` says how many bytes."""
        return None if self.fault is not None else self._decoder.room()

    def received(self, nbytes: int) -> None:
        """As ``receive``, of bytes that were put where ``room`` says."""
        self._take_all(lambda: self._decoder.filled(nbytes))

    def _take_all(self, decode: Callable[[], list[Frame]]) -> None:
        try:
            while self.fault is None and (frames := decode()):
                for frame in frames:
                    self._take(frame)
                decode = lambda: self._decoder.feed(b"")  # noqa: E731  # raises if they were followed by a fault
        except LlmaasError as e:
            self.lose(e)

    def lose(self, error: LlmaasError) -> None:
        """The connection is over: end every exchange with ``error``."""
        if self.fault is None:
            self.fault = error
        live, self._live = [self.greeting, *self._live.values()], {}
        for exchange in live:
            exchange.end(error=error)

    def _take(self, frame: Frame) -> None:
        if frame.get("type") == "loading":
            self._tell_loading(replies.result(Loading, frame))
            return
        if not self.greeting.ended:
            self._read_greeting(read_reply(frame))
            return
        kind, request_id = frame.get("type"), frame.get("id")
        if kind not in ("piece", "done", "failed"):
            raise MalformedFrame(f"the daemon sent a reply of type {str(kind)[:80]!r}")
        if request_id is None and kind == "failed":
            error = replies.error_from(frame)
            raise ModelEnded(error.message, hint=error.hint) if isinstance(error, EngineFailed) else error
        exchange = self._live.get(request_id) if type(request_id) is int else None
        if exchange is None:
            raise MalformedFrame("the daemon sent a reply to no request of this client")
        if kind == "piece":
            exchange.add(replies.piece(frame))
            return
        del self._live[exchange.request_id]
        if kind == "done":
            exchange.next = frame.get("next")
            exchange.end(frame.get("result"))
        else:
            exchange.end(error=replies.error_from(frame))

    def _tell_loading(self, loading: Loading) -> None:
        if self._on_loading is not None:
            self._on_loading(loading)
        for exchange in self._live.values():
            if isinstance(exchange.request, msg.Generate) and exchange.request.progress:
                exchange.add(Piece("", (), loading=loading))

    def _read_greeting(self, reply: Frame) -> None:
        limits = reply.get("limits")
        max_frame = limits.get("max_frame") if type(limits) is dict else None
        if type(max_frame) is int:
            self._max_frame = self._decoder.max_frame = max_frame
        self.greeting.end(reply)
