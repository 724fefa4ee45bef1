"""Channels of many connections on the one serial line between host and guest.

Law: neither side trusts the other. What waits of a channel is bounded by its window at the receiver, and by one piece
at the sender; a channel whose reader does not read holds up no other; who breaks the rules ends the line, and with it
every channel. The line is written to by turns, a piece of ``MOST_BYTES`` each.

Rejected: one virtio-serial port for each connection. QEMU has 31 at most, fixed when the guest starts, and says to
nobody when a client has gone.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping
from typing import Any

from llmaas.api.wire import encode, read_body
from llmaas.errors import LlmaasError
from llmaas.vm.line_frames import MOST_BYTES, MOST_CHANNELS, LineBroken, LineDecoder, LineKind, encode_line_frame

WINDOW = 64 << 10
"""Bytes of a channel that may be under way, in each direction."""
MOST_OPEN = 320
"""Channels at once: the daemon's 256 connections, and 64 that are on their way in or out."""
_CREDIT = struct.Struct(">I")
_LENGTH_WORD = 4


class LineChannel:
    """One connection on the line, at one of its two sides. ``door``: where the client knocked. Made by ``Line``."""

    def __init__(self, line: Line, number: int, door: str) -> None:
        self.door = door
        self._line, self._number = line, number
        self._credit = WINDOW
        """Bytes that may still be sent."""
        self._waiting = bytearray()
        """Received, and nobody has taken it. One buffer: a list of small pieces takes twenty times as much."""
        self._owed = 0
        """Bytes taken for which no credit was given back yet."""
        self._changed = asyncio.Event()
        self.is_closed = self.is_over = False
        """No more may be sent by this side; by the other."""

    async def send(self, data: bytes) -> None:
        """Return when all of it is on the line. Raises ConnectionResetError once the channel is over."""
        view = memoryview(data)
        while view:
            while not self._credit and not (self.is_over or self.is_closed):
                await self._change()
            if self.is_over or self.is_closed:
                raise ConnectionResetError("the other side has closed the channel")
            n = min(len(view), self._credit, MOST_BYTES)
            self._credit -= n
            await self._line.put(LineKind.DATA, self._number, bytes(view[:n]))
            view = view[n:]

    async def receive(self) -> bytes:
        """The next bytes; b"" when no more will come. Whoever asks has done with what it got before."""
        if self._owed >= WINDOW // 2 and not self.is_over:
            self._line.put_soon(LineKind.CREDIT, self._number, _CREDIT.pack(self._owed))
            self._owed = 0
        while not self._waiting and not self.is_over and not self.is_closed:
            await self._change()
        if not self._waiting or self.is_closed:
            return b""
        data = bytes(self._waiting[:MOST_BYTES])
        del self._waiting[:MOST_BYTES]
        self._owed += len(data)
        return data

    def close(self) -> None:
        """Idempotent. What has come and was not taken is dropped."""
        if self.is_closed:
            return
        self.is_closed = True
        self._waiting.clear()
        self._changed.set()
        self._line.closed(self._number)

    # -- called by the line ------------------------------------------------------------------

    def take(self, data: bytes) -> None:
        if self.is_over or len(data) + len(self._waiting) + self._owed > WINDOW:
            raise LineBroken("more was sent on a channel than was allowed")
        if self.is_closed:  # it was under way
            return
        self._waiting += data
        self._changed.set()

    def take_credit(self, payload: bytes) -> None:
        if len(payload) != _CREDIT.size or self._credit + _CREDIT.unpack(payload)[0] > WINDOW:
            raise LineBroken("more was allowed on a channel than was sent")
        self._credit += _CREDIT.unpack(payload)[0]
        self._changed.set()

    def end(self) -> None:
        self.is_over = True
        self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


