"""Which disk a folder is on, in a sysfs that is made up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmaas.host.flash import weak_flash

NUMBER = os.makedev(179, 2)


def block(root: Path, name: str, numbers: dict[str, str], **files: str) -> Path:
    """A disk and its partitions, as sysfs has them: directories below devices, and links to these."""
    disk = root / "sys/devices/bus" / name
    for file, content in files.items():
        path = disk / file.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    for part, number in numbers.items():
        place = disk if part == name else disk / part
        place.mkdir(parents=True, exist_ok=True)
        if place != disk:
            (place / "partition").write_text("1\n")
        for link in (root / "sys/dev/block" / number, root / "sys/class/block" / part):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(place)
    return disk


@pytest.mark.parametrize(("kind", "said"), [("MMC", "an eMMC"), ("SD", "an SD card"), ("", "an eMMC or SD card")])
def test_memory_cards_are_known_by_name_and_type(kind: str, said: str, tmp_path: Path) -> None:
    block(tmp_path, "mmcblk0", {"mmcblk0": "179:0", "mmcblk0p2": "179:2"}, device__type=kind, removable="0")
    assert weak_flash(tmp_path, tmp_path, NUMBER) == said


@pytest.mark.parametrize(("removable", "said"), [("1", "a removable disk"), ("0", "")])
def test_a_stick_is_removable_and_an_ssd_is_not(removable: str, said: str, tmp_path: Path) -> None:
    block(tmp_path, "sda", {"sda": "8:0", "sda1": "179:2"}, removable=removable)
    assert weak_flash(tmp_path, tmp_path, NUMBER) == said


def test_the_disk_below_a_mapped_device_counts(tmp_path: Path) -> None:
    card = block(tmp_path, "mmcblk1", {"mmcblk1": "179:8", "mmcblk1p1": "179:9"}, device__type="SD")
    mapped = block(tmp_path, "dm-0", {"dm-0": "179:2"}, removable="0")
    (mapped / "slaves").mkdir()
    (mapped / "slaves/mmcblk1p1").symlink_to(card / "mmcblk1p1")
    assert weak_flash(tmp_path, tmp_path, NUMBER) == "an SD card"


def test_a_file_system_without_a_device_of_its_own_is_looked_up_among_the_mounts(tmp_path: Path) -> None:
    block(tmp_path, "mmcblk0", {"mmcblk0": "179:0", "mmcblk0p2": "179:3"}, device__type="MMC")
    mounts = tmp_path / "proc/self/mountinfo"
    mounts.parent.mkdir(parents=True)
    mounts.write_text(
        "22 1 0:21 / /proc rw - proc proc rw\n"
        "30 1 0:42 /home /home rw,noatime shared:1 - btrfs /dev/mmcblk0p2 rw,ssd\n"
        "nonsense\n"
    )
    assert weak_flash(tmp_path, tmp_path, os.makedev(0, 42)) == "an eMMC"
    assert weak_flash(tmp_path, tmp_path, os.makedev(0, 21)) == ""
    assert weak_flash(tmp_path, tmp_path, os.makedev(0, 99)) == ""


def test_what_cannot_be_found_out_is_nothing(tmp_path: Path) -> None:
    assert weak_flash(tmp_path, tmp_path) == ""
    assert weak_flash(tmp_path / "gone") == ""
    assert weak_flash(tmp_path) in ("", "a removable disk", "an eMMC", "an SD card", "an eMMC or SD card")
    loop = block(tmp_path, "dm-1", {"dm-1": "179:2"})
    (loop / "slaves").mkdir()
    (loop / "slaves/dm-1").symlink_to(loop)
    assert weak_flash(tmp_path, tmp_path, NUMBER) == ""
