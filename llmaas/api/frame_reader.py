"""Cuts what a peer sends into the bodies of frames; memory for a large one is taken only when it is granted.

Law: sans-I/O. What is held is at most one large body, and behind it small ones for as long as they are not taken: less
than twice as many bytes as the longest of them has, if nothing is received while ``wants_more`` is false.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from llmaas.errors import FrameTooLarge
from llmaas.frozen import frozen

SMALL_FRAME = 16384
"""Bytes of a body for which no room need be granted: every connection may have so much read. Also the most that is read
at once while no large frame is under way."""

_LENGTH = struct.Struct(">I")


@frozen
class RoomNeeded:
    """A frame of so many bytes has begun: ``grant`` makes room for it."""

    nbytes: int


class FrameReader:
    """``buffer`` says where to put the next bytes, ``received`` how many were put there, ``next`` gives the bodies.

    >>> reader = FrameReader(memoryview(bytearray(SMALL_FRAME)), max_frame=1 << 20)
    >>> reader.buffer()[:7] = b"\\0\\0\\0\\1\\x80\\0\\0"
    >>> reader.received(7)
    >>> reader.next(), reader.next(), reader.begun
    (b'\\x80', None, True)
    """

    def __init__(
        self, scratch: memoryview, max_frame: int, take: Callable[[int], bytearray | memoryview] = bytearray
    ) -> None:
        """``scratch`` may be shared with other readers: it is empty between ``received`` and ``buffer``. ``take`` gives
        memory for a large body."""
        self.max_frame = max_frame
        self._take = take
        self._scratch = scratch
        self._small = bytearray()
        """Bytes that have not been cut yet."""
        self._large: bytearray | memoryview | None = None
        """A large body that is being read."""
        self._filled = 0

    @property
    def begun(self) -> bool:
        """Whether bytes of a frame have come of which ``next`` does not have all."""
        return bool(self._small) or self._large is not None

    @property
    def incomplete(self) -> bool:
        """Whether the next frame has begun, and is not all here."""
        if self._large is not None:
            return self._is_filling
        if len(self._small) < _LENGTH.size:
            return bool(self._small)
        (size,) = _LENGTH.unpack_from(self._small)
        return _LENGTH.size + int(size) > len(self._small)

    @property
    def wants_more(self) -> bool:
        """False if so much lies here that was not taken that no more should be received for now."""
        return self._is_filling or len(self._small) < _LENGTH.size + SMALL_FRAME  # a small frame may be as long

    @property
    def _is_filling(self) -> bool:
        """Whether the next bytes belong to a large body. One that is all here may lie for a while, and be followed."""
        return self._large is not None and self._filled < len(self._large)

    def buffer(self) -> memoryview:
        """Never empty."""
        if self._large is not None and self._is_filling:
            return memoryview(self._large)[self._filled :]
        return self._scratch

    def received(self, nbytes: int) -> None:
        if self._is_filling:
            self._filled += nbytes
        else:
            self._small += self._scratch[:nbytes]

    def next(self) -> bytes | bytearray | memoryview | RoomNeeded | None:
        """The next body, a small one as bytes; None if more must be received first. Raises FrameTooLarge."""
        if (large := self._large) is not None:
            if self._is_filling:
                return None
            self._large = None
            return large
        if len(self._small) < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack_from(self._small)
        if size > self.max_frame:
            raise FrameTooLarge(f"a frame of {size} bytes was announced; at most {self.max_frame} are allowed")
        if size > SMALL_FRAME:
            return RoomNeeded(size)
        end = _LENGTH.size + size
        if end > len(self._small):
            return None
        body = bytes(memoryview(self._small)[_LENGTH.size : end])
        del self._small[:end]
        return body

    def grant(self) -> None:
        """Make room for the frame for which ``next`` has said RoomNeeded."""
        (size,) = _LENGTH.unpack_from(self._small)
        self._large, self._filled = self._take(size), min(size, len(self._small) - _LENGTH.size)
        self._large[: self._filled] = self._small[_LENGTH.size : _LENGTH.size + self._filled]
        del self._small[: _LENGTH.size + self._filled]

    def clear(self) -> None:
        """Forget what was received."""
        self._small.clear()
        self._large = None
