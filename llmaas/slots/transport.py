"""An asyncio transport over a slot, for either side. The socket that the slot was granted on stays beside it.

Law: the protocol cannot tell it from a socket's transport. The socket carries bells, bytes of no meaning: a side rings
if the other one sleeps. Its end is the end of the slot, however that came: a process that is killed frees its slot.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from llmaas.slots.awake import FAR_SOON_S, FAR_STAY_S, SOON_S, STAY_S, AwakeSlots
from llmaas.slots.end import STAGE, Broken, Ready, SlotEnd

log = logging.getLogger(__name__)

_HIGH = 64 << 10
"""Bytes that wait for room until the protocol is told to write no more, unless it says how many."""
_IDLE_BELLS, _REST_S = 8, 0.05
"""After so many bells in a row for nothing, none is heard for so many seconds."""
_LAST_S = 1.0
"""Seconds that the other side may still take to read what was written last, if this side ends."""
_BELL = b"\0"


class SlotTransport(asyncio.Transport):
    """Takes the socket's transport over from its protocol. ``closed`` is called once, when the slot is unmapped."""

    def __init__(
        self,
        end: SlotEnd,
        sock: asyncio.Transport,
        protocol: asyncio.Protocol | asyncio.BufferedProtocol,
        awake: AwakeSlots,
        closed: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self._end, self._sock, self._protocol, self._awake, self._closed = end, sock, protocol, awake, closed
        self._loop = asyncio.get_running_loop()
        self._buffered = protocol if isinstance(protocol, asyncio.BufferedProtocol) else None
        self._pending = bytearray()
        """What there was no room for."""
        self._high = self._low = _HIGH
        self._paused = self._reading_paused = self._finished = self._closing = self._gone = False
        self._ends = False
        """Nothing is written after what is pending."""
        self._last = 0.0
        """When bytes came or went last."""
        self._hung_up = False
        """Whether the other side has closed its socket, or broken the slot: it will read nothing more."""
        self._stay_s, self._soon_s = (FAR_STAY_S, FAR_SOON_S) if end.far else (STAY_S, SOON_S)
        self._idle_bells = 0
        self._rest: asyncio.TimerHandle | None = None
        sock.set_protocol(_Bells(self))
        self._awake.add(self, 0.0)

    # -- what protocols call ------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._sock.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._closing or self._sock.is_closing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = _HIGH if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_size(self) -> int:
        return len(self._pending)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._ends or self.is_closing():
            return
        self._last = self._loop.time()
        try:
            written = 0 if self._pending else self._end.write(bytes(data))
        except Broken as e:
            self._break(e)
            return
        self._ring()
        if written < len(data):
            self._pending += data[written:]
            self._awake.add(self, 0.0)  # to sleep until there is room
            if len(self._pending) > self._high and not self._paused:
                self._paused = True
                self._protocol.pause_writing()

    def write_eof(self) -> None:
        self._ends = True
        self._finish_if_sent()

    def can_write_eof(self) -> bool:
        return True

    def is_reading(self) -> bool:
        return not self._reading_paused

    def pause_reading(self) -> None:
        """Of the slot. The socket is read, so that its end is noticed."""
        self._reading_paused = True

    def resume_reading(self) -> None:
        self._reading_paused = False
        self._awake.add(self, 0.0)

    def close(self) -> None:
        """Close when all was written."""
        self._closing = True
        self.write_eof()

    def abort(self) -> None:
        self._closing = True
        self._sock.abort()

    # -- what is called in a turn of the loop -------------------------------------------------------

    @property
    def _wants(self) -> int:
        return (0 if self._reading_paused else Ready.READABLE.value) | (Ready.ROOM.value if self._pending else 0)

    def look(self, spin_s: float = 0.0) -> bool:
        """Read and write what can be, once; whether anything could."""
        if self._gone:
            return False
        try:
            if not (spin_s or self._pending or self._reading_paused) and self._read():  # most frequent
                return not self.is_closing()
            found = self._end.ready(self._wants, spin_s=spin_s)
            if found & Ready.ROOM:
                self._flush()
            if found & Ready.READABLE:
                self._read()
        except Broken as e:
            self._break(e)
            return False
        if found & Ready.ENDED:
            self.abort()
        return bool(found) and not self.is_closing()

    def fall_asleep(self) -> bool:
        if self._gone or self.is_closing():
            return True
        self._end.stayed_in_vain()
        try:
            return not self._end.sleep(self._wants)
        except Broken as e:
            self._break(e)
            return True

    def _read(self) -> bool:
        """Hand on what has come; False if nothing has."""
        if self._buffered is not None:
            buffer = memoryview(self._buffered.get_buffer(-1))
            data = self._end.read(len(buffer))
            buffer[: len(data)] = data
        else:
            data = self._end.read()
        if not data:
            return False
        now = self._loop.time()
        gap, self._last = now - self._last, now
        if self._end.came(soon=gap < self._soon_s):
            self._awake.add(self, self._stay_s)
        self._ring()  # there is room, and the other side may wait for it
        if self._buffered is not None:
            self._buffered.buffer_updated(len(data))
        else:
            assert isinstance(self._protocol, asyncio.Protocol)
            self._protocol.data_received(bytes(data))
        return True

    def _flush(self) -> None:
        written = self._end.write(bytes(self._pending))
        del self._pending[:written]
        self._ring()
        if self._paused and len(self._pending) <= self._low:
            self._paused = False
            self._protocol.resume_writing()
        self._finish_if_sent()

    def _finish_if_sent(self) -> None:
        if not self._ends or self._pending or self._finished or self._gone:
            return
        self._finished = True
        self._end.finish()
        self._ring()
        if self._closing:
            self._sock.close()

    def _ring(self) -> None:
        if self._end.take_bell() and not self._sock.get_write_buffer_size():  # else there is a bell that was not heard
            self._sock.write(_BELL)

    def _break(self, error: Broken) -> None:
        log.warning("a slot is closed: %s", error.message)
        self._hung_up = True  # it is owed nothing more
        self.abort()

    # -- what comes by the socket -------------------------------------------------------------------

    def rung(self) -> None:
        if self.look():
            self._idle_bells = 0
            if self not in self._awake and not self.fall_asleep():
                self._awake.add(self, 0.0)
            return
        self._awake.add(self, 0.0)
        self._idle_bells += 1
        if self._idle_bells > _IDLE_BELLS and self._rest is None and not self.is_closing():
            self._sock.pause_reading()
            self._rest = self._loop.call_later(_REST_S, self._rested)

    def _rested(self) -> None:
        self._rest = None
        self._idle_bells = 0
        if not self._sock.is_closing():
            self._sock.resume_reading()

    def hung_up(self) -> None:
        """The other side has closed its socket: read what it wrote before."""
        self._hung_up = True
        for _ in range(1 + 2 * self._end.ring_bytes // STAGE):
            if self._reading_paused or not self.look():
                break
        if not self._gone:
            self._protocol.eof_received()

    def lost(self, exc: Exception | None) -> None:
        if self._rest is not None:
            self._rest.cancel()
        self._gone = self._closing = True
        self._awake.remove(self)
        if not self._finished:
            self._end.finish()
        if self._hung_up:
            self._unmap()
        else:
            self._loop.call_later(_LAST_S, self._unmap)
        self._protocol.connection_lost(exc)

    def _unmap(self) -> None:
        self._end.leave()
        self._closed()


class _Bells(asyncio.BufferedProtocol):
    """What the socket's transport calls."""

    _heard = memoryview(bytearray(4096))

    def __init__(self, slot: SlotTransport) -> None:
        self._slot = slot

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._heard

    def buffer_updated(self, nbytes: int) -> None:
        self._slot.rung()

    def eof_received(self) -> None:
        self._slot.hung_up()

    def connection_lost(self, exc: Exception | None) -> None:
        self._slot.lost(exc)
