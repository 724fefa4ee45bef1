"""One side of a slot: bytes out, bytes in, and how this side waits.

Law: what is read is a copy of its own, made once; it is checked there, by whoever reads frames from a socket, too.
``Broken`` is raised if the other side's positions cannot be: nothing is read or written then.
"""

from __future__ import annotations

import ctypes
import enum
import sys
import time

from llmaas.errors import MalformedFrame
from llmaas.slots import layout as at
from llmaas.slots.layout import SlotLayout
from llmaas.slots.library import EndStruct, slots_library
from llmaas.slots.memory import SlotMemory

STAGE = 1 << 16
"""Bytes that are read at once at most."""


_FIRST_NAP_S, _LAST_NAP_S = 20e-6, 1e-3
"""Of a side that looks again and again: a nap takes a quarter of the time that has passed, within these."""


class Broken(MalformedFrame):
    """The other side's positions in a ring cannot be."""


class Ready(enum.IntFlag):
    """What there is."""

    READABLE = 1
    ROOM = 2
    """At least half of the ring that this side writes to is free."""
    ENDED = 4
    """The service has ended, and all that it wrote was read."""
    INTERRUPTED = 8


class SlotEnd:
    """Not for several threads at once. ``memory`` is mapped for as long as this is there. ``far``: the other side runs
    on another kernel, so bells wake it and this side, and no futex."""

    def __init__(self, memory: SlotMemory, layout: SlotLayout, *, service: bool, far: bool = False) -> None:
        self._library, self._memory = slots_library(), memory
        requests = (layout.requests, at.REQUESTS_WRITTEN, at.REQUESTS_TAKEN)
        replies = (layout.replies, at.REPLIES_WRITTEN, at.REPLIES_TAKEN)
        sleeps = (at.CLIENT_SLEEPS, at.SERVICE_SLEEPS)
        incoming, outgoing = (requests, replies) if service else (replies, requests)
        mine, its = (sleeps[1], sleeps[0]) if service else sleeps
        self._end = EndStruct(memory.base, layout.ring_bytes, at.STATE, *incoming, *outgoing, mine, its)
        self.far = far
        self._address: int | None = ctypes.addressof(self._end)
        self.ring_bytes = layout.ring_bytes
        self._stage = ctypes.create_string_buffer(STAGE)
        self._stage_at, self._staged = ctypes.addressof(self._stage), memoryview(self._stage).cast("B")

    def write(self, data: bytes) -> int:
        """Write as much of it as there is room for; how many bytes. Raises Broken."""
        written: int = self._library.slots_write(self._address, data, len(data))
        if written < 0:
            raise _broken()
        return written

    def read(self, most: int = STAGE) -> memoryview:
        """What has come, ``most`` bytes at most; valid until the next ``read``. Raises Broken."""
        n: int = self._library.slots_read(self._address, self._stage_at, min(most, STAGE))
        if n < 0:
            raise _broken()
        return self._staged[:n]

    def ready(self, wants: int, *, spin_s: float = 0.0) -> int:
        """What there is of the bits of ``Ready`` that are wanted; looks for ``spin_s`` seconds. Raises Broken."""
        if not spin_s:
            return _checked(self._library.slots_ready(self._address, wants))
        return _checked(self._library.slots_spin(self._address, wants, int(spin_s * 1e9)))

    def sleep(self, wants: int) -> int:
        """Tell the other side to ring when there is what is wanted; unless there is already: then that is returned, and
        this side stays awake. Raises Broken."""
        return _checked(self._library.slots_sleep(self._address, wants))

    def awake(self) -> None:
        self._library.slots_awake(self._address)

    def wait(self, wants: int, *, spin_s: float, timeout_s: float) -> int:
        """Look for ``spin_s`` seconds, then sleep for ``timeout_s`` at most; bits of ``Ready``. Raises Broken."""
        return _checked(self._library.slots_wait(self._address, wants, int(spin_s * 1e9), int(timeout_s * 1e9)))

    def doze(self, wants: int, *, spin_s: float, doze_s: float) -> int:
        """As ``wait``, for a side that only a bell wakes, which it asks for by ``sleep`` afterwards: look for
        ``spin_s`` seconds, and then again and again, with naps in between, for ``doze_s``. Raises Broken."""
        if self._library.slots_may_look(self._address):
            found = self.ready(wants, spin_s=spin_s)
            self._library.slots_looked(self._address, found)
            if found:
                return found
        passed = 0.0
        while not (found := self.ready(wants)) and passed < doze_s:
            nap = min(max(passed / 4, _FIRST_NAP_S), _LAST_NAP_S)
            time.sleep(nap)
            passed += nap
        return found

    def finish(self) -> None:
        """Write nothing more, and tell the other side so."""
        self._library.slots_finish(self._address)

    def begin_at(self, position: int) -> None:
        """Count from ``position`` in both rings, as after so many bytes. Only while they are empty; at both ends."""
        self._end.taken = self._end.written = position
        for offset in (at.REQUESTS_WRITTEN, at.REQUESTS_TAKEN, at.REPLIES_WRITTEN, at.REPLIES_TAKEN):
            self._memory.store(offset, (position % 2**32).to_bytes(4, sys.byteorder))

    def came(self, *, soon: bool) -> bool:
        """For a side that looks in turns of an event loop: bytes have come, ``soon`` after this side's last ones.
        Whether to stay awake for the next ones: not always after that was in vain, and seldom where others want this
        thread's CPU (``slots_may_look`` in ``_slots.c``)."""
        return bool(self._library.slots_came(self._address, soon))

    def stayed_in_vain(self) -> None:
        """None have come for so long that this side sleeps."""
        self._library.slots_stayed_in_vain(self._address)

    def take_bell(self) -> bool:
        """Whether the other side is to be woken by its socket now."""
        rung = bool(self._end.bell)
        if rung:
            self._end.bell = 0
        return rung

    def close(self) -> None:
        """Unmap the memory. Whatever is done with this side afterwards is ``Broken``."""
        self._address = None
        self._memory.close()

    def leave(self) -> None:
        """As ``close``, once nobody is to read what the slot held: whoever keeps it mapped reads zeros."""
        if self.far and self._address is not None:
            self._memory.wipe()
        self._address = None
        self._memory.close(discard=not self.far)


def _checked(found: int) -> int:
    if found < 0:
        raise _broken()
    return found


def _broken() -> Broken:
    return Broken("the other side of the slot says that it has read or written what it cannot have")
