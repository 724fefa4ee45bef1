"""Framing: bytes to maps and back. It knows neither sockets nor what a map means.

Law: sans-I/O. Any input bytes give maps with string keys, or MalformedFrame, or FrameTooLarge; never another exception,
and never more memory than the frame limit bounds.

    +----------------+---------------------------+
    | u32 big-endian | msgpack map, strict UTF-8 |
    | body length n  | n bytes                   |
    +----------------+---------------------------+

Rejected: msgpack's own streaming Unpacker without a length word. It cannot refuse a frame before its body has arrived,
and after one bad byte it cannot tell where the next frame begins.

>>> data = encode({"op": "ping", "id": 3})
>>> data[:4].hex(), len(data)
('0000000d', 17)
>>> Decoder().feed(data + data[:5])
[{'op': 'ping', 'id': 3}]
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, TypeVar

import msgpack  # type: ignore[import-untyped,unused-ignore]

from llmaas.api.bulk import BULK, Bulk, Parts, Span, look_through, packed_parts, unpacked
from llmaas.errors import BadRequest, FrameTooLarge, LlmaasError, MalformedFrame

Frame = dict[str, Any]
T = TypeVar("T")

MAX_FRAME = 4 * 1024 * 1024
"""Largest body in bytes, unless the hello reply names another limit."""
MAX_DEPTH = 8
"""Deepest nesting of maps and lists; the frame's own map counts."""
MAX_ITEMS = 1 << 17
"""Most items of one list or map."""
MAX_REQUEST_VALUES = 1 << 15
"""Most values of a request's frame, at all levels together. A map or list is one, and so is each key."""

_LENGTH = struct.Struct(">I")
_LARGE = 1 << 16
"""Bytes of a body that is put together in memory of its own, which is taken when its length is known."""


def encode(frame: Frame, *, max_frame: int = MAX_FRAME) -> bytes:
    """The bytes of one frame. Raises FrameTooLarge, and BadRequest for text that has no UTF-8 (a lone surrogate)."""
    body: bytes = _packed(msgpack.packb, frame)
    return _head(len(body), max_frame) + body


def encode_bulk(frame: Frame, *, max_frame: int = MAX_FRAME) -> Parts:
    """As ``encode``, for a frame that holds much: bytes that follow one another, of which long ones are not copied."""
    parts = _packed(packed_parts, frame)
    return (_head(sum(map(len, parts)), max_frame) + bytes(parts[0]), *parts[1:])


def _packed(pack: Callable[[Frame], T], frame: Frame) -> T:
    try:
        return pack(frame)
    except UnicodeEncodeError as e:
        raise BadRequest(f"text that is not valid Unicode cannot be sent: {e.reason}") from e


def _head(size: int, max_frame: int) -> bytes:
    if size > max_frame:
        raise FrameTooLarge(f"the frame has {size} bytes; at most {max_frame} are allowed")
    return _LENGTH.pack(size)


class Decoder:
    """Cuts a stream of bytes into frames. After a fault it gives no more frames: where the next begins is unknown."""

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self.max_frame = max_frame
        self._buffer = bytearray()
        self._large: bytearray | None = None
        """A large body of which ``_filled`` bytes have come; ``_buffer`` is empty meanwhile."""
        self._filled = 0
        self._fault: LlmaasError | None = None

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """The frames that ``data`` completes, in order.

        Raises MalformedFrame or FrameTooLarge. Frames that were complete before the fault are returned first, however
        the stream was cut: then the next call raises (``feed(b"")`` is enough), and so does every call after it.
        """
        return self._frames(self._take, data)

    def room(self) -> memoryview | None:
        """Where the next bytes are to be put, of which ``filled`` tells then, if they are of a large body. It saves the
        copy that ``feed`` makes of them."""
        return None if self._large is None else memoryview(self._large)[self._filled :]

    def filled(self, nbytes: int) -> list[Frame]:
        """So many bytes were put where ``room`` says. Returns and raises as ``feed``."""
        return self._frames(self._put, nbytes)

    def _frames(self, take: Callable[[T, list[Frame]], None], what: T) -> list[Frame]:
        frames: list[Frame] = []
        if self._fault is None:
            try:
                take(what, frames)
            except LlmaasError as e:
                self._fault, self._large = e, None
                self._buffer.clear()
        if self._fault is not None and not frames:
            raise self._fault
        return frames

    def _take(self, data: Bulk | bytearray, frames: list[Frame]) -> None:
        if (room := self.room()) is not None:
            view = memoryview(data)
            n = min(len(view), len(room))
            room[:n] = view[:n]
            self._put(n, frames)
            data = view[n:]  # of the next frame
        self._buffer += data
        self._cut(frames)

    def _put(self, nbytes: int, frames: list[Frame]) -> None:
        large = self._large
        assert large is not None
        self._filled += nbytes
        if self._filled == len(large):
            self._large = None
            frames.append(read_body(large, views=True))

    def _cut(self, frames: list[Frame]) -> None:
        start = 0
        try:
            while len(self._buffer) - start >= _LENGTH.size:
                (size,) = _LENGTH.unpack_from(self._buffer, start)
                if size > self.max_frame:
                    raise FrameTooLarge(f"a frame of {size} bytes was announced; at most {self.max_frame} are allowed")
                end = start + _LENGTH.size + size
                if end > len(self._buffer):
                    if size > _LARGE:
                        self._large, self._filled = bytearray(size), len(self._buffer) - start - _LENGTH.size
                        self._large[: self._filled] = self._buffer[start + _LENGTH.size :]
                        start = len(self._buffer)
                    return
                frames.append(read_body(self._buffer[start + _LENGTH.size : end]))
                start = end
        finally:
            del self._buffer[:start]


def read_body(data: bytes | bytearray | memoryview, max_values: int | None = None, *, views: bool = False) -> Frame:
    """The map that a body holds. Raises MalformedFrame.

    With ``max_values`` a body that announces more values, at all levels together, is refused before anything is made
    of it: a value takes one byte on the wire, up to a hundred in memory, and a list is made as long as it announces.
    ``views``: byte strings of ``BULK`` bytes and more are views of ``data``, and not copies.
    """
    long = list[Span]()
    look_for = long if views and len(data) > BULK else None
    if (max_values is not None or look_for is not None) and not look_through(data, max_values, look_for):
        raise MalformedFrame(f"the frame holds more than {max_values} values")
    try:
        frame = unpacked(
            data,
            long,
            raw=False,
            strict_map_key=True,
            ext_hook=_no_ext,
            max_array_len=min(MAX_ITEMS, len(data)),
            max_map_len=min(MAX_ITEMS, len(data)),
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as e:
        raise MalformedFrame(f"the frame's body is not msgpack: {e or type(e).__name__}") from None
    if type(frame) is not dict:
        raise MalformedFrame(f"the frame's body must be a map, not {type(frame).__name__}")
    _check(frame, 1)
    return frame


def _no_ext(code: int, data: bytes) -> object:
    raise ValueError(f"extension type {code} is not allowed")


def _check(value: Any, depth: int) -> None:
    """Refuse nesting that is too deep, and keys that are not strings (msgpack also allows byte strings)."""
    if depth > MAX_DEPTH:
        raise MalformedFrame(f"maps and lists may nest {MAX_DEPTH} deep at most")
    if type(value) is dict:
        for key in value:
            if type(key) is not str:
                raise MalformedFrame(f"keys must be strings, not {type(key).__name__}")
        value = value.values()
    for item in value:
        kind = type(item)
        if kind is dict or kind is list:
            _check(item, depth + 1)
