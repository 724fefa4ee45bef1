"""A process that has loaded its packages, and waits to be told which model it serves.

Law: a process is given to one model, once. One that has ended, or cannot be told anything, is none.

Starting Python and loading packages takes 0.6 s and more of a start whose model is in the page cache, which itself
takes as long for a small model. A spare process takes 40 MB.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import msgpack  # type: ignore[import-untyped,unused-ignore]

from llmaas.front.channel import pair


@dataclass(frozen=True, slots=True)
class StartedProcess:
    """``sock`` is this end of its channel."""

    process: asyncio.subprocess.Process
    sock: socket.socket


async def start_process(command: Sequence[str]) -> StartedProcess:
    """``command`` gets the number of its descriptor as its last argument. Raises OSError."""
    ours, theirs = pair()
    try:
        process = await asyncio.create_subprocess_exec(
            *command, str(theirs.fileno()), pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return StartedProcess(process, ours)


class SpareProcess:
    """Started by ``command``; None: there is none ever."""

    def __init__(self, command: Sequence[str] | None) -> None:
        self._command = command
        self._spare: StartedProcess | None = None

    @property
    def pid(self) -> int | None:
        """While there is one."""
        there = self._there()
        return None if there is None else there.process.pid

    def _there(self) -> StartedProcess | None:
        return None if self._spare is None or self._spare.process.returncode is not None else self._spare

    async def prepare(self) -> None:
        """Start one, unless there is one."""
        if self._command is None or self._there() is not None:
            return
        self._forget()
        with contextlib.suppress(OSError):  # whoever wants a process then starts one, and says why it cannot
            self._spare = await start_process(self._command)

    def take(self, arguments: Sequence[str]) -> StartedProcess | None:
        """The process, which serves by these arguments from now on; None if there is none."""
        if (there := self._there()) is None:
            return None
        try:
            there.sock.setblocking(False)
            there.sock.send(msgpack.packb({"t": "serve", "arguments": list(arguments)}))
        except OSError:
            return None
        self._spare = None
        return there

    async def close(self) -> None:
        """End it, if there is one."""
        if self._spare is not None:
            with contextlib.suppress(ProcessLookupError):
                self._spare.process.kill()
            await self._spare.process.wait()
        self._forget()

    def _forget(self) -> None:
        if self._spare is not None:
            self._spare.sock.close()
            self._spare = None
