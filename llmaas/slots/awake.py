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
from typing import Protocol

SPIN_S = 20e-6
"""How long the loop's thread spins in one turn, without the interpreter."""
STAY_S = 100e-6
"""How long the other side's next bytes are waited for, if it answered within ``SOON_S``."""
SOON_S = 600e-6
"""Longer than that by what it takes both sides to wake up, which is up to 150 us each where CPUs sleep deeply."""
FAR_STAY_S, FAR_SOON_S = 2e-3, 20e-3
"""The same where the sides run on two kernels: a bell between them takes some 0.5 ms at best (docs/vm.md)."""


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
