"""Looks at slots that were busy a moment ago, so that their next bytes need no bell.

Law: in one turn of the event loop it looks at each of them once, and spins for ``SPIN_S`` at most; all else that the
loop has to do comes in between. A slot whose other side does not answer within ``STAY_S`` is not looked at again until
it rings.

To be woken by a byte on the socket costs the sleeping side 20 to 60 us (the kernel has to wake a CPU and the thread)
and the other side a system call. Looking costs CPU time instead, which is why it is done only where answers come
quickly.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Protocol

SPIN_S = 20e-6
"""How long the loop's thread spins in one turn, without the interpreter."""
STAY_S = 100e-6
"""How long the other side's next bytes are waited for, if it answered within twice that time: which is so much longer
when both sleep and wake up in between."""
_MOST_IN_VAIN, _MOST_CROWDED = 6, 4
_ASKED_EACH = 16


class Patience:
    """Whether to stay awake for the other side's next bytes.

    After it was waited for in vain, it is not the next time; after twice in a row not the next three times, and so on,
    up to 63. Where others want this thread's CPU, it is not for the next 256 to 2048 times: whoever looks then takes it
    from them, and is made to wait for it by the scheduler afterwards. ``preempted``: how often that has happened.
    """

    def __init__(self, preempted: Callable[[], int]) -> None:
        self._preempted, self._before = preempted, preempted()
        self._in_vain = self._crowded = self._skip = self._n = 0
        self._stays = False

    def came(self, gap_s: float) -> bool:
        """Bytes have come ``gap_s`` after this side was last active; whether to stay awake now."""
        if self._stays:
            self._in_vain = 0
        self._stays = False
        if gap_s < 2 * STAY_S:
            if self._skip:
                self._skip -= 1
            else:
                self._stays = not self._is_crowded()
        return self._stays

    def fell_asleep(self) -> None:
        if self._stays:
            self._stays = False
            self._in_vain = min(self._in_vain + 1, _MOST_IN_VAIN)
            self._skip = (1 << self._in_vain) - 1

    def _is_crowded(self) -> bool:
        self._n += 1
        if self._n % _ASKED_EACH:
            return False
        before, self._before = self._before, self._preempted()
        if self._before == before:
            self._crowded = 0
            return False
        self._crowded = min(self._crowded + 1, _MOST_CROWDED)
        self._skip = 128 << self._crowded
        return True


class AwakeSlot(Protocol):
    """One side of a slot, as this module knows it."""

    def look(self, spin_s: float) -> bool:
        """Do what there is to do; whether there was anything."""

    def fall_asleep(self) -> bool:
        """Have the other side ring from now on. False if there is something to do."""


class AwakeSlots:
    """For one event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._until: dict[AwakeSlot, float] = {}
        """Until when each stays awake."""
        self._runs = False
        self._may_spin = len(os.sched_getaffinity(0)) > 1

    def add(self, slot: AwakeSlot, stay_s: float) -> None:
        """Look at the slot for ``stay_s`` seconds from now on."""
        self._until[slot] = max(self._until.get(slot, 0.0), self._loop.time() + stay_s)
        if not self._runs:
            self._runs = True
            self._loop.call_soon(self._turn)

    def __contains__(self, slot: AwakeSlot) -> bool:
        return slot in self._until

    def remove(self, slot: AwakeSlot) -> None:
        self._until.pop(slot, None)

    def _turn(self) -> None:
        spin_s = SPIN_S if self._may_spin and len(self._until) == 1 else 0.0
        for slot, until in list(self._until.items()):
            if slot not in self._until or slot.look(spin_s if until > self._loop.time() else 0.0):
                continue
            if slot in self._until and self._loop.time() >= self._until[slot] and slot.fall_asleep():
                self.remove(slot)
        self._runs = bool(self._until)
        if self._runs:
            self._loop.call_soon(self._turn)
