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
from typing import Any

import msgpack  # type: ignore[import-untyped,unused-ignore]

from llmaas.errors import BadRequest, FrameTooLarge, LlmaasError, MalformedFrame

Frame = dict[str, Any]

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
    try:
        body: bytes = msgpack.packb(frame)
    except UnicodeEncodeError as e:
        raise BadRequest(f"text that is not valid Unicode cannot be sent: {e.reason}") from e
    if len(body) > max_frame:
        raise FrameTooLarge(f"the frame has {len(body)} bytes; at most {max_frame} are allowed")
    return _LENGTH.pack(len(body)) + body


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
        frames: list[Frame] = []
        if self._fault is None:
            try:
                self._buffer += data if self._large is None else self._fill(memoryview(data), frames)
                self._cut(frames)
            except LlmaasError as e:
                self._fault, self._large = e, None
                self._buffer.clear()
        if self._fault is not None and not frames:
            raise self._fault
        return frames

    def _fill(self, data: memoryview, frames: list[Frame]) -> memoryview:
        """Put bytes where the large body lies; those that are left belong to the next frame."""
        large = self._large
        assert large is not None
        n = min(len(data), len(large) - self._filled)
        large[self._filled : self._filled + n] = data[:n]
        self._filled += n
        if self._filled == len(large):
            self._large = None
            frames.append(read_body(large))
        return data[n:]

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


def read_body(data: bytes | bytearray, max_values: int | None = None) -> Frame:
    """The map that a body holds. Raises MalformedFrame.

    With ``max_values`` a body that announces more values, at all levels together, is refused before anything is made
    of it: a value takes one byte on the wire, up to a hundred in memory, and a list is made as long as it announces.
    """
    if max_values is not None:
        _refuse_many(data, max_values)
    try:
        frame = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            ext_hook=_no_ext,
            max_array_len=min(MAX_ITEMS, len(data)),
            max_map_len=min(MAX_ITEMS, len(data)),
            max_ext_len=0,
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as e:
        raise MalformedFrame(f"the frame's body is not msgpack: {e or type(e).__name__}") from None
    if type(frame) is not dict:
        raise MalformedFrame(f"the frame's body must be a map, not {type(frame).__name__}")
    _check(frame, 1)
    return frame


def _refuse_many(data: bytes | bytearray, most: int) -> None:
    """Raises MalformedFrame if lists and maps announce more than ``most`` values. What is wrong otherwise is left to
    msgpack. Nesting does not matter: what is in a list or map just follows its head."""
    position, seen, announced = 0, 0, 1
    while seen < announced and position < len(data):
        head, seen, position = data[position], seen + 1, position + 1
        if head < 0x80 or head >= 0xE0:  # a small number
            continue
        if head < 0xA0:  # a short map or list
            announced += (head & 0x0F) * (2 if head < 0x90 else 1)
        elif head < 0xC0:  # a short string
            position += head & 0x1F
        elif (width := _WIDTHS.get(head)) is None:
            position += _SIZES.get(head, 0)
        else:
            number = int.from_bytes(data[position : position + width], "big")
            position += width
            if head < 0xDC:  # a string, bytes, or an extension
                position += number
            else:
                announced += number * (2 if head >= 0xDE else 1)
        if announced > most:
            raise MalformedFrame(f"the frame holds more than {most} values")


_WIDTHS = {head: 1 << i for first in (0xC4, 0xC7, 0xD9) for i, head in enumerate(range(first, first + 3))}
_WIDTHS |= {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
"""Bytes of the length that follows these heads: of bytes, extensions and strings; of lists and maps."""
_SIZES = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
"""Bytes of the numbers that follow these heads."""


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
