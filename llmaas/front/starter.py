"""The starter: a process that has loaded its packages, and makes those of models, as copies of itself (fork).

Law: whoever wants a process gets one without it, by starting Python, whenever the starter is not there, is not ready
soon, or fails; one that has failed is ended. It holds nothing of any model.

Starting Python and loading packages takes a second of CPU time, more than a small model's load; a copy is there in
10 ms, and shares the memory of what was loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Sequence

import msgpack  # type: ignore[import-untyped,unused-ignore]

from llmaas.front.channel import pair
from llmaas.front.started import AdoptedProcess, StartedProcess, start_process
from llmaas.host.adoption import adopting, can_adopt

log = logging.getLogger(__name__)

READY = b"ready"
"""What it sends first; then, for each message with arguments and a descriptor, a map with the number of the process,
or 0."""
_WAIT_S = 20.0
"""Seconds for an answer at most: a machine that is busy may take some to load packages."""
_MOST_BYTES = 256
"""Of an answer."""


class Starter:
    """Started by ``command``, behind which the number of its descriptor comes; None: there is none ever."""

    def __init__(self, command: Sequence[str] | None) -> None:
        self._command = command if can_adopt() else None
        self._starter: StartedProcess | None = None
        self._hello: asyncio.Future[bytes] | None = None
        self._gently = False
        self._lock = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """While there is one."""
        there = self._there()
        return None if there is None else there.process.pid

    def _there(self) -> StartedProcess | None:
        return None if self._starter is None or self._starter.process.returncode is not None else self._starter

    async def prepare(self, *, gently: bool = False) -> None:
        """Start it, unless it is there. ``gently``: it loads packages with low priority, as models serve; nobody waits
        for it meanwhile."""
        if self._command is None or self._there() is not None:
            return
        self._forget()
        with contextlib.suppress(OSError):  # whoever wants a process then starts one, and says why it cannot
            self._gently = gently
            self._starter = await start_process([*self._command, *(["--gently"] if gently else []), "--starter"])
            self._starter.sock.setblocking(False)
            loop = asyncio.get_running_loop()
            self._hello = asyncio.ensure_future(loop.sock_recv(self._starter.sock, _MOST_BYTES))

    async def copy(self, arguments: Sequence[str]) -> StartedProcess | None:
        """A process that serves by these arguments; None if it makes none."""
        async with self._lock:
            starter, hello = self._there(), self._hello
            if starter is None or hello is None or (self._gently and not hello.done()):
                return None
            try:
                await asyncio.wait([hello], timeout=_WAIT_S)
                if not hello.done() or hello.cancelled() or hello.result() != READY:
                    raise OSError("it does not say that it is ready")
                return await self._ask(starter.sock, arguments)
            except (OSError, asyncio.TimeoutError, ValueError, TypeError, KeyError) as error:
                log.warning("the process that makes those of models fails (%s); Python is started instead", error)
                with contextlib.suppress(ProcessLookupError):
                    starter.process.kill()
                return None

    async def _ask(self, sock: socket.socket, arguments: Sequence[str]) -> StartedProcess:
        ours, theirs = pair()
        try:
            with adopting():
                message = msgpack.packb({"arguments": list(arguments)})
                socket.send_fds(sock, [message], [theirs.fileno()])
                loop = asyncio.get_running_loop()
                reply = await asyncio.wait_for(loop.sock_recv(sock, _MOST_BYTES), _WAIT_S)
            pid = int(msgpack.unpackb(reply)["pid"]) if reply else 0
            if pid <= 0:
                raise OSError("it cannot be copied" if reply else "it has ended")
            return StartedProcess(_adopted(pid), ours)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()

    async def close(self) -> None:
        """End it, if it is there. The processes that it has made stay."""
        if self._starter is not None:
            with contextlib.suppress(ProcessLookupError):
                self._starter.process.kill()
            await self._starter.process.wait()
        self._forget()

    def _forget(self) -> None:
        if self._hello is not None:
            if self._hello.done() and not self._hello.cancelled():
                self._hello.exception()  # nobody has asked for it, perhaps
            self._hello.cancel()
            self._hello = None
        if self._starter is not None:
            self._starter.sock.close()
            self._starter = None


def _adopted(pid: int) -> AdoptedProcess:
    try:
        return AdoptedProcess(pid)
    except OSError:  # no descriptor is free, say
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        raise
