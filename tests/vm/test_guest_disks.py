"""Which disks the guest formats, and how the key reaches cryptsetup; with stand-ins for the programs of a guest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmaas.vm.folder import VmError
from llmaas.vm.guest_disks import GuestDisks, disk_named

KEY = b"the key of sixteen or more bytes"
_TOOL = """#!/bin/sh
name=$(basename "$0")
echo "$name $*" >>"$CALLS"
case "$name $1" in
"cryptsetup isLuks") test "$(head -c 4 "$DISK")" = LUKS ;;
"cryptsetup luksDump") printf 'LUKS header\\nLabel:          %s\\n' "$(tail -c +5 "$DISK")" ;;
"cryptsetup luksFormat") printf LUKSllmaas-new >"$DISK"; cat >"$KEY_SEEN" ;;
"cryptsetup open") test "$(cat)" = "$(cat "$KEY_SEEN")" || exit 2 ;;
"cryptsetup config") printf LUKS%s "$3" >"$DISK" ;;
esac
"""


class Bench(GuestDisks):
    """Disks of which there is one, a file."""

    def __init__(self, root: Path, key: bytes = KEY) -> None:
        super().__init__(key)
        self.disk, self.calls = root / "disk", root / "calls"

    def device(self, name: str) -> Path:
        return self.disk

    @property
    def done(self) -> list[str]:
        """The programs that were run since this was asked last, by their first words."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return [" ".join(line.split()[:2]) if line.startswith("cryptsetup") else line.split()[0] for line in lines]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("cryptsetup", "mkfs.ext4", "fsck.ext4", "mount", "umount"):
        (tools / name).write_text(_TOOL)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    for variable, name in (("CALLS", "calls"), ("DISK", "disk"), ("KEY_SEEN", "key")):
        monkeypatch.setenv(variable, str(tmp_path / name))
    (tmp_path / "disk").write_bytes(bytes(2 << 20))
    return tmp_path


def test_a_new_disk_is_formatted_once_and_looked_over_later(root: Path) -> None:
    disks = Bench(root)
    disks.open("store", root, read_only=False)
    assert disks.done == ["cryptsetup luksFormat", "cryptsetup open", "mkfs.ext4", "mount"]
    disks.mark_complete("store")
    disks.mark_complete("model")
    assert disks.done == ["cryptsetup config"]
    assert disks.close_all() == [] and disks.done == ["umount", "cryptsetup close"]
    later = Bench(root)
    later.open("store", root, read_only=False)
    later.mark_complete("store")
    assert later.done == ["cryptsetup isLuks", "cryptsetup luksDump", "cryptsetup open", "fsck.ext4", "mount"]


def test_a_format_that_was_cut_off_is_begun_again(root: Path) -> None:
    Bench(root).open("store", root, read_only=False)  # nobody says that it is complete
    again = Bench(root, b"another key, as nothing was kept under the first")
    assert again.done
    again.open("store", root, read_only=False)
    assert "cryptsetup luksFormat" in again.done


@pytest.mark.parametrize("content", [b"LUKSsomebody", b"LUKS", b"a file system", b"\0" * 4096 + b"x"])
def test_what_was_not_made_here_is_never_formatted(root: Path, content: bytes) -> None:
    disks = Bench(root)
    disks.disk.write_bytes(content)
    with pytest.raises(VmError, match="not empty") as error:
        disks.open("store", root, read_only=False)
    assert "Nothing was changed" in error.value.hint and disks.disk.read_bytes() == content
    assert "cryptsetup luksFormat" not in disks.done


def test_another_key_opens_nothing_and_changes_nothing(root: Path) -> None:
    disks = Bench(root)
    disks.open("store", root, read_only=False)
    disks.mark_complete("store")
    before = disks.disk.read_bytes()
    with pytest.raises(VmError, match="the key does not open the disk 'store'"):
        Bench(root, b"x" * 32).open("store", root, read_only=False)
    assert disks.disk.read_bytes() == before


def test_a_read_only_volume_is_never_made(root: Path) -> None:
    disks = Bench(root)
    with pytest.raises(VmError, match="empty"):
        disks.open("model", root, read_only=True)
    assert disks.done == []


def test_the_key_is_on_no_command_line(root: Path) -> None:
    disks = Bench(root)
    disks.open("store", root, read_only=False)
    assert (root / "key").read_bytes() == KEY and KEY.decode() not in disks.calls.read_text()


def test_disks_are_found_by_their_serial_numbers(tmp_path: Path) -> None:
    for disk, serial in (("vda", "root"), ("vdb", "store\n")):
        (tmp_path / disk).mkdir()
        (tmp_path / disk / "serial").write_text(serial)
    assert disk_named("store", tmp_path) == Path("/dev/vdb") and disk_named("model", tmp_path) is None
