"""Gives the peers' frames the event loop's time in small slices: an app at a time, and a frame at a time.

Law: in one turn of the loop frames take one slice of time at most, and one frame more. So a peer that sends a thousand
requests at once delays another one's by a frame of each app that has any. While an app's frames wait and another app
asks, too, the loop's thread works a fifth of the time: what runs in other threads needs the interpreter, too.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from llmaas.clock import thread_cpu
from llmaas.fair_queue import FairQueue

log = logging.getLogger(__name__)

SLICE_S = 0.0002
"""Seconds of one turn of the event loop in which frames are handled. An answer's first token takes some ten turns: it
came three times as late with slices of 5 ms while 240 connections asked, and half as late again with 0.5 ms."""

REST, MOST_REST_S = 4.0, 0.02
"""How long frames that wait rest after a slice: so many times the CPU time that the loop's thread has used since the
last rest, and this many seconds at most. Without rests that thread had the interpreter nearly always while 240
connections asked, and an answer's first token came up to six times as late as undisturbed, with them 1.0 to 1.2 times.
While connections came, asked for answers and went it came 1.5 to 3 times as late without, and 1.25 to 1.9 times
with."""

SHARED_S = 5.0
"""An app that has been alone for so many seconds has nobody to leave time to: its frames do not rest."""


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
        self._new = FairQueue[FrameSource]()
        """Those of apps that had none waiting when they came: they do not wait for the end of a rest."""
        self._sources = FairQueue[FrameSource]()
        """All others that have frames, by app."""
        self._queued: set[FrameSource] = set()
        self._slice_ends: float | None = None
        """When frames must end in this turn of the loop; None: none was handled yet."""
        self._app = ""
        """Whose frame was handled last."""
        self._shared = -SHARED_S
        """When a frame of another app than the one before was handled last."""
        self._rests = False
        self._used = thread_cpu()
        """What the loop's thread had used when the last rest began."""

    def ready(self, source: FrameSource) -> None:
        """Handle the source's frames: at once if there is time in this turn and none of its app waits, else in its
        turn."""
        if source in self._queued:
            return
        if not self._new and source.app not in self._sources and self._in_time():
            while self._handle(source):
                if not self._in_time():
                    break
            else:
                return
            self._wait(source, self._sources)
        else:
            self.later(source)

    def later(self, source: FrameSource) -> None:
        """Handle the source's frames in its turn, and not within this call."""
        if source not in self._queued:
            self._in_time()
            waits = source.app in self._new or source.app in self._sources
            self._wait(source, self._sources if waits else self._new)

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
        while (queue := self._due()) and self._in_time():
            source = queue.pop()
            self._queued.discard(source)
            if self._handle(source):
                self._wait(source, self._sources)
        if self._sources and not self._rests and self._loop.time() - self._shared < SHARED_S:
            self._rest()

    def _handle(self, source: FrameSource) -> bool:
        if source.app != self._app:
            if self._app:
                self._shared = self._loop.time()
            self._app = source.app
        return source.handle_next()

    def _due(self) -> FairQueue[FrameSource] | None:
        """The queue whose turn it is, unless nobody's is."""
        if self._new:
            return self._new
        return self._sources if self._sources and not self._rests else None

    def _rest(self) -> None:
        """More frames wait: leave the interpreter to other threads for longer than this one has had it."""
        used = thread_cpu()
        self._rests = True
        self._loop.call_later(min(MOST_REST_S, REST * (used - self._used)), self._go_on)
        self._used = used

    def _go_on(self) -> None:
        self._rests = False
        self._next_slice()

    def _wait(self, source: FrameSource, queue: FairQueue[FrameSource]) -> None:
        self._queued.add(source)
        queue.add(source.app, source)
