"""Where in a slot everything is; docs/slots.md draws it.

Law: values only. A header of another version, or one that does not fit into the memory, is refused.

>>> slot = SlotLayout(ring_bytes=1 << 16)
>>> slot.nbytes, slot.ring_bytes
(135168, 65536)
>>> read_header(header(slot, generation=7, owner=1000), slot.nbytes)
SlotHeader(layout=SlotLayout(ring_bytes=65536), generation=7, owner=1000, far=False)
"""

from __future__ import annotations

import struct

from llmaas.errors import VersionMismatch
from llmaas.frozen import frozen

VERSION = 1
"""Of the layout, and of what its words mean."""
MAGIC = b"llmaasSL"
HEADER = 4096
"""Bytes before the rings: a page, so that the rings begin on pages of their own."""
MOST_SLOTS = 1024
LEAST_RING, MOST_RING = 1 << 12, 1 << 26
STATE = 64
REQUESTS_WRITTEN, REQUESTS_TAKEN = 128, 192
REPLIES_WRITTEN, REPLIES_TAKEN = 256, 320
CLIENT_SLEEPS, SERVICE_SLEEPS = 384, 448
"""Each word is 32 bits, and has a cache line to itself: the sides write to different ones."""
OPEN = 1
_BELLS_ONLY = 1

_HEADER = struct.Struct("=8sIIIII")
"""Magic, version, bytes of each ring, generation, owner, how sides are woken; in the byte order of the machine that
both sides run on."""


@frozen
class SlotLayout:
    """``ring_bytes``: of each of the two rings, a power of two. Raises ValueError."""

    ring_bytes: int

    def __post_init__(self) -> None:
        if not LEAST_RING <= self.ring_bytes <= MOST_RING or self.ring_bytes & (self.ring_bytes - 1):
            raise ValueError(f"a ring has a power of two of bytes, {LEAST_RING} to {MOST_RING}, not {self.ring_bytes}")

    @classmethod
    def within(cls, nbytes: int) -> SlotLayout:
        """The largest slot that fits into so many bytes. Raises ValueError.

        >>> SlotLayout.within(1 << 20)
        SlotLayout(ring_bytes=262144)
        """
        most = max(1, min((nbytes - HEADER) // 2, MOST_RING))
        return cls(1 << (most.bit_length() - 1))

    @property
    def nbytes(self) -> int:
        return HEADER + 2 * self.ring_bytes

    @property
    def requests(self) -> int:
        """Where the ring of requests begins."""
        return HEADER

    @property
    def replies(self) -> int:
        return HEADER + self.ring_bytes


@frozen
class SlotHeader:
    """What the service says of a slot. ``generation``: the how manieth that it has granted, modulo 2^32; ``owner``: the
    user whom it was granted to."""

    layout: SlotLayout
    generation: int
    owner: int
    far: bool = False
    """Whether the service runs on another kernel than the client: then bells wake, and no futex does."""


def header(layout: SlotLayout, generation: int, owner: int, *, far: bool = False) -> bytes:
    return _HEADER.pack(MAGIC, VERSION, layout.ring_bytes, generation % 2**32, owner, far)


def read_header(data: bytes, nbytes: int) -> SlotHeader:
    """The header of a slot in ``nbytes`` of memory, of which a device's may have more than the slot. Raises
    VersionMismatch."""
    if len(data) < _HEADER.size:
        raise VersionMismatch(f"a slot cannot have {nbytes} bytes")
    magic, version, ring_bytes, generation, owner, waking = _HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise VersionMismatch(f"this client knows slots of version {VERSION}, and this one is of version {version}")
    try:
        layout = SlotLayout(ring_bytes)
    except ValueError as e:
        raise VersionMismatch(f"the slot cannot be used: {e}") from None
    if layout.nbytes > nbytes:
        raise VersionMismatch(f"the slot says that it has {layout.nbytes} bytes, and has {nbytes}")
    return SlotHeader(layout, generation, owner, far=waking == _BELLS_ONLY)
