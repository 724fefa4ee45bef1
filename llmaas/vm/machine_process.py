"""QEMU as a child of this process, with the host's ends of its two serial ports.

Law: QEMU ends with this process, also if that is killed: the kernel sees to it. The key is in memory and in a socket
between the two, and nowhere else.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from llmaas.vm.boot_message import BootMessage, encode_boot
from llmaas.vm.folder import VmError, VmFolder
from llmaas.vm.qemu import BINARY, PACKAGE, VmChoices, VmDisk, qemu_command
from llmaas.vm.slot_memories import make_memories

_PR_SET_PDEATHSIG = 1
_WIRE_BUFFER = 256 << 10
_END_S = 10.0


def has_kvm(device: Path = Path("/dev/kvm")) -> bool:
    """Whether this user may use the CPU's virtual machines."""
    return os.access(device, os.R_OK | os.W_OK)


def require_qemu() -> None:
    """Raises VmError."""
    if not shutil.which(BINARY):
        raise VmError(f"{BINARY} is not installed", hint=f"On Debian or Ubuntu: apt install {PACKAGE}")


class MachineProcess:
    """A virtual machine that has been started; ``wire`` is the host's end of the line, ``slot_memories`` what the guest
    has on its bus."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        wire: socket.socket,
        key: socket.socket,
        slot_memories: Sequence[int] = (),
    ) -> None:
        self.wire, self.slot_memories = wire, slot_memories
        self._process, self._key = process, key

    def forget_key(self) -> None:
        """The guest has read its boot message. Before that QEMU would drop what it has not passed on."""
        self._key.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ended(self) -> int:
        """QEMU's exit code, once it has ended."""
        pidfd = os.pidfd_open(self._process.pid)
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(pidfd, done.set)
        try:
            await done.wait()
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
        return self._process.wait()

    async def end(self, seconds: float = _END_S) -> int:
        """Wait for so long that it ends by itself, then end it."""
        try:
            return await asyncio.wait_for(self.ended(), seconds)
        except asyncio.TimeoutError:
            self._process.kill()
            return await self.ended()


def start_machine(
    folder: VmFolder, disks: Sequence[VmDisk], choices: VmChoices, boot: BootMessage, log: Path
) -> MachineProcess:
    """Start QEMU; what it says itself goes to the file ``log``. Raises VmError, ConfigError, MachineError."""
    require_qemu()
    message = encode_boot(boot)
    for file in (folder.console, log):
        file.touch(mode=0o600)
    slots = make_memories(boot.slots)
    wire, wire_end = socket.socketpair()
    key, key_end = socket.socketpair()
    for end in (wire, wire_end):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _WIRE_BUFFER)
    with wire_end, key_end:
        command = qemu_command(folder, disks, choices, wire_end.fileno(), key_end.fileno(), slots)
        # It waits in the socket until the guest has opened its port. A socket takes that much without a reader.
        key.sendall(message)
        try:
            with log.open("ab") as said:
                process = subprocess.Popen(
                    command,
                    pass_fds=(wire_end.fileno(), key_end.fileno(), *slots),
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    preexec_fn=_end_with_parent,
                    start_new_session=True,
                )
        except OSError as error:
            wire.close()
            key.close()
            for fd in slots:
                os.close(fd)
            raise VmError(f"{BINARY} cannot be started: {error.strerror}") from error
    wire.setblocking(False)
    return MachineProcess(process, wire, key, slots)


_prctl = ctypes.CDLL(None, use_errno=True).prctl


def _end_with_parent() -> None:
    """In the child, before QEMU: no lock is taken and no library loaded here, as other threads may hold them."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
