"""Stands in for QEMU: a process with its command line that runs the guest's own program, without a machine around it.

Disks are folders beside the images; the first key that opens one is written there. ``install`` puts it on a PATH.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket as sockets
import sys
from itertools import pairwise
from pathlib import Path

from llmaas.vm.boot_message import read_boot
from llmaas.vm.folder import VmError
from llmaas.vm.guest import Guest, GuestPlaces
from llmaas.vm.qemu import BINARY, KEY, WIRE

ROOT = Path(__file__).parents[2]


def install(bin_folder: Path) -> None:
    bin_folder.mkdir()
    script = bin_folder / BINARY
    command = f'exec "{sys.executable}" -m tests.support.fake_qemu "$@"'
    script.write_text(f'#!/bin/sh\nexport PYTHONPATH="{ROOT}"\n{command}\n')
    script.chmod(0o755)


class FolderVolumes:
    """The guest's volumes, of which nothing is encrypted."""

    def __init__(self, images: dict[str, Path], key: bytes) -> None:
        self._images, self._key = images, key

    def device(self, name: str) -> Path:
        if name not in self._images:
            raise VmError(f"the guest has no disk {name!r}")
        return self._images[name]

    def open(self, name: str, where: Path, *, read_only: bool) -> None:
        content = self.folder(name)
        content.mkdir(exist_ok=True)
        written = content.with_suffix(".key")
        if not written.exists():
            written.write_bytes(self._key)
        if written.read_bytes() != self._key:
            raise VmError(f"the key does not open the disk {name!r}", hint="Give the key that it was made with.")
        where.symlink_to(content)

    def folder(self, name: str) -> Path:
        """It keeps its name when the image is renamed."""
        return self.device(name).with_name(f"{name}-content")

    def mark_complete(self, name: str) -> None:
        pass

    def close_all(self) -> list[VmError]:
        return []


def of(options: list[str], name: str) -> str:
    return next(option for option in options if f"id={name.replace('.', '-')}," in option).rpartition("=")[2]


def memories(arguments: list[str]) -> list[Path]:
    """What the guest would find on its bus, in the order of the devices."""
    backends = dict[str, Path]()
    found = []
    for flag, value in pairwise(arguments):
        kind, _, rest = value.partition(",")
        options = dict(option.split("=", 1) for option in rest.split(",") if "=" in option)
        if flag == "-object" and kind == "memory-backend-file":
            assert options["share"] == "on"
            backends[options["id"]] = Path(options["mem-path"].replace("self", str(os.getpid())))
        elif flag == "-device" and kind == "ivshmem-plain":
            found.append((options["addr"], backends[options["memdev"]]))
    return [memory for _, memory in sorted(found)]


async def main(arguments: list[str]) -> None:
    chardevs = [value for flag, value in pairwise(arguments) if flag == "-chardev"]
    disks = [json.loads(value) for flag, value in pairwise(arguments) if flag == "-blockdev"]
    images = {disk["node-name"]: Path(disk["file"]["filename"]) for disk in disks}
    console = Path(of(chardevs, "console"))
    console.write_text("a fake machine\n")
    with sockets.socket(fileno=int(of(chardevs, KEY))) as key:
        boot = read_boot(key.recv)
    run = console.parent / f"run-{boot.import_bytes is not None}"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    reader, writer = await asyncio.open_unix_connection(sock=sockets.socket(fileno=int(of(chardevs, WIRE))))
    places = GuestPlaces(run / "r" / "d.sock", run / "store", run / "model", slots=run / "slots")
    await Guest(boot, FolderVolumes(images, boot.key), places, lambda: memories(arguments)).run(reader, writer)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
