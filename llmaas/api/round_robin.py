"""Gives the peers' frames the event loop's time in small slices: an app at a time, and a frame at a time.

Law: in one turn of the loop frames take one slice of time at most, and one frame more. So a peer that sends a thousand
requests at once delays another one's by a frame of each app that has any.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from llmaas.fair_queue import FairQueue

log = logging.getLogger(__name__)

SLICE_S = 0.0002
"""Seconds of one turn of the event loop in which frames are handled. An answer's first token takes some ten turns: it
came three times as late with slices of 5 ms while 240 connections asked, and half as late again with 0.5 ms."""


class FrameSource(Protocol):
    """A connection, as this module knows it."""

    @property
    def app(self) -> str:
        """Whose turn it takes."""

    def handle_next(self) -> bool:
        """Handle one frame. True if there may be another one now; never raises."""


class RoundRobin:
    """For one event loop. A source says ``ready`` when a frame may have come."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._sources = FairQueue[FrameSource]()
        """Those that have frames, by app."""
        self._queued: set[FrameSource] = set()
        self._slice_ends: float | None = None
        """When frames must end in this turn of the loop; None: none was handled yet."""

    def ready(self, source: FrameSource) -> None:
        """Handle the source's frames: at once if there is time in this turn and nobody waits, else in its turn."""
        if source in self._queued:
            return
        if not self._sources and self._in_time():
            while source.handle_next():
                if not self._in_time():
                    break
            else:
                return
        self.later(source)

    def later(self, source: FrameSource) -> None:
        """Handle the source's frames in its turn, and not within this call."""
        if source not in self._queued:
            self._in_time()
            self._enqueue(source)

    def _in_time(self) -> bool:
        """Whether there is time for a frame in this turn of the loop; the first to ask begins the slice."""
        now = self._loop.time()
        if self._slice_ends is None:
            self._slice_ends = now + SLICE_S
            self._loop.call_soon(self._next_slice)
        return now < self._slice_ends

    def _next_slice(self) -> None:
        """Called once in each turn of the loop in which there is something to do."""
        self._slice_ends = None
        while self._sources and self._in_time():
            source = self._sources.pop()
            self._queued.discard(source)
            if source.handle_next():
                self._enqueue(source)

    def _enqueue(self, source: FrameSource) -> None:
        self._queued.add(source)
        self._sources.add(source.app, source)
