"""What the connections of a socket share, each app its part: places, buffers, the loop's time, a thread.

Law: it knows no requests. What one app takes of any of these is bounded, whatever it sends.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from llmaas.api.buffer_budget import BufferBudget
from llmaas.api.connection_places import ConnectionPlaces
from llmaas.api.frame_memory import FrameMemory
from llmaas.api.frame_reader import SMALL_FRAME
from llmaas.api.limits import Limits
from llmaas.api.round_robin import RoundRobin
from llmaas.fair_thread import FairThread

CROWDED_S = 1.0
"""Seconds that somebody waits for a buffer before a connection that does not move is dropped for it."""


class BufferHolder(Protocol):
    """A connection, as this module knows it."""

    @property
    def app(self) -> str: ...

    @property
    def shares(self) -> Shares: ...

    @property
    def stalled_bytes(self) -> int:
        """What it holds of a frame that is not complete, and of replies that its peer does not read."""

    def drop(self) -> None: ...


class Shares:
    """For one event loop. ``connections`` are those of all sockets."""

    def __init__(self, limits: Limits, connections: Iterable[BufferHolder], decoder: FairThread) -> None:
        self.limits = limits
        self.places = ConnectionPlaces(limits)
        self.buffers = BufferBudget(limits.buffer_bytes, limits.app_buffer_bytes)
        self.frames = RoundRobin()
        self.tasks = Counter[str]()
        """How many requests other than calls each app has under way."""
        self.decoder = decoder
        """Reads large frames."""
        self.scratch = memoryview(bytearray(SMALL_FRAME))
        """Where bytes are received; see ``FrameReader``."""
        self.memory = FrameMemory()
        self._connections = connections
        self._relief: asyncio.TimerHandle | None = None

    def crowded(self) -> None:
        """Somebody waits for a buffer: in a while see whether that is because others do not move."""
        if self._relief is None:
            self._relief = asyncio.get_running_loop().call_later(CROWDED_S, self._relieve)

    def close(self) -> None:
        self.memory.close()
        if self._relief is not None:
            self._relief.cancel()

    def _relieve(self) -> None:
        """Drop the connection that holds most without moving, of the app that holds most."""
        self._relief = None
        if not self.buffers.crowded:
            return
        self.crowded()
        stalled = [c for c in self._connections if c.shares is self and c.stalled_bytes]
        if stalled:
            max(stalled, key=lambda c: (self.buffers.held(c.app), c.stalled_bytes)).drop()
