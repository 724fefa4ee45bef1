"""Whether a folder is on flash that wears soon: an eMMC, an SD card, a USB stick.

Law: it reads /sys and /proc and decides nothing. What they do not say is "", never a guess.

It reads the block device of the folder's file system (Documentation/ABI/testing/sysfs-block: ``removable``; mmc devices
have ``device/type``). A file system without a device number of its own, such as btrfs, is looked up in
/proc/self/mountinfo (proc(5)); of a mapped device (LUKS, LVM) the disk below counts.
"""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path("/")
_NAMES = {"MMC": "an eMMC", "SD": "an SD card"}
_DEEPEST = 8
"""Mapped devices on each other that are followed."""


def weak_flash(folder: Path, root: Path = ROOT, device: int | None = None) -> str:
    """ "an eMMC", "an SD card" or "a removable disk" that holds the folder; "" for others. ``device``: in place of the
    number of the folder's device."""
    try:
        number = folder.stat().st_dev if device is None else device
        disk = _disk(root, f"{os.major(number)}:{os.minor(number)}")
    except OSError:
        return ""
    if disk is None:
        return ""
    if disk.name.startswith("mmcblk"):
        return _NAMES.get(_text(disk / "device/type"), "an eMMC or SD card")
    return "a removable disk" if _text(disk / "removable") == "1" else ""


def _disk(root: Path, number: str) -> Path | None:
    """The whole disk of a device number "major:minor", in sysfs."""
    found = root / "sys/dev/block" / number
    if not found.exists():
        found = root / "sys/class/block" / _source(root, number)
        if not found.exists() or found.name == "block":
            return None
    for _ in range(_DEEPEST):
        found = found.resolve()
        if (found / "partition").exists():
            found = found.parent
        below = sorted((found / "slaves").glob("*"))
        if not below:
            return found
        found = below[0]
    return None


def _source(root: Path, number: str) -> str:
    """The name of the device that a mounted file system of that number is on; "" if none is known."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")
        source = rest.split(" ")[1:2]
        if fields.split(" ")[2:3] == [number] and source and source[0].startswith("/dev/"):
            return source[0].removeprefix("/dev/").replace("/", "!")
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
