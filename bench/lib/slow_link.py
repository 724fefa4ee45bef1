"""A link of so many bits a second on loopback: a TCP proxy, which can be cut.

Law: what it passes on arrives no earlier than a link of that speed would bring it, in each direction by itself.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

_STEP, _LOOK_S = 16 << 10, 0.02


@dataclass
class SlowLink:
    """``bits_per_s``: 0 is as fast as it goes; it and ``is_stalled`` may be changed while it runs. ``cut`` and others:
    from any thread."""

    target: int
    bits_per_s: float = 0.0
    port: int = 0
    n_passed: int = 0
    is_stalled: bool = False
    """Passes nothing on, and ends no connection: as where somebody has pulled a plug."""
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _loop: asyncio.AbstractEventLoop | None = None

    def cut(self) -> None:
        """End all connections that there are."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = {writer}
        self._writers.add(writer)
        try:
            with suppress(OSError):
                back, out = await asyncio.open_connection("127.0.0.1", self.target)
                ends.add(out)
                self._writers.add(out)
                await asyncio.gather(self._pass(reader, out), self._pass(back, writer))
        finally:  # also where nobody was there
            self._writers -= ends
            for each in ends:
                each.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        free = time.perf_counter()
        while data := await reader.read(_STEP):
            self.n_passed += len(data)
            if self.bits_per_s:
                free = max(free, time.perf_counter()) + 8 * len(data) / self.bits_per_s
                if (wait := free - time.perf_counter()) > 0.002:  # a loop sleeps no shorter
                    await asyncio.sleep(wait)
            while self.is_stalled:
                await asyncio.sleep(_LOOK_S)
            writer.write(data)
            await writer.drain()
        writer.write_eof() if writer.can_write_eof() else None


@contextmanager
def slow_link(target: int, bits_per_s: float = 0.0) -> Iterator[SlowLink]:
    """A link to the port ``target`` of this machine, for the time of the block; it listens on ``port``."""
    link, ready, stop = SlowLink(target, bits_per_s), threading.Event(), threading.Event()

    async def run() -> None:
        link._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(link._serve, "127.0.0.1", 0)
        link.port = server.sockets[0].getsockname()[1]
        ready.set()
        await asyncio.get_running_loop().run_in_executor(None, stop.wait)
        server.close()
        link._cut()

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="slow-link")
    thread.start()
    ready.wait()
    try:
        yield link
    finally:
        stop.set()
        thread.join()
