"""Both ends of a slot in one process, its words to write nonsense to, and a client that is none of ours."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmaas.api.hello import hello_frame
from llmaas.api.wire import Decoder, Frame, encode
from llmaas.slots.end import Ready, SlotEnd
from llmaas.slots.layout import (
    CLIENT_SLEEPS,
    REPLIES_TAKEN,
    REPLIES_WRITTEN,
    REQUESTS_TAKEN,
    REQUESTS_WRITTEN,
    SERVICE_SLEEPS,
    STATE,
    SlotLayout,
)
from llmaas.slots.memory import SlotMemory, make_slot, open_slot

WORDS = (
    STATE,
    REQUESTS_WRITTEN,
    REQUESTS_TAKEN,
    REPLIES_WRITTEN,
    REPLIES_TAKEN,
    CLIENT_SLEEPS,
    SERVICE_SLEEPS,
)

SOON_S = 20.0
"""Seconds within which everything must happen, even on a busy machine."""


@dataclass(frozen=True)
class Pair:
    """The two ends, each with a mapping of its own, and a third mapping of the same memory."""

    service: SlotEnd
    client: SlotEnd
    memory: SlotMemory

    def word(self, offset: int) -> int:
        return int.from_bytes(self.memory.load(offset, 4), sys.byteorder)

    def set_word(self, offset: int, value: int) -> None:
        self.memory.store(offset, (value % 2**32).to_bytes(4, sys.byteorder))


@contextmanager
def slot_pair(ring_bytes: int = 4096) -> Iterator[Pair]:
    layout = SlotLayout(ring_bytes)
    fd, mine = make_slot(layout, 1, os.getuid())
    try:
        header, its = open_slot(fd)
        third = SlotMemory(fd, layout.nbytes)
    finally:
        os.close(fd)
    assert header.layout == layout
    pair = Pair(SlotEnd(mine, layout, service=True), SlotEnd(its, layout, service=False), third)
    yield pair
    pair.service.close()
    pair.client.close()
    third.close()


def wait_readable(end: SlotEnd, *, spin_s: float = 0.0) -> int:
    """What ``end`` wakes up for. It may wake up for nothing; a wake-up that is lost fails the test: what is there would
    be seen at the end of the time only."""
    begin = time.monotonic()
    if end.far:
        found = end.doze(Ready.READABLE.value, spin_s=spin_s, doze_s=SOON_S)
        assert found, "nothing has come"
        return found
    while not (found := end.wait(Ready.READABLE.value, spin_s=spin_s, timeout_s=SOON_S)):
        pass
    assert time.monotonic() - begin < SOON_S / 2, "a wake-up was lost"
    return found


class RawSlot:
    """A client of its own making: it says hello, gets a slot, and may then write what no client would."""

    def __init__(self, path: Path, app: str = "raw") -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(SOON_S)
        self.sock.connect(str(path))
        self._decoder = Decoder()
        self.sock.sendall(encode(hello_frame(app, "raw")))
        self._decoder.feed(self.sock.recv(4096))
        self.sock.sendall(encode({"id": 1, "op": "slot"}))
        data, fds, _, _ = socket.recv_fds(self.sock, 4096, 4)
        (self.reply,) = self._decoder.feed(data)
        assert self.reply["type"] == "done", self.reply
        self.fd = fds[0]
        self.header, self.memory = open_slot(self.fd)
        self.end = SlotEnd(self.memory, self.header.layout, service=False, far=self.header.far)

    def set_word(self, offset: int, value: int) -> None:
        self.memory.store(offset, (value % 2**32).to_bytes(4, sys.byteorder))

    def ring(self, n: int = 1) -> None:
        self.sock.sendall(b"\0" * n)

    def send(self, frame: Frame) -> None:
        data = encode(frame)
        assert self.end.write(data) == len(data)
        if self.end.take_bell():
            self.ring()

    def frame(self) -> Frame:
        """The next frame of the service."""
        while not (frames := self._decoder.feed(bytes(self.end.read()))):
            assert wait_readable(self.end) == Ready.READABLE
        assert len(frames) == 1
        return frames[0]

    def is_dropped(self) -> bool:
        """Whether the service closes the connection soon."""
        try:
            while self.sock.recv(4096):
                pass
        except ConnectionResetError:
            pass
        return True

    def close(self) -> None:
        self.sock.close()
        os.close(self.fd)
