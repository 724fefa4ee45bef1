"""The socket of a synchronous client: the daemon's bytes to the session, the session's bytes to the daemon.

Law: Ctrl-C (KeyboardInterrupt) may end any wait, and never harms the connection: bytes are taken from the socket and
put on it with SIGINT deferred.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what signal.py is made of
import contextlib
import select
import signal
import socket as sockets
import struct
import threading
from collections import deque
from itertools import islice
from pathlib import Path
from typing import Protocol

from llmaas.api.bulk import Parts
from llmaas.api.client_session import Exchange, Session
from llmaas.api.peer import refuse_stranger
from llmaas.errors import NotServing

_READ = 1 << 16
"""Bytes taken from the socket at once. Of a large reply all others go to where its body lies."""
_LARGE = 1 << 19
"""Bytes of a request for which the socket is made to hold more (twice as many), so that it goes in few parts."""


_MOST_PARTS = 64
"""Parts of a request that go in one call; Linux allows 1024."""


class Link(Protocol):
    """What a client sends and receives by."""

    def send(self, data: Parts) -> None:
        """Never raises: a connection that is lost ends every exchange of the session. To be called uninterrupted."""

    def read(self, timeout: float | None = None) -> None:
        """Wait until bytes have come, and hand them to the session."""

    def close(self) -> None: ...


class BlockingLink:
    """Connects when it is made; raises NotServing, and NotTrusted if the server is another user's than ``daemon_uid``,
    this user's or root's. ``timeout`` (seconds) bounds connecting and sending."""

    def __init__(self, session: Session, path: Path, timeout: float, daemon_uid: int | None = None) -> None:
        self._session = session
        self._path = path
        self._timeout = timeout
        self._sock = _connect(path, timeout, daemon_uid)
        self._is_wide = False
        self._in, self._out = select.poll(), select.poll()
        self._in.register(self._sock, select.POLLIN)
        self._out.register(self._sock, select.POLLOUT)

    def send(self, data: Parts) -> None:
        """Never raises: a connection that is lost ends every exchange of the session. To be called uninterrupted."""
        left = deque(memoryview(part) for part in data)
        try:
            if not self._is_wide and sum(map(len, left)) > _LARGE:
                self._is_wide = True
                self._sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, _LARGE)
            while left:
                if not self._out.poll(self._timeout * 1000):
                    self._lose(f"the daemon at {self._path} has taken no bytes for {self._timeout:g} s")
                    return
                with contextlib.suppress(BlockingIOError):
                    _drop(left, self._sock.sendmsg(list(islice(left, _MOST_PARTS))))
        except OSError as e:
            self._receive()  # the daemon may have said why it hung up
            self._lose(f"the connection to the daemon at {self._path} was lost: {e.strerror or e}")

    def read(self, timeout: float | None = None) -> None:
        """Wait until bytes have come, and hand them to the session. Raises NotServing if none come in ``timeout``."""
        if not self._in.poll(None if timeout is None else timeout * 1000):
            raise NotServing(f"the daemon at {self._path} does not answer within {timeout:g} s")
        with uninterrupted():
            self._receive()

    def close(self) -> None:
        self._sock.close()

    @property
    def sock(self) -> sockets.socket:
        """For whoever goes on with the connection."""
        return self._sock

    def ask_for_descriptor(self, data: Parts, exchange: Exchange, timeout: float) -> list[int]:
        """Send a request, and wait for its reply; the descriptors that came with it. Raises NotServing."""
        with uninterrupted():
            self.send(data)
            fds: list[int] = []
            while not exchange.ended:
                if not self._in.poll(timeout * 1000):
                    raise NotServing(f"the daemon at {self._path} does not answer within {timeout:g} s")
                self._receive(fds)
        return fds

    def _receive(self, fds: list[int] | None = None) -> None:
        """``fds``: where to put descriptors that come; without it they are closed."""
        try:
            if fds is None:
                if (room := self._session.room()) is not None:
                    n = self._sock.recv_into(room)
                    if n:
                        self._session.received(n)
                    self._after(n)
                    return
                data = self._sock.recv(_READ)
            else:
                data, more, _, _ = sockets.recv_fds(self._sock, _READ, 2, sockets.MSG_CMSG_CLOEXEC)
                fds += more
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._session.receive(data)
        self._after(len(data))

    def _after(self, nbytes: int) -> None:
        """So many bytes have come, and were taken."""
        if not nbytes:
            self._lose(f"the connection to the daemon at {self._path} was lost")
        elif self._session.fault is not None:
            self._sock.close()

    def _lose(self, what: str) -> None:
        self._session.lose(NotServing(what))
        self._sock.close()


def _drop(parts: deque[memoryview], nbytes: int) -> None:
    """The first ``nbytes`` of the parts were sent."""
    while parts and nbytes >= len(parts[0]):
        nbytes -= len(parts.popleft())
    if nbytes:
        parts[0] = parts[0][nbytes:]


def _connect(path: Path, timeout: float, daemon_uid: int | None) -> sockets.socket:
    sock = sockets.socket(sockets.AF_UNIX)
    try:
        # Not Python's own timeout: with that, connect fails at once if many callers wait to be accepted.
        sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDTIMEO, _timeval(sock, timeout))
        sock.connect(str(path))
        refuse_stranger(sock, path, daemon_uid)
        sock.setblocking(False)
        return sock
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        raise NotServing(f"no daemon serves {path}") from None
    except BlockingIOError:
        sock.close()
        raise NotServing(f"the daemon at {path} does not answer within {timeout:g} s") from None
    except OSError as e:
        sock.close()
        raise NotServing(f"cannot connect to {path}: {e.strerror or e}") from e
    except BaseException:
        sock.close()
        raise


def _timeval(sock: sockets.socket, seconds: float) -> bytes:
    """A struct timeval as this system has it, of a microsecond at least: 0 would mean for ever.

    On a system of 32 bits its numbers may have 4 bytes or 8, whichever the C library counts time with.
    """
    size = len(sock.getsockopt(sockets.SOL_SOCKET, sockets.SO_SNDTIMEO, 16))
    whole = int(seconds)
    return struct.pack("=qq" if size == 16 else "=ll", whole, max(1, int((seconds - whole) * 1e6)))


class uninterrupted:
    """Defer Ctrl-C to the end of the block.

    Does nothing off the main thread, where no KeyboardInterrupt is raised, and where the handler is not Python's.

    Rejected: the functions of ``signal``, which look each handler up in an enum: a block took 12 us with them, of the
    40 us that a client needs for a request, and takes 2 us so.
    """

    __slots__ = ("_before", "_caught")

    def __enter__(self) -> None:
        self._caught = False
        self._before = _signal.getsignal(signal.SIGINT)
        if self._before is None or threading.current_thread() is not threading.main_thread():
            self._before = None
        else:
            _signal.signal(signal.SIGINT, self._catch)

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            _signal.signal(signal.SIGINT, self._before)
            if self._caught:
                signal.raise_signal(signal.SIGINT)

    def _catch(self, number: int, frame: object) -> None:
        self._caught = True
