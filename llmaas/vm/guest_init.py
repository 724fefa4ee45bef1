"""The guest's first process after the initramfs (android_bridge/vm/init): ``python -m llmaas.vm.guest_init``.

Law: whatever becomes of it, the machine is switched off: a guest without it would be a process on the host that nobody
can reach.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import subprocess
from pathlib import Path

from llmaas.vm.boot_message import BootMessage, read_boot
from llmaas.vm.folder import VmError
from llmaas.vm.guest import Guest, GuestPlaces
from llmaas.vm.guest_disks import GuestDisks
from llmaas.vm.qemu import KEY, WIRE
from llmaas.vm.slot_memories import guest_memories

_POWER_OFF = 0x4321FEDC
"""linux/reboot.h"""


def serial_port(name: str, sys_folder: Path = Path("/sys/class/virtio-ports")) -> Path:
    """The device of the serial port of this name. Raises VmError."""
    for found in sorted(sys_folder.glob("*/name")):
        if found.read_text().strip() == name:
            return Path("/dev", found.parent.name)
    raise VmError(f"the guest has no serial port {name}")


def main() -> None:
    logging.basicConfig(format="llmaas guest: %(message)s")
    os.umask(0o077)
    try:
        for folder, mode in (("/run", "0755"), ("/tmp", "1777")):
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode={mode}", "tmpfs", folder], check=True)
        with serial_port(KEY).open("rb", buffering=0) as port:
            boot = read_boot(lambda n: port.read(n) or b"")
        asyncio.run(_guest(boot))
    finally:
        os.sync()
        ctypes.CDLL(None).reboot(_POWER_OFF)


async def _guest(boot: BootMessage) -> None:
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
    fd = os.open(serial_port(WIRE), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)  # it can be opened once only
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(fd), "rb", buffering=0))
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(fd, "wb", buffering=0)
    )
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    await Guest(boot, GuestDisks(boot.key), GuestPlaces(), guest_memories).run(reader, writer)


if __name__ == "__main__":
    main()
