"""QEMU's command line.

Law: pure, and nothing secret is on it. The guest has two serial ports, its disks, a source of random numbers, a
console, and the memories of slots: no network, no display, no USB, no monitor. QEMU itself may start no programs and
gain no rights (its sandbox).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from llmaas.errors import ConfigError
from llmaas.frozen import frozen
from llmaas.vm.folder import VmFolder
from llmaas.vm.slot_memories import slot_devices

BINARY = "qemu-system-x86_64"
PACKAGE = "qemu-system-x86"
WIRE, KEY = "llmaas.wire", "llmaas.key"
"""Names of the serial ports, in the guest's /dev/virtio-ports or /sys/class/virtio-ports."""
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_PCI = re.compile("([0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}[.][0-7]")


@frozen
class VmDisk:
    name: str
    """By which the guest finds it: the disk's serial number."""
    path: Path
    read_only: bool = True


@frozen
class VmChoices:
    """How the machine is made. Raises ConfigError."""

    kvm: bool
    memory: int = 1 << 30
    cpus: int = 1
    lock_memory: bool = False
    """Whether the guest's memory is kept out of the host's swap."""
    gpus: tuple[str, ...] = ()
    """PCI addresses of devices that the guest gets for itself."""

    def __post_init__(self) -> None:
        for gpu in self.gpus:
            if not _PCI.fullmatch(gpu):
                raise ConfigError(
                    f"{gpu!r} is no PCI address",
                    hint="'lspci -D' shows them, such as 0000:01:00.0; docs/vm.md tells how to give one away.",
                )
        if self.memory < 256 << 20:
            raise ConfigError(f"the guest needs 256 MiB at least, not {self.memory >> 20} MiB")


def qemu_command(
    folder: VmFolder,
    disks: Sequence[VmDisk],
    choices: VmChoices,
    wire_fd: int,
    key_fd: int,
    slot_fds: Sequence[int] = (),
) -> list[str]:
    """The command; ``wire_fd`` and ``key_fd`` are sockets that QEMU inherits, so that no other process can connect, and
    so are the memories ``slot_fds``."""
    # q35 for its PCI Express, which passed-through devices want. Memory is not merged with that of other processes:
    # whether a page is shared can be felt by timing. -no-reboot: a guest that panics ends QEMU.
    accel = ["-accel", "kvm", "-cpu", "host"] if choices.kvm else ["-accel", "tcg", "-cpu", "max"]
    command = [BINARY, "-machine", "q35,mem-merge=off,dump-guest-core=off", *accel, "-nodefaults", "-no-user-config"]
    command += ["-display", "none", "-no-reboot", "-sandbox", _SANDBOX, "-nic", "none"]
    command += ["-m", f"{choices.memory >> 20}M", "-smp", str(choices.cpus)]
    if choices.lock_memory:
        command += ["-overcommit", "mem-lock=on"]
    command += ["-kernel", str(folder.kernel), "-initrd", str(folder.initrd)]
    command += ["-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on"]
    command += ["-chardev", f"file,id=console,path={_escaped(folder.console)}", "-serial", "chardev:console"]
    command += ["-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"]
    for disk in disks:
        command += [
            "-blockdev",
            json.dumps(_blockdev(disk)),
            "-device",
            f"virtio-blk-pci,drive={disk.name},serial={disk.name}",
        ]
    command += ["-device", "virtio-serial-pci"]
    for name, fd in ((WIRE, wire_fd), (KEY, key_fd)):
        chardev = name.replace(".", "-")
        command += [
            "-chardev",
            f"socket,id={chardev},fd={fd}",
            "-device",
            f"virtserialport,chardev={chardev},name={name}",
        ]
    command += slot_devices(slot_fds)
    for gpu in choices.gpus:
        command += ["-device", f"vfio-pci,host={gpu}"]
    return command


def _blockdev(disk: VmDisk) -> dict[str, object]:
    """The guest's flush is an fsync on the host, so what was acknowledged outlives a loss of power."""
    file = {"driver": "file", "filename": str(disk.path)}
    return {"driver": "raw", "node-name": disk.name, "read-only": disk.read_only, "file": file}


def _escaped(path: Path) -> str:
    """In options of QEMU that are no JSON a comma is written twice."""
    return str(path).replace(",", ",,")
