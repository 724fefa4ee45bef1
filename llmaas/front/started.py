"""A process that serves a model, as whoever started it knows it: one of a command, or a copy of another process.

Law: it ends with whoever started it: its channel does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Sequence
from typing import Protocol

from llmaas.front.channel import pair
from llmaas.frozen import frozen

_UNKNOWN = 255
"""The status of a process that another one has waited for."""


class RunningProcess(Protocol):
    """What ``asyncio.subprocess.Process`` is, of that what is used."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None:
        """None while it runs; -N after the signal N."""

    async def wait(self) -> int: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


@frozen
class StartedProcess:
    """``sock`` is this end of its channel."""

    process: RunningProcess
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


class AdoptedProcess:
    """A process that another one has made, and that has become a child of this one (``host.adoption``)."""

    def __init__(self, pid: int) -> None:
        """On the running event loop. Raises OSError."""
        self.pid = pid
        self.returncode: int | None = None
        self._fd = os.pidfd_open(pid)
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        self._loop.add_reader(self._fd, self._on_end)

    def _on_end(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        try:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])  # it has ended: no wait
        except ChildProcessError:
            self.returncode = _UNKNOWN
        self._ended.set()

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.returncode is None:
            signal.pidfd_send_signal(self._fd, number)
