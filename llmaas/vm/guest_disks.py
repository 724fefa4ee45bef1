"""The guest's encrypted volumes: opened with the key, made when they are new, mounted.

Law: a disk is formatted only if its first bytes are zeros, or if an earlier start was cut off before its content was
there, which a label in the LUKS header says. Anything else, and what the key does not open, stays as it is. The key
goes to cryptsetup by a pipe.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from llmaas.vm.folder import VmError

_NEW, _COMPLETE = "llmaas-new", "llmaas"
"""Labels of volumes: of one that is being made, and of one whose content is there."""
_LOOKED_AT = 1 << 20
# The key is random: no slow derivation makes it harder to guess. AES-XTS with 256 bits, a key of 512 for both halves.
_FORMAT = (
    "--type",
    "luks2",
    "--label",
    _NEW,
    "--cipher",
    "aes-xts-plain64",
    "--key-size",
    "512",
    "--sector-size",
    "4096",
)
_DERIVATION = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
_WRONG_KEY = 2


def disk_named(name: str, sys: Path = Path("/sys/block")) -> Path | None:
    """The device of the disk with this serial number; None if there is none."""
    for serial in sorted(sys.glob("vd*/serial")):
        if serial.read_text().strip() == name:
            return Path("/dev", serial.parent.name)
    return None


class GuestDisks:
    """The volumes of this machine; ``key`` opens them all."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._open: list[tuple[str, Path]] = []
        self._new: set[str] = set()

    def device(self, name: str) -> Path:
        """Raises VmError."""
        found = disk_named(name)
        if found is None:
            raise VmError(f"the guest has no disk {name!r}")
        return found

    def open(self, name: str, where: Path, *, read_only: bool) -> None:
        """Mount the volume on the disk ``name`` at ``where``; a disk that is new gets one. Raises VmError."""
        device = self.device(name)
        is_new = _is_blank(device) or _label(device) == _NEW
        if is_new and read_only:
            raise VmError(f"the disk {name!r} is empty", hint="'llmaas vm import' writes the model to it.")
        if is_new:
            self._cryptsetup(name, "luksFormat", "--batch-mode", *_FORMAT, *_DERIVATION, "--key-file", "-", str(device))
        self._cryptsetup(name, "open", *["--readonly"] * read_only, "--key-file", "-", str(device), name)
        mapped = f"/dev/mapper/{name}"
        if is_new:
            _run("mkfs.ext4", "-q", "-m", "0", mapped)
        elif not read_only:
            _run("fsck.ext4", "-p", mapped, allowed=(0, 1))
        _run("mount", "-t", "ext4", "-o", "ro,noload" if read_only else "rw", mapped, str(where))
        self._open.append((name, where))
        self._new |= {name} if is_new else set()

    def mark_complete(self, name: str) -> None:
        """Its content is there: from now on it is never formatted again. Raises VmError."""
        if name in self._new:
            os.sync()
            _run("cryptsetup", "config", "--label", _COMPLETE, str(self.device(name)))

    def close_all(self) -> list[VmError]:
        """Unmount and close them. What cannot be is returned: the next start looks its file system over."""
        failed = []
        while self._open:
            name, where = self._open.pop()
            try:
                _run("umount", str(where))
                _run("cryptsetup", "close", name)
            except VmError as error:
                failed.append(error)
        os.sync()
        return failed

    def _cryptsetup(self, name: str, *words: str) -> None:
        done = _run("cryptsetup", *words, key=self._key, allowed=(0, _WRONG_KEY))
        if done.returncode:
            raise VmError(f"the key does not open the disk {name!r}", hint="Give the key that it was made with.")


def _is_blank(device: Path) -> bool:
    with device.open("rb") as disk:
        return not disk.read(_LOOKED_AT).strip(b"\0")


def _label(device: Path) -> str:
    """The label in the LUKS header. Raises VmError for a disk that was not made here: it may be somebody's."""
    if _run("cryptsetup", "isLuks", str(device), allowed=(0, 1)).returncode == 0:
        for line in _run("cryptsetup", "luksDump", str(device)).stdout.decode(errors="replace").splitlines():
            name, _, label = line.partition(":")
            if name == "Label" and label.strip() in (_NEW, _COMPLETE):
                return label.strip()
    raise VmError(
        f"{device} is not empty, and holds no volume of llmaas", hint="It may be damaged. Nothing was changed on it."
    )


def _run(*words: str, key: bytes | None = None, allowed: Sequence[int] = (0,)) -> subprocess.CompletedProcess[bytes]:
    """Raises VmError with what the program says."""
    environ = {**os.environ, "DM_DISABLE_UDEV": "1"}  # nobody makes device nodes but the kernel and cryptsetup
    done = subprocess.run(words, input=key or b"", capture_output=True, env=environ, check=False)
    if done.returncode not in allowed:
        said = b" ".join((done.stderr or done.stdout).split()).decode(errors="replace")
        raise VmError(f"{words[0]} {words[1]} failed in the guest ({done.returncode}): {said}")
    return done
