"""Runs a virtual machine and serves it on the host, until it is told to stop or the guest ends.

Law: the host's sockets are there only while the daemon in the guest takes connections. A stop lets the daemon end as
SIGTERM does on a host; a guest that does not end by then is killed, which loses nothing that was acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from llmaas.vm.folder import VmError
from llmaas.vm.host_side import HostSide
from llmaas.vm.line import Line
from llmaas.vm.machine_process import MachineProcess

log = logging.getLogger(__name__)

BOOT_S = 600.0
"""Seconds that a guest may take to become ready: an emulated one with a real model takes minutes."""
OFF_S = 90.0


class VmSession:
    """One run of a machine. ``console``: the file that an error names."""

    def __init__(self, machine: MachineProcess, console: Path) -> None:
        self._machine, self._console = machine, console
        self._notes: dict[str, Any] = {}
        self._noted = asyncio.Event()

    async def serve(
        self, socket: Path, stop: asyncio.Event, on_ready: Callable[[], None], boot_s: float = BOOT_S
    ) -> None:
        """Serve on ``socket`` and the operator's beside it, until ``stop`` is set. Raises VmError if the guest fails or
        ends before, and what HostSide does."""
        async with self as line:
            if await self._told("ready", stop, boot_s) is None:
                return
            host = HostSide(line, socket, slot_memories=self._machine.slot_memories)
            try:
                host.start()
                on_ready()
                if await self._told("off", stop, None) is not None:
                    raise self._ended()
            finally:
                await host.close()

    async def import_model(self, stop: asyncio.Event, boot_s: float = BOOT_S) -> str | None:
        """The SHA-256 of the model that the guest has written; None if it was told to stop. Raises VmError."""
        async with self:
            digest = await self._told("imported", stop, boot_s)
            return None if digest is None else str(digest)

    # -- what the guest says -----------------------------------------------------------------

    def on_note(self, note: Mapping[str, Any]) -> None:
        self._machine.forget_key()
        if len(self._notes) < 8:
            self._notes.update(note)
        self._noted.set()

    async def _told(self, name: str, stop: asyncio.Event, seconds: float | None) -> object | None:
        """What the guest's note says of ``name``; None if ``stop`` comes first. Raises VmError."""
        late = None if seconds is None else asyncio.get_running_loop().time() + seconds
        while name not in self._notes:
            if "failed" in self._notes:
                hint = self._notes.get("hint")
                raise VmError(_text(self._notes["failed"]), hint=_text(hint) if hint else None)
            if "off" in self._notes:
                raise self._ended()
            left = None if late is None else late - asyncio.get_running_loop().time()
            if left is not None and left <= 0:
                raise VmError(
                    f"the guest is not ready after {seconds:g} s", hint=f"{self._console} says how far it came."
                )
            self._noted.clear()
            if await _first(stop.wait(), self._noted.wait(), left) == 0:
                return None
        return self._notes[name]  # type: ignore[no-any-return]

    def _ended(self) -> VmError:
        return VmError("the guest has ended", hint=f"{self._console} says why.")

    # -- its life ----------------------------------------------------------------------------

    async def __aenter__(self) -> Line:
        reader, writer = await asyncio.open_unix_connection(sock=self._machine.wire)
        self._line = Line(reader, writer, on_note=self.on_note)
        self._reading = asyncio.ensure_future(self._line.run())
        self._reading.add_done_callback(lambda _: self.on_note({"off": True}))
        return self._line

    async def __aexit__(self, *_: object) -> None:
        """End the guest, if it has not ended."""
        self._line.note({"end": True})
        self._machine.forget_key()
        stop = asyncio.Event()
        try:
            await self._told("off", stop, OFF_S)
        except VmError as error:
            log.debug("as the guest ended: %s", error.message)
        self._line.end()
        code = await self._machine.end()
        await asyncio.gather(self._reading, return_exceptions=True)
        log.info("the virtual machine is off (%d)", code)


async def _first(one: Awaitable[Any], other: Awaitable[Any], seconds: float | None) -> int | None:
    """Which of both is done first, 0 or 1; None if neither is within so many seconds."""
    tasks = [asyncio.ensure_future(one), asyncio.ensure_future(other)]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return next((i for i, task in enumerate(tasks) if task.done()), None)
    finally:
        for task in tasks:
            task.cancel()


def _text(value: object) -> str:
    """The guest's words, for a terminal: short, and without control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value)[:2000])
