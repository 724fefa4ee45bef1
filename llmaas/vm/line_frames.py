"""Frames on the line between host and guest: bytes to frames and back.

Law: sans-I/O. Any input gives frames, or LineBroken; a frame that is announced longer than ``MOST_BYTES`` is refused
before it has come. After a fault nothing more is read, for where the next frame begins is unknown.

    +---------+------------------------+-----------------------+---------+
    | u8 kind | u32 big-endian channel | u16 big-endian length | payload |
    +---------+------------------------+-----------------------+---------+

Each connection of a client has a channel of its own. The host numbers them from 1 and uses no number twice.

>>> data = encode_line_frame(LineKind.DATA, 7, b"abc")
>>> data.hex()
'03000000070003616263'
>>> LineDecoder().feed(data)
[LineFrame(kind=<LineKind.DATA: 3>, channel=7, payload=b'abc')]
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from llmaas.errors import MachineError

MOST_BYTES = 16 << 10
"""Of a payload: what a channel sends at once before others have their turn."""
MOST_CHANNELS = 2**32 - 1
_HEAD = struct.Struct(">BIH")


class LineKind(enum.Enum):
    NOTE = 1
    """Of channel 0: a map for the other side itself, such as that the daemon is ready."""
    OPEN = 2
    """Host to guest: a client has connected; the payload is the daemon's door, ``apps`` or ``admin``."""
    DATA = 3
    CREDIT = 4
    """So many more bytes (u32) of the channel may be sent: the receiver has passed them on."""
    CLOSE = 5
    """The sender sends no more on the channel, and wants no more. Each side sends it once."""


class LineFrame(NamedTuple):
    kind: LineKind
    channel: int
    payload: bytes


class LineBroken(MachineError):
    """The other side of the line does not keep the rules, or has gone."""

    code = "line_broken"
    hint = "The virtual machine has ended or must be ended; 'llmaas vm run' starts it again. Its console log says why."


def encode_line_frame(kind: LineKind, channel: int, payload: bytes = b"") -> bytes:
    if len(payload) > MOST_BYTES:
        raise ValueError(f"a payload has at most {MOST_BYTES} bytes, not {len(payload)}")
    return _HEAD.pack(kind.value, channel, len(payload)) + payload


class LineDecoder:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._broken = False

    def feed(self, data: bytes) -> list[LineFrame]:
        """The frames that ``data`` completes. Raises LineBroken, also at every later call; frames before the fault are
        lost, as the line is."""
        if self._broken:
            raise LineBroken("nothing is read from a line that is broken")
        self._buffer += data
        frames, start = [], 0
        while len(self._buffer) - start >= _HEAD.size:
            code, channel, size = _HEAD.unpack_from(self._buffer, start)
            if size > MOST_BYTES or not LineKind.NOTE.value <= code <= LineKind.CLOSE.value:
                self._broken = True
                self._buffer.clear()
                raise LineBroken(f"a frame of kind {code} with {size} bytes is none that may be on the line")
            end = start + _HEAD.size + size
            if end > len(self._buffer):
                break
            frames.append(LineFrame(LineKind(code), channel, bytes(self._buffer[start + _HEAD.size : end])))
            start = end
        del self._buffer[:start]
        return frames
