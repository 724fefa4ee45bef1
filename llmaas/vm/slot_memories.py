"""The memories of slots that host and guest share: made by the host before the start, devices of the guest's PCI bus.

Law: each is a memory of its own, without a name, whose size nobody can change. A client gets the descriptor of one, and
of none other; so no client can reach what another says.

Rejected: one device for all slots, which every client would map whole. And to plug devices in as clients come: QEMU
would need a monitor, and the guest's kernel takes seconds for each when it is emulated.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from llmaas.errors import ConfigError
from llmaas.slots.memory import sealed_memory
from llmaas.vm.folder import VmError

SLOT_MEMORY = 1 << 20
"""Bytes of each: a device's memory is a power of two. A slot in it has rings of 256 KiB."""
MOST_MEMORIES = 64
_IVSHMEM = ("0x1af4", "0x1110")
"""Vendor and device of ivshmem."""
_FIRST_PCI, _FUNCTIONS = 0x10, 8
"""Where on the bus they are: as functions of the devices from there on, behind all that QEMU places itself."""


def require_count(count: int) -> None:
    """Raises ConfigError."""
    if not 0 <= count <= MOST_MEMORIES:
        raise ConfigError(f"--slots is {count}; a machine has 0 to {MOST_MEMORIES}")


def make_memories(count: int) -> list[int]:
    """Their descriptors. Raises ConfigError, MachineError."""
    require_count(count)
    made: list[int] = []
    try:
        for _ in range(count):
            made.append(sealed_memory(SLOT_MEMORY))
    except BaseException:
        for fd in made:
            os.close(fd)
        raise
    return made


def slot_devices(fds: Sequence[int]) -> list[str]:
    """What QEMU is told of them; it inherits the descriptors."""
    words = []
    for i, fd in enumerate(fds):
        device, function = divmod(i, _FUNCTIONS)
        memory = f"memory-backend-file,id=slot{i},mem-path=/proc/self/fd/{fd},share=on,size={SLOT_MEMORY},dump=off"
        where = f"addr={_FIRST_PCI + device:#x}.{function}{',multifunction=on' if function == 0 else ''}"
        words += ["-object", memory, "-device", f"ivshmem-plain,memdev=slot{i},{where}"]
    return words


def guest_memories(bus: Path = Path("/sys/bus/pci/devices")) -> list[Path]:
    """In the guest: the files of the devices' memories, in the order in which the host made them. Raises VmError."""
    found = []
    for device in sorted(bus.iterdir()):
        if ((device / "vendor").read_text().strip(), (device / "device").read_text().strip()) == _IVSHMEM:
            memory = device / "resource2"
            if not memory.exists():
                raise VmError(f"the device {device.name} has no memory")
            (device / "enable").write_text("1")
            found.append(memory)
    return found


def lend(memories: Sequence[Path], folder: Path, uid: int) -> None:
    """Make the folder with which the daemon is given them (``slot_folder``). Raises OSError."""
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    for i, memory in enumerate(memories):
        os.chown(memory, uid, uid)
        (folder / str(i)).symlink_to(memory)
