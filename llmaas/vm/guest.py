"""What the guest does: it opens its volumes, runs the daemon, and passes connections on to it.

Law: it tells the host by a note what became of the start. When the daemon ends, or the host says so, or the line
breaks, the daemon is stopped, everything is unmounted, and ``run`` returns: a guest never runs on without its daemon.

    host                                guest
      | -- boot message (port llmaas.key) --> |
      |                                       | opens store, model; starts the daemon
      | <------------- note {"ready": true} - |    or {"failed": what, "hint": what to do}
      | -- open, data ...                     |
      | -- note {"end": true} --------------> | SIGTERM to the daemon, unmount
      | <--------------- note {"off": true} - | switched off
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from llmaas.errors import LlmaasError
from llmaas.frozen import frozen
from llmaas.vm.boot_message import BootMessage
from llmaas.vm.folder import VmError
from llmaas.vm.guest_side import GuestSide
from llmaas.vm.line import Line
from llmaas.vm.line_frames import LineBroken
from llmaas.vm.slot_memories import lend

log = logging.getLogger(__name__)

_STOP_S = 60.0
"""Seconds that the daemon gets to end."""
_LOOK_S = 0.1
_READ_S = 2.0
_PIECE = 1 << 20


@frozen
class GuestPlaces:
    socket: Path = Path("/run/llmaas/llmaas.sock")
    store: Path = Path("/store")
    model: Path = Path("/model")
    slots: Path = Path("/run/llmaas-slots")


class Volumes(Protocol):
    """``GuestDisks``, as the guest knows it."""

    def device(self, name: str) -> Path: ...

    def open(self, name: str, where: Path, *, read_only: bool) -> None: ...

    def mark_complete(self, name: str) -> None: ...

    def close_all(self) -> list[VmError]: ...


class Guest:
    """One run of the guest."""

    def __init__(
        self, boot: BootMessage, volumes: Volumes, places: GuestPlaces, slot_memories: Callable[[], list[Path]]
    ) -> None:
        self._boot, self._volumes, self._places, self._slot_memories = boot, volumes, places, slot_memories
        self._over = asyncio.Event()
        self._daemon: asyncio.subprocess.Process | None = None

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """On the line's two directions. Return when the machine may be switched off."""
        side = GuestSide(self._places.socket)
        line = Line(reader, writer, on_note=self._on_note, on_open=side.open)
        reading = asyncio.ensure_future(line.run())
        reading.add_done_callback(lambda _: self._over.set())
        try:
            await self._start(line)
            await self._over.wait()
        except LlmaasError as error:
            log.error("%s", error.message)
            line.note({"failed": error.message, "hint": error.hint})
        await self._stop()
        line.note({"off": True})
        with suppress(LineBroken, asyncio.TimeoutError):
            await asyncio.wait_for(reading, _READ_S)  # the host closes the line when it has read the note
        line.end()
        await asyncio.gather(reading, side.close(), return_exceptions=True)

    def _on_note(self, note: Mapping[str, Any]) -> None:
        if note.get("end"):
            self._over.set()

    async def _start(self, line: Line) -> None:
        if self._boot.import_bytes is not None:
            digest = self._import_model(self._boot.import_bytes)
            line.note({"imported": digest})
            return
        volumes, places, uid = self._volumes, self._places, self._boot.uid
        volumes.open("store", places.store, read_only=False)
        volumes.mark_complete("store")
        data = places.store / "llmaas"
        data.mkdir(mode=0o700, exist_ok=True)
        for folder in (data, places.store):  # the key of the chunks is beside the data folder
            os.chown(folder, uid, uid)
        arguments = ["--socket", str(places.socket), "--data-dir", str(data)]
        if self._boot.has_model:
            volumes.open("model", places.model, read_only=True)
            arguments += ["--model", *(str(file) for file in places.model.iterdir() if file.is_file())]
        if self._boot.slots:
            arguments += ["--slot-folder", str(self._lend_slots())]
        await self._start_daemon([*self._boot.daemon, *arguments, *self._boot.flags])
        line.note({"ready": True})

    def _lend_slots(self) -> Path:
        """The folder of the memories that clients on the host have, too. Raises VmError."""
        found, folder = self._slot_memories(), self._places.slots
        if len(found) != self._boot.slots:
            raise VmError(f"the guest has {len(found)} memories for slots, and the host made {self._boot.slots}")
        lend(found, folder, self._boot.uid)
        return folder

    async def _start_daemon(self, arguments: list[str]) -> None:
        """Return when it answers. Raises VmError if it ends before."""
        uid, folder = self._boot.uid, self._places.socket.parent
        folder.mkdir(mode=0o700)
        os.chown(folder, uid, uid)
        identity: dict[str, Any] = {"user": uid, "group": uid, "extra_groups": []} if os.geteuid() == 0 else {}
        self._daemon = await asyncio.create_subprocess_exec(sys.executable, "-m", *arguments, **identity)
        ended = asyncio.ensure_future(self._daemon.wait())
        ended.add_done_callback(lambda _: self._over.set())
        while not self._over.is_set():
            with suppress(OSError):
                _, writer = await asyncio.open_unix_connection(str(self._places.socket))
                writer.close()
                return
            await asyncio.sleep(_LOOK_S)
        if ended.done():
            raise _daemon_ended(ended.result())

    async def _stop(self) -> None:
        if self._daemon is not None and self._daemon.returncode is None:
            with suppress(ProcessLookupError):
                self._daemon.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._daemon.wait(), _STOP_S)
            except asyncio.TimeoutError:
                self._daemon.kill()
                await self._daemon.wait()
        for error in self._volumes.close_all():
            log.error("%s", error.message)

    def _import_model(self, nbytes: int) -> str:
        """Copy the model from the disk ``import``; its SHA-256. Raises VmError."""
        source, digest = self._volumes.device("import"), hashlib.sha256()
        self._volumes.open("model", self._places.model, read_only=False)
        try:
            with source.open("rb") as data, (self._places.model / Path(self._boot.model).name).open("wb") as target:
                while nbytes and (part := data.read(min(nbytes, _PIECE))):
                    digest.update(part)
                    target.write(part)
                    nbytes -= len(part)
                target.flush()
                os.fchmod(target.fileno(), 0o644)
                os.fsync(target.fileno())
        except OSError as error:
            raise VmError(f"the model cannot be written: {error.strerror}", hint="Import it again.") from error
        if nbytes:
            raise VmError(f"the model's file ends {nbytes} bytes too soon", hint="Import it again.")
        self._volumes.mark_complete("model")
        return digest.hexdigest()


def _daemon_ended(code: int) -> VmError:
    if code == -signal.SIGILL:
        return VmError(
            "the daemon used an instruction that the guest's CPU lacks",
            hint="Build the guest with an engine for any CPU (docs/vm.md, 'The engine'), or run it with KVM.",
        )
    return VmError(f"the daemon has ended ({code})", hint="The console log says why.")
