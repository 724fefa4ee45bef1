"""Takes in the frames of one connection: room for large ones, a time limit for each, a thread that reads large ones.

Law: bodies are handed on one at a time, in the order sent. What is held of a frame that was begun is bounded in bytes
by ``Shares.buffers``, and in time by ``frame_s``.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from dataclasses import replace
from typing import Protocol

from llmaas.api.frame_reader import SMALL_FRAME, FrameReader, RoomNeeded
from llmaas.api.incoming import Incoming, read_large
from llmaas.api.peer_timer import PeerTimer
from llmaas.api.shares import Shares
from llmaas.errors import BadRequest, Busy, FrameTooLarge


class FrameTaker(Protocol):
    """A connection, as this module knows it."""

    @property
    def app(self) -> str:
        """ "" before the hello."""

    def take_body(self, body: bytes) -> None:
        """A small frame has come. May raise."""

    def take_large(self, incoming: Incoming, nbytes: int) -> None:
        """A large frame has come, and has been read. Its ``nbytes`` are held in the buffers: give them back. May
        raise, after they were given back."""

    def has_failed(self, error: Exception) -> None:
        """No more frames can be taken."""

    def frames_may_come(self) -> None:
        """Something that held up frames is over."""


class FrameIntake:
    """``next`` hands on one frame; ``held_up`` says that it cannot for now."""

    def __init__(self, taker: FrameTaker, shares: Shares) -> None:
        self._taker, self._shares = taker, shares
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader(shares.scratch, shares.limits.max_frame, shares.memory.take)
        self._waiting: object | None = None
        """What waits in the buffers for room."""
        self._decoding = False
        self._held = 0
        """Bytes that the buffers hold for the large frame that is being received or read."""
        self._timer: PeerTimer | None = None
        self._closed = False

    def move(self, shares: Shares) -> None:
        """Share with others from now on. Only before the app is known: nothing is held until then."""
        self._shares = shares

    @property
    def held_up(self) -> bool:
        return self._waiting is not None or self._decoding

    @property
    def holds_nothing(self) -> bool:
        """Whether all that was received has been handed on."""
        return not (self.held_up or self._reader.begun)

    @property
    def wants_more(self) -> bool:
        """Whether bytes should be received now."""
        return self._closed or self._reader.wants_more

    @property
    def begun(self) -> bool:
        """Whether bytes of a frame have come that was not handed on."""
        return not self._closed and self._reader.begun

    @property
    def incomplete(self) -> bool:
        """Whether the next frame has begun, and is not all here."""
        return not self._closed and self._reader.incomplete

    @property
    def stalled_bytes(self) -> int:
        """What is held for a frame that is not complete."""
        return 0 if self._decoding else self._held

    def buffer(self) -> memoryview:
        return self._shares.scratch if self._closed else self._reader.buffer()

    def received(self, nbytes: int) -> None:
        if not self._closed:
            self._reader.received(nbytes)

    def next(self) -> bool:
        """Hand on one frame; False if none is complete, or it is held up. Raises FrameTooLarge, and what the taker
        does."""
        body = self._reader.next()
        if body is None:
            self._watch_begun_frame()
            return False
        self.stop_clock()
        if isinstance(body, RoomNeeded):
            return self._make_room(body.nbytes)
        if isinstance(body, bytes):
            self._taker.take_body(body)
            return True
        self._decode(body)
        return False

    def wait_for_share(self) -> None:
        """The app holds more than its share: take no frames until it does not."""
        self.stop_clock()
        self._waiting = self._shares.buffers.wait(self._taker.app, 0, self._share_is_free)
        self._shares.crowded()

    def stop_clock(self) -> None:
        """The peer cannot send the rest of a frame for now: ``next`` starts the clock again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Take no more frames, and give back what is held. A frame that is being read gives its bytes back later."""
        self._closed = True
        self.stop_clock()
        self._reader.clear()
        if self._waiting is not None:
            self._shares.buffers.stop_waiting(self._waiting)
            self._waiting = None
        if not self._decoding:
            self._give_back()

    # -- room

    def _make_room(self, nbytes: int) -> bool:
        if not self._taker.app:
            raise FrameTooLarge(f"before the hello frames may have {SMALL_FRAME} bytes, not {nbytes}")
        if self._shares.buffers.take(self._taker.app, nbytes):
            self._room_is_free(nbytes)
            return True
        self._waiting = self._shares.buffers.wait(self._taker.app, nbytes, lambda: self._granted(nbytes))
        self._shares.crowded()
        return False

    def _granted(self, nbytes: int) -> None:
        self._waiting = None
        self._room_is_free(nbytes)
        self._taker.frames_may_come()

    def _room_is_free(self, nbytes: int) -> None:
        self._held = nbytes
        self._reader.grant()

    def _share_is_free(self) -> None:
        self._waiting = None
        self._taker.frames_may_come()

    def _give_back(self) -> None:
        held, self._held = self._held, 0
        if held:
            self._shares.buffers.give_back(self._taker.app, held)

    # -- reading large frames

    def _decode(self, body: bytearray | memoryview) -> None:
        self._decoding = True
        future = self._shares.decoder.submit(self._taker.app, read_large, body)
        future.add_done_callback(lambda f: self._loop.call_soon_threadsafe(self._decoded, f))

    def _decoded(self, future: Future[tuple[Incoming, int]]) -> None:
        self._decoding = False
        if self._closed or (error := future.exception()) is not None:
            self._give_back()
            if not self._closed and isinstance(error, Exception):
                self._taker.has_failed(error)
            return
        held, self._held = self._held, 0
        incoming, nbytes = future.result()
        if not self._shares.buffers.grow(self._taker.app, held, nbytes):
            busy = Busy(f"large requests hold all the memory that there is for them; this one takes {nbytes} bytes")
            incoming, nbytes = replace(incoming, request=busy), held
        try:
            self._taker.take_large(incoming, max(held, nbytes))
        except Exception as e:
            self._taker.has_failed(e)
        else:
            self._taker.frames_may_come()

    # -- time

    def _watch_begun_frame(self) -> None:
        if self._timer is None and self._reader.begun and self._taker.app:
            self._timer = PeerTimer(self._shares.limits.frame_s, self._too_late)

    def _too_late(self) -> None:
        self._timer = None
        self._taker.has_failed(BadRequest(f"a frame was not complete {self._shares.limits.frame_s:g} s after it began"))