class Line:
    """One side of the line. The host opens channels; the guest gives ``on_open``, which gets those that were opened.
    ``on_note`` gets what the other side itself says."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        on_note: Callable[[Mapping[str, Any]], None],
        on_open: Callable[[LineChannel], None] | None = None,
    ) -> None:
        self._reader, self._writer = reader, writer
        self._on_note, self._on_open = on_note, on_open
        self._turn = asyncio.Lock()
        self._channels: dict[int, LineChannel] = {}
        self._last = 0
        """The highest number that was used."""
        self.is_over = False
        """Whether nothing more will come or go."""

    @property
    def n_open(self) -> int:
        return len(self._channels)

    async def run(self) -> None:
        """Serve the channels until the other side has gone. Raises LineBroken in the end, always."""
        decoder = LineDecoder()
        try:
            while data := await self._reader.read(4 * MOST_BYTES):
                for frame in decoder.feed(data):
                    self._take(frame.kind, frame.channel, frame.payload)
            raise LineBroken("the other side of the line has gone")
        except OSError as error:
            raise LineBroken(f"the line cannot be read: {error}") from error
        finally:
            self.end()

    def end(self) -> None:
        """End the line and every channel. Idempotent."""
        self.is_over = True
        for channel in list(self._channels.values()):
            channel.end()
        self._writer.close()

    def open(self, door: str) -> LineChannel | None:
        """A new channel; None if there are too many."""
        if len(self._channels) >= MOST_OPEN or self._last >= MOST_CHANNELS:
            return None
        self._last += 1
        channel = self._channels[self._last] = LineChannel(self, self._last, door)
        if self.is_over:
            channel.end()
        self.put_soon(LineKind.OPEN, self._last, door.encode())
        return channel

    def note(self, facts: dict[str, Any]) -> None:
        """Tell the other side itself. Raises FrameTooLarge."""
        self.put_soon(LineKind.NOTE, 0, encode(facts, max_frame=MOST_BYTES - _LENGTH_WORD)[_LENGTH_WORD:])

    # -- called by channels ------------------------------------------------------------------

    async def put(self, kind: LineKind, channel: int, payload: bytes) -> None:
        """Write in turn, when there is room."""
        async with self._turn:
            self.put_soon(kind, channel, payload)
            if not self.is_over:
                await self._writer.drain()

    def put_soon(self, kind: LineKind, channel: int, payload: bytes = b"") -> None:
        """Write at once. What a channel may write so is bounded: its opening, its close, and credit for what came."""
        if not self.is_over:
            self._writer.write(encode_line_frame(kind, channel, payload))

    def closed(self, number: int) -> None:
        self.put_soon(LineKind.CLOSE, number)
        self._forget(number)

    def _take(self, kind: LineKind, number: int, payload: bytes) -> None:
        if kind is LineKind.NOTE:
            try:
                self._on_note(read_body(payload))
            except LlmaasError as error:
                raise LineBroken(f"a note cannot be read: {error.message}") from error
            return
        if kind is LineKind.OPEN:
            self._opened(number, payload)
            return
        if not 0 < number <= self._last:
            raise LineBroken(f"channel {number} was never opened")
        channel = self._channels.get(number)
        if channel is None:  # over for both sides
            raise LineBroken(f"channel {number} was used after its end")
        if kind is LineKind.DATA:
            channel.take(payload)
        elif kind is LineKind.CREDIT:
            channel.take_credit(payload)
        else:
            if channel.is_over:
                raise LineBroken(f"channel {number} was closed twice")
            channel.end()
            self._forget(number)

    def _opened(self, number: int, payload: bytes) -> None:
        if self._on_open is None or number <= self._last or len(self._channels) >= MOST_OPEN:
            raise LineBroken(f"channel {number} must not be opened")
        if payload not in (b"apps", b"admin"):
            raise LineBroken("a channel was opened at a door that the daemon does not have")
        self._last = number
        channel = self._channels[number] = LineChannel(self, number, payload.decode())
        self._on_open(channel)

    def _forget(self, number: int) -> None:
        channel = self._channels.get(number)
        if channel is not None and channel.is_closed and channel.is_over:
            del self._channels[number]
