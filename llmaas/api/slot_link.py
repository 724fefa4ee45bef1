"""The slot of a synchronous client: as ``BlockingLink``, by shared memory.

Law: Ctrl-C (KeyboardInterrupt) may end any wait, and never harms the connection: bytes are taken from the slot and
handed to the session with SIGINT deferred. A daemon that is gone is noticed within ``_LOOK_S``, whatever the slot says.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket as sockets
from pathlib import Path

from llmaas.api import replies
from llmaas.api.blocking_link import BlockingLink, uninterrupted
from llmaas.api.bulk import Parts
from llmaas.api.client_session import Exchange, Session
from llmaas.api.slot_message import OpenedSlot, OpenSlot
from llmaas.errors import LlmaasError, MachineError, NotServing
from llmaas.slots.end import Broken, Ready, SlotEnd
from llmaas.slots.layout import VERSION
from llmaas.slots.memory import open_slot

_LOOK_S = 0.1
"""How long the client sleeps at most before it looks whether the daemon is still there."""
_SPIN_S = 200e-6
"""How long it looks for a reply before it sleeps. A service that sleeps takes up to 150 us to wake up."""
_DOZE_S = 20e-3
"""How long it naps after that, if the service runs on another kernel: a bell from there takes a millisecond or more,
and tokens of an answer come every few milliseconds."""
_BELL = b"\0"
_READ = 4096


def grant_of(session: Session) -> tuple[Exchange, Parts]:
    """The request for a slot, and the bytes to send for it."""
    return session.start(OpenSlot(VERSION))


def granted_end(exchange: Exchange, fds: list[int]) -> SlotEnd:
    """The slot that came with the reply to ``grant_of``; closes ``fds``. Raises what the daemon refused with, or
    MachineError."""
    try:
        opened = replies.result(OpenedSlot, exchange.result())
        if len(fds) != 1:
            raise MachineError("the daemon passed no slot with its reply")
        header, memory = open_slot(fds[0])
    finally:
        for fd in fds:
            os.close(fd)
    if header.generation != opened.generation % 2**32:
        raise MachineError("the daemon passed another slot than it says")
    return SlotEnd(memory, header.layout, service=False, far=header.far)


class SlotLink:
    """Goes on in place of ``link``, whose session has been greeted and has no requests. Raises what the daemon refuses
    with, NotServing, MachineError: then ``link`` is to be closed."""

    def __init__(self, session: Session, link: BlockingLink, path: Path, timeout: float) -> None:
        self._session, self._path, self._timeout = session, path, timeout
        exchange, data = grant_of(session)
        fds = link.ask_for_descriptor(data, exchange, timeout)
        self._sock = link.sock
        self._end = granted_end(exchange, fds)
        self._alive = select.poll()
        self._alive.register(self._sock, select.POLLIN)

    def send(self, data: Parts) -> None:
        """Never raises: a connection that is lost ends every exchange of the session. To be called uninterrupted."""
        for part in data:
            if self._session.fault is None:
                self._send(bytes(part))

    def _send(self, data: bytes) -> None:
        try:
            written = self._end.write(data)
            self._ring()
            if written < len(data):
                self._send_rest(data[written:])
        except Broken as e:
            self._lose(e if self._is_served() else self._lost())

    def read(self, timeout: float | None = None) -> None:
        """Wait until bytes have come, and hand them to the session."""
        assert timeout is None, "only a hello has a time limit"
        try:
            found = self._wait(Ready.READABLE.value)
            with uninterrupted():
                if found & Ready.READABLE:
                    self._receive()
                elif found & Ready.ENDED or (not found and not self._is_served()):
                    self._lose_connection()
        except Broken as e:
            self._lose(e if self._is_served() else self._lost())

    def close(self) -> None:
        """The memory is unmapped when nothing refers to this any more: another thread may still wait."""
        self._sock.close()

    def _wait(self, wants: int) -> int:
        """What there is of what is wanted, within ``_LOOK_S`` and a moment. Raises Broken."""
        if not self._end.far:
            return self._end.wait(wants, spin_s=_SPIN_S, timeout_s=_LOOK_S)
        found = self._end.doze(wants, spin_s=_SPIN_S, doze_s=_DOZE_S) or self._end.sleep(wants)
        if found:
            return found
        if self._alive.poll(_LOOK_S * 1000):
            self._is_served()  # hears the bells
        self._end.awake()
        return self._end.ready(wants)

    def _send_rest(self, data: bytes) -> None:
        tries = max(1, round(self._timeout / _LOOK_S))
        while data:
            found = self._wait(Ready.ROOM.value)
            if found & Ready.ROOM:
                data, tries = data[self._end.write(data) :], max(1, round(self._timeout / _LOOK_S))
                self._ring()
            elif found & Ready.ENDED or not self._is_served():
                self._lose_connection()
                return
            elif not (tries := tries - (0 if found & Ready.INTERRUPTED else 1)):
                self._lose(NotServing(f"the daemon at {self._path} has taken no bytes for {self._timeout:g} s"))
                return

    def _receive(self) -> None:
        data = bytes(self._end.read())
        self._ring()
        self._session.receive(data)
        if self._session.fault is not None:
            self._sock.close()

    def _ring(self) -> None:
        if self._end.take_bell():
            with contextlib.suppress(OSError):  # it has bells that it has not heard, or is gone: the next wait tells
                self._sock.send(_BELL, sockets.MSG_DONTWAIT | sockets.MSG_NOSIGNAL)

    def _is_served(self) -> bool:
        try:
            while self._alive.poll(0):
                if not self._sock.recv(_READ, sockets.MSG_DONTWAIT):
                    return False
        except BlockingIOError:
            pass
        except (OSError, ValueError):
            return False
        return True

    def _lose_connection(self) -> None:
        """Read what the daemon has said before it hung up."""
        while self._session.fault is None and self._end.ready(Ready.READABLE.value) & Ready.READABLE:
            self._receive()
        self._lose(self._lost())

    def _lost(self) -> NotServing:
        return NotServing(f"the connection to the daemon at {self._path} was lost")

    def _lose(self, error: LlmaasError) -> None:
        self._session.lose(error)
        self._sock.close()
